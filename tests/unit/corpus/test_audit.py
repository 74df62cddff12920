"""The stage `audit` and its report, on a small corpus."""

import hashlib
import json
import random
from collections import Counter
from dataclasses import asdict

import pyarrow as pa
import pytest

from detect_ai.core.config import SPLITS, Config
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.corpus import audit as stage
from detect_ai.corpus import manifest
from detect_ai.corpus.audit import audit, audit_corpus
from detect_ai.corpus.manifest import ORIGINAL, QUARANTINE, Corpus, Manifest, Shard
from detect_ai.corpus.shards import QUARANTINE_SCHEMA, SCHEMA, parquet
from detect_ai.reports.corpus import corpus_report
from tests.fixtures import tiny_models

KEY = "corpora/small-000000000000"
SECRET = "Zebulon"
EVIL = "$x$ <script>alert(1)</script> & so on"
ROWS = {"train": 120, "validation": 40, "calibration": 40, "test": 40}
SHARD_ROWS = 50
DROPPED = {"duplicate": 30, "too_short": 2, "over_limit": 5}


def rows_of(split):
    """AI texts are twice as long, and contain a word that the report must not repeat."""
    rng = random.Random(split)
    rows = []
    for i in range(ROWS[split]):
        label = i % 2
        text = f"{tiny_models.text('human', rng, (label + 1) * rng.randint(60, 90))} {SECRET if label else ''}".strip()
        ids = [1] * len(text.split())
        names = {"source": EVIL, "domain": ("news", "letters")[i // 2 % 2], "generator": ("", f"{EVIL} 4")[label]}
        row = {"id": f"{split}-{i}", "text": text, "label": label, "group": f"{split}-{i // 2}", "language": "en"}
        rows.append({**row, **names, "attack": ORIGINAL, "weight": 1.0, "input_ids": ids, "num_tokens": len(ids)})
    return rows


def write_corpus(root):
    """A finished corpus with a quarantine, and the result of `prepare` that names it."""
    storage, shards = Storage(str(root)), []
    rows = {split: rows_of(split) for split in SPLITS}
    dropped = [{**row, "reason": "duplicate", "duplicate_of": "train-1"} for row in rows["train"][:30]]
    dropped += [{**row, "reason": "too_short", "duplicate_of": ""} for row in rows["test"][:2]]
    for split, members in {**rows, QUARANTINE: dropped}.items():
        schema = QUARANTINE_SCHEMA if split == QUARANTINE else SCHEMA
        for number, start in enumerate(range(0, len(members), SHARD_ROWS)):
            part = members[start : start + SHARD_ROWS]
            data = parquet(pa.Table.from_pylist(part, schema), schema)
            storage.write_bytes(f"{KEY}/{split}/{number:05d}.parquet", data)
            shards.append(Shard(split, f"{number:05d}.parquet", len(part), hashlib.sha256(data).hexdigest()))
    names = ("label", "source", "domain", "generator", "attack")
    counted = Counter((split, *(row[name] for name in names)) for split in SPLITS for row in rows[split])
    corpus = Manifest(
        name="small",
        fingerprint="f00d" * 16,
        sources=[{"name": EVIL, "kind": "csv", "licence": "CC0", "path": "/somewhere/private.csv"}],
        language="en",
        seed=7,
        tokenizer="t" * 64,
        normaliser_version=1,
        rows_read=sum(ROWS.values()) + sum(DROPPED.values()),
        dropped=DROPPED,
        counts=[{**dict(zip(("split", *names), key, strict=True)), "rows": n} for key, n in counted.items()],
        shards=shards,
        near_duplicates={"clusters": 3, "texts": 7, "largest": 3},
        contamination={"held-out essays": 4},
    )
    storage.write_json(f"{KEY}/manifest.json", asdict(corpus))
    storage.write_json("runs/default/prepare.json", {"result": {"corpus": KEY}})
    return storage


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def result(storage):
    return audit(Config(), storage)


@pytest.fixture(scope="module")
def report(storage, result):
    return storage.read_json(result["report_json"])


def test_result(result):
    assert (result["corpus"], result["fingerprint"], result["texts_audited"]) == (KEY, "f00d" * 16, 240)
    assert result["baseline"]["auroc"] > 0.9
    assert result["strongest_features"]["words"] > 0.95
    assert any("words alone gives AUROC" in warning for warning in result["warnings"])
    assert json.loads(json.dumps(result)) == result


def test_report_covers_the_whole_corpus(report):
    assert report["corpus"]["rows"] == ROWS
    assert sum(count["rows"] for count in report["counts"]) == sum(ROWS.values())
    assert report["quarantine"] == [
        {"reason": "duplicate", "source": EVIL, "rows": 30},
        {"reason": "too_short", "source": EVIL, "rows": 2},
    ]
    for label, name in enumerate(("human", "ai")):
        tokens = [row["num_tokens"] for split in SPLITS for row in rows_of(split) if row["label"] == label]
        lengths = report["lengths"][name]
        assert lengths["mean"] == pytest.approx(sum(tokens) / len(tokens))
        assert sum(lengths["counts"]) == len(tokens)
        assert min(tokens) < lengths["p50"] < max(tokens)


def test_report_contains_no_text_or_path(storage, result, report):
    page = storage.read_bytes(result["report"]).decode()
    assert corpus_report(report) == page
    for content in (page, json.dumps(report)):
        assert SECRET not in content
        assert "private.csv" not in content


def test_audit_reads_leading_rows_only(tmp_path, monkeypatch):
    storage = write_corpus(tmp_path)
    storage.delete(f"{KEY}/train/00001.parquet")
    storage.delete(f"{KEY}/train/00002.parquet")
    monkeypatch.setattr(stage, "MAX_ROWS", {"train": 49, "validation": 10, "calibration": 20, "test": 30})
    result = audit_corpus(Corpus.open(storage, KEY))
    assert result.n_human + result.n_ai == 49 + 10 + 20 + 30


def test_audit_bounds_characters(storage, monkeypatch):
    monkeypatch.setattr(manifest, "READ_AT_ONCE", 10)
    monkeypatch.setattr(stage, "MAX_CHARACTERS", 10)
    result = audit_corpus(Corpus.open(storage, KEY))
    assert result.n_human + result.n_ai == 40


def test_missing_corpus_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"run=default"):
        audit(Config(), Storage(str(tmp_path)))
