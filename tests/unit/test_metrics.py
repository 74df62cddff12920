import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sk

from detect_ai import metrics
from detect_ai.errors import InputError

TIED_SCORES = st.integers(-4, 4).map(lambda number: number / 4)
PROBABILITIES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.2, 0.5, 1.0]))


@st.composite
def labelled(draw, values):
    """Labels with both classes, and one value a text."""
    labels = [0, 1, *draw(st.lists(st.integers(0, 1), max_size=40))]
    return np.array(labels), np.array(draw(st.lists(values, min_size=len(labels), max_size=len(labels))))


@settings(deadline=None)
@given(labelled(TIED_SCORES))
def test_auroc_matches_scikit_learn_on_tied_scores(data):
    assert metrics.auroc(*data) == pytest.approx(sk.roc_auc_score(*data), abs=1e-12)


def test_auroc_counts_a_tie_as_half_a_win():
    assert metrics.auroc([0, 0, 1, 1], [1.0, 2.0, 2.0, 3.0]) == 3.5 / 4


@settings(deadline=None)
@given(labelled(TIED_SCORES), st.floats(0, 1))
def test_tpr_at_fpr_is_the_best_point_of_the_exact_roc_curve(data, fpr):
    false_positives, true_positives, _ = sk.roc_curve(*data, drop_intermediate=False)
    assert metrics.tpr_at_fpr(*data, fpr) == true_positives[false_positives <= fpr].max()


def test_tpr_at_fpr_calls_tied_texts_together():
    labels, scores = [0, 0, 0, 0, 1, 1, 1, 1], [0.0, 1.0, 2.0, 2.0, 1.0, 2.0, 2.0, 3.0]
    assert metrics.tpr_at_fpr(labels, scores, 0.25) == 0.25
    assert metrics.tpr_at_fpr(labels, scores, 0.5) == 0.75


def test_tpr_at_fpr_uses_an_allowance_that_floating_multiplication_loses():
    assert 0.29 * 100 < 29
    labels, scores = [0] * 100 + [1], [*range(100), 71.0]
    assert metrics.tpr_at_fpr(labels, scores, 0.29) == 1.0
    assert metrics.tpr_at_fpr(labels, scores, 0.28) == 0.0


def test_tpr_at_fpr_of_every_allowed_rate_is_one():
    assert metrics.tpr_at_fpr([0, 0, 1], [1.0, 2.0, 0.0], 1.0) == 1.0


def test_tpr_at_fpr_refuses_a_rate_above_one():
    with pytest.raises(InputError) as refused:
        metrics.tpr_at_fpr([0, 1], [0.0, 1.0], 5)
    assert str(refused.value) == "fpr must be in [0, 1], found 5"


@given(st.integers(1, 2000), st.data())
def test_largest_count_holds_at_every_quotient_and_not_just_below_it(trials, data):
    count = data.draw(st.integers(0, trials))
    rate = count / trials
    assert metrics.largest_count(rate, trials) == count
    assert metrics.largest_count(np.nextafter(rate, -1), trials) == count - 1


@settings(deadline=None)
@given(labelled(st.integers(0, 1)))
def test_accuracy_matches_scikit_learn(data):
    assert metrics.accuracy(*data) == pytest.approx(sk.accuracy_score(*data))


@settings(deadline=None)
@given(labelled(st.integers(0, 1)))
def test_f1_matches_scikit_learn(data):
    assert metrics.f1(*data) == pytest.approx(sk.f1_score(*data))


def test_f1_is_zero_where_it_is_undefined():
    assert metrics.f1([0, 0], [0, 0]) == 0.0


@settings(deadline=None)
@given(labelled(PROBABILITIES))
def test_brier_matches_scikit_learn(data):
    assert metrics.brier(*data) == pytest.approx(sk.brier_score_loss(*data))


@settings(deadline=None)
@given(labelled(PROBABILITIES))
def test_log_loss_matches_scikit_learn(data):
    assert metrics.log_loss(*data) == pytest.approx(sk.log_loss(*data))


@settings(deadline=None)
@given(labelled(PROBABILITIES), st.integers(1, 20))
def test_ece_matches_its_definition_bin_by_bin(data, bins):
    labels, p = data
    expected = 0.0
    for number in range(bins):
        last = number == bins - 1
        inside = (p * bins >= number) & ((p * bins < number + 1) | last)
        if inside.any():
            expected += inside.mean() * abs(p[inside].mean() - labels[inside].mean())
    assert metrics.ece(labels, p, bins) == pytest.approx(expected, abs=1e-12)


def test_ece_of_a_hand_worked_case():
    # Two bins: 0.1 and 0.3 against no AI text, 0.6 and 1.0 against one of two.
    assert metrics.ece([0, 0, 0, 1], [0.1, 0.3, 0.6, 1.0], bins=2) == pytest.approx(0.5 * 0.2 + 0.5 * 0.3)


@settings(deadline=None)
@given(st.integers(1, 500), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_rate_interval_matches_the_exact_interval_of_scipy(trials, data, confidence):
    successes = data.draw(st.integers(0, trials))
    expected = binomtest(successes, trials).proportion_ci(confidence, method="exact")
    found = metrics.rate_interval(successes, trials, confidence)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-7, abs=1e-12)


def test_rate_interval_of_no_trials_says_nothing():
    assert metrics.rate_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((4, 3), "successes must be in [0, 3], found 4"),
        ((1, 3, 95), "confidence must be in (0, 1), found 95"),
    ],
)
def test_rate_interval_refuses_what_is_no_rate(arguments, text):
    with pytest.raises(InputError) as refused:
        metrics.rate_interval(*arguments)
    assert str(refused.value) == text


@pytest.mark.parametrize(
    ("labels", "scores", "text"),
    [
        ([0, 1], [0.0], "labels and scores must have one shape (n,) with n >= 1, found (2,) and (1,)"),
        ([], [], "labels and scores must have one shape (n,) with n >= 1, found (0,) and (0,)"),
        ([[0, 1]], [[0, 1]], "labels and scores must have one shape (n,) with n >= 1, found (1, 2) and (1, 2)"),
        ([0, 1, 2], [0.0, 0.0, 0.0], "labels must be 0 (human) or 1 (ai), found 2"),
        (["ai", "human"], [0.0, 0.0], "labels must be 0 (human) or 1 (ai), found ai"),
        ([0, 1, 1], [0.0, np.nan, np.inf], "scores must be finite, found 2 of 3 that are not"),
        ([0, 0], [0.0, 1.0], "texts of both classes are needed, found 2 human and 0 ai"),
        ([1, 1, 1], [0.0, 1.0, 2.0], "texts of both classes are needed, found 0 human and 3 ai"),
    ],
)
def test_unusable_input_is_refused_with_what_was_found(labels, scores, text):
    with pytest.raises(InputError) as refused:
        metrics.auroc(labels, scores)
    assert str(refused.value) == text


@pytest.mark.parametrize("figure", [metrics.brier, metrics.ece, metrics.log_loss])
def test_log_odds_given_as_probabilities_are_refused(figure):
    with pytest.raises(InputError) as refused:
        figure([0, 1], [0.5, 2.5])
    assert str(refused.value) == "probabilities must be in [0, 1], found 2.5"


@pytest.mark.parametrize("figure", [metrics.accuracy, metrics.f1])
def test_probabilities_given_as_predictions_are_refused(figure):
    with pytest.raises(InputError) as refused:
        figure([0, 1], [0.0, 0.7])
    assert str(refused.value) == "predictions must be 0 (human) or 1 (ai), found 0.7"


LABELS = [0, 0, 0, 0, 1, 1]
SCORES = [-3.0, -2.0, -1.0, 1.0, 1.0, 4.0]
P = [0.1, 0.2, 0.3, 0.6, 0.5, 0.9]


def test_report_holds_the_figures_of_the_single_functions():
    calls = [0, 0, 0, 1, 1, 1]
    assert metrics.report(LABELS, SCORES, P, {}) == {
        "n_human": 4,
        "n_ai": 2,
        "auroc": metrics.auroc(LABELS, SCORES),
        "tpr_at_fpr_1": metrics.tpr_at_fpr(LABELS, SCORES, 0.01),
        "tpr_at_fpr_5": metrics.tpr_at_fpr(LABELS, SCORES, 0.05),
        "accuracy": metrics.accuracy(LABELS, calls),
        "f1": metrics.f1(LABELS, calls),
        "ece": metrics.ece(LABELS, P),
        "brier": metrics.brier(LABELS, P),
        "log_loss": metrics.log_loss(LABELS, P),
    }


def test_report_tells_tpr_at_one_percent_from_tpr_at_five():
    labels, scores = [0] * 100 + [1] * 4, [*range(100), 97.5, 98.5, 98.5, 99.5]
    figures = metrics.report(labels, scores, [0.5] * 104, {})
    assert (figures["tpr_at_fpr_1"], figures["tpr_at_fpr_5"]) == (0.75, 1.0)


def test_report_rates_every_threshold_with_its_interval():
    figures = metrics.report(LABELS, SCORES, P, {0.05: 1.0, 0.001: 4.5})
    rates = {name: figure for name, figure in figures.items() if "_at_target_" in name}
    expected = {}
    for name, called, texts in [
        ("fpr_at_target_5", 1, 4),
        ("tpr_at_target_5", 2, 2),
        ("fpr_at_target_0_1", 0, 4),
        ("tpr_at_target_0_1", 0, 2),
    ]:
        low, high = metrics.rate_interval(called, texts)
        expected |= {name: called / texts, f"{name}_low": low, f"{name}_high": high}
    assert rates == expected


@pytest.mark.parametrize("label", [0, 1])
def test_report_of_one_class_leaves_out_exactly_what_needs_both(label):
    figures = metrics.report([label] * 3, [0.0, 1.0, 2.0], [0.2, 0.6, 0.8], {0.01: 1.0})
    missing = {name for name, figure in figures.items() if figure is None}
    other_rate = "tpr_at_target_1" if label == 0 else "fpr_at_target_1"
    assert missing == {"auroc", "tpr_at_fpr_1", "tpr_at_fpr_5", "f1", other_rate}


def test_report_compares_float32_scores_with_the_threshold_in_float64():
    human = np.float32(0.1)
    threshold = float(np.nextafter(np.float64(human), np.inf))
    figures = metrics.report([0, 1], np.array([human, 1], dtype=np.float32), [0.1, 0.9], {0.01: threshold})
    assert figures["fpr_at_target_1"] == 0.0


def test_report_survives_json():
    figures = metrics.report(np.array(LABELS), np.array(SCORES), np.array(P), {0.05: 1.0})
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
