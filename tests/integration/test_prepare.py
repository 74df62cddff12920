"""The stage `prepare`: a corpus from dirty sources, identical after any interruption, or one error and no files."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from detect_ai.core.compose import load_config
from detect_ai.core.config import SPLITS, Config, SourceConfig
from detect_ai.core.errors import CorpusError
from detect_ai.core.storage import Storage
from detect_ai.corpus import augment, shards
from detect_ai.corpus import prepare as stage
from detect_ai.corpus.manifest import ORIGINAL, QUARANTINE, Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.corpus.shards import SCHEMA, write_shards
from tests.e2e.conftest import CHECKOUT
from tests.fixtures import tiny_models
from tests.integration.runs import config_for, files_under

GERMAN = (
    "Der Rat hat am Dienstag beschlossen, die alte Brücke zu schließen, weil sie schon lange nicht mehr sicher ist. "
    "Die Arbeiten werden etwa sechs Monate dauern, und bis dahin fahren die Busse über die neue Straße am Fluss."
)
REFUSAL = "I'm sorry, but as an AI language model I cannot write this essay for you."
DROPPED = {
    **{"bad_encoding": 1, "bad_row": 1, "boilerplate": 1, "both_labels": 2, "contaminated": 1, "duplicate": 1},
    **{"empty": 1, "language": 1, "no_text": 1, "too_short": 1},
}
ATTACKS = ["article_deletion", "upper_lower"]
ESSAYS = [tiny_models.text("human" if i % 2 else "ai", random.Random(i), 120) for i in range(60)]


def edited(text: str) -> str:
    return text.replace(text.split()[60], "Zanzibar", 1)


@dataclass(frozen=True)
class Prepared:
    """A finished run of `prepare`."""

    config: Config
    corpus: Corpus
    result: dict[str, Any]
    rows_read: int

    @property
    def root(self) -> Path:
        return Path(self.config.storage.root)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Iterator[Prepared]:
    """Essays, near duplicates of twenty of them, a row for each reason to drop rows, an evaluation set and copies."""
    folder = tmp_path_factory.mktemp("prepared")
    rows: list[dict[str, Any]] = [
        {"text": text, "label": i % 2, "group": f"g{i // 2}", "how": ""} for i, text in enumerate(ESSAYS)
    ]
    rows += [{**row, "text": edited(row["text"]), "group": f"{row['group']}-late"} for row in rows[:20]]
    rows.append({**rows[30], "text": rows[30]["text"].upper()})
    rows += [{"text": "A text that both have claimed to have written.", "label": i, "group": "both"} for i in (0, 1)]
    rows += [{"text": text, "label": 0, "group": "other"} for text in (" \u200b\n ", "Two words.", GERMAN, "", REFUSAL)]
    path = tiny_models.write_jsonl(folder / "texts.jsonl", rows)
    path.write_bytes(path.read_bytes() + b'{"text": broken\n{"text": "ol\xe9", "label": 1, "group": "x"}\n')
    tiny_models.write_jsonl(
        folder / "exam.jsonl",
        [{"id": "e1", "text": edited(ESSAYS[47])}, {"id": "e2", "text": tiny_models.text("ai", random.Random(99), 90)}],
    )
    config = config_for(encoder, folder / "store", path, "jsonl")
    config.corpus.sources[0].attack = "how"
    config.corpus.against = [SourceConfig(kind="jsonl", path=str(folder / "exam.jsonl"), name="exam", id="id")]
    config.corpus.augment = list(ATTACKS)
    storage = Storage(config.storage.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_ROWS", 17)
        patch.setattr(augment, "COPIED", 0.5)
        result = prepare(config, storage)
        yield Prepared(config, Corpus.open(storage, result["corpus"]), result, len(rows) + 2)


def test_every_row_is_kept_or_in_the_quarantine(prepared: Prepared) -> None:
    manifest, corpus = prepared.corpus.manifest, prepared.corpus
    assert manifest.rows_read == prepared.rows_read
    assert manifest.dropped == DROPPED
    rows = corpus.read(QUARANTINE, ["text", "reason", "duplicate_of"]).to_pylist()
    reasons = [row["reason"] for row in rows]
    assert {reason: reasons.count(reason) for reason in reasons} == DROPPED
    assert {row["reason"] for row in rows if row["duplicate_of"]} == {"duplicate", "both_labels", "contaminated"}
    assert {row["text"] for row in rows if row["reason"] == "language"} == {GERMAN}
    kept = sum(row["rows"] for row in manifest.counts if row["attack"] == ORIGINAL)
    assert kept == manifest.rows_read - sum(DROPPED.values())


def test_manifest_counts_the_shards(prepared: Prepared) -> None:
    corpus = prepared.corpus
    corpus.verify()
    for split in SPLITS:
        labels = corpus.labels(split).tolist()
        rows = [row for row in corpus.manifest.counts if row["split"] == split]
        counts = {label: sum(row["rows"] for row in rows if row["label"] == label) for label in (0, 1)}
        assert counts == {0: labels.count(0), 1: labels.count(1)}
        assert corpus.num_rows(split) == len(labels) == prepared.result["rows"][split]
    assert max(shard.rows for shard in corpus.shards("test")) <= 17


def test_groups_and_near_duplicates_share_a_split(prepared: Prepared) -> None:
    where, groups = {}, []
    for split in SPLITS:
        rows = prepared.corpus.read(split, ["text", "group"]).to_pylist()
        where |= {row["text"]: split for row in rows}
        groups.append({row["group"] for row in rows})
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert prepared.corpus.manifest.near_duplicates == {"clusters": 20, "texts": 40, "largest": 2}
    assert all(where[text] == where[edited(text)] for text in ESSAYS[:20])


def test_contaminated_rows_name_their_duplicate(prepared: Prepared) -> None:
    rows = prepared.corpus.read(QUARANTINE, ["text", "reason", "duplicate_of"]).to_pylist()
    (row,) = [row for row in rows if row["reason"] == "contaminated"]
    assert (row["text"], row["duplicate_of"]) == (ESSAYS[47], "e1")
    assert prepared.result["contamination"] == {"exam": 1}


def test_augmented_copies_are_in_the_training_split(prepared: Prepared) -> None:
    columns = ["id", "text", "group", "attack", "label"]
    train = prepared.corpus.read("train", columns).to_pandas().set_index("id")
    copies = train[train["attack"] != ORIGINAL]
    assert set(copies["attack"]) == set(ATTACKS)
    for name, copy in copies.iterrows():
        original = train.loc[str(name).rpartition("+")[0]]
        assert (copy["group"], copy["label"], original["attack"]) == (original["group"], original["label"], ORIGINAL)
        assert copy["text"] != original["text"]
    attacks = {
        attack for split in SPLITS[1:] for attack in prepared.corpus.read(split, ["attack"])["attack"].to_pylist()
    }
    assert attacks == {ORIGINAL}


def test_shards_have_the_contract_columns(prepared: Prepared) -> None:
    table = prepared.corpus.read("test", SCHEMA.names)
    assert table.schema.remove_metadata() == SCHEMA
    assert table["num_tokens"].to_pylist() == [len(ids) for ids in table["input_ids"].to_pylist()]


def test_interrupted_run_with_other_workers_gives_the_same_corpus(prepared: Prepared, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes(f"{prepared.corpus.key}/train/00009.parquet", b"half a sha")
    config = pickle.loads(pickle.dumps(prepared.config))
    config.corpus.workers = 1
    assert prepare(config, storage) == prepared.result
    assert files_under(tmp_path) == files_under(prepared.root)
    assert Corpus.open(storage, prepared.corpus.key).manifest == prepared.corpus.manifest


def test_second_run_writes_nothing(prepared: Prepared) -> None:
    before = {name: (prepared.root / name).stat().st_mtime_ns for name in files_under(prepared.root)}
    assert prepare(prepared.config, prepared.corpus.storage) == {**prepared.result, "fresh": False}
    assert {name: (prepared.root / name).stat().st_mtime_ns for name in files_under(prepared.root)} == before


def test_altered_corpus_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    shutil.copytree(prepared.root, tmp_path / "store")
    shard = tmp_path / "store" / prepared.corpus.shard_key(prepared.corpus.shards("test")[0])
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorpusError, match="sha256"):
        prepare(prepared.config, Storage(str(tmp_path / "store")))


def test_failure_leaves_no_files(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> list[Any]:
        write_shards(*arguments)
        assert files_under(tmp_path)
        raise OSError("no space left on the device")

    monkeypatch.setattr(stage, "write_shards", fail)
    with pytest.raises(OSError, match="no space left"):
        prepare(prepared.config, Storage(str(tmp_path)))
    assert files_under(tmp_path) == []


def test_worker_error_is_one_line(encoder: Path, tmp_path: Path) -> None:
    path = tiny_models.write_jsonl(tmp_path / "texts.jsonl", [{"text": "Zebulon wrote.", "label": 2, "group": "g"}])
    with pytest.raises(CorpusError) as refused:
        prepare(config_for(encoder, tmp_path / "store", path, "jsonl"), Storage(str(tmp_path / "store")))
    message = str(refused.value)
    assert message.startswith(f"source {path}: column 'label' holds '2'")
    assert "\n" not in message
    assert "Zebulon" not in message
    assert files_under(tmp_path / "store") == []


@pytest.mark.slow
def test_killed_run_is_repeated(prepared: Prepared, tmp_path: Path) -> None:
    code = (
        "import pickle, sys; from detect_ai.corpus.prepare import prepare; from detect_ai.core.storage import Storage\n"
        "prepare(pickle.load(open(sys.argv[1], 'rb')), Storage(sys.argv[2]))"
    )
    (tmp_path / "config").write_bytes(pickle.dumps(prepared.config))
    root = tmp_path / "store"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", code, str(tmp_path / "config"), str(root)]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    until = time.monotonic() + 120
    while not list(root.rglob("*.parquet")) and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert files_under(root)
    assert not list(root.rglob("manifest.json"))
    assert prepare(prepared.config, Storage(str(root))) == prepared.result
    assert files_under(root) == files_under(prepared.root)


def test_sample_is_split_by_pair(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    corpus = Corpus.open(storage, prepare(load_config([f"storage.root={tmp_path}"]), storage)["corpus"])
    assert (corpus.manifest.rows_read, corpus.manifest.dropped) == (2 * 293, {})
    pairs = {}
    for split in SPLITS:
        table = corpus.read(split, ["group", "label"]).to_pandas()
        assert (table.groupby("group")["label"].apply(sorted).map(tuple) == (0, 1)).all()
        pairs[split] = table["group"].nunique()
    assert pairs == {"train": 176, "validation": 29, "calibration": 44, "test": 44}
    rows = corpus.read("test", ["group", "num_tokens"]).to_pylist()
    long = {row["group"] for row in rows} - {row["group"] for row in rows if row["num_tokens"] <= 200}
    assert f'PAIR = "{min(long)}"' in (CHECKOUT / "examples/demo.py").read_text("utf-8")  # not chosen by its score
