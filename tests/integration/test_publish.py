"""Calibrate, evaluate, publish on a real cluster; and the whole loop on an object store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from detect_ai.bundle import read_spec
from detect_ai.calibrating import calibrate_checkpoint
from detect_ai.corpus.prepare import prepare
from detect_ai.detector import Detector
from detect_ai.errors import CalibrationError, GateError
from detect_ai.evaluation import evaluate
from detect_ai.publishing import publish
from detect_ai.registry import Registry
from detect_ai.stage import run_stage
from detect_ai.storage import Storage
from detect_ai.training import train
from tests.integration.conftest import Run


@pytest.fixture(scope="module")
def published(run: Run) -> dict[str, Any]:
    """Calibrated, evaluated and published."""
    config, storage = run.config, run.storage
    return {
        "calibrate": run_stage("calibrate", calibrate_checkpoint, config, storage),
        "evaluate": run_stage("evaluate", evaluate, config, storage),
        "publish": run_stage("publish", publish, config, storage),
    }


def test_a_target_of_1_percent_is_refused_with_the_texts_it_needs(run: Run) -> None:
    config = replace(
        run.config, calibration=replace(run.config.calibration, target_fprs=[0.01], default_target_fpr=0.01)
    )
    with pytest.raises(CalibrationError, match="99"):
        calibrate_checkpoint(config, run.storage)


def test_the_champion_is_the_published_bundle_with_its_figures(run: Run, published: dict[str, Any]) -> None:
    registry = Registry(run.storage)
    assert registry.champion() == published["publish"]["champion"]
    with registry.folder(registry.require_champion()) as folder:
        spec = read_spec(folder)
        assert {"metrics.json", "MODEL_CARD.md", "model.safetensors", "tokenizer.json"} <= set(spec.files)
        assert f"{published['evaluate']['auroc']:.4f}" in (folder / "MODEL_CARD.md").read_text()


def test_the_champion_scores_a_text_as_the_evaluation_did(run: Run, published: dict[str, Any]) -> None:
    table = run.corpus.read("test", ["text", "label"])
    registry = Registry(run.storage)
    with registry.folder(registry.require_champion()) as folder:
        verdicts = Detector.load(folder).detect(table["text"].to_pylist())
    correct = [
        (v.probability >= 0.5) == bool(label) for v, label in zip(verdicts, table["label"].to_pylist(), strict=True)
    ]
    assert sum(correct) / len(correct) == pytest.approx(published["evaluate"]["accuracy"])


def test_a_candidate_below_the_gate_leaves_the_champion(run: Run, published: dict[str, Any]) -> None:
    config = replace(run.config, gate=replace(run.config.gate, min_auroc=0.9999999))
    if published["evaluate"]["auroc"] >= 0.9999999:
        run.storage.write_json(
            f"runs/{config.run}/evaluate.json",
            {"result": {**published["evaluate"], "auroc": 0.9}},
        )
    with pytest.raises(GateError, match="was not published, the champion stays"):
        publish(config, run.storage)
    assert Registry(run.storage).champion() == published["publish"]["champion"]


def test_the_loop_runs_on_an_object_store(run: Run, gcs_root: str) -> None:
    config = replace(
        run.config, storage=replace(run.config.storage, root=gcs_root), train=replace(run.config.train, epochs=1)
    )
    config = replace(config, gate=replace(config.gate, min_auroc=0.0))
    storage = Storage(gcs_root)
    stages = {"prepare": prepare, "train": train, "calibrate": calibrate_checkpoint, "evaluate": evaluate}
    for name, stage in {**stages, "publish": publish}.items():
        run_stage(name, stage, config, storage)
    registry = Registry(storage)
    with registry.folder(registry.require_champion()) as folder:
        assert Detector.load(folder).detect(["A text to read. " * 20])[0].num_windows >= 1
