"""The stage `compare` on a real cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, InputError
from detect_ai.core.storage import Storage
from detect_ai.evaluation.compare import compare
from tests.fixtures import tiny_models
from tests.integration.runs import attempts

PAIRS = 60


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = tiny_models.rows(PAIRS, seed=7)
    for i, row in enumerate(rows):
        row["domain"] = "news" if i % 4 < 2 else "letters"
    rows += [{**rows[0], "text": ""}, {**rows[0], "label": None}]
    return tiny_models.write_jsonl(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("bundles")
    for seed in (0, 1):
        tiny_models.make_bundle(folder / f"b{seed}", encoder, seed)
    return [str(folder / "b0"), str(folder / "b1")]


def config_of(root: Path, encoder: Path, texts: Path, bundles: list[str]) -> Config:
    config = tiny_models.config(encoder, root)
    config.data, config.compare.bundles = str(texts), bundles
    config.score.threads_per_worker = 1
    return config


def test_bundles_are_compared_on_the_same_texts(tmp_path: Path, encoder: Path, texts: Path, bundles: list[str]) -> None:
    storage = Storage(str(tmp_path / "store"))
    result = compare(config_of(tmp_path / "store", encoder, texts, bundles), storage)
    first, second = result["bundles"]
    assert [first["name"], second["name"]] == bundles
    assert first["version"] != second["version"]
    (pair,) = result["pairs"]
    assert pair["auroc_difference"] == pytest.approx(first["auroc"] - second["auroc"])
    assert pair["auroc_difference_low"] <= pair["auroc_difference"] <= pair["auroc_difference_high"]
    assert pair["fpr_difference"] == pytest.approx(first["fpr_at_target_5"] - second["fpr_at_target_5"])
    report = storage.read_json(result["report_json"])
    assert report["data"]["skipped"] == {"no_text": 1, "no_label": 1}
    assert {(row["column"], row["value"]) for row in report["slices"]} == {("domain", "news"), ("domain", "letters")}
    assert first["version"] in storage.read_bytes(result["report"]).decode()


def test_one_bundle_is_refused(tmp_path: Path, encoder: Path, texts: Path, bundles: list[str]) -> None:
    with pytest.raises(ConfigError, match="two or more"):
        compare(config_of(tmp_path, encoder, texts, bundles[:1]), Storage(str(tmp_path)))


def test_a_failed_comparison_leaves_nothing(tmp_path: Path, encoder: Path, bundles: list[str]) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "A text without a label."}) + "\n")
    storage = Storage(str(tmp_path / "store"))
    with pytest.raises(InputError, match="no text has a label"):
        compare(config_of(tmp_path / "store", encoder, path, bundles), storage)
    assert attempts(storage, "default", "comparison") == []
