"""The stage `prepare`: sources in, a finished corpus out, or one clear line and nothing at all."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detect_ai import model
from detect_ai.config import SPLITS, Config, SourceConfig, load_config
from detect_ai.corpus import prepare as stage
from detect_ai.corpus import tokenise
from detect_ai.corpus.manifest import Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.errors import CorpusError
from detect_ai.storage import Storage
from detect_ai.text import normalise
from tests import tiny
from tests.integration.runs import files_under

SECRET = "Zebulon"  # stands in every text: no error may repeat it
Rows = list[dict[str, Any]]


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, Rows], object]] = {
    "csv": write_csv,
    "jsonl": tiny.write_jsonl,
    "parquet": write_parquet,
}


@pytest.fixture(scope="module")
def dirty_rows() -> Rows:
    """20 pairs; 2 rows without a letter, 1 duplicate and 1 text with both labels besides."""
    clean = tiny.rows(20)
    again = {**clean[0], "text": str(clean[0]["text"]).upper()}
    torn = [
        {"text": "A text that both have claimed to have written.", "label": label, "group": "torn"} for label in (0, 1)
    ]
    empty = [{"text": text, "label": 0, "group": "empty"} for text in ("", " \u200b\n ")]
    return [*clean, again, *torn, *empty]


def config_for(encoder: Path, root: Path, path: Path, kind: str) -> Config:
    config = tiny.config(encoder, root)
    config.corpus.sources = [SourceConfig(kind=kind, path=str(path), name="made", group="group", licence="CC0")]
    config.corpus.split = {"train": 0.4, "validation": 0.2, "calibration": 0.2, "test": 0.2}
    return config


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, encoder: Path, dirty_rows: Rows
) -> dict[str, tuple[Config, Corpus, dict[str, Any]]]:
    """The same rows prepared from each file format, each under a root of its own."""
    found = {}
    for kind, write in WRITERS.items():
        folder = tmp_path_factory.mktemp(kind)
        write(folder / f"texts.{kind}", dirty_rows)
        config = config_for(encoder, folder / "store", folder / f"texts.{kind}", kind)
        config.corpus.shard_rows = 7 if kind == "jsonl" else 4096
        storage = Storage(config.storage.root)
        result = prepare(config, storage)
        found[kind] = config, Corpus.open(storage, result["corpus"]), result
    return found


@pytest.fixture
def corpus(prepared: dict[str, Any]) -> Corpus:
    found: Corpus = prepared["jsonl"][1]
    return found


def documents(corpus: Corpus) -> dict[str, Rows]:
    """What the formats have in common: the documents of each split, by text."""
    columns = ["text", "label", "group", "input_ids"]
    read = {split: corpus.read(split, columns).to_pylist() for split in SPLITS}
    return {split: sorted(rows, key=lambda row: str(row["text"])) for split, rows in read.items()}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_row_is_in_the_corpus_or_counted_as_dropped(
    kind: str, prepared: dict[str, Any], dirty_rows: Rows
) -> None:
    manifest = prepared[kind][1].manifest
    assert manifest.rows_read == len(dirty_rows)
    assert manifest.dropped == {"empty": 2, "both_labels": 2, "duplicate": 1}
    assert sum(count["rows"] for count in manifest.counts) == len(dirty_rows) - 5


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_corpus_is_the_same_from_every_format(kind: str, prepared: dict[str, Any], corpus: Corpus) -> None:
    assert documents(prepared[kind][1]) == documents(corpus)


def test_the_manifest_counts_what_the_shards_hold(corpus: Corpus) -> None:
    for split in SPLITS:
        labels = corpus.labels(split).tolist()
        counts = [count for count in corpus.manifest.counts if count["split"] == split]
        assert {count["label"]: count["rows"] for count in counts} == {0: labels.count(0), 1: labels.count(1)}
        assert corpus.num_rows(split) == len(labels)


def test_no_group_is_in_two_splits(corpus: Corpus) -> None:
    groups = [set(corpus.read(split, ["group"])["group"].to_pylist()) for split in SPLITS]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20


def test_the_shares_of_the_splits_are_those_of_the_configuration(corpus: Corpus) -> None:
    assert [len(set(corpus.read(split, ["group"])["group"].to_pylist())) for split in SPLITS] == [8, 4, 4, 4]


def test_no_shard_is_larger_than_configured(corpus: Corpus) -> None:
    assert [shard.rows for shard in corpus.shards("train")] == [7, 7, 2]


def test_a_shard_has_the_columns_of_the_contract(corpus: Corpus) -> None:
    table = corpus.read("train", tokenise.SCHEMA.names)
    assert table.schema.remove_metadata() == tokenise.SCHEMA
    assert set(table["attack"].to_pylist()) == {"none"}
    assert set(table["weight"].to_pylist()) == {1.0}
    assert set(table["language"].to_pylist()) == {"en"}


def test_the_token_ids_are_those_of_the_whole_normalised_text(prepared: dict[str, Any], corpus: Corpus) -> None:
    rows = corpus.read("test", ["text", "input_ids", "num_tokens"]).to_pylist()
    expected = model.load_tokenizer(prepared["jsonl"][0].model).encode([normalise(row["text"]).text for row in rows])
    assert [row["input_ids"] for row in rows] == [ids.tolist() for ids in expected]
    assert [row["num_tokens"] for row in rows] == [len(ids) for ids in expected]


def test_a_fresh_corpus_passes_its_own_checksums(corpus: Corpus) -> None:
    corpus.verify()


@pytest.fixture(scope="module")
def elsewhere(prepared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The same inputs prepared under a root where a run was killed before."""
    config, _, first = prepared["csv"]
    root = tmp_path_factory.mktemp("elsewhere")
    storage = Storage(str(root))
    storage.write_bytes(f"{first['corpus']}/train/00009.parquet", b"half a sha")
    return root, prepare(config, storage)


def test_the_same_inputs_have_the_same_fingerprint(
    prepared: dict[str, Any], elsewhere: tuple[Path, dict[str, Any]]
) -> None:
    assert elsewhere[1] == prepared["csv"][2]


def test_what_a_killed_run_left_is_replaced(prepared: dict[str, Any], elsewhere: tuple[Path, dict[str, Any]]) -> None:
    assert elsewhere[1]["fresh"]
    assert files_under(elsewhere[0]) == files_under(Path(prepared["csv"][0].storage.root))


def test_a_second_run_writes_nothing(prepared: dict[str, Any]) -> None:
    config, corpus, first = prepared["jsonl"]
    root = Path(config.storage.root)
    before = {name: (root / name).stat().st_mtime_ns for name in files_under(root)}
    second = prepare(config, corpus.storage)
    assert {name: (root / name).stat().st_mtime_ns for name in files_under(root)} == before
    assert second == {**first, "fresh": False}


@pytest.mark.parametrize("change", ["seed", "byte"])
def test_another_seed_or_byte_makes_another_corpus(
    change: str, prepared: dict[str, Any], dirty_rows: Rows, tmp_path: Path
) -> None:
    config, corpus, first = prepared["parquet"]
    if change == "seed":
        config = replace(config, seed=1)
    else:
        path = tmp_path / "texts.parquet"
        write_parquet(path, [*dirty_rows[:-1], {**dirty_rows[-1], "text": "Q"}])
        sources = [replace(config.corpus.sources[0], path=str(path))]
        config = replace(config, corpus=replace(config.corpus, sources=sources))
    found = prepare(config, Storage(str(tmp_path)))
    assert found["fingerprint"] != corpus.manifest.fingerprint
    assert found["corpus"] != first["corpus"]


@pytest.fixture(scope="module")
def altered(prepared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Corpus]:
    """A finished corpus in which one byte of a shard was changed."""
    config, corpus, _ = prepared["csv"]
    root = tmp_path_factory.mktemp("altered") / "store"
    shutil.copytree(config.storage.root, root)
    shard = root / corpus.shard_key(corpus.shards("test")[0])
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    return config, Corpus.open(Storage(str(root)), corpus.key)


def test_an_altered_shard_is_found(altered: tuple[Config, Corpus]) -> None:
    with pytest.raises(CorpusError, match=r"shard corpora/.*/test/00000\.parquet has sha256 \w+, expected \w+"):
        altered[1].verify()


def test_an_altered_corpus_is_not_taken_for_finished(altered: tuple[Config, Corpus]) -> None:
    config, corpus = altered
    with pytest.raises(CorpusError, match=r"has sha256"):
        prepare(config, corpus.storage)


def test_a_folder_without_a_manifest_is_no_corpus(corpus: Corpus, tmp_path: Path) -> None:
    shutil.copytree(Path(corpus.storage.root) / corpus.key, tmp_path / corpus.key)
    (tmp_path / corpus.key / "manifest.json").unlink()
    with pytest.raises(CorpusError, match=r"no manifest\.json, so it is no finished corpus: run jobs/prepare\.py"):
        Corpus.open(Storage(str(tmp_path)), corpus.key)


def test_a_failure_while_shards_are_written_leaves_nothing(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(table: pa.Table, storage_root: str, key: str) -> pa.Table:
        if table["split"][0].as_py() != "train":
            raise OSError("no space left on the device")
        return tokenise.write_shard(table, storage_root, key)

    monkeypatch.setattr(stage, "write_shard", half)
    with pytest.raises(Exception, match="no space left on the device"):
        prepare(prepared["csv"][0], Storage(str(tmp_path)))
    assert files_under(tmp_path) == []


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("sample")
    config = load_config([f"storage.root={root}"])
    storage = Storage(str(root))
    return Corpus.open(storage, prepare(config, storage)["corpus"])


def test_the_sample_has_293_pairs(sample: Corpus) -> None:
    assert sample.manifest.rows_read == 2 * 293
    assert sample.manifest.dropped == {"empty": 0, "both_labels": 0, "duplicate": 0}


def test_the_sample_is_split_60_10_15_15_by_pair(sample: Corpus) -> None:
    pairs = {}
    for split in SPLITS:
        table = sample.read(split, ["group", "label"]).to_pandas()
        assert (table.groupby("group")["label"].apply(sorted).map(tuple) == (0, 1)).all()
        pairs[split] = table["group"].nunique()
    assert pairs == {"train": 176, "validation": 29, "calibration": 44, "test": 44}


def test_gensim_is_read_and_not_imported(sample: Corpus) -> None:
    assert "gensim" not in sys.modules


def refused(config: Config, tmp_path: Path) -> str:
    """The error of a source that cannot be used; nothing may be written, and no text repeated."""
    with pytest.raises(CorpusError) as caught:
        prepare(config, Storage(config.storage.root))
    assert files_under(tmp_path / "store") == []
    assert SECRET not in str(caught.value)
    return str(caught.value)


GOOD = [{"text": f"{SECRET} wrote {i} letters", "label": i % 2, "group": f"g{i // 2}"} for i in range(20)]


def with_label(value: object) -> Rows:
    return [*GOOD[:7], {**GOOD[7], "label": value}, *GOOD[8:]]


def csv_of(rows: Rows) -> bytes:
    lines = ["text,label,group", *(f"{row['text']},{row['label']},{row['group']}" for row in rows)]
    return "\n".join(lines).encode() + b"\n"


def jsonl_of(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet_of(rows: Rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


ONE_CLASS = [{**row, "label": 0} if row["group"] != "g0" else row for row in GOOD]
SWAPPED = [{**row, "text": "a", "label": row["text"]} for row in GOOD]
HALVES = [{**row, "label": row["label"] / 2} for row in GOOD]
WRONG_LABEL = "column 'label' holds {}; expected 0 (human) or 1 (ai) in every row"
UNREADABLE = "cannot be read as {}"
EMPTY = "empty, expected rows of text and label"
BAD_SOURCES = {
    "other columns": (
        *("csv", csv_of(GOOD).replace(b"text,label", b"body,verdict")),
        "no column 'text', 'label'; found 'body', 'verdict', 'group'",
    ),
    "no group": ("jsonl", jsonl_of([{"text": "a", "label": 0}]), "no column 'group'; found 'text', 'label'"),
    "label yes": ("csv", csv_of(with_label("yes")), WRONG_LABEL.format("'yes'")),
    "label 2": ("jsonl", jsonl_of(with_label(2)), WRONG_LABEL.format("'2'")),
    "label 0.5": ("parquet", parquet_of(HALVES), WRONG_LABEL.format("'0.5'")),
    "label NaN": ("csv", csv_of(with_label("nan")), WRONG_LABEL.format("'None'")),
    "label missing": ("jsonl", jsonl_of(with_label(None)), WRONG_LABEL.format("'None'")),
    "texts as labels": ("jsonl", jsonl_of(SWAPPED), WRONG_LABEL.format("a value of 23 characters")),
    "one class in a split": ("jsonl", jsonl_of(ONE_CLASS), "expected both classes in every split"),
    "empty file": ("jsonl", b"", EMPTY),
    "header only": ("csv", b"text,label,group\n", EMPTY),
    "only empty texts": ("jsonl", jsonl_of([{**row, "text": " "} for row in GOOD]), "the sources hold no rows"),
    "truncated parquet": ("parquet", parquet_of(GOOD)[:-100], UNREADABLE.format("parquet")),
    "broken JSON": ("jsonl", jsonl_of(GOOD) + b'{"text": "Zebulon', UNREADABLE.format("jsonl")),
    "ragged CSV": ("csv", csv_of(GOOD) + b"Zebulon, too, 1, g3, more\n", UNREADABLE.format("csv")),
    "not UTF-8": ("csv", csv_of(GOOD) + b"Zebulon \xff\xfe,1,g0\n", UNREADABLE.format("csv")),
}


@pytest.mark.parametrize("what", BAD_SOURCES)
def test_a_bad_source_is_refused_in_one_line_and_nothing_is_written(what: str, encoder: Path, tmp_path: Path) -> None:
    kind, content, expected = BAD_SOURCES[what]
    path = tmp_path / f"texts.{kind}"
    path.write_bytes(content)
    said = refused(config_for(encoder, tmp_path / "store", path, kind), tmp_path)
    assert expected in said
    assert "\n" not in said


def test_a_missing_file_is_named(encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "nowhere.csv"
    assert refused(config_for(encoder, tmp_path / "store", path, "csv"), tmp_path).startswith(
        f"source {path}: no such file or folder. Under `ray job submit` a relative path is one of the working directory"
    )


def test_a_file_that_is_broken_behind_a_good_one_is_refused(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.csv").write_bytes(csv_of(GOOD))
    (folder / "b.csv").write_bytes(csv_of(GOOD) + b"Zebulon, too, 1, g3, more\n")
    said = refused(config_for(encoder, tmp_path / "store", folder, "csv"), tmp_path)
    assert said.startswith(f"source {folder}: cannot be read as csv")
