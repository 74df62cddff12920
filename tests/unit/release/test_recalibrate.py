"""Which texts set the thresholds of a population, what the certificate states, and the gate."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta

from detect_ai.calibration.domains import calibrate, calibrate_population, scores_of
from detect_ai.core.config import Config, GateConfig
from detect_ai.core.errors import CalibrationError, ConfigError
from detect_ai.core.storage import Storage
from detect_ai.detector.bundle import DetectorSpec, read_spec
from detect_ai.release.promotion_gate import TEST, gate
from detect_ai.release.recalibrate import (
    Sample,
    certify,
    child_spec,
    metrics_of_sample,
    recalibrate,
    select,
    supported_targets,
)
from detect_ai.reports.render import render
from tests.unit.calibration.conftest import WINDOW, config, domains
from tests.unit.reports.test_evaluation import EVIL, page_of

SETTINGS = config(target_fprs=[0.005, 0.01, 0.05], default_target_fpr=0.01)


@pytest.fixture(scope="module")
def parent(tiny_bundle: Path) -> DetectorSpec:
    """Thresholds for new domains where human texts score 0 on average, AI texts 8; styles of two kinds."""
    scored = domains(8, humans=100, ai=100)
    styles = np.eye(2)[(scored["domain"] >= "d04").to_numpy() * 1]
    spec = read_spec(tiny_bundle)
    return replace(
        spec,
        calibration=calibrate(scored.assign(style=list(styles)), SETTINGS, WINDOW),
        default_target_fpr=0.01,
        provenance={**spec.provenance, "config": {"calibration": SETTINGS.model_dump()}},
    )


def scored(n: int = 200, mean: float = 4.0, **columns: Any) -> pd.DataFrame:
    """Human texts that score higher than those of the parent, in the style of its first four domains."""
    values = {"label": -1, "digest": [f"t{i}" for i in range(n)], "num_tokens": 300}
    values |= dict.fromkeys(("key", "group", "reason"), "")
    frame = pd.DataFrame({**values, **columns}, index=range(n))
    frame["style"] = [[1.0, 0.0]] * n
    return frame.assign(score=np.random.default_rng(n).normal(mean, 1.0, n))


def child_of(parent: DetectorSpec, sample: Sample, name: str = "our students") -> DetectorSpec:
    targets, _ = supported_targets(len(sample.human), parent)
    return child_spec(parent, calibrate_population(parent.calibration, sample.human, name, targets), "mine")


def test_texts_that_do_not_count_are_left_out_and_counted(parent: DetectorSpec) -> None:
    texts = scored(110)
    texts.loc[:4, "reason"] = ["too_short", "mostly_code", "too_short", "", "not_prose"]
    texts.loc[5:6, "digest"] = "t0"
    texts.loc[7:8, "label"] = [1, 0]
    sample = select(texts, parent)
    assert sample.left_out == {"too_short": 2, "duplicate": 2, "mostly_code": 1, "not_prose": 1, "labelled_ai": 1}
    assert sample.human == scores_of(texts.drop(index=[0, 1, 2, 4, 5, 6, 7]))
    same, other = (select(texts.iloc[::-1], parent).fingerprint for texts in (scored(110), scored(111)))
    assert same == select(scored(110), parent).fingerprint != other


def test_the_metrics_of_the_parent_are_those_on_the_same_texts(parent: DetectorSpec) -> None:
    """The population scores higher than the parent expects; the child's thresholds account for that."""
    sample = select(scored(), parent)
    metrics = metrics_of_sample(parent, child_of(parent, sample), sample)
    before = metrics["parent"]
    assert (before["version"], before["auroc"]) == (parent.version, metrics["auroc"])
    human = parent.calibration.predictions_of(sample.human, 0.01)
    assert before["fpr_at_target"] == pytest.approx((human == 1).mean())
    assert before["fpr_at_target"] > metrics["fpr_at_target"]


def test_false_contributors_are_named_and_honest_texts_decide(parent: DetectorSpec) -> None:
    texts = scored(220, key=[f"k{i % 9}" for i in range(200)] + ["k-bad"] * 20)
    texts.loc[200:, "score"] += 8.0
    sample = select(texts, parent)
    assert (sample.excluded_keys, sample.left_out) == (["k-bad"], {"excluded_key": 20})
    assert sample.human == scores_of(texts[:200])


def test_nothing_left_is_too_few(parent: DetectorSpec) -> None:
    sample = select(scored(30, reason="mostly_code"), parent)
    with pytest.raises(CalibrationError, match=r"at least 99 .* found 0"):
        supported_targets(len(sample.human), parent)


@pytest.mark.parametrize("n", [99, 200])
def test_unsupported_targets_are_dropped_with_the_number_needed(parent: DetectorSpec, n: int) -> None:
    kept = [0.01, 0.05] if n == 99 else [0.005, 0.01, 0.05]
    assert supported_targets(n, parent) == (kept, {0.005: 199} if n == 99 else {})


def test_98_texts_do_not_support_one_percent(parent: DetectorSpec) -> None:
    with pytest.raises(CalibrationError, match=r"0\.01 needs at least 99 .* found 98"):
        supported_targets(98, parent)


def test_the_child_is_its_parent_with_other_thresholds(parent: DetectorSpec) -> None:
    parent = replace(parent, min_tokens=10, calibration=replace(parent.calibration, min_tokens={0.01: 64, 0.05: 32}))
    child = child_of(parent, Sample(scores_of(scored(99)), "f", {}, []))
    changed = {field.name for field in fields(child) if getattr(child, field.name) != getattr(parent, field.name)}
    assert changed == {"calibration", "parent", "provenance", "min_tokens"}
    assert (child.parent, child.calibration_config.guarantee) == (parent.version, "expectation")
    assert child.calibration_config.target_fprs == [0.01, 0.05]
    assert [child.min_tokens_at(target) for target in (0.01, 0.05)] == [64, 64]
    assert child.detection_rates[0.05] > 0.3


def test_the_certificate_states_the_bound_and_what_changes(parent: DetectorSpec) -> None:
    sample = select(scored(), parent)
    child = child_of(parent, sample)
    certificate = certify(parent, child, sample, {})
    _, row, _ = certificate["thresholds"]
    assert row["fpr_upper_bound"] == pytest.approx(beta.ppf(0.95, 2, 199))
    assert (row["target"], row["confidence"], row["fpr_left_out"]) == (0.01, 0.95, 0.01)
    before = parent.calibration.predictions_of(sample.human, 0.01)
    assert row["fpr_before"] == (before == 1).mean() > 0.02
    ai, like = certificate["ai"]["all"], certificate["ai"]["like"]
    assert (ai["n_ai"], ai["like"], like["n_ai"]) == (800, 400, 400)
    first = certificate["ai"]["domains"][0]
    texts = next(domain.ai for domain in child.calibration.domains if domain.name == first["domain"])
    assert first["like"] == 100
    assert first["tpr_after"] == (child.calibration.predictions_of(texts, 0.01) == 1).mean()
    assert ai["tpr_before"] > ai["tpr_after"] > 0


def test_the_certificate_counts_groups_and_contributors(parent: DetectorSpec) -> None:
    """Only those of texts that count; 0 if the data names none."""
    texts = scored(key=[f"k{i % 9}" for i in range(200)], group=[f"g{i % 20}" for i in range(199)] + ["of an AI text"])
    texts.loc[199, "label"] = 1
    certificates = [
        certify(parent, child_of(parent, sample), sample, {})
        for sample in (select(texts, parent), select(scored(), parent))
    ]
    assert [(own["n_groups"], own["n_keys"]) for own in certificates] == [(20, 9), (0, 0)]


def test_the_gate_reads_the_metrics(parent: DetectorSpec) -> None:
    """By score only: AI texts that are unlike the population do not count as abstentions."""
    sample = select(scored(), parent)
    metrics = metrics_of_sample(parent, child_of(parent, sample), sample)
    assert (metrics["n_human"], metrics["n_ai"], metrics["fpr_at_target"]) == (200, 800, 0.01)
    assert metrics["abstained_ai"] < 0.2
    assert gate({TEST: metrics}, None, GateConfig())[0] == []
    assert gate({TEST: metrics}, None, GateConfig(max_fpr=0.009))[0]
    like_ai = select(scored(mean=8.0), parent)
    hopeless = metrics_of_sample(parent, child_of(parent, like_ai), like_ai)
    assert gate({TEST: hopeless}, None, GateConfig())[0][0].startswith("AUROC is 0.5")


def test_the_page_shows_the_certificate(parent: DetectorSpec) -> None:
    texts = scored(130, key=[f"k{i % 9}" for i in range(110)] + [EVIL] * 20)
    texts.loc[110:, "score"] += 8.0
    sample = select(texts, parent)
    child = child_of(parent, sample, EVIL)
    certificate = {**certify(parent, child, sample, {0.005: 199}), "version": "c0ffee", "created": "2026-11-29"}
    text = page_of(render("certificate.html.jinja", certificate=certificate, max_listed=3)).text
    shown = ("c0ffee of 2026-11-29", parent.version, "199 texts", "excluded key", "2 of them are enough")
    for words in (*shown, "400 of 800 are like them", "5 more domains"):
        assert words in text
    assert f"for {EVIL}" in text
    assert f"texts from {EVIL}" in text


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"population": "students"}, "recalibrate.humans"),
        ({"humans": "x.csv", "population": " "}, "recalibrate.population"),
        ({"humans": "x.csv", "population": "a\x1bb"}, "recalibrate.population"),
    ],
)
def test_texts_and_a_name_are_required(tmp_path: Path, values: dict[str, str], key: str) -> None:
    settings = Config()
    settings.recalibrate = settings.recalibrate.model_copy(update=values)
    with pytest.raises(ConfigError, match=key):
        recalibrate(settings, Storage(str(tmp_path)))
