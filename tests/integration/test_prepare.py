"""The stage `prepare`: sources in, a finished corpus out, or one clear line and nothing at all."""

from __future__ import annotations

import csv
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detect_ai.core.config import SPLITS, Config, load_config
from detect_ai.core.errors import CorpusError
from detect_ai.core.storage import Storage
from detect_ai.corpus import prepare as stage
from detect_ai.corpus import shards, tokenise
from detect_ai.corpus.manifest import QUARANTINE, Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.models import encoder as model
from detect_ai.text.normalize import normalise
from tests.e2e.conftest import CHECKOUT
from tests.fixtures import tiny_models
from tests.integration.runs import config_for, files_under

GERMAN = (
    "Der Rat hat am Dienstag beschlossen, die alte Brücke zu schließen, weil sie schon lange nicht mehr sicher ist. "
    "Die Arbeiten werden etwa sechs Monate dauern, und bis dahin fahren die Busse über die neue Straße am Fluss."
)
REFUSAL = "I'm sorry, but as an AI language model I cannot write this essay for you."
DROPPED = {
    **{"boilerplate": 1, "both_labels": 2, "duplicate": 1, "empty": 1},
    **{"language": 1, "no_text": 1, "too_short": 1},
}
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
    "jsonl": tiny_models.write_jsonl,
    "parquet": write_parquet,
}


@pytest.fixture(scope="module")
def dirty_rows() -> Rows:
    """20 pairs, and besides: what each reason drops."""
    clean = tiny_models.rows(20)
    again = {**clean[0], "text": str(clean[0]["text"]).upper()}
    torn = [
        {"text": "A text that both have claimed to have written.", "label": label, "group": "torn"} for label in (0, 1)
    ]
    other = [{"text": text, "label": 0, "group": "other"} for text in (" \u200b\n ", "Two words.", GERMAN, "", REFUSAL)]
    return [*clean, again, *torn, *other]


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
    assert manifest.dropped == DROPPED
    assert sum(count["rows"] for count in manifest.counts) == len(dirty_rows) - sum(DROPPED.values())


@pytest.mark.parametrize("kind", WRITERS)
def test_what_was_dropped_lies_in_the_quarantine_with_its_reason(kind: str, prepared: dict[str, Any]) -> None:
    rows = prepared[kind][1].read(QUARANTINE, ["id", "text", "label", "reason", "twin"]).to_pylist()
    reasons = [row["reason"] for row in rows]
    assert {reason: reasons.count(reason) for reason in reasons} == DROPPED
    assert {row["reason"] for row in rows if row["twin"]} == {"duplicate", "both_labels"}
    assert {row["text"] for row in rows if row["reason"] == "language"} == {GERMAN}


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
    assert set(table["language"].to_pylist()) <= {"en", ""}  # a made-up text may be in none


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
        config = config.model_copy(update={"seed": 1})
    else:
        path = tmp_path / "texts.parquet"
        write_parquet(path, [*dirty_rows[:-1], {**dirty_rows[-1], "text": "Q"}])
        sources = [config.corpus.sources[0].model_copy(update={"path": str(path)})]
        config = config.model_copy(update={"corpus": config.corpus.model_copy(update={"sources": sources})})
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
    def half(*arguments: Any) -> list[Any]:
        written = shards.write_shards(*arguments)
        assert files_under(tmp_path)
        raise OSError(f"no space left on the device behind {len(written)} shards")

    monkeypatch.setattr(stage, "write_shards", half)
    with pytest.raises(OSError, match="no space left on the device"):
        prepare(prepared["csv"][0], Storage(str(tmp_path)))
    assert files_under(tmp_path) == []


@pytest.mark.slow
def test_prepare_killed_at_any_time_makes_the_same_corpus_the_next_time(
    prepared: dict[str, Any], tmp_path: Path
) -> None:
    config, _, first = prepared["csv"]
    code = (
        "import pickle, sys; from detect_ai.corpus.prepare import prepare; from detect_ai.core.storage import Storage\n"
        "prepare(pickle.load(open(sys.argv[1], 'rb')), Storage(sys.argv[2]))"
    )
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    root = tmp_path / "store"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "config"), str(root)], env=environment, start_new_session=True
    )
    until = time.monotonic() + 120
    while not list(root.rglob("*.parquet")) and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert files_under(root)
    assert not list(root.rglob("manifest.json"))
    found = prepare(config, Storage(str(root)))
    assert {**found, "fresh": True} == first
    assert files_under(root) == files_under(Path(config.storage.root))


def test_the_corpus_does_not_hang_on_the_number_of_workers(prepared: dict[str, Any], tmp_path: Path) -> None:
    config, corpus, first = prepared["jsonl"]
    config = config.model_copy(update={"corpus": config.corpus.model_copy(update={"workers": 1})})
    assert prepare(config, Storage(str(tmp_path))) == first
    assert Corpus.open(Storage(str(tmp_path)), first["corpus"]).manifest == corpus.manifest


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("sample")
    config = load_config([f"storage.root={root}"])
    storage = Storage(str(root))
    return Corpus.open(storage, prepare(config, storage)["corpus"])


def test_the_sample_has_293_pairs(sample: Corpus) -> None:
    assert sample.manifest.rows_read == 2 * 293
    assert sample.manifest.dropped == {}


def test_the_sample_is_split_60_10_15_15_by_pair(sample: Corpus) -> None:
    pairs = {}
    for split in SPLITS:
        table = sample.read(split, ["group", "label"]).to_pandas()
        assert (table.groupby("group")["label"].apply(sorted).map(tuple) == (0, 1)).all()
        pairs[split] = table["group"].nunique()
    assert pairs == {"train": 176, "validation": 29, "calibration": 44, "test": 44}


def test_the_pair_of_the_demo_is_in_the_test_split_and_long_enough(sample: Corpus) -> None:
    sys.path.insert(0, str(CHECKOUT / "examples"))
    try:
        from demo import PAIR
    finally:
        sys.path.pop(0)
    rows = sample.read("test", ["group", "label", "num_tokens"]).to_pylist()
    pair = sorted(row["label"] for row in rows if row["group"] == PAIR)
    assert pair == [0, 1]
    assert min(row["num_tokens"] for row in rows if row["group"] == PAIR) > 200
    complete = {row["group"] for row in rows} - {row["group"] for row in rows if row["num_tokens"] <= 200}
    assert min(complete) == PAIR  # the first by name: not chosen by its score


def test_gensim_is_read_and_not_imported(sample: Corpus) -> None:
    assert "gensim" not in sys.modules
