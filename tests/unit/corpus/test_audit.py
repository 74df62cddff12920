"""The stage `audit` and its report, on a small corpus."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest

from detect_ai.core.config import SPLITS, CalibrationConfig, Config
from detect_ai.core.storage import Storage
from detect_ai.corpus import audit as stage
from detect_ai.corpus import manifest
from detect_ai.corpus.audit import audit, count_warnings, shortcut_warnings
from detect_ai.corpus.manifest import QUARANTINE
from tests.fixtures import tiny_models
from tests.fixtures.corpora import row, write_corpus
from tests.unit.reports.test_evaluation import EVIL, page_of

KEY = "corpora/made-0123"
SECRET = "Zebulon"
ROWS = {"train": 120, "validation": 40, "calibration": 40, "test": 40}


def rows_of(split):
    """AI texts are twice as long, and contain a word that the report must not repeat."""
    rng, rows = random.Random(split), []
    for i in range(ROWS[split]):
        label = i % 2
        text = tiny_models.text("human", rng, (label + 1) * rng.randint(60, 90)) + label * f" {SECRET}"
        names = {"source": EVIL, "domain": ("news", "letters")[i // 2 % 2], "generator": ("", f"{EVIL} 4")[label]}
        rows.append(row(i, label, text, **names))
    return rows


def storage_with_corpus(root):
    """A finished corpus with a quarantine, and the result of `prepare` that names it."""
    storage, rows = Storage(str(root)), {split: rows_of(split) for split in SPLITS}
    dropped = [{**row, "reason": "duplicate", "duplicate_of": "train-1"} for row in rows["train"][:30]]
    dropped += [{**row, "reason": "too_short", "duplicate_of": ""} for row in rows["test"][:2]]
    sources = [{"name": EVIL, "kind": "csv", "licence": "CC0", "path": "/somewhere/private.csv"}]
    write_corpus(storage, KEY, {**rows, QUARANTINE: dropped}, sources=sources)
    storage.write_json("runs/default/prepare.json", {"result": {"corpus": KEY}})
    return storage


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return storage_with_corpus(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def result(storage):
    return audit(Config(), storage)


@pytest.fixture(scope="module")
def report(storage, result):
    return storage.read_json(result["report_json"])


def test_result(result):
    assert (result["corpus"], result["texts_audited"]) == (KEY, 240)
    assert result["baseline"]["auroc"] > 0.9
    assert result["strongest_features"]["words"] > 0.95
    assert json.loads(json.dumps(result)) == result


def test_report_covers_the_whole_corpus(report):
    split_sizes = {row["value"]: row["human"] + row["ai"] for row in report["contents"]["split"]}
    assert split_sizes == ROWS
    assert {row["value"]: row["ai"] for row in report["contents"]["generator"]} == {"": 0, f"{EVIL} 4": 120}
    assert {row["reason"]: (row["source"], row["rows"]) for row in report["dropped"]} == {
        "duplicate": (EVIL, 30),
        "too_short": (EVIL, 2),
    }
    for label, name in enumerate(("human", "ai")):
        tokens = [row["num_tokens"] for split in SPLITS for row in rows_of(split) if row["label"] == label]
        assert sum(report["lengths"][name]) == len(tokens)
        assert report["lengths"]["medians"][label] == np.median(tokens)


def test_report_contains_no_text_or_path(storage, result, report):
    page = storage.read_bytes(result["report"]).decode()
    page_of(page)
    for content in (page, json.dumps(report)):
        assert SECRET not in content
        assert "private.csv" not in content


def test_audit_reads_leading_rows_only(tmp_path, monkeypatch):
    storage = storage_with_corpus(tmp_path)
    limits = {"train": 49, "validation": 10, "calibration": 20, "test": 30}
    monkeypatch.setattr(stage, "MAX_ROWS", limits)
    assert audit(Config(), storage)["texts_audited"] == sum(limits.values())
    monkeypatch.setattr(manifest, "READ_AT_ONCE", 10)
    monkeypatch.setattr(stage, "MAX_CHARACTERS", 10)
    assert audit(Config(), storage)["texts_audited"] == 40


# Warnings

CALM = {"column": "domain", "value": "news", "n_human": 80, "n_ai": 80, "auroc": 0.9, "fpr": 0.02}
QUIET = {"features": [{"name": "words", "higher_in": "ai", "auroc": 0.69}], "baseline": CALM, "slices": [CALM]}
ENOUGH = {("calibration", 0, "web"): 299, ("test", 0, "web"): 99, ("test", 1, "web"): 99}


def warnings_of(counts=ENOUGH, dropped=None):
    rows = [
        {"split": split, "label": label, "source": source, "domain": "", "rows": number}
        for (split, label, source), number in counts.items()
    ]
    counted = SimpleNamespace(counts=rows, dropped=dropped or {}, rows_read=1000)
    return list(count_warnings(counted, CalibrationConfig()))


def test_nothing_to_warn_about():
    assert list(shortcut_warnings(QUIET)) == []
    assert warnings_of(dropped={"duplicate": 50, "held_out": 400}) == []


def test_shortcuts_are_warnings():
    feature = {"name": "words", "higher_in": "ai", "auroc": 0.71}
    slices = [CALM, {**CALM, "value": "law", "fpr": 0.31}, {**CALM, "value": "few", "n_human": 49, "fpr": 0.5}]
    shortcuts = {"features": [feature], "baseline": {**CALM, "auroc": 0.985}, "slices": slices}
    words, easy, law = shortcut_warnings(shortcuts)
    assert "corpus.balance=weight" in words
    assert "0.985" in easy
    assert "31% on the 80 of domain 'law'" in law


@pytest.mark.parametrize(("humans", "needed"), [(58, [299, 59]), (59, [299]), (298, [299])])
def test_too_few_humans_to_calibrate(humans, needed):
    messages = warnings_of(counts={**ENOUGH, ("calibration", 0, "web"): humans})
    assert [f"{number} to set" in text for number, text in zip(needed, messages, strict=True)] == [True] * len(needed)


def test_sources_of_one_class_and_frequent_reasons():
    single, dropped = warnings_of(counts={**ENOUGH, ("train", 1, "api"): 5}, dropped={"duplicate": 51})
    assert "1 of 2 sources" in single
    assert "api (AI)" in single
    assert "51 of 1,000 rows (5%)" in dropped
