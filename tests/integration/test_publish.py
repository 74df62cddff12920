"""Calibrate, evaluate and publish on a real cluster: parity of scores, and the promotion gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detect_ai import metrics
from detect_ai.core.config import Config
from detect_ai.core.errors import CalibrationError, GateError
from detect_ai.core.job import result_key, run_stage
from detect_ai.detector.bundle import read_spec
from detect_ai.detector.detector import Detector, Scorer
from detect_ai.detector.registry import Registry
from detect_ai.evaluation.evaluate import evaluate
from detect_ai.evaluation.summary import compute_metrics
from detect_ai.models.encoder import load, save
from detect_ai.release.calibrate import calibrate_checkpoint
from detect_ai.release.publish import publish
from tests.integration.conftest import Run

STAGES = {"calibrate": calibrate_checkpoint, "evaluate": evaluate, "publish": publish}


@pytest.fixture(scope="module")
def published(run: Run) -> dict[str, Any]:
    """Calibrated, evaluated and published, in a store with earlier candidates."""
    for day in range(1, 5):
        run.storage.write_bytes(f"runs/{run.config.run}/candidate-2020010{day}T000000000/detector.json", b"old")
    return {name: run_stage(name, stage, run.config, run.storage) for name, stage in STAGES.items()}


@pytest.fixture(scope="module")
def champion(run: Run, published: dict[str, Any]) -> Detector:
    registry = Registry(run.storage)
    with registry.folder(registry.require_champion()) as folder:
        return Detector.load(folder)


def test_the_candidate_becomes_champion(run: Run, published: dict[str, Any]) -> None:
    assert published["publish"]["before"] is None
    assert Registry(run.storage).champion() == published["publish"]["champion"]


def test_the_champion_has_its_metrics_and_model_card(run: Run, published: dict[str, Any]) -> None:
    registry = Registry(run.storage)
    with registry.folder(registry.require_champion()) as folder:
        assert {"metrics.json", "MODEL_CARD.md"} <= set(read_spec(folder).files)
        assert f"{published['evaluate']['auroc']:.3f}" in (folder / "MODEL_CARD.md").read_text()


def test_metrics_are_those_of_the_champion_on_the_test_split(
    run: Run, published: dict[str, Any], champion: Detector
) -> None:
    table = run.corpus.read("test", ["text", "label", "group"])
    documents = champion.read(table["text"].to_pylist())
    scores = champion.score([document.input_ids for document in documents])
    calibration = champion.spec.calibration
    calls = {target: metrics.predictions_at(scores, *calibration.bounds(target)) for target in calibration.thresholds}
    default = champion.spec.default_target_fpr
    labels, probabilities = table["label"].to_numpy(), calibration.probability(scores)
    expected = compute_metrics(labels, scores, probabilities, calls, default, np.asarray(table["group"].to_pylist()))
    assert published["evaluate"]["fpr_by_group"] == expected.pop("fpr_by_group")
    found = {name: published["evaluate"][name] for name in expected}
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_champion_scores_like_its_checkpoint(run: Run, champion: Detector) -> None:
    texts = run.corpus.read("test", ["text"])["text"].to_pylist()
    with run.storage.local_folder(run.trained["checkpoint"]) as folder:
        scorer = Scorer.from_checkpoint(folder, run.config.model, "fp32")
    ids = [np.asarray(row, np.int32) for row in run.corpus.read("test", ["input_ids"])["input_ids"].to_pylist()]
    expected = champion.spec.calibration.probability(scorer.score(ids))
    found = [champion.detect([text])[0].probability for text in texts]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_calibration_uses_the_calibration_split_alone(run: Run, champion: Detector) -> None:
    labels = run.corpus.labels("calibration")
    ids = [np.asarray(row, np.int32) for row in run.corpus.read("calibration", ["input_ids"])["input_ids"].to_pylist()]
    human = np.sort(champion.score(ids)[labels == 0])
    np.testing.assert_allclose(champion.spec.calibration.human_scores, human, atol=1e-4)


def test_old_candidates_are_pruned(run: Run, published: dict[str, Any]) -> None:
    names = run.storage.list(f"runs/{run.config.run}")
    assert len([name for name in names if name.startswith("candidate-")]) == run.config.storage.keep
    assert run.storage.exists(published["calibrate"]["bundle"])


def test_too_few_human_texts_stop_calibration(run: Run) -> None:
    calibration = run.config.calibration.model_copy(update={"target_fprs": [0.01], "default_target_fpr": 0.01})
    config = run.config.model_copy(update={"run": "strict", "calibration": calibration})
    write_results(run, config, "prepare", "train")
    with pytest.raises(CalibrationError, match="at least 99 human"):
        calibrate_checkpoint(config, run.storage)
    assert run.storage.list("runs/strict") == ["prepare.json", "train.json"]


def write_results(run: Run, config: Config, *stages: str) -> None:
    """Give another run name the results of this one's stages."""
    for stage in stages:
        record = run.storage.read_json(result_key(run.config.run, stage))
        run.storage.write_json(result_key(config.run, stage), record)


@pytest.mark.slow
def test_the_gate_refuses_a_worse_candidate(run: Run, published: dict[str, Any]) -> None:
    """It takes humans for machines: the classes of the trained head are exchanged."""
    key = f"runs/{run.config.run}/exchanged"
    with run.storage.local_folder(run.trained["checkpoint"]) as folder:
        network = load(folder)
    network.classifier.weight.data = network.classifier.weight.data.flip(0)
    network.classifier.bias.data = network.classifier.bias.data.flip(0)
    target = Path(run.storage.path(key))
    target.mkdir()
    save(network, target)
    config = run.config.model_copy(update={"run": "worse"})
    write_results(run, config, "prepare")
    run_stage("train", lambda *_: {"checkpoint": key}, config, run.storage)
    for name in ("calibrate", "evaluate"):
        run_stage(name, STAGES[name], config, run.storage)
    before = Registry(run.storage).champion()
    # By its AUROC, by its AUROC against the champion, and by its errors.
    for gate in ({}, {"min_auroc": 0.0}, {"min_auroc": 0.0, "max_auroc_drop": 1.0}):
        with pytest.raises(GateError, match=str(before)):
            publish(config.model_copy(update={"gate": config.gate.model_copy(update=gate)}), run.storage)
    assert Registry(run.storage).versions() == [before]
