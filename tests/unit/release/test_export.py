"""Exports: their bundles, interleaved timing and the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from detect_ai.core.config import CalibrationConfig, Config, ExportConfig
from detect_ai.core.errors import BundleError, ConfigError
from detect_ai.core.storage import Storage
from detect_ai.detector.bundle import read_spec
from detect_ai.detector.registry import Registry
from detect_ai.models import encoder
from detect_ai.models.backends.torch import Int8Backend
from detect_ai.release import export as module
from detect_ai.release.export import ExportTask, export, make, time_interleaved
from detect_ai.release.promotion_gate import TEST

if TYPE_CHECKING:
    from detect_ai.corpus.manifest import Corpus


@pytest.mark.parametrize(
    ("name", "backend", "precision"), [("torch-bf16", "torch-bf16", "bf16"), ("torch-int8", "torch-int8", "fp32")]
)
def test_an_export_has_its_own_backend_and_precision(
    tiny_bundle: Path, tmp_path: Path, name: str, backend: str, precision: str
) -> None:
    spec, parent = make(name, tiny_bundle, tmp_path / "child"), read_spec(tiny_bundle)
    assert (spec.parent, spec.backend, spec.precision) == (parent.version, backend, precision)
    assert spec.calibration == parent.calibration
    assert spec.version != parent.version
    assert read_spec(tmp_path / "child") == spec
    assert "MODEL_CARD.md" not in spec.files


def test_unknown_candidates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"export\.candidates.*abacus"):
        export(Config(export=ExportConfig(candidates=["torch-int8", "abacus"])), Storage(str(tmp_path)))


def test_candidates_that_do_not_run_are_left_out(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the hardware, or by the encoder, which only loading shows."""

    def load(folder: Path, **_: object) -> None:
        if folder.name == "torch-int8":
            raise BundleError("expected BERT or DistilBERT")

    monkeypatch.setattr(module.Detector, "load", load)
    config = Config(export=ExportConfig(candidates=["torch-int8", "torch-bf16"]))
    monkeypatch.setattr(encoder, "has_bf16", lambda _: False)
    monkeypatch.setattr(Int8Backend, "unavailable_reason", lambda _: None)
    task = ExportTask(config, cast("Corpus", None), read_spec(tiny_bundle), "runs/default/export-1", tmp_path, "cpu")
    detectors, left_out = module._make_all(task, tiny_bundle)
    assert left_out == {"torch-int8": "expected BERT or DistilBERT", "torch-bf16": "no bf16 in this hardware"}
    assert [path.name for path in tmp_path.iterdir()] == list(detectors) == [module.PARENT]


def test_arms_alternate_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    ticks = iter(range(1000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(ticks)))
    arms = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = time_interleaved(arms, 3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert seconds == {name: [1.0] * 3 for name in "abc"}


def test_export_stores_gate_warnings(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The champion was evaluated on other texts, so that an export cannot be compared with it."""
    storage, spec = Storage(str(tmp_path / "store")), read_spec(tiny_bundle)
    make("torch-int8", tiny_bundle, tmp_path / "torch-int8")
    tested = {
        **{"auroc": 0.9, "fpr_at_target": 0.04, "cleared_ai_fraction": 0.2, "abstained_fraction": 0.1},
        **{"default_target": 0.05, "test_fingerprint": "these"},
    }
    provenance = {"config": {"calibration": CalibrationConfig().model_dump()}}
    values = {
        "calibrate_split": lambda *_: spec.calibration,
        "evaluate": lambda *_: tested,
        "champion_metrics": lambda *_: {TEST: {**tested, "test_fingerprint": "others"}},
        "add_version": lambda *_: "4f2a",
    }
    for name, value in values.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(Registry, "champion", lambda _: "b3c1")
    corpus = cast("Corpus", SimpleNamespace(storage=storage))
    task = ExportTask(Config(), corpus, replace(spec, provenance=provenance), "runs/default/export-1", tmp_path, "cpu")
    row: dict[str, Any] = {"name": "torch-int8", "reasons": []}
    kept = module._keep(task, row)
    assert kept is not None
    assert (kept["version"], row["reasons"], len(row["warnings"])) == ("4f2a", [], 1)


def test_the_next_candidate_is_kept_if_the_fastest_fails_the_promotion_gate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []

    def keep(_: ExportTask, row: dict[str, Any]) -> dict[str, Any] | None:
        tried.append(row["name"])
        return {"chosen": row["name"]} if row["name"] == "passes" else None

    monkeypatch.setattr(module, "_keep", keep)
    names = {"slow": ["Not 1.1 times as fast."], "fails": [], "passes": [], "not tried": []}
    rows = [{"name": name, "reasons": reasons} for name, reasons in names.items()]
    assert module._keep_first(cast("ExportTask", None), rows) == {"chosen": "passes"}
    assert tried == ["fails", "passes"]
    assert module._keep_first(cast("ExportTask", None), rows[:2]) is None
