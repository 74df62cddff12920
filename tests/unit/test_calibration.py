import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.linear_model import LogisticRegression

from detect_ai.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    Calibration,
    Threshold,
    calibrate,
    conformal_threshold,
    fit_scaling,
    fpr_bound,
    p_value,
    probability,
    texts_needed,
)
from detect_ai.errors import CalibrationError, InputError

TARGETS = st.one_of(st.floats(0.05, 0.95), st.sampled_from([0.05, 0.1, 1 / 3, 0.29, 0.5]))
# Few distinct values, so that most draws hold ties.
HUMAN_SCORES = st.lists(st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6)), min_size=20, max_size=60)


def sample(seed=0, n=400, temperature=2.5):
    """Labels and logits whose true temperature is known."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 2, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-truth))).astype(int)
    return labels, truth * temperature


def refusal(call, *arguments):
    with pytest.raises(InputError) as refused:
        call(*arguments)
    return type(refused.value), str(refused.value)


# Scaling


def platt(labels, logits):
    """Platt's fit by another road: every text stands twice, once with each label, weighted by its smoothed target."""
    truth = np.asarray(labels)
    num_ai = truth.sum()
    targets = np.where(truth == 1, (num_ai + 1) / (num_ai + 2), 1 / (len(truth) - num_ai + 2))
    doubled = np.concatenate((logits, logits))[:, None]
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        doubled, np.repeat([1, 0], len(truth)), sample_weight=np.concatenate((targets, 1 - targets))
    )
    return 1 / fitted.coef_[0, 0], -fitted.intercept_[0] / fitted.coef_[0, 0]


@pytest.mark.parametrize("shift", [0.0, 3.0, -2.0])
def test_scaling_matches_platt_by_logistic_regression(shift):
    labels, logits = sample()
    assert fit_scaling(labels, logits + shift) == pytest.approx(platt(labels, logits + shift), rel=1e-2, abs=1e-2)


def test_scaling_recovers_the_temperature_and_the_midpoint_that_made_the_data():
    labels, logits = sample(n=50_000, temperature=0.4)
    assert fit_scaling(labels, logits + 5) == pytest.approx((0.4, 5.0), rel=0.05)


def test_perfectly_separated_texts_have_a_finite_scaling_between_the_classes():
    temperature, midpoint = fit_scaling([0, 0, 1, 1], [-3.0, -1.0, 1.0, 2.0])
    assert MIN_TEMPERATURE < temperature < 10
    assert -1 < midpoint < 1


def test_temperature_of_reversed_logits_is_the_upper_bound():
    assert fit_scaling([0, 0, 1, 1], [3.0, 1.0, -1.0, -2.0])[0] == pytest.approx(MAX_TEMPERATURE)


def test_the_midpoint_has_a_probability_of_one_half():
    calibration = calibrate(*sample(), [0.05])
    assert calibration.probability(calibration.midpoint) == pytest.approx(0.5)


def test_the_bounds_are_the_conformal_threshold_and_the_midpoint_in_order():
    calibration = calibrate(*sample(), [0.05, 0.5])
    for target, threshold in calibration.thresholds.items():
        assert calibration.bounds(target) == tuple(sorted((threshold.score, calibration.midpoint)))


@pytest.mark.parametrize("call", [fit_scaling, lambda *given: calibrate(*given, [0.5])])
@pytest.mark.parametrize(("label", "found"), [(0, "3 human and 0 ai"), (1, "0 human and 3 ai")])
def test_one_class_cannot_be_calibrated(call, label, found):
    expected = f"calibration needs texts of both classes, found {found}"
    assert refusal(call, [label] * 3, [1.0, 2.0, 3.0]) == (CalibrationError, expected)


def test_logits_that_are_not_finite_are_refused():
    expected = "logits must be finite, found 1 of 2 that are not"
    assert refusal(fit_scaling, [0, 1], [0.0, np.nan]) == (InputError, expected)


@pytest.mark.filterwarnings("error")
def test_probability_does_not_overflow():
    assert probability([-1e5, 0.0, 1e5], 0.05).tolist() == [0.0, 0.5, 1.0]


def test_probability_divides_the_distance_from_the_midpoint_by_the_temperature():
    assert probability([3.0], 2.0, 1.0)[0] == pytest.approx(1 / (1 + np.exp(-1.0)))


# Conformal thresholds and p-values


@pytest.mark.parametrize(
    ("target", "needed"), [(0.5, 1), (0.4, 2), (0.05, 19), (0.01, 99), (0.001, 999), (1e-6, 999_999)]
)
def test_texts_needed_of_common_targets(target, needed):
    assert texts_needed(target) == needed


@given(st.floats(1e-6, 0.999))
def test_texts_needed_is_the_least_number_whose_smallest_p_value_holds_the_target(target):
    needed = texts_needed(target)
    assert 1 / (needed + 1) <= target < 1 / needed


@given(st.integers(2, 100_000))
def test_texts_needed_of_one_in_m_is_m_less_one_in_spite_of_rounding(m):
    assert texts_needed(1 / m) == m - 1


@pytest.mark.parametrize("target", [0.0, 1.0, 5, float("nan")])
def test_a_target_that_is_no_rate_is_refused(target):
    expected = f"target FPR must be in (0, 1), found {target}"
    assert refusal(conformal_threshold, np.arange(100.0), target) == (CalibrationError, expected)


def test_p_value_of_hand_worked_scores_counts_ties_as_human():
    found = p_value([1.0, 2.0, 2.0, 3.0], np.array([[0.0, 1.0, 1.5], [2.0, 3.0, 3.5]]))
    assert found.tolist() == [[1.0, 1.0, 0.8], [0.8, 0.4, 0.2]]


def test_p_value_of_one_score_is_a_float():
    value = p_value((1.0, 2.0, 2.0, 3.0), 3.0)
    assert (type(value), value) == (float, 0.4)


def test_p_value_refuses_nan_instead_of_calling_it_ai():
    expected = "a score is NaN and has no p-value"
    assert refusal(p_value, [1.0, 2.0], np.array([0.0, np.nan])) == (InputError, expected)


@settings(deadline=None)
@given(HUMAN_SCORES, TARGETS)
def test_a_score_reaches_the_threshold_exactly_if_its_p_value_holds_the_target(human, target):
    threshold = conformal_threshold(human, target)
    around = np.array([*human, threshold])
    scores = np.concatenate([around, np.nextafter(around, np.inf), np.nextafter(around, -np.inf)])
    assert ((scores >= threshold) == (p_value(sorted(human), scores) <= target)).all()


def test_threshold_lies_one_step_above_the_kth_largest_human_score():
    human = np.arange(100.0)[::-1]
    # k = floor(0.05 * 101) = 5, and the fifth largest of 0..99 is 95.
    assert conformal_threshold(human, 0.05) == np.nextafter(95.0, 96.0)


def test_threshold_uses_a_rank_that_floating_multiplication_loses():
    assert 0.29 * 100 < 29
    assert conformal_threshold(np.arange(99.0), 0.29) == np.nextafter(99.0 - 29, 99.0)


def test_human_texts_that_all_tie_are_never_called_ai():
    assert conformal_threshold(np.full(99, 2.0), 0.05) > 2.0


@pytest.mark.parametrize(
    ("n", "target", "text"),
    [
        (
            98,
            0.01,
            "target FPR 0.01 needs at least 99 human calibration texts, found 98: add human texts to the "
            "calibration split, or choose a larger target: "
            "calibration.target_fprs=[0.02] calibration.default_target_fpr=0.02",
        ),
        (
            9,
            0.001,
            "target FPR 0.001 needs at least 999 human calibration texts, found 9: add human texts to the "
            "calibration split, or choose a larger target: "
            "calibration.target_fprs=[0.1] calibration.default_target_fpr=0.1",
        ),
        (
            3,
            0.05,
            "target FPR 0.05 needs at least 19 human calibration texts, found 3: add human texts to the "
            "calibration split",
        ),
    ],
)
def test_a_target_that_cannot_be_held_is_refused_with_the_way_out(n, target, text):
    assert refusal(conformal_threshold, np.arange(float(n)), target) == (CalibrationError, text)


@pytest.mark.parametrize(("n", "target"), [(99, 0.01), (19, 0.05), (999, 0.001)])
def test_the_least_number_of_texts_holds_its_target(n, target):
    assert conformal_threshold(np.arange(float(n)), target) == np.nextafter(n - 1.0, n)


def test_human_scores_that_are_not_finite_are_refused():
    expected = "human scores must be finite"
    assert refusal(conformal_threshold, [np.nan] * 99, 0.01) == (CalibrationError, expected)


# 2000 sets of 50 human calibration texts with 20 new human texts each.
REPEATS, N, NEW = 2000, 50, 20


def exchangeable_draws(decimals):
    """Human scores of calibration and of new texts; few decimals make ties."""
    draws = np.random.default_rng(7).normal(size=(REPEATS, N + NEW)).round(decimals)
    return np.sort(draws[:, :N], axis=1), draws[:, N:]


@pytest.mark.parametrize("decimals", [0, 1, 12])
@pytest.mark.parametrize("target", [0.02, 0.05, 0.1])
def test_threshold_holds_its_target_on_exchangeable_human_texts(decimals, target):
    calibration, new = exchangeable_draws(decimals)
    thresholds = np.array([[conformal_threshold(human, target)] for human in calibration])
    rate_by_set = (new >= thresholds).mean(axis=1)
    standard_error = rate_by_set.std() / np.sqrt(REPEATS)
    assert rate_by_set.mean() <= target + 3 * standard_error


def test_threshold_is_no_stricter_than_it_must_be_without_ties():
    calibration, new = exchangeable_draws(12)
    thresholds = np.array([[conformal_threshold(human, 0.1)] for human in calibration])
    # floor(0.1 * 51) = 5 of 51.
    assert (new >= thresholds).mean() == pytest.approx(5 / 51, abs=0.005)


@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_p_value_of_human_texts_is_super_uniform(decimals):
    calibration, new = exchangeable_draws(decimals)
    p = np.array([p_value(human, scores) for human, scores in zip(calibration, new, strict=True)])
    for level in np.arange(1, N + 1) / (N + 1):
        share_by_set = (p <= level).mean(axis=1)
        assert share_by_set.mean() <= level + 3.5 * share_by_set.std() / np.sqrt(REPEATS)


# The bound of the realised FPR


@pytest.mark.parametrize(("n", "target", "rank"), [(99, 0.01, 1), (150, 0.01, 1), (1000, 0.05, 50)])
def test_fpr_bound_is_the_quantile_of_the_beta_distribution(n, target, rank):
    assert fpr_bound(n, target, 0.9) == pytest.approx(beta.ppf(0.9, rank, n + 1 - rank), rel=1e-9)


def test_fpr_bound_covers_its_share_of_calibration_sets():
    human = np.random.default_rng(3).random((4000, 200))
    # For scores uniform on [0, 1] the FPR of a threshold t is 1 - t.
    realised = np.array([1 - conformal_threshold(scores, 0.05) for scores in human])
    assert (realised <= fpr_bound(200, 0.05, 0.9)).mean() == pytest.approx(0.9, abs=0.015)


def test_fpr_bound_of_too_few_texts_is_refused():
    kind, text = refusal(fpr_bound, 18, 0.05)
    assert kind is CalibrationError
    assert text == (
        "target FPR 0.05 needs at least 19 human calibration texts, found 18: add human texts to the "
        "calibration split, or choose a larger target: "
        "calibration.target_fprs=[0.1] calibration.default_target_fpr=0.1"
    )


# The whole calibration


def test_calibrate_gathers_the_figures_of_the_single_functions():
    labels, logits = sample()
    human = logits[labels == 0]
    n = len(human)
    assert calibrate(labels, logits, [0.1, 0.01]) == Calibration(
        temperature=fit_scaling(labels, logits)[0],
        midpoint=fit_scaling(labels, logits)[1],
        human_scores=tuple(sorted(human)),
        thresholds={
            target: Threshold(
                score=conformal_threshold(human, target),
                fpr_bound=fpr_bound(n, target, 0.95),
                expected_fpr=int(target * (n + 1)) / (n + 1),
            )
            for target in (0.01, 0.1)
        },
        prevalence=1 - n / 400,
        num_human=n,
        num_ai=400 - n,
    )


@pytest.mark.parametrize("targets", [[0.05, 0.01], [0.015, 0.01]])
def test_calibrate_refuses_all_and_names_the_strictest_target_that_cannot_be_held(targets):
    labels, logits = [0] * 50 + [1], np.arange(51.0)
    kind, text = refusal(calibrate, labels, logits, targets)
    assert kind is CalibrationError
    assert text == (
        "target FPR 0.01 needs at least 99 human calibration texts, found 50: add human texts to the "
        "calibration split, or choose a larger target: "
        "calibration.target_fprs=[0.02] calibration.default_target_fpr=0.02"
    )


def written():
    return calibrate(*sample(), [0.05, 1 / 3, 0.01]).to_dict()


def test_calibration_survives_json_exactly():
    calibration = calibrate(*sample(), [np.float64(0.01), 0.05, 1 / 3])
    text = json.dumps(calibration.to_dict(), allow_nan=False)
    assert Calibration.from_dict(json.loads(text)) == calibration


def test_written_thresholds_are_keyed_by_the_target_as_text_in_ascending_order():
    assert list(written()["thresholds"]) == ["0.01", "0.05", "0.3333333333333333"]


def test_reading_refuses_a_calibration_with_a_missing_field():
    values = written()
    del values["prevalence"]
    assert refusal(Calibration.from_dict, values) == (
        CalibrationError,
        "Calibration has the fields ['human_scores', 'midpoint', 'num_ai', 'num_human', 'prevalence', 'temperature', "
        "'thresholds'], found ['human_scores', 'midpoint', 'num_ai', 'num_human', 'temperature', 'thresholds']",
    )


def test_reading_refuses_a_threshold_with_an_unknown_field():
    values = written()
    values["thresholds"]["0.05"]["colour"] = 1
    assert refusal(Calibration.from_dict, values) == (
        CalibrationError,
        "Threshold has the fields ['expected_fpr', 'fpr_bound', 'score'], "
        "found ['colour', 'expected_fpr', 'fpr_bound', 'score']",
    )


def test_reading_refuses_human_scores_out_of_order():
    values = written()
    values["human_scores"].reverse()
    expected = "human scores of a calibration must be ascending"
    assert refusal(Calibration.from_dict, values) == (CalibrationError, expected)
