"""Conformal thresholds, p-values and the bound of the realised false positive rate."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import beta, binomtest

from detect_ai.calibration.conformal import conformal_threshold, p_value, texts_needed
from detect_ai.core.errors import CalibrationError, InputError

TARGETS = st.one_of(st.floats(0.05, 0.95), st.sampled_from([0.05, 0.1, 1 / 3, 0.29, 0.5]))
# Few distinct values, so that most draws contain ties.
HUMAN_SCORES = st.lists(st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6)), min_size=20, max_size=60)
# 2000 sets of 50 human calibration texts with 20 new human texts each.
REPEATS, N, NEW = 2000, 50, 20


def exchangeable_draws(decimals):
    """Human scores of calibration and of new texts; few decimals make ties."""
    draws = np.random.default_rng(7).normal(size=(REPEATS, N + NEW)).round(decimals)
    return np.sort(draws[:, :N], axis=1), draws[:, N:]


@given(st.one_of(st.floats(1e-6, 0.999), st.integers(2, 100_000).map(lambda n: 1 / n)))
@example(0.01)
def test_texts_needed_is_the_smallest_sufficient_number(target):
    needed = texts_needed(target, "expectation")
    assert 1 / (needed + 1) <= target < 1 / needed
    needed = texts_needed(target, "confidence")
    assert beta.ppf(0.95, 1, needed) <= target * (1 + 1e-9)
    assert needed == 1 or beta.ppf(0.95, 1, needed - 1) > target * (1 - 1e-9)


def test_known_numbers_of_texts():
    assert [texts_needed(target, "confidence") for target in (0.01, 0.05)] == [299, 59]
    assert [texts_needed(target, "expectation") for target in (0.01, 0.05)] == [99, 19]


@pytest.mark.parametrize("target", [0.0, 1.0, 5, float("nan")])
def test_invalid_targets_are_refused(target):
    with pytest.raises(CalibrationError, match=r"in \(0, 1\)"):
        conformal_threshold(np.arange(100.0), target, "expectation")


def test_p_value_counts_ties_as_human():
    values = p_value([1.0, 2.0, 2.0, 3.0], np.array([[0.0, 1.0, 1.5], [2.0, 3.0, 3.5]]))
    assert values.tolist() == [[1.0, 1.0, 0.8], [0.8, 0.4, 0.2]]


def test_p_value_refuses_nan():
    with pytest.raises(InputError):
        p_value([1.0, 2.0], np.array([0.0, np.nan]))


@given(HUMAN_SCORES, TARGETS)
def test_threshold_agrees_with_p_value(human, target):
    threshold = conformal_threshold(human, target, "expectation").score
    around = np.array([*human, threshold])
    scores = np.concatenate([around, np.nextafter(around, np.inf), np.nextafter(around, -np.inf)])
    assert ((scores >= threshold) == (p_value(sorted(human), scores) <= target)).all()


def test_threshold_is_one_step_above_the_kth_largest_score():
    # k = floor(0.05 * 101) = 5, and the fifth largest of 0..99 is 95.
    assert conformal_threshold(np.arange(100.0)[::-1], 0.05, "expectation").score == np.nextafter(95.0, 96.0)
    assert conformal_threshold(np.full(99, 2.0), 0.05, "expectation").score > 2.0
    assert 0.29 * 100 < 29  # k is 29 all the same
    assert conformal_threshold(np.arange(99.0), 0.29, "expectation").score == np.nextafter(99.0 - 29, 99.0)


@pytest.mark.parametrize(
    ("n", "target", "needed", "feasible"),
    [(98, 0.01, "99", "target_fprs=[0.02]"), (9, 0.001, "999", "target_fprs=[0.1]"), (3, 0.05, "19", "add human")],
)
def test_too_few_texts_are_refused(n, target, needed, feasible):
    with pytest.raises(CalibrationError) as error:
        conformal_threshold(np.arange(float(n)), target, "expectation")
    assert needed in str(error.value)
    assert feasible in str(error.value)


def test_human_scores_that_are_not_finite_are_refused():
    with pytest.raises(CalibrationError, match="finite"):
        conformal_threshold([np.nan] * 99, 0.01, "expectation")


@pytest.mark.parametrize("decimals", [0, 1, 12])
@pytest.mark.parametrize("target", [0.02, 0.05, 0.1])
def test_threshold_holds_its_target_on_exchangeable_texts(decimals, target):
    calibration, new = exchangeable_draws(decimals)
    thresholds = np.array([[conformal_threshold(human, target, "expectation").score] for human in calibration])
    rate_by_set = (new >= thresholds).mean(axis=1)
    assert rate_by_set.mean() <= target + 3 * rate_by_set.std() / np.sqrt(REPEATS)


@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_p_value_of_human_texts_is_super_uniform(decimals):
    calibration, new = exchangeable_draws(decimals)
    p = np.array([p_value(human, scores) for human, scores in zip(calibration, new, strict=True)])
    for level in np.arange(1, N + 1) / (N + 1):
        rate_by_set = (p <= level).mean(axis=1)
        assert rate_by_set.mean() <= level + 3.5 * rate_by_set.std() / np.sqrt(REPEATS)


@pytest.mark.parametrize(("n", "target", "rank"), [(99, 0.01, 1), (150, 0.01, 1), (1000, 0.05, 50)])
def test_bound_is_a_quantile_of_the_beta_distribution(n, target, rank):
    threshold = conformal_threshold(np.arange(float(n)), target, "expectation")
    assert threshold.fpr_bound == pytest.approx(beta.ppf(0.95, rank, n + 1 - rank), rel=1e-9)


@pytest.mark.parametrize("guarantee", ["confidence", "expectation"])
def test_bound_covers_its_fraction_of_calibration_sets(guarantee):
    human = np.random.default_rng(3).random((4000, 200))
    # For scores uniform on [0, 1] the FPR of a threshold t is 1 - t.
    thresholds = [conformal_threshold(scores, 0.05, guarantee) for scores in human]
    covered = [1 - threshold.score <= threshold.fpr_bound for threshold in thresholds]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("n", "target"), [(299, 0.01), (500, 0.02), (700, 0.05)])
def test_with_confidence_the_target_holds_in_nearly_all_calibration_sets(n, target):
    human = np.random.default_rng(n).random((1000, n))
    holds = {
        guarantee: sum(1 - conformal_threshold(scores, target, guarantee).score <= target for scores in human)
        for guarantee in ("confidence", "expectation")
    }
    assert binomtest(holds["confidence"], 1000, 0.95, alternative="less").pvalue > 0.001
    assert holds["expectation"] < 850


def test_the_error_names_the_other_guarantee():
    with pytest.raises(CalibrationError, match=r"at least 299 .* found 150: .*calibration.guarantee=expectation"):
        conformal_threshold(np.arange(150.0), 0.01, "confidence")
