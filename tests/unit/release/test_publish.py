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
from detect_ai.evaluation import summary
from detect_ai.release.publish import publish, rollback
from detect_ai.reports.model_card import model_card

TARGETS = {0.05: 1.0, 0.1: 0.5}


def figures(auroc: float = 0.9) -> dict[str, Any]:
    labels = np.tile([0, 1], 20)
    scores = labels * 2.0 - 1 + np.random.default_rng(0).normal(0, 1, 40)
    calls = {target: metrics.calls_at(scores, min(upper, 0.0), upper) for target, upper in TARGETS.items()}
    made = summary.report(labels, scores, 1 / (1 + np.exp(-scores)), calls, rounds=10)
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
        publish(replace(config, gate=replace(config.gate, min_auroc=0.95)), storage)
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
        assert (folder / "MODEL_CARD.md").read_text("utf-8") == model_card(bundle.read_spec(folder), figures())


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
        publish(replace(config, bundle=first[:8]), storage)
    allowed = replace(config, bundle=first[:8], gate=replace(config.gate, max_auroc_drop=0.05))
    assert publish(allowed, storage) == {"champion": first, "before": second, "auroc": 0.9}
    assert Registry(storage).champion() == first


def test_a_version_that_there_is_not_or_that_nobody_judged_is_refused(
    candidate: tuple[Config, Storage, str], tiny_bundle: Path
) -> None:
    config, storage, _ = candidate
    with pytest.raises(RegistryError) as error:
        publish(replace(config, bundle="4f2a"), storage)
    assert str(error.value) == "bundle=4f2a: expected a version of the registry (it is empty)"
    version = Registry(storage).add(tiny_bundle)
    with pytest.raises(RegistryError, match=rf"version {version} has no metrics.json: publish it by its run"):
        publish(replace(config, bundle=version), storage)


def test_the_card_of_an_exported_bundle_names_its_parent_and_what_runs_it(tiny_bundle: Path) -> None:
    spec = replace(bundle.read_spec(tiny_bundle), parent="4f2a", backend="onnx-int8")
    expected = "| Exported | from version `4f2a`, to run by `onnx-int8`; its thresholds are its own |"
    assert expected in model_card(spec, figures())
    assert "Exported" not in card(tiny_bundle, "mine")


def test_rollback_returns_to_the_version_before(candidate: tuple[Config, Storage, str]) -> None:
    config, storage, _ = candidate
    first = publish(config, storage)["champion"]
    evaluated = storage.read_json("runs/default/evaluate.json")
    evaluated["result"]["accuracy"] = 0.5
    storage.write_json("runs/default/evaluate.json", evaluated)
    second = publish(config, storage)["champion"]
    assert first != second
    assert rollback(config, storage) == {"champion": first, "before": second}


def card(tiny_bundle: Path, name: str, demonstration: bool = False) -> str:
    spec = bundle.read_spec(tiny_bundle)
    provenance = {"model_licence": "MIT", "run": "r", "git_revision": "unknown"}
    named = {"name": name, "demonstration": demonstration}
    return model_card(replace(spec, corpus={**spec.corpus, **named}, provenance=provenance), figures())


def test_the_card_states_the_figures_and_the_rates_with_their_intervals(tiny_bundle: Path) -> None:
    text, made = card(tiny_bundle, "mine"), figures()
    for name in ("auroc", "tpr_at_fpr_1", "tpr_at_fpr_5", "accuracy", "f1", "ece", "brier", "log_loss"):
        assert f"| {name} | {made[name]:.4f} |" in text
    thresholds = bundle.read_spec(tiny_bundle).calibration.thresholds
    for target, key in ((0.05, "5"), (0.1, "10")):
        rates = [
            f"{100 * made[f'{rate}_at_target_{key}']:.1f}% ({100 * made[f'{rate}_at_target_{key}_low']:.1f}–"
            f"{100 * made[f'{rate}_at_target_{key}_high']:.1f}%)"
            for rate in ("fpr", "tpr")
        ]
        held = f"{100 * thresholds[target].expected_fpr:.1f}% | {100 * thresholds[target].fpr_bound:.1f}%"
        assert f"| {key}% | {held} | {rates[0]} | {rates[1]} |" in text
    assert "on 20 human test texts" in text
    assert "No one may be accused, graded, dismissed or refused by a score alone" in text


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
    provenance = {"model_licence": "MIT", "run": "r", "git_revision": "unknown"}
    text = model_card(replace(judged, provenance=provenance), figures())
    held = few.thresholds[0.05]
    bounds = f"{100 * held.expected_fpr:.1f}% | {100 * held.fpr_bound:.1f}%"
    assert f"| 5% | prose, 64 to 127 tokens | 21 | {bounds} |" in text
    highest = max(each.thresholds[0.05].expected_fpr for each in categories)
    assert f"| 5% | {100 * highest:.1f}% | {100 * held.fpr_bound:.1f}% |" in text
    lines = model_lines(model_info(judged, {}))
    assert any(
        line.startswith("  prose of 64 to 127 tokens: AI at ") and "from 21 human texts" in line for line in lines
    )
    assert any(line.startswith("  essays of 0 or more tokens: AI at ") for line in lines)
    assert not model_info(spec, {}).thresholds[0].categories


def test_the_card_tells_of_other_texts_and_what_was_not_measured(candidate: tuple[Config, Storage, str]) -> None:
    config, storage, version = candidate
    plain = {**figures(), "version": version, "uncertain_share": 0.25, "baseline": {"auroc": 0.7}, "contaminated": 2}
    storage.write_json("runs/default/evaluate-essays-of-others.json", {"result": plain})
    storage.write_json("runs/default/evaluate-old.json", {"result": {**plain, "version": "of-another-bundle"}})
    storage.write_json("runs/default/evaluate-apart/report.json", {})
    publish(config, storage)
    with Registry(storage).folder(str(Registry(storage).champion())) as folder:
        text = (folder / bundle.CARD_FILE).read_text()
    rates = [
        f"{100 * plain[f'{rate}_at_target_5']:.1f}% ({100 * plain[f'{rate}_at_target_5_low']:.1f}–"
        f"{100 * plain[f'{rate}_at_target_5_high']:.1f}%)"
        for rate in ("fpr", "tpr")
    ]
    row = f"| essays-of-others | 20 | {rates[0]} | 20 | {rates[1]} | 25.0% | 0.9000 (0.7000) | 2 |"
    assert row in text
    assert "old" not in text.partition("## On other texts")[2].partition("##")[0]
    for section in ("## Under attack\n\nNot measured", "## Sentences\n\nNot measured"):
        assert section in text
    assert "Not measured: other topics" not in text


def test_only_the_card_of_the_sample_calls_itself_a_demonstration(tiny_bundle: Path) -> None:
    assert "A demonstration." in card(tiny_bundle, "mine", demonstration=True)
    assert "A demonstration." not in card(tiny_bundle, "sample")


def test_the_card_says_what_the_model_is_and_where_it_comes_from(tiny_bundle: Path) -> None:
    spec = bundle.read_spec(tiny_bundle)
    text = card(tiny_bundle, "mine")
    assert "| Base model | tiny, licence: MIT |" in text
    assert f"fingerprint `{spec.corpus['fingerprint'][:16]}`, language `en`" in text
    assert "| Licences of the corpus | not stated |" in text
    assert "windows of 64 tokens, 48 apart, over the whole text" in text
    assert "(fewer than 10 tokens at a target of 5%, fewer than 10 tokens at a target of 10%)" in text
    assert "`probability` assumes that 50% of the texts are AI" in text


def test_the_card_shows_slices_attacks_and_the_baseline_and_escapes_their_names(tiny_bundle: Path) -> None:
    spec = replace(bundle.read_spec(tiny_bundle), registers=["essays", "prose"])
    made = figures()
    accused = {**made, "column": "domain", "value": "a|b *c*", "n_human": 50}
    few = {**accused, "value": "few", "n_human": 3, "n_ai": 3}
    text = model_card(
        spec, {**made, "slices": [accused, few], "attacks": [{**made, "attack": "synonym"}], "baseline": made}
    )
    rates = [text.count(f"{100 * made[f'{rate}_at_target_5']:.1f}% (") for rate in ("fpr", "tpr")]
    assert r"| domain: a\|b \*c\* | 50 |" in text
    assert "few" not in text.partition("By kind of text")[2].partition("## Under")[0]
    assert "| synonym |" in text
    assert min(rates) >= 3  # the test split, the slice, the attack
    assert "the same register (essays, prose)" in text
    assert f"| auroc | {made['auroc']:.4f} | {made['auroc']:.4f} |" in text
