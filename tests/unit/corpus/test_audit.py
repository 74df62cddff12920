"""The stage `audit` and its report, on a small corpus."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detect_ai.core.config import SPLITS, Config
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.corpus import audit, manifest
from detect_ai.corpus.audit import audit_corpus, inspect
from detect_ai.corpus.manifest import QUARANTINE, Corpus, Manifest, Shard
from detect_ai.corpus.shards import QUARANTINE_SCHEMA, SCHEMA
from detect_ai.reports.corpus import corpus_report
from tests.fixtures import tiny_models

KEY = "corpora/made-000000000000"
SECRET = "Zebulon"
EVIL = "$x$ <script>alert(1)</script> & so on"
ROWS = {"train": 120, "validation": 40, "calibration": 40, "test": 40}
SHARD_ROWS = 50
DROPPED = {"duplicate": 30, "too_short": 2, "over_limit": 5}


def made_rows(split: str) -> list[dict[str, Any]]:
    """AI texts are twice as long, and say a word that may stand nowhere else."""
    rng = random.Random(split)
    rows = []
    for i in range(ROWS[split]):
        label = i % 2
        text = f"{tiny_models.text('human', rng, (label + 1) * rng.randint(60, 90))} {SECRET if label else ''}".strip()
        rows.append(
            {
                "id": f"{split}-{i}",
                "text": text,
                "label": label,
                "source": EVIL,
                "domain": ("news", "letters")[i // 2 % 2],
                "generator": ("", f"{EVIL} 4")[label],
                "group": f"{split}-{i // 2}",
                "language": "en",
                "attack": "none",
                "weight": 1.0,
                "input_ids": [1] * len(text.split()),
                "num_tokens": len(text.split()),
            }
        )
    return rows


def put(storage: Storage, split: str, rows: list[dict[str, Any]], schema: pa.Schema) -> list[Shard]:
    shards = []
    for number, start in enumerate(range(0, len(rows), SHARD_ROWS)):
        part = rows[start : start + SHARD_ROWS]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(part, schema), sink, compression="zstd")
        name = f"{number:05d}.parquet"
        storage.write_bytes(f"{KEY}/{split}/{name}", sink.getvalue())
        shards.append(Shard(split, name, len(part), hashlib.sha256(sink.getvalue()).hexdigest()))
    return shards


def make_corpus(root: Path) -> Storage:
    """A finished corpus with a quarantine, and the result of `prepare` that names it."""
    storage = Storage(str(root))
    rows = {split: made_rows(split) for split in SPLITS}
    shards = [shard for split in SPLITS for shard in put(storage, split, rows[split], SCHEMA)]
    bad = [{**row, "reason": "duplicate", "twin": "train-1"} for row in rows["train"][:30]]
    bad += [{**row, "reason": "too_short", "twin": ""} for row in rows["test"][:2]]
    kept = [{name: row[name] for name in QUARANTINE_SCHEMA.names} for row in bad]
    shards += put(storage, QUARANTINE, kept, QUARANTINE_SCHEMA)
    names = ("label", "source", "domain", "generator", "attack")
    counted = Counter((split, *(row[name] for name in names)) for split in SPLITS for row in rows[split])
    manifest = Manifest(
        name="made",
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
    storage.write_json(f"{KEY}/manifest.json", asdict(manifest))
    storage.write_json("runs/default/prepare.json", {"result": {"corpus": KEY}})
    return storage


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return make_corpus(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def result(storage: Storage) -> dict[str, Any]:
    return inspect(Config(), storage)


@pytest.fixture(scope="module")
def report(storage: Storage, result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = storage.read_json(result["report_json"])
    return found


@pytest.fixture(scope="module")
def page(storage: Storage, result: dict[str, Any]) -> str:
    return storage.read_bytes(result["report"]).decode()


def test_result(result: dict[str, Any]) -> None:
    assert (result["report"], result["report_json"]) == (
        "runs/default/audit/report.html",
        "runs/default/audit/report.json",
    )
    assert (result["corpus"], result["fingerprint"], result["texts_audited"]) == (KEY, "f00d" * 16, 240)
    assert result["baseline"]["auroc"] > 0.9
    assert result["strongest_features"]["words"] > 0.95
    assert any("words alone gives AUROC" in warning for warning in result["warnings"])
    assert json.loads(json.dumps(result)) == result


def test_counts_cover_the_whole_corpus(report: dict[str, Any]) -> None:
    assert report["corpus"]["rows"] == ROWS
    assert sum(count["rows"] for count in report["counts"]) == sum(ROWS.values())
    assert sum(report["lengths"]["human"]["counts"]) == sum(report["lengths"]["ai"]["counts"]) == sum(ROWS.values()) / 2


def test_lengths_in_tokens(report: dict[str, Any]) -> None:
    tokens = {0: [], 1: []}
    for split in SPLITS:
        for row in made_rows(split):
            tokens[row["label"]].append(row["num_tokens"])
    for label, name in enumerate(("human", "ai")):
        assert report["lengths"][name]["mean"] == pytest.approx(sum(tokens[label]) / len(tokens[label]))
        assert min(tokens[label]) < report["lengths"][name]["p50"] < max(tokens[label])


def test_quarantine_by_reason_and_source(report: dict[str, Any]) -> None:
    assert report["quarantine"] == [
        {"reason": "duplicate", "source": EVIL, "rows": 30},
        {"reason": "too_short", "source": EVIL, "rows": 2},
    ]


def test_page_is_rendered_from_the_json(report: dict[str, Any], page: str) -> None:
    assert corpus_report(report) == page


def test_report_contains_no_text_or_path(page: str, report: dict[str, Any]) -> None:
    for said in (page, json.dumps(report)):
        assert SECRET not in said
        assert "private.csv" not in said


def test_audit_reads_leading_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = make_corpus(tmp_path)
    storage.delete(f"{KEY}/train/00001.parquet")
    storage.delete(f"{KEY}/train/00002.parquet")
    monkeypatch.setattr(audit, "MAX_ROWS", {"train": 49, "validation": 10, "calibration": 20, "test": 30})
    found = audit_corpus(Corpus.open(storage, KEY))
    assert found.n_human + found.n_ai == 49 + 10 + 20 + 30


def test_audit_bounds_characters(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "READ_AT_ONCE", 10)
    monkeypatch.setattr(audit, "MAX_CHARACTERS", 10)
    found = audit_corpus(Corpus.open(storage, KEY))
    assert found.n_human + found.n_ai == 40


def test_missing_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run `python jobs/prepare\.py run=default` first"):
        inspect(Config(), Storage(str(tmp_path)))
