"""Calibrate, evaluate, publish on a real cluster: what becomes champion, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detect_ai import metrics
from detect_ai.core.config import Config
from detect_ai.core.errors import BundleError, CalibrationError, ConfigError, GateError
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
    """Calibrated, evaluated and published, in a store where earlier candidates lie already."""
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


def test_the_champion_carries_its_figures_and_its_card(run: Run, published: dict[str, Any]) -> None:
    registry = Registry(run.storage)
    with registry.folder(registry.require_champion()) as folder:
        assert set(read_spec(folder).files) == {
            *(
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
                "metrics.json",
                "MODEL_CARD.md",
            )
        }
        assert f"{published['evaluate']['auroc']:.3f}" in (folder / "MODEL_CARD.md").read_text()


def test_the_figures_are_those_of_the_champion_on_the_texts_of_the_test_split(
    run: Run, published: dict[str, Any], champion: Detector
) -> None:
    table = run.corpus.read("test", ["text", "label"])
    documents = champion.read(table["text"].to_pylist())
    scores = champion.score([document.input_ids for document in documents])
    calibration = champion.spec.calibration
    calls = {target: metrics.calls_at(scores, *calibration.bounds(target)) for target in calibration.thresholds}
    default = champion.spec.default_target_fpr
    expected = compute_metrics(table["label"].to_numpy(), scores, calibration.probability(scores), calls, default)
    found = {name: published["evaluate"][name] for name in expected}
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_verdict_of_the_champion_has_the_score_of_its_checkpoint(run: Run, champion: Detector) -> None:
    texts = run.corpus.read("test", ["text"])["text"].to_pylist()
    with run.storage.local_folder(run.trained["checkpoint"]) as folder:
        scorer = Scorer.of_checkpoint(folder, run.config.model)
    ids = [np.asarray(row, np.int32) for row in run.corpus.read("test", ["input_ids"])["input_ids"].to_pylist()]
    expected = champion.spec.calibration.probability(scorer.score(ids))
    found = [champion.detect([text])[0].probability for text in texts]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_calibration_is_that_of_the_calibration_split_alone(run: Run, champion: Detector) -> None:
    labels = run.corpus.labels("calibration")
    ids = [np.asarray(row, np.int32) for row in run.corpus.read("calibration", ["input_ids"])["input_ids"].to_pylist()]
    human = np.sort(champion.score(ids)[labels == 0])
    np.testing.assert_allclose(champion.spec.calibration.human_scores, human, atol=1e-4)


def test_candidates_are_pruned_to_what_the_store_keeps(run: Run, published: dict[str, Any]) -> None:
    names = run.storage.list(f"runs/{run.config.run}")
    assert len([name for name in names if name.startswith("candidate-")]) == run.config.storage.keep
    assert run.storage.exists(published["calibrate"]["bundle"])


def test_the_configuration_lies_beside_every_result(run: Run, published: dict[str, Any]) -> None:
    for stage in ("prepare", "train", *published):
        assert run.storage.read_json(result_key(run.config.run, stage))["config"] == run.config.to_dict()


def test_a_target_of_1_percent_is_refused_with_the_number_of_texts_it_needs(run: Run) -> None:
    calibration = run.config.calibration.model_copy(update={"target_fprs": [0.01], "default_target_fpr": 0.01})
    config = run.config.model_copy(update={"run": "strict", "calibration": calibration})
    humans = int((run.corpus.labels("calibration") == 0).sum())
    write_results(run, config, "prepare", "train")
    with pytest.raises(CalibrationError) as caught:
        calibrate_checkpoint(config, run.storage)
    assert str(caught.value).startswith(
        f"target FPR 0.01 needs at least 99 human calibration texts, found {humans}: add human texts"
    )
    assert run.storage.list("runs/strict") == ["prepare.json", "train.json"]


def write_results(run: Run, config: Config, *stages: str) -> None:
    """Give another run name the results of this one's stages."""
    for stage in stages:
        record = run.storage.read_json(result_key(run.config.run, stage))
        run.storage.write_json(result_key(config.run, stage), record)


@pytest.fixture(scope="module")
def worse(run: Run, published: dict[str, Any]) -> Config:
    """A candidate that takes humans for machines: the classes of the trained head are exchanged."""
    key = f"runs/{run.config.run}/exchanged"
    with run.storage.local_folder(run.trained["checkpoint"]) as folder:
        network = load(folder)
    network.classifier.weight.data = network.classifier.weight.data.flip(0)
    network.classifier.bias.data = network.classifier.bias.data.flip(0)
    target = Path(run.storage.path(key))
    target.mkdir()
    save(network, target)
    config = run.config.model_copy(
        update={"run": "worse", "calibration": run.config.calibration.model_copy(update={"checkpoint": key})}
    )
    write_results(run, config, "prepare")
    for name in ("calibrate", "evaluate"):
        run_stage(name, STAGES[name], config, run.storage)
    return config


@pytest.mark.slow
def test_the_gate_refuses_a_candidate_below_min_auroc(run: Run, worse: Config) -> None:
    before = Registry(run.storage).champion()
    with pytest.raises(GateError, match=rf"not published, the champion stays {before}: AUROC is 0\.\d+; at least 0.8"):
        publish(worse, run.storage)
    assert Registry(run.storage).champion() == before


@pytest.mark.slow
def test_the_gate_refuses_a_candidate_far_below_the_champion(run: Run, worse: Config) -> None:
    before = Registry(run.storage).champion()
    with pytest.raises(GateError, match=r"AUROC fell by \d\.\d+, from the champion's"):
        publish(worse.model_copy(update={"gate": worse.gate.model_copy(update={"min_auroc": 0.0})}), run.storage)
    assert Registry(run.storage).versions() == [before]


@pytest.mark.slow
def test_figures_of_another_candidate_are_refused(run: Run, worse: Config) -> None:
    config = run.config.model_copy(update={"run": "mixed"})
    write_results(run, config, "calibrate")
    run.storage.write_json(result_key("mixed", "evaluate"), run.storage.read_json(result_key("worse", "evaluate")))
    with pytest.raises(ConfigError, match=r"run=mixed: the figures are of \w+, the candidate is \w+: run `python jobs"):
        publish(config, run.storage)


@pytest.mark.slow
def test_a_better_candidate_moves_the_champion_and_the_old_one_stays(run: Run, worse: Config) -> None:
    before = Registry(run.storage).champion()
    open_gate = worse.model_copy(
        update={"gate": worse.gate.model_copy(update={"min_auroc": 0.0, "max_auroc_drop": 1.0})}
    )
    result = publish(open_gate, run.storage)
    registry = Registry(run.storage)
    assert (result["before"], registry.champion()) == (before, result["champion"])
    assert set(registry.versions()) == {before, result["champion"]}
    registry.rollback()


@pytest.mark.slow
def test_an_altered_candidate_is_not_published(run: Run, published: dict[str, Any], worse: Config) -> None:
    before = Registry(run.storage).versions()
    weights = f"{run.storage.read_json(result_key('worse', 'calibrate'))['result']['bundle']}/model.safetensors"
    data = run.storage.read_bytes(weights)
    run.storage.write_bytes(weights, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"model\.safetensors has sha256 \w+, expected \w+: it was altered"):
        evaluate(worse, run.storage)
    run.storage.write_bytes(weights, data)
    assert Registry(run.storage).versions() == before
