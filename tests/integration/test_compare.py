"""Two detectors on the same texts, on a real cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, InputError
from detect_ai.core.storage import Storage
from detect_ai.evaluation.compare import compare
from tests.fixtures import tiny_models

PAIRS = 60


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = tiny_models.rows(PAIRS, seed=7)
    for i, row in enumerate(rows):
        row["domain"] = "news" if i % 4 < 2 else "letters"
    return tiny_models.write_jsonl(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("bundles")
    for seed in (0, 1):
        tiny_models.make_bundle(folder / f"b{seed}", encoder, seed)
    return [str(folder / "b0"), str(folder / "b1")]


def config_of(root: Path, encoder: Path, texts: Path, bundles: list[str], published: list[str] | None = None) -> Config:
    made = tiny_models.config(encoder, root)
    made.data, made.compare.bundles, made.compare.published = str(texts), bundles, published or []
    made.score.threads_per_worker, made.evaluation.bootstrap = 1, 20
    return made


def test_bundles_stand_side_by_side_with_paired_tests(
    tmp_path: Path, encoder: Path, texts: Path, bundles: list[str]
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"name": "theirs", "auroc": 0.75, "note": "a paper"}))
    storage = Storage(str(tmp_path / "store"))
    result = compare(config_of(tmp_path / "store", encoder, texts, bundles, [str(other)]), storage)
    assert [bundle["name"] for bundle in result["bundles"]] == [*bundles, "theirs"]
    first, second, theirs = result["bundles"]
    assert (theirs["auroc"], theirs["published"]) == (0.75, True)
    assert first["version"] != second["version"]
    (pair,) = result["pairs"]
    assert (pair["a"], pair["b"]) == tuple(bundles)
    assert pair["auroc_difference"] == pytest.approx(first["auroc"] - second["auroc"])
    assert pair["low"] <= pair["auroc_difference"] <= pair["high"]
    assert pair["fpr_difference"] == pytest.approx(first["fpr_at_target_5"] - second["fpr_at_target_5"])
    report = storage.read_json(result["report_json"])
    assert {(row["column"], row["value"]) for row in report["slices"]} == {("domain", "news"), ("domain", "letters")}
    page = storage.read_bytes(result["report"]).decode()
    assert "theirs" in page
    assert first["version"] in page


@pytest.mark.slow
def test_a_bundle_against_itself_differs_in_nothing(
    tmp_path: Path, encoder: Path, texts: Path, bundles: list[str]
) -> None:
    same = bundles[0]
    copy = tmp_path / "copy"
    copy.symlink_to(same)
    result = compare(config_of(tmp_path / "store", encoder, texts, [same, str(copy)]), Storage(str(tmp_path / "store")))
    (pair,) = result["pairs"]
    assert (pair["auroc_difference"], pair["fpr_difference"]) == (0, 0)
    assert (pair["mcnemar"]["only_a"], pair["mcnemar"]["only_b"]) == (0, 0)


@pytest.mark.parametrize(
    ("published", "error", "says"),
    [
        ("[1, 2]", InputError, "expected an object with a name"),
        ('{"auroc": 0.9}', InputError, "expected an object with a name"),
        ("not json", InputError, "expected JSON"),
        (None, ConfigError, "no such file"),
    ],
)
def test_published_figures_of_another_form_are_refused(
    tmp_path: Path, encoder: Path, texts: Path, bundles: list[str], published: str | None, error: type, says: str
) -> None:
    path = tmp_path / "other.json"
    if published is not None:
        path.write_text(published)
    config = config_of(tmp_path / "store", encoder, texts, bundles[:1], [str(path)])
    with pytest.raises(error, match=says):
        compare(config, Storage(str(tmp_path / "store")))


def test_one_detector_alone_is_no_comparison(tmp_path: Path, encoder: Path, texts: Path, bundles: list[str]) -> None:
    config = config_of(tmp_path / "store", encoder, texts, bundles[:1])
    with pytest.raises(ConfigError, match="two or more"):
        compare(config, Storage(str(tmp_path / "store")))


def test_nothing_is_left_of_a_comparison_that_failed(tmp_path: Path, encoder: Path, bundles: list[str]) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "A text without a label, but long enough to be read."}) + "\n")
    storage = Storage(str(tmp_path / "store"))
    with pytest.raises(InputError, match="no text has a label"):
        compare(config_of(tmp_path / "store", encoder, path, bundles), storage)
    assert not [name for name in storage.list("runs/default") if name.startswith("comparison-")]
