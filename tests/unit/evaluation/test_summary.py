import json

import numpy as np
import pytest
import sklearn.metrics as sk

from detect_ai import metrics
from detect_ai.evaluation.summary import compute_metrics

TARGETS = {0.01: 3.0, 0.05: 1.5}


def texts(humans=300, ais=200, seed=0, apart=2.5):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [humans, ais])
    return labels, rng.normal(apart * labels, 1.0)


def alone(labels):
    """Every text in its own group."""
    return np.full(len(labels), "")


def computed(labels, scores, groups=None, target=0.05, **options):
    predictions = {
        target: np.where(scores >= upper, 1, np.where(scores < upper - 1, 0, -1)) for target, upper in TARGETS.items()
    }
    groups = alone(labels) if groups is None else groups
    return compute_metrics(labels, scores, 1 / (1 + np.exp(1 - scores)), predictions, target, groups, **options)


def test_score_metrics_match_the_plain_functions():
    labels, scores = texts()
    summary = computed(labels, scores)
    assert summary["auroc"] == pytest.approx(metrics.auroc(labels, scores), abs=1e-12)
    assert summary["tpr_at_fpr_1"] == metrics.tpr_at_fpr(labels, scores, 0.01)
    assert summary["tpr_at_fpr_5"] == metrics.tpr_at_fpr(labels, scores, 0.05)


@pytest.mark.parametrize("prevalence", [0.5, 0.1])
def test_probabilities_are_scored_at_the_prevalence(prevalence):
    labels, scores = texts(humans=300, ais=60)
    p = 1 / (1 + np.exp(1 - scores))
    summary = computed(labels, scores, prevalence=prevalence)
    weights = np.where(labels == 1, prevalence / 60, (1 - prevalence) / 300)
    assert summary["brier"] == pytest.approx(sk.brier_score_loss(labels, p, sample_weight=weights))
    assert summary["log_loss"] == pytest.approx(sk.log_loss(labels, p, sample_weight=weights))
    bins = np.minimum((15 * p).astype(int), 14)
    gaps = [abs((weights * (p - labels))[bins == i].sum()) for i in range(15)]
    assert summary["ece"] == pytest.approx(sum(gaps))


def test_calibrated_probabilities_have_no_error_at_another_prevalence():
    """True probabilities at a prevalence of one half, on data of which a tenth is AI."""
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    labels = (rng.random(p.size) < p).astype(int)
    kept = (labels == 0) | (rng.random(p.size) < 1 / 9)
    labels, p = labels[kept], p[kept]
    summary = compute_metrics(labels, p, p, {0.05: labels}, 0.05, alone(labels), score_intervals=False)
    assert labels.mean() < 0.12
    assert summary["ece"] < 0.01


def test_decisions_are_counted_by_class():
    labels = np.asarray([0] * 10 + [1] * 10)
    predictions = np.asarray([1] * 2 + [-1] * 3 + [0] * 5 + [1] * 6 + [-1] * 1 + [0] * 3)
    summary = compute_metrics(labels, predictions, np.full(20, 0.5), {0.05: predictions}, 0.05, alone(labels))
    rates = {
        "fpr_at_target": 0.2,
        "tpr_at_target": 0.6,
        "cleared_ai_fraction": 0.3,
        "abstained_fraction": 0.2,
        "abstained_human": 0.3,
        "abstained_ai": 0.1,
    }
    assert {name: summary[name] for name in rates} == rates
    assert summary["fpr_at_target_5"] == 0.2
    assert summary["cleared_ai_fraction_at_5"] == 0.3
    assert (summary["fpr_at_target_low"], summary["fpr_at_target_high"]) == metrics.exact_rate_interval(2, 10)
    assert summary["fpr_at_target_5_low"] == summary["fpr_at_target_low"]
    assert summary["ppv_at_20"] == pytest.approx(0.2 * 0.6 / (0.2 * 0.6 + 0.8 * 0.2))


def test_rates_are_those_of_the_default_target():
    for target, key in ((0.05, "5"), (0.01, "1")):
        summary = computed(*texts(), target=target)
        assert summary["fpr_at_target"] == summary[f"fpr_at_target_{key}"]
        assert summary["cleared_ai_fraction"] == summary[f"cleared_ai_fraction_at_{key}"]


def test_three_texts_have_no_degenerate_intervals():
    summary = computed(np.asarray([0, 0, 1]), np.asarray([0.0, 0.1, 9.0]))
    assert summary["auroc"] == 1.0
    assert summary["auroc_low"] is summary["auroc_high"] is None
    assert summary["tpr_at_fpr_1"] is summary["tpr_at_fpr_5"] is None


@pytest.mark.parametrize(("humans", "name"), [(1000, "tpr_at_fpr_0_1"), (100, "tpr_at_fpr_1"), (20, "tpr_at_fpr_5")])
def test_a_rate_below_one_text_is_missing(humans, name):
    assert computed(*texts(humans, 30))[name] is not None
    assert computed(*texts(humans - 1, 30))[name] is None


def test_perfect_separation_has_no_interval():
    summary = computed(*texts(apart=30))
    assert (summary["auroc"], summary["auroc_low"]) == (1.0, None)


def test_groups_widen_every_interval():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 25)
    labels = groups % 2
    scores = rng.normal(2.0 * labels, 1) + rng.normal(0, 1, 40)[groups]
    by_group, by_text = (computed(labels, scores, groups=used) for used in (groups.astype(str), None))
    for name in ("auroc", "ece", "fpr_at_target", "tpr_at_target", "abstained_fraction"):
        assert by_group[name] == by_text[name]
        widths = [summary[f"{name}_high"] - summary[f"{name}_low"] for summary in (by_group, by_text)]
        assert widths[0] > 1.5 * widths[1], name
    assert by_group["n_groups"] == 40
    assert by_group["fpr_by_group"]["max"] > by_group["fpr_at_target"] > by_group["fpr_by_group"]["min"]


def test_three_groups_have_metrics_without_intervals():
    labels, scores = texts()
    summary = computed(labels, scores, groups=np.resize(["a", "b", "c"], len(labels)))
    assert summary["auroc"] is not None
    assert {name for name, value in summary.items() if name.endswith(("_low", "_high")) and value is not None} == set()


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_its_rates_alone(label):
    summary = computed(np.full(30, label), np.full(30, 9.0))
    missing = ("auroc", "ece", "brier", "log_loss", "ppv_at_5", ("tpr" if label == 0 else "fpr") + "_at_target")
    assert {summary[name] for name in missing} == {None}
    assert summary[("fpr", "tpr")[label] + "_at_target"] == 1.0
    json.dumps(summary, allow_nan=False)
