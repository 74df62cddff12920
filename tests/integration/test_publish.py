"""Calibrate, evaluate and publish on a real cluster: parity of scores, and the promotion gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detect_ai.core.errors import CalibrationError, GateError
from detect_ai.core.job import run_stage
from detect_ai.detector.bundle import read_spec
from detect_ai.detector.detector import Detector, Scorer
from detect_ai.detector.registry import Registry
from detect_ai.evaluation.evaluate import evaluate
from detect_ai.evaluation.summary import compute_metrics
from detect_ai.models.encoder import load, save
from detect_ai.release.calibrate import calibrate_checkpoint
from detect_ai.release.publish import publish
from tests.integration.conftest import Run
from tests.integration.runs import attempts, changed, own_copy, token_ids

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
    calibration, num_tokens = champion.spec.calibration, [len(document.input_ids) for document in documents]
    required = np.stack([document.required for document in documents])
    predictions = {
        target: calibration.predictions(scores, num_tokens, required, target) for target in calibration.thresholds
    }
    default = champion.spec.default_target_fpr
    labels, probabilities = table["label"].to_numpy(), calibration.probability(scores)
    expected = compute_metrics(
        labels, scores, probabilities, predictions, default, np.asarray(table["group"].to_pylist())
    )
    assert published["evaluate"]["fpr_by_group"] == expected.pop("fpr_by_group")
    values = {name: published["evaluate"][name] for name in expected}
    assert values == pytest.approx(expected, abs=1e-5)


def test_the_champion_scores_like_its_checkpoint(run: Run, champion: Detector) -> None:
    texts = run.corpus.read("test", ["text"])["text"].to_pylist()
    with run.storage.local_folder(run.trained["checkpoint"]) as folder:
        scorer = Scorer.from_checkpoint(folder, run.config.model, "fp32")
    expected = champion.spec.calibration.probability(scorer.score(token_ids(run.corpus, "test")))
    probabilities = [champion.detect([text])[0].probability for text in texts]
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def test_calibration_uses_the_calibration_split_alone(run: Run, champion: Detector) -> None:
    human = champion.score(token_ids(run.corpus, "calibration"))[run.corpus.labels("calibration") == 0]
    own = [score for domain in champion.spec.calibration.domains for score in domain.human.scores]
    np.testing.assert_allclose(np.sort(own), np.sort(human), atol=1e-4)
    assert champion.spec.calibration.span_scaling is not None


def test_old_candidates_are_pruned(run: Run, published: dict[str, Any]) -> None:
    assert len(attempts(run.storage, run.config.run, "candidate")) == run.config.storage.keep
    assert run.storage.exists(published["calibrate"]["bundle"])


def test_too_few_human_texts_stop_calibration(run: Run) -> None:
    config = own_copy(run.config, run.storage, "strict", ("prepare", "train"))
    config = changed(config, calibration={"target_fprs": [0.01], "default_target_fpr": 0.01})
    with pytest.raises(CalibrationError, match="at least 99 human"):
        calibrate_checkpoint(config, run.storage)
    assert run.storage.list("runs/strict") == ["prepare.json", "train.json"]


@pytest.mark.slow
def test_the_gate_refuses_a_worse_candidate(run: Run, published: dict[str, Any]) -> None:
    """A head with swapped classes."""
    key = f"runs/{run.config.run}/exchanged"
    with run.storage.local_folder(run.trained["checkpoint"]) as folder:
        network = load(folder)
    network.classifier.weight.data = network.classifier.weight.data.flip(0)
    network.classifier.bias.data = network.classifier.bias.data.flip(0)
    target = Path(run.storage.path(key))
    target.mkdir()
    save(network, target)
    config = own_copy(run.config, run.storage, "worse")
    run_stage("train", lambda *_: {**run.trained, "checkpoint": key}, config, run.storage)
    for name in ("calibrate", "evaluate"):
        run_stage(name, STAGES[name], config, run.storage)
    before = Registry(run.storage).champion()
    # Rejected for its AUROC, for its AUROC against the champion, and for its errors.
    for gate in ({}, {"min_auroc": 0.0}, {"min_auroc": 0.0, "max_auroc_drop": 1.0}):
        with pytest.raises(GateError, match=str(before)):
            publish(changed(config, gate=gate), run.storage)
    assert Registry(run.storage).versions() == [before]
