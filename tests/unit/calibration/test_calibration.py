import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.linear_model import LogisticRegression

from detect_ai.calibration.calibration import Calibration, Category, calibrate
from detect_ai.calibration.conformal import Threshold, conformal_threshold, fpr_bound, p_value, texts_needed
from detect_ai.calibration.domains import MIN_SCALED, Spans, _first_length, with_categories
from detect_ai.calibration.scaling import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_isotonic, fit_scaling, probability
from detect_ai.core.config import CalibrationConfig
from detect_ai.core.errors import CalibrationError, InputError
from detect_ai.detector.scoring import Scored
from detect_ai.release.calibrate import calibration_of

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


def platt(labels, logits, prevalence=0.5):
    """Platt's fit by another road: every text stands twice, once with each label, weighted by its smoothed target."""
    truth = np.asarray(labels)
    num_ai = truth.sum()
    targets = np.where(truth == 1, (num_ai + 1) / (num_ai + 2), 1 / (len(truth) - num_ai + 2))
    of_class = np.where(truth == 1, prevalence / num_ai, (1 - prevalence) / (len(truth) - num_ai)) * len(truth)
    doubled = np.concatenate((logits, logits))[:, None]
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        doubled,
        np.repeat([1, 0], len(truth)),
        sample_weight=np.concatenate((of_class * targets, of_class * (1 - targets))),
    )
    return 1 / fitted.coef_[0, 0], -fitted.intercept_[0] / fitted.coef_[0, 0]


@pytest.mark.parametrize("shift", [0.0, 3.0, -2.0])
def test_scaling_matches_platt_by_logistic_regression(shift):
    labels, logits = sample()
    assert fit_scaling(labels, logits + shift) == pytest.approx(platt(labels, logits + shift), rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("prevalence", [0.05, 0.5, 0.8])
def test_scaling_weighs_the_classes_by_the_prevalence_that_is_assumed(prevalence):
    labels, logits = sample()
    kept = (labels == 1) | (np.arange(len(labels)) % 3 == 0)
    found = fit_scaling(labels[kept], logits[kept], prevalence)
    assert found == pytest.approx(platt(labels[kept], logits[kept], prevalence), rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_probabilities_are_right_at_the_prevalence_that_is_assumed_not_at_that_of_the_split(method):
    labels, logits = sample(n=60_000, temperature=1.0)  # P(AI) = sigmoid(logit) at one half
    kept = (labels == 1) | (np.arange(len(labels)) % 5 == 0)
    calibration = calibrate(labels[kept], logits[kept], [0.05], method, prevalence=0.2)
    at = np.asarray([-1.0, 0.0, 1.0])
    assert calibration.prevalence == 0.2
    assert calibration.probability(at) == pytest.approx(1 / (1 + 4 * np.exp(-at)), abs=0.05)


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


# Isotonic probabilities


def test_isotonic_knots_of_a_hand_worked_case():
    # Laplace: 1 / (3 + 2) and 1 - 1 / (3 + 2). The human text at 4 and the AI text at 3 pool to one half.
    knots = np.asarray(fit_isotonic([0, 0, 1, 0, 1, 1], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert knots[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert knots[:, 1] == pytest.approx([0.2, 0.2, 0.5, 0.5, 0.8, 0.8])


def test_between_knots_the_probability_is_linear_and_beyond_them_level():
    calibration = calibrate([0, 0, 1, 1], [0.0, 1.0, 2.0, 4.0], [0.5], "isotonic")
    assert calibration.knots == ((0.0, 0.25), (1.0, 0.25), (2.0, 0.75), (4.0, 0.75))
    assert calibration.midpoint == 1.5
    assert calibration.probability([-9.0, 1.25, 1.5, 3.0, 9.0]).tolist() == [0.25, 0.375, 0.5, 0.75, 0.75]
    assert calibration.probability(1.5).shape == ()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), min_size=2, max_size=40))
def test_isotonic_probabilities_ascend_within_laplaces_bounds(texts):
    labels, scores = np.asarray(texts).T
    num_ai = int(labels.sum())
    if num_ai in (0, len(labels)):
        return
    at, values = np.asarray(fit_isotonic(labels, scores.astype(float))).T
    assert (np.diff(at) > 0).all()
    assert (np.diff(values) >= 0).all()
    assert values.min() >= 1 / (len(labels) - num_ai + 2) - 1e-12
    assert values.max() <= 1 - 1 / (num_ai + 2) + 1e-12


def test_the_isotonic_midpoint_has_a_probability_of_one_half():
    labels, scores = sample()
    calibration = calibrate(labels, scores, [0.05], "isotonic")
    assert calibration.probability(calibration.midpoint) == pytest.approx(0.5)
    assert calibration.temperature == fit_scaling(labels, scores)[0]


@pytest.mark.parametrize(("labels", "end"), [([1, 0, 0, 0], 3.0), ([1, 1, 1, 0], 0.0)])
def test_without_a_score_of_one_half_the_isotonic_midpoint_is_an_end(labels, end):
    share = sum(labels) / len(labels)
    assert calibrate(labels, [0.0, 1.0, 2.0, 3.0], [0.5], "isotonic", share).midpoint == end


def test_isotonic_needs_both_classes():
    expected = "calibration needs texts of both classes, found 0 human and 2 ai"
    assert refusal(fit_isotonic, [1, 1], [0.0, 1.0]) == (CalibrationError, expected)


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
        prevalence=0.5,
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
        "Calibration has the fields ['categories', 'human_scores', 'knots', 'midpoint', 'min_tokens', 'num_ai', "
        "'num_human', 'prevalence', 'temperature', 'thresholds'], found ['categories', 'human_scores', 'knots', "
        "'midpoint', 'min_tokens', 'num_ai', 'num_human', 'temperature', 'thresholds']",
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


# By register and length

REGISTERS, EDGES, LENGTHS = ("essays", "prose"), [64, 128], [32, 96, 300]


def spans_of(rows):
    """Spans from (document, label, score, tokens, register)."""
    documents, labels, scores, num_tokens, registers = map(np.asarray, zip(*rows, strict=True))
    return Spans(labels, scores.astype(float), num_tokens, registers.astype(np.str_), documents)


def human_spans(rng, texts):
    """Human texts of each register with a span in every range: prose scores higher, short spans more widely."""
    found = []
    for number, register in enumerate(REGISTERS):
        scores = rng.normal(2.0 * number, [3.0, 2.0, 1.0], (texts, 3))
        documents = np.arange(texts) + number * texts
        found += [
            (document, 0, score, length, register)
            for document, row in zip(documents, scores, strict=True)
            for score, length in zip(row, LENGTHS, strict=True)
        ]
    return spans_of(found)


def whole_of(spans, targets, midpoint=-100.0):
    """A calibration of all whole texts, by thresholds alone."""
    human = np.sort(spans.scores[(spans.labels == 0) & (spans.num_tokens == LENGTHS[-1])])
    thresholds = {
        target: Threshold(conformal_threshold(human, target), fpr_bound(len(human), target), target)
        for target in targets
    }
    return Calibration(1.0, midpoint, tuple(human.tolist()), thresholds, num_human=len(human))


def test_the_target_holds_within_each_register_and_range_of_lengths():
    """200 calibration sets of 59 human texts of each register: floor(0.05 * 60) / 60 is the target itself."""
    rng = np.random.default_rng(11)
    own, common = [], []
    for _ in range(200):
        spans, new = human_spans(rng, 59), human_spans(rng, 40)
        whole = whole_of(spans, [0.05])
        calibration = with_categories(whole, spans, EDGES, 0.5)
        references = [calibration.reference(r, n) for r, n in zip(new.registers, new.num_tokens, strict=True)]
        own.append(new.scores >= np.asarray([reference.bounds(0.05)[1] for reference in references]))
        common.append(new.scores >= whole.bounds(0.05)[1])
    for register in REGISTERS:
        for length in LENGTHS:
            inside = (new.registers == register) & (new.num_tokens == length)
            by_set = np.asarray(own)[:, inside].mean(axis=1)
            assert by_set.mean() == pytest.approx(0.05, abs=4 * by_set.std() / np.sqrt(len(by_set)))
    short_prose = (new.registers == "prose") & (new.num_tokens == LENGTHS[0])
    assert np.asarray(common)[:, short_prose].mean() > 0.15


@pytest.fixture(scope="module")
def parted():
    """With three ranges of each register."""
    spans = human_spans(np.random.default_rng(0), 59)
    return with_categories(whole_of(spans, [0.05, 0.1]), spans, EDGES, 0.5)


@pytest.mark.parametrize("register", REGISTERS)
@pytest.mark.parametrize(
    ("num_tokens", "low", "high"), [(1, 0, 64), (63, 0, 64), (64, 64, 128), (127, 64, 128), (128, 128, None)]
)
def test_a_text_of_a_known_register_is_compared_with_its_like(parted, register, num_tokens, low, high):
    found = parted.reference(register, num_tokens)
    assert (found.register, found.min_tokens, found.max_tokens) == (register, low, high)
    assert len(found.human_scores) == 59


@pytest.mark.parametrize("num_tokens", LENGTHS)
@pytest.mark.parametrize("register", ["", "letters"])
def test_a_text_of_an_unknown_register_is_compared_with_the_strictest_of_its_length(parted, register, num_tokens):
    found = parted.reference(register, num_tokens)
    assert found == parted.reference("prose", num_tokens)
    assert found.bounds(0.05)[1] > parted.reference("essays", num_tokens).bounds(0.05)[1]


def test_what_is_strictest_depends_on_the_target():
    def category(register, **scores):
        thresholds = {float(f"0.{k[1:]}"): Threshold(score, 0.0, 0.0) for k, score in scores.items()}
        return Category(1.0, -9.0, (), thresholds, register=register)

    essays, prose = category("essays", t05=2.0, t1=2.0), category("prose", t05=3.0, t1=1.0)
    calibration = Calibration(1.0, -9.0, (), essays.thresholds, categories=(essays, prose))
    assert calibration.reference("", 10) is prose
    assert calibration.reference("", 10, 0.05) is prose
    assert calibration.reference("", 10, 0.1) is essays
    assert calibration.reference("prose", 10, 0.1) is prose


def test_without_categories_a_text_is_compared_with_all():
    calibration = calibrate(*sample(), [0.05])
    assert calibration.reference("essays", 10) is calibration
    assert calibration.reference("", 10, 0.05) is calibration


def test_the_figures_of_a_category_are_those_of_its_own_texts():
    rng = np.random.default_rng(3)
    rows = [(i, i % 2, rng.normal(3.0 * (i % 2)), 32, "essays") for i in range(2 * MIN_SCALED)]
    spans = spans_of(rows)
    human, ai = (spans.scores[spans.labels == label] for label in (0, 1))
    whole = replace(whole_of(human_spans(rng, 40), [0.05]), prevalence=0.1)
    category = with_categories(whole, spans, [], 0.5).categories[0]
    assert (category.temperature, category.midpoint) == fit_scaling(spans.labels, spans.scores, whole.prevalence)
    assert category.human_scores == tuple(sorted(human))
    upper = max(conformal_threshold(human, 0.05), category.midpoint)
    assert category.bounds(0.05)[1] == upper
    assert category.tprs == {0.05: (ai >= upper).mean()}
    assert category.p_value(0.5) == p_value(sorted(human), 0.5)
    assert (category.min_tokens, category.max_tokens) == (0, None)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_the_stage_calibrates_by_the_method_and_for_the_prevalence_of_its_configuration(method):
    labels, scores = sample()
    every = np.ones(len(labels), bool)
    scored = Scored(labels, scores, np.full(len(labels), 99), np.full(len(labels), ""), every)
    asked = CalibrationConfig(target_fprs=[0.1], method=method, prevalence=0.3)
    assert calibration_of(scored, asked, None) == calibrate(labels, scores, [0.1], method, 0.3)


@pytest.mark.parametrize("few", [0, 1])
def test_a_category_with_few_texts_of_a_class_takes_the_probabilities_of_all(few):
    rng = np.random.default_rng(3)
    numbers = {few: MIN_SCALED - 1, 1 - few: MIN_SCALED}
    labels = [label for label, number in numbers.items() for _ in range(number)]
    spans = spans_of([(i, label, rng.normal(3.0 * label), 32, "essays") for i, label in enumerate(labels)])
    for method in ("platt", "isotonic"):
        whole = calibrate(*sample(), [0.05], method)
        category = with_categories(whole, spans, [], 0.5, method).categories[0]
        assert (category.temperature, category.midpoint, category.knots) == (
            whole.temperature,
            whole.midpoint,
            whole.knots,
        )
        assert len(category.human_scores) == numbers[0]


def test_a_category_without_ai_texts_says_nothing_of_finding_them(parted):
    assert [category.tprs for category in parted.categories] == [{}] * 6
    assert parted.min_tokens == {0.05: 0, 0.1: 0}


def humans(register, *numbers):
    """Rows of human spans, so many with each of the lengths; the first texts have one in every range."""
    return [
        (f"{register}{i}", 0, 10.0 * length + i, length, register)
        for length, number in zip(LENGTHS, numbers, strict=True)
        for i in range(number)
    ]


def ranges(rows, edges=EDGES):
    numbered = {name: i for i, name in enumerate(sorted({row[0] for row in rows}))}
    spans = spans_of([(numbered[name], *row) for name, *row in rows])
    whole = whole_of(human_spans(np.random.default_rng(0), 40), [0.05])
    return [
        (category.register, category.min_tokens, category.max_tokens, list(category.human_scores))
        for category in with_categories(whole, spans, edges, 0.5).categories
    ]


def scores(length, numbers):
    return [10.0 * length + i for i in numbers]


def test_a_range_with_too_few_texts_is_joined_with_the_next_longer_one():
    assert ranges(humans("essays", 18, 19, 19)) == [
        ("essays", 0, 128, scores(96, range(19))),
        ("essays", 128, None, scores(300, range(19))),
    ]


def test_what_remains_at_the_end_is_joined_with_the_range_before():
    assert ranges(humans("essays", 20, 19, 18)) == [
        ("essays", 0, 64, scores(32, range(20))),
        ("essays", 64, None, [*scores(96, [18]), *scores(300, range(18))]),
    ]


def test_two_spans_of_one_text_are_no_two_texts():
    """Ten texts with a span in each of two ranges: counted twice, a new one would pass the highest with 1 in 11."""
    rows = humans("prose", 10, 10, 0)
    assert refusal(ranges, rows) == (
        CalibrationError,
        "register 'prose': target FPR 0.05 needs at least 19 human calibration texts of like length, found 10 of any: "
        "add some, choose a larger target, or leave out calibration.registers",
    )
    other = [(f"other{i}", *row) for i, (_, *row) in enumerate(rows[10:])]
    assert [each[:3] for each in ranges([*rows[:10], *other])] == [("prose", 0, None)]


def test_each_register_has_ranges_of_its_own():
    found = ranges([*humans("prose", 19, 0, 0), *humans("essays", 19, 19, 19)])
    assert [each[:3] for each in found] == [
        ("essays", 0, 64),
        ("essays", 64, 128),
        ("essays", 128, None),
        ("prose", 0, None),
    ]


def test_spans_of_no_register_stand_in_no_category():
    found = ranges([*humans("essays", 19, 0, 0), *humans("", 30, 30, 30)])
    assert found == [("essays", 0, None, scores(32, range(19)))]


def test_where_registers_are_not_told_apart_all_spans_stand_together():
    found = ranges(humans("", 19, 19, 19))
    assert [each[:3] for each in found] == [("", 0, 64), ("", 64, 128), ("", 128, None)]


# The length from which a verdict is worth giving


@pytest.mark.parametrize(
    ("essays", "prose", "expected"),
    [
        ([0.6, 0.7, 0.9], [], 0),
        ([0.5, 0.5, 0.5], [], 0),
        ([0.4, 0.6, 0.9], [], 64),
        ([0.4, 0.4, 0.9], [], 128),
        ([0.6, 0.4, 0.9], [], 128),
        ([0.4, 0.4, 0.4], [], 0),
        ([0.4, 0.4, 0.9], [0.4, 0.6, 0.9], 64),
        ([0.4, 0.4, 0.9], [0.1, 0.1, 0.1], 128),
        ([0.4, None, 0.9], [], 64),
        ([0.4, 0.6, None], [None, None, None], 64),
        ([None, None, None], [], 0),
    ],
)
def test_the_least_length_is_the_one_from_which_enough_ai_texts_are_found_in_some_register(essays, prose, expected):
    categories = [
        Category(1.0, 0.0, (), {}, (), register, low, high, {} if tpr is None else {0.05: tpr})
        for register, tprs in (("essays", essays), ("prose", prose))
        for (low, high), tpr in zip(((0, 64), (64, 128), (128, None)), tprs, strict=False)
    ]
    assert _first_length(categories, 0.05, 0.5) == expected


def test_the_least_length_is_learnt_for_each_target():
    rng = np.random.default_rng(5)
    rows = []
    for i in range(400):
        label = i % 2
        # AI texts: never found below 64 tokens; from 64 at 20% and from 128 at 5%, too.
        for length, distance in zip(LENGTHS, (0.0, 1.6, 9.0), strict=True):
            rows.append((i, label, rng.normal(distance * label), length, ""))
    spans = spans_of(rows)
    whole = calibrate(spans.labels, spans.scores, [0.05, 0.2])
    found = with_categories(whole, spans, EDGES, 0.6)
    assert found.min_tokens == {0.05: 128, 0.2: 64}
    assert [category.tprs[0.05] >= 0.6 for category in found.categories] == [False, False, True]


@pytest.mark.parametrize("registers", [("",), ("essays", "prose")])
def test_the_least_length_is_learnt_where_thresholds_are_those_of_all_lengths(registers):
    rng = np.random.default_rng(5)
    rows = [
        (i, i % 2, rng.normal(distance * (i % 2)), length, registers[(i // 2) % len(registers)])
        for i in range(400)
        for length, distance in zip(LENGTHS, (0.0, 6.0, 9.0), strict=True)
    ]
    spans = spans_of(rows)
    longest = np.isin(spans.num_tokens, LENGTHS[-1])
    whole = calibrate(spans.labels[longest], spans.scores[longest], [0.05, 0.2])
    found = with_categories(whole, spans, [], 0.6, lengths=EDGES)
    assert [(each.register, each.min_tokens, each.max_tokens) for each in found.categories] == [
        (register, 0, None) for register in registers
    ]
    assert found.categories == with_categories(whole, spans, [], 0.6).categories
    assert found.min_tokens == {0.05: 64, 0.2: 64}
    assert with_categories(whole, spans, [], 0.6).min_tokens == {0.05: 0, 0.2: 0}


def test_spans_that_seem_of_another_register_than_their_text_set_no_threshold_of_all_lengths():
    rng = np.random.default_rng(6)
    texts = [(i, i % 2, rng.normal(3.0 * (i % 2)), 128, ("essays", "prose")[(i // 2) % 2]) for i in range(200)]
    strays = [(i, label, 9.0, 32, "prose") for i, label, _, _, register in texts if register == "essays"]
    whole, all_spans = spans_of(texts), spans_of([*strays, *texts])
    pooled = calibrate(whole.labels, whole.scores, [0.05])
    found = with_categories(pooled, all_spans, [], 0.5, lengths=[64])
    assert found.categories == with_categories(pooled, whole, [], 0.5).categories


def test_the_stage_learns_the_least_length_where_it_is_told_to():
    rng = np.random.default_rng(5)
    labels = np.tile(np.repeat([0, 1], 3), 200)
    scores, tokens = rng.normal(np.tile([0, 0, 0, 0, 0, 9.0], 200)), np.tile([32, 100, 200], 400)
    scored = Scored(labels, scores, tokens, np.full(1200, ""), tokens == 200)
    asked = CalibrationConfig(target_fprs=[0.05], verdict_lengths=[64, 128])
    assert calibration_of(scored, asked, None).min_tokens == {0.05: 128}
    assert not calibration_of(scored, replace(asked, verdict_lengths=[]), None).min_tokens


# Written and read


def full(method="platt"):
    """A calibration with everything that there is."""
    rng = np.random.default_rng(2)
    rows = [
        (2 * i + label, label, rng.normal(label), length, register)
        for number, register in enumerate(REGISTERS)
        for i in range(number * 40, number * 40 + 40)
        for label in (0, 1)
        for length in LENGTHS
    ]
    return with_categories(calibrate(*sample(), [0.05, 1 / 3], method), spans_of(rows), EDGES, 0.5, method)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_calibration_with_categories_survives_json_exactly(method):
    calibration = full(method)
    assert len(calibration.categories) == 6
    assert all(bool(category.knots) is (method == "isotonic") for category in calibration.categories)
    read = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict(), allow_nan=False)))
    assert read == calibration
    assert read.reference("prose", 70) == calibration.reference("prose", 70)
    assert read.min_tokens.keys() == {0.05, 1 / 3}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda category: category.update(colour=1), "Category has the fields ["),
        (lambda category: category.pop("tprs"), "Category has the fields ["),
        (lambda category: category["human_scores"].reverse(), "human scores of a calibration must be ascending"),
    ],
)
def test_reading_refuses_an_odd_category(change, text):
    values = full().to_dict()
    change(values["categories"][3])
    kind, found = refusal(Calibration.from_dict, values)
    assert kind is CalibrationError
    assert found.startswith(text)
