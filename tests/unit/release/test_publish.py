"""The gate in front of the registry, and the card that is written from the figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detect_ai import metrics
from detect_ai.calibration.calibration import Category
from detect_ai.calibration.conformal import threshold_of
from detect_ai.cli import model_lines
from detect_ai.core.config import Config
from detect_ai.core.errors import BundleError, ConfigError, GateError, RegistryError
from detect_ai.core.storage import Storage
from detect_ai.detector import bundle
from detect_ai.detector.model_info import model_info
from detect_ai.detector.registry import Registry
from detect_ai.evaluation.summary import compute_metrics
from detect_ai.release.publish import card_info, publish, rollback
from detect_ai.reports.model_card import model_card

TARGETS = {0.05: 1.0, 0.1: 0.5}


def figures(auroc: float = 0.9) -> dict[str, Any]:
    labels = np.tile([0, 1], 20)
    scores = labels * 2.0 - 1 + np.random.default_rng(0).normal(0, 1, 40)
    calls = {target: metrics.calls_at(scores, min(upper, 0.0), upper) for target, upper in TARGETS.items()}
    made = compute_metrics(labels, scores, 1 / (1 + np.exp(-scores)), calls)
    return {**made, "auroc": auroc, "test_fingerprint": "test"}


@pytest.fixture
def candidate(tmp_path: Path, tiny_bundle: Path) -> tuple[Config, Storage, str]:
    """A run whose candidate is the tiny bundle, evaluated."""
    storage = Storage(str(tmp_path))
    return Config(), storage, evaluated_candidate(storage, tiny_bundle)


def evaluated_candidate(storage: Storage, folder: Path) -> str:
    storage.upload(folder, "runs/default/candidate-1")
    calibrated = {"bundle": "runs/default/candidate-1", "version": bundle.read_spec(folder).version}
    storage.write_json("runs/default/calibrate.json", {"result": calibrated})
    storage.write_json("runs/default/evaluate.json", {"result": {**figures(), **calibrated}})
    return str(calibrated["version"])


def test_a_candidate_that_passes_becomes_champion(candidate: tuple[Config, Storage, str]) -> None:
    config, storage, _ = candidate
    result = publish(config, storage)
    assert Registry(storage).champion() == result["champion"]
    with Registry(storage).folder(result["champion"]) as folder:
        assert {"metrics.json", "MODEL_CARD.md"} <= {path.name for path in folder.iterdir()}
        bundle.read_spec(folder)


def test_a_candidate_below_the_gate_is_refused_with_the_figures(candidate: tuple[Config, Storage, str]) -> None:
    config, storage, version = candidate
    with pytest.raises(GateError) as error:
        publish(config.model_copy(update={"gate": config.gate.model_copy(update={"min_auroc": 0.95})}), storage)
    assert str(error.value) == (
        f"{version} was not published, the champion stays None: AUROC is 0.9; at least 0.95 is required. "
        "The bounds are gate.min_auroc and gate.max_auroc_drop"
    )
    assert Registry(storage).versions() == []


def test_a_candidate_worse_than_the_champion_is_refused_and_the_champion_stays(
    candidate: tuple[Config, Storage, str],
) -> None:
    config, storage, version = candidate
    champion = publish(config, storage)["champion"]
    evaluated = storage.read_json("runs/default/evaluate.json")
    storage.write_json("runs/default/evaluate.json", {"result": {**evaluated["result"], "auroc": 0.85}})
    with pytest.raises(GateError) as error:
        publish(config, storage)
    assert str(error.value) == (
        f"{version} was not published, the champion stays {champion}: AUROC fell by 0.05, from the champion's 0.9 to "
        "0.85 on the same test data; a drop of at most 0.02 is required. "
        "The bounds are gate.min_auroc and gate.max_auroc_drop"
    )
    registry = Registry(storage)
    assert (registry.champion(), registry.versions()) == (champion, [champion])


def test_on_other_test_data_the_champion_is_no_measure(candidate: tuple[Config, Storage, str]) -> None:
    config, storage, _ = candidate
    champion = publish(config, storage)["champion"]
    evaluated = storage.read_json("runs/default/evaluate.json")["result"]
    other = {**evaluated, "auroc": 0.85, "test_fingerprint": "another test split"}
    storage.write_json("runs/default/evaluate.json", {"result": other})
    result = publish(config, storage)
    assert result["before"] == champion != result["champion"]


def test_publishing_again_changes_nothing(candidate: tuple[Config, Storage, str]) -> None:
    config, storage, _ = candidate
    first = publish(config, storage)
    assert publish(config, storage) == {**first, "before": first["champion"]}
    assert Registry(storage).versions() == [first["champion"]]


def test_the_candidate_itself_stays_as_it_was(candidate: tuple[Config, Storage, str], tiny_bundle: Path) -> None:
    config, storage, _ = candidate
    publish(config, storage)
    folder = Path(storage.path("runs/default/candidate-1"))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in tiny_bundle.iterdir()}


def test_the_published_figures_are_those_of_the_evaluation(candidate: tuple[Config, Storage, str]) -> None:
    config, storage, _ = candidate
    with Registry(storage).folder(publish(config, storage)["champion"]) as folder:
        assert json.loads((folder / "metrics.json").read_text()) == figures()
        assert (folder / "MODEL_CARD.md").read_text("utf-8") == model_card(
            card_info(bundle.read_spec(folder)), figures()
        )


def test_publishing_works_on_an_object_store(tiny_bundle: Path, gcs_root: str) -> None:
    storage = Storage(gcs_root)
    version = evaluated_candidate(storage, tiny_bundle)
    champion = publish(Config(), storage)["champion"]
    assert Registry(storage).champion() == champion != version


def test_without_an_evaluation_the_command_is_named(candidate: tuple[Config, Storage, str]) -> None:
    config, storage, _ = candidate
    storage.delete("runs/default/evaluate.json")
    with pytest.raises(ConfigError) as error:
        publish(config, storage)
    assert str(error.value) == (
        f"run=default: no result of 'evaluate' under {storage.root}: run `python jobs/evaluate.py run=default` first"
    )


def test_a_candidate_that_was_altered_is_not_published(candidate: tuple[Config, Storage, str]) -> None:
    config, storage, _ = candidate
    storage.write_bytes("runs/default/candidate-1/config.json", b"{}")
    with pytest.raises(BundleError):
        publish(config, storage)
    assert Registry(storage).champion() is None


def test_figures_of_another_bundle_are_refused(candidate: tuple[Config, Storage, str]) -> None:
    config, storage, version = candidate
    storage.write_json("runs/default/evaluate.json", {"result": {**figures(), "version": "other"}})
    with pytest.raises(ConfigError) as error:
        publish(config, storage)
    assert str(error.value) == (
        f"run=default: the figures are of other, the candidate is {version}: "
        f"run `python jobs/evaluate.py run=default` again"
    )


def test_a_version_of_the_registry_becomes_champion_by_its_name_through_the_gate(
    candidate: tuple[Config, Storage, str],
) -> None:
    config, storage, _ = candidate
    first = publish(config, storage)["champion"]
    evaluated = storage.read_json("runs/default/evaluate.json")
    storage.write_json("runs/default/evaluate.json", {"result": {**evaluated["result"], "auroc": 0.95}})
    second = publish(config, storage)["champion"]
    with pytest.raises(GateError, match=f"{first} was not published, the champion stays {second}: AUROC fell by 0.05"):
        publish(config.model_copy(update={"bundle": first[:8]}), storage)
    allowed = config.model_copy(
        update={"bundle": first[:8], "gate": config.gate.model_copy(update={"max_auroc_drop": 0.05})}
    )
    assert publish(allowed, storage) == {"champion": first, "before": second, "auroc": 0.9}
    assert Registry(storage).champion() == first


def test_a_version_that_there_is_not_or_that_nobody_judged_is_refused(
    candidate: tuple[Config, Storage, str], tiny_bundle: Path
) -> None:
    config, storage, _ = candidate
    with pytest.raises(RegistryError) as error:
        publish(config.model_copy(update={"bundle": "4f2a"}), storage)
    assert str(error.value) == "bundle=4f2a: expected a version of the registry (it is empty)"
    version = Registry(storage).add(tiny_bundle)
    with pytest.raises(RegistryError, match=rf"version {version} has no metrics.json: publish it by its run"):
        publish(config.model_copy(update={"bundle": version}), storage)


def test_rollback_returns_to_the_version_before(candidate: tuple[Config, Storage, str]) -> None:
    config, storage, _ = candidate
    first = publish(config, storage)["champion"]
    evaluated = storage.read_json("runs/default/evaluate.json")
    evaluated["result"]["accuracy"] = 0.5
    storage.write_json("runs/default/evaluate.json", evaluated)
    second = publish(config, storage)["champion"]
    assert first != second
    assert rollback(config, storage) == {"champion": first, "before": second}


def test_what_is_said_of_a_target_is_what_holds_where_texts_are_judged(tiny_bundle: Path) -> None:
    spec = bundle.read_spec(tiny_bundle)
    whole = spec.calibration
    human = np.asarray(whole.human_scores)
    parts = {"essays": (0, None, human), "prose": (64, 128, human[:21] + 1)}
    categories = tuple(
        Category(
            temperature=1.0,
            midpoint=0.0,
            human_scores=tuple(scores.tolist()),
            thresholds={target: threshold_of(scores, target) for target in whole.thresholds},
            register=register,
            min_tokens=low,
            max_tokens=high,
        )
        for register, (low, high, scores) in parts.items()
    )
    judged = replace(spec, calibration=replace(whole, categories=categories))
    few = categories[1]
    for info in model_info(judged, {}).thresholds:
        held = few.thresholds[info.target_fpr]
        assert [each.num_human for each in info.categories] == [len(human), 21]
        assert info.fpr_upper_bound == held.fpr_bound > whole.thresholds[info.target_fpr].fpr_bound
        assert info.categories[1].fpr_upper_bound == held.fpr_bound
        assert info.categories[1].probability == pytest.approx(float(few.probability(few.bounds(info.target_fpr)[1])))
    lines = model_lines(model_info(judged, {}))
    assert any(
        line.startswith("  prose of 64 to 127 tokens: AI at ") and "from 21 human texts" in line for line in lines
    )
    assert any(line.startswith("  essays of 0 or more tokens: AI at ") for line in lines)
    assert not model_info(spec, {}).thresholds[0].categories


def test_the_card_tells_of_other_texts_and_what_was_not_measured(candidate: tuple[Config, Storage, str]) -> None:
    config, storage, version = candidate
    plain = {**figures(), "version": version, "baseline": {"auroc": 0.7}, "contaminated": 2}
    storage.write_json("runs/default/evaluate-essays-of-others.json", {"result": plain})
    storage.write_json("runs/default/evaluate-old.json", {"result": {**plain, "version": "of-another-bundle"}})
    storage.write_json("runs/default/evaluate-apart/report.json", {})
    publish(config, storage)
    with Registry(storage).folder(str(Registry(storage).champion())) as folder:
        text = (folder / bundle.CARD_FILE).read_text()
    assert "| essays-of-others | 20 |" in text
    assert "0.9000 (0.7000) | 2 |" in text
    assert "| old |" not in text
