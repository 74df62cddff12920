"""The gate in front of the registry, and the card that is written from the figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detect_ai import bundle, metrics
from detect_ai.config import Config
from detect_ai.errors import ConfigError, GateError
from detect_ai.publishing import publish, rollback
from detect_ai.registry import Registry
from detect_ai.reports.card import model_card
from detect_ai.storage import Storage

TARGETS = {0.05: 1.0, 0.1: 0.5}


def figures(auroc: float = 0.9) -> dict[str, Any]:
    labels = np.tile([0, 1], 20)
    scores = labels * 2.0 - 1 + np.random.default_rng(0).normal(0, 1, 40)
    made = metrics.report(labels, scores, 1 / (1 + np.exp(-scores)), TARGETS)
    return {**made, "auroc": auroc, "test_fingerprint": "test"}


@pytest.fixture
def candidate(tmp_path: Path, tiny_bundle: Path) -> tuple[Config, Storage, str]:
    """A run whose candidate is the tiny bundle, evaluated."""
    config, storage = Config(), Storage(str(tmp_path))
    storage.upload(tiny_bundle, "runs/default/candidate-1")
    version = bundle.read_spec(tiny_bundle).version
    calibrated = {"bundle": "runs/default/candidate-1", "version": version}
    storage.write_json("runs/default/calibrate.json", {"result": calibrated})
    storage.write_json("runs/default/evaluate.json", {"result": {**figures(), **calibrated}})
    return config, storage, version


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
        publish(replace(config, gate=replace(config.gate, min_auroc=0.95)), storage)
    assert str(error.value) == (
        f"{version} was not published, the champion stays None: AUROC is 0.9; at least 0.95 is required."
    )
    assert Registry(storage).versions() == []


def test_figures_of_another_bundle_are_refused(candidate: tuple[Config, Storage, str]) -> None:
    config, storage, version = candidate
    storage.write_json("runs/default/evaluate.json", {"result": {**figures(), "version": "other"}})
    with pytest.raises(ConfigError) as error:
        publish(config, storage)
    assert str(error.value) == (
        f"run=default: the figures are of other, the candidate is {version}: "
        f"run `python jobs/evaluate.py run=default` again"
    )


def test_rollback_returns_to_the_version_before(candidate: tuple[Config, Storage, str]) -> None:
    config, storage, _ = candidate
    first = publish(config, storage)["champion"]
    evaluated = storage.read_json("runs/default/evaluate.json")
    evaluated["result"]["accuracy"] = 0.5
    storage.write_json("runs/default/evaluate.json", evaluated)
    second = publish(config, storage)["champion"]
    assert first != second
    assert rollback(config, storage) == {"champion": first, "before": second}


def card(tiny_bundle: Path, name: str) -> str:
    spec = bundle.read_spec(tiny_bundle)
    provenance = {"model_licence": "MIT", "run": "r", "git_revision": "unknown"}
    return model_card(replace(spec, corpus={**spec.corpus, "name": name}, provenance=provenance), figures())


def test_the_card_states_the_figures_and_the_rates_with_their_intervals(tiny_bundle: Path) -> None:
    text, made = card(tiny_bundle, "mine"), figures()
    assert "| auroc | 0.9000 |" in text
    assert f"{100 * made['fpr_at_target_5']:.1f}% ({100 * made['fpr_at_target_5_low']:.1f}–" in text
    assert "No one may be accused, graded, dismissed or refused by a score alone" in text


def test_only_the_card_of_the_sample_calls_itself_a_demonstration(tiny_bundle: Path) -> None:
    assert "A demonstration." in card(tiny_bundle, "sample")
    assert "A demonstration." not in card(tiny_bundle, "mine")
