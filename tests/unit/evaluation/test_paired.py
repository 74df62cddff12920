import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from detect_ai import metrics
from detect_ai.core.errors import InputError
from detect_ai.evaluation import intervals, paired


def brute_force_delong(labels, a, b):
    """The covariance matrix of two AUROCs by all pairs of texts, as written by DeLong et al. 1988."""
    ai, human = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    kernel = np.array([[[(s[i] > s[j]) + 0.5 * (s[i] == s[j]) for j in human] for i in ai] for s in (a, b)])
    areas = kernel.mean(axis=(1, 2))
    covariance = np.cov(kernel.mean(axis=2)) / len(ai) + np.cov(kernel.mean(axis=1)) / len(human)
    return areas, covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]


@st.composite
def two_detectors(draw):
    labels = np.array([0, 0, 1, 1, *draw(st.lists(st.integers(0, 1), max_size=20))])
    scores = st.lists(st.integers(-3, 3), min_size=labels.size, max_size=labels.size).map(np.array)
    return labels, draw(scores), draw(scores)


@settings(deadline=None)
@given(two_detectors())
def test_delong_matches_all_pairs_of_texts(data):
    (area_a, area_b), variance = brute_force_delong(*data)
    found = paired.delong(*data)
    assert (found["auroc_a"], found["auroc_b"]) == pytest.approx((area_a, area_b))
    assert found["difference"] == pytest.approx(area_a - area_b, abs=1e-12)
    margin = norm.ppf(0.975) * np.sqrt(max(variance, 0))
    assert (found["low"], found["high"]) == pytest.approx(
        (area_a - area_b - margin, area_a - area_b + margin), abs=1e-7
    )
    if variance > 1e-9:
        assert found["p_value"] == pytest.approx(2 * norm.sf(abs(area_a - area_b) / np.sqrt(variance)))


def test_delong_of_a_hand_worked_case():
    # Placements of the AI texts by a: 1, 1/2; of the human texts: 1, 1/2. By b all are 1.
    found = paired.delong([0, 0, 1, 1], [0.0, 2.0, 3.0, 1.0], [0.0, 1.0, 2.0, 3.0])
    error = np.sqrt(0.125 / 2 + 0.125 / 2)
    assert found == pytest.approx(
        {
            "auroc_a": 0.75,
            "auroc_b": 1.0,
            "difference": -0.25,
            "low": -0.25 - norm.ppf(0.975) * error,
            "high": -0.25 + norm.ppf(0.975) * error,
            "p_value": 2 * norm.sf(0.25 / error),
        }
    )


def test_delong_rejects_a_true_hypothesis_as_often_as_its_level():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    truth = rng.normal(labels, 1, (400, 120))
    rejected = [
        paired.delong(labels, s + rng.normal(size=120), s + rng.normal(size=120))["p_value"] < 0.1 for s in truth
    ]
    assert 0.06 < np.mean(rejected) < 0.14


def test_delong_of_detectors_without_variance():
    labels, scores = [0, 0, 1, 1], np.array([0.0, 1.0, 2.0, 3.0])
    same, opposite = paired.delong(labels, scores, 2 * scores), paired.delong(labels, scores, -scores)
    assert (same["difference"], same["low"], same["high"], same["p_value"]) == (0, 0, 0, 1)
    assert (opposite["difference"], opposite["low"], opposite["high"], opposite["p_value"]) == (1, 1, 1, 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_matches_the_binomial_test_of_scipy(pairs):
    a, b = np.array(pairs).T
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert paired.mcnemar(a, b) == {"only_a": only_a, "only_b": only_b, "p_value": pytest.approx(expected)}


def test_mcnemar_of_a_hand_worked_case():
    # Six texts tell them apart, all for a: 2 * (1/2)^6.
    assert paired.mcnemar([1] * 8, [0] * 6 + [1] * 2) == {"only_a": 6, "only_b": 0, "p_value": pytest.approx(2 / 64)}


def test_paired_bootstrap_is_the_bootstrap_of_the_difference():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    a, b, groups = rng.normal(2 * labels, 1), rng.normal(labels, 1), rng.integers(0, 50, 200)
    found = paired.paired_bootstrap(metrics.auroc, labels, a, b, groups, rounds=60, seed=2)
    low, high = intervals.bootstrap_interval(
        lambda y, s, t: metrics.auroc(y, s) - metrics.auroc(y, t), [labels, a, b], groups, rounds=60, seed=2
    )
    area_a, area_b = metrics.auroc(labels, a), metrics.auroc(labels, b)
    assert found == {"a": area_a, "b": area_b, "difference": area_a - area_b, "low": low, "high": high}
    assert found["low"] > 0


def test_paired_bootstrap_is_narrower_than_two_intervals_where_detectors_agree():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 300)
    a = rng.normal(labels, 1)
    found = paired.paired_bootstrap(metrics.auroc, labels, a, a + rng.normal(0, 0.1, 300))
    low, high = intervals.bootstrap_interval(metrics.auroc, [labels, a])
    assert found["high"] - found["low"] < 0.4 * (high - low)


def test_paired_bootstrap_takes_figures_of_calls():
    labels, right = [0, 1] * 10, [0, 1] * 10
    found = paired.paired_bootstrap(metrics.c_at_1, labels, right, [-1] * 20, rounds=5)
    assert found == {"a": 1.0, "b": 0.0, "difference": 1.0, "low": 1.0, "high": 1.0}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: paired.delong([0, 1, 1], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]),
            "at least 2 texts of each class are needed, found 1 human and 2 ai",
        ),
        (
            lambda: paired.delong([0, 1], [0.0, 1.0], [0.0, np.nan]),
            "scores must be finite, found 1 of 2 that are not",
        ),
        (
            lambda: paired.delong([0, 1], [0.0, 1.0], [0.0, 1.0], 95),
            "confidence must be in (0, 1), found 95",
        ),
        (
            lambda: paired.mcnemar([1, 0], [1]),
            "correct_a and correct_b must have one shape (n,), found (2,) and (1,)",
        ),
        (lambda: paired.mcnemar([], []), "correct_a must have the shape (n,) with n >= 1, found (0,)"),
        (lambda: paired.mcnemar([1, 0], [1, -1]), "correct_b must be 0 (wrong) or 1 (right), found -1"),
        (
            lambda: paired.paired_bootstrap(metrics.auroc, [0, 1], [0.0, 1.0], [np.inf, np.nan]),
            "values_b must be finite, found 2 of 2 that are not",
        ),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_with_what_was_found(call, text):
    with pytest.raises(InputError) as refused:
        call()
    assert str(refused.value) == text
