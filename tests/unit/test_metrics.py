import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from detect_ai import metrics
from detect_ai.core.errors import InputError
from detect_ai.evaluation import summary
from detect_ai.evaluation.intervals import bootstrap

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
@given(labelled(PROBABILITIES), st.integers(1, 20))
def test_reliability_is_what_ece_adds_up(data, bins):
    labels, p = data
    rows = metrics.reliability(labels, p, bins)
    assert sum(row["count"] for row in rows) == len(p)
    gaps = [row["count"] * abs(row["mean_probability"] - row["share_ai"]) for row in rows]
    assert metrics.ece(labels, p, bins) == pytest.approx(sum(gaps) / len(p), abs=1e-12)
    for row in rows:
        interval = metrics.rate_interval(round(row["share_ai"] * row["count"]), row["count"])
        assert (row["share_low"], row["share_high"]) == interval


@settings(deadline=None)
@given(labelled(st.floats(0.001, 0.999).filter(lambda p: (p * 5) % 1)))
def test_reliability_matches_scikit_learn(data):
    labels, p = data
    shares, means = calibration_curve(labels, p, n_bins=5)
    rows = metrics.reliability(labels, p, 5)
    assert [row["share_ai"] for row in rows] == pytest.approx(shares)
    assert [row["mean_probability"] for row in rows] == pytest.approx(means)


def test_reliability_of_a_hand_worked_case():
    low, high = metrics.rate_interval(1, 2)
    assert metrics.reliability([0, 0, 0, 1], [0.0, 0.2, 0.75, 1.0], bins=4) == [
        {"low": 0.0, "high": 0.25, "count": 2, "mean_probability": 0.1, "share_ai": 0.0}
        | {"share_low": 0.0, "share_high": metrics.rate_interval(0, 2)[1]},
        {"low": 0.75, "high": 1.0, "count": 2, "mean_probability": 0.875, "share_ai": 0.5}
        | {"share_low": low, "share_high": high},
    ]


@pytest.mark.parametrize("figure", [metrics.ece, metrics.reliability])
def test_no_bin_is_refused(figure):
    with pytest.raises(InputError) as refused:
        figure([0, 1], [0.1, 0.2], bins=0)
    assert str(refused.value) == "bins must be at least 1, found 0"


@settings(deadline=None)
@given(labelled(st.integers(0, 1)))
def test_figures_of_predictions_match_scikit_learn(data):
    assert metrics.balanced_accuracy(*data) == pytest.approx(sk.balanced_accuracy_score(*data))
    assert metrics.precision(*data) == pytest.approx(sk.precision_score(*data, zero_division=0))
    assert metrics.recall(*data) == pytest.approx(sk.recall_score(*data))


def test_figures_of_predictions_of_a_hand_worked_case():
    labels, predictions = [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]
    assert metrics.balanced_accuracy(labels, predictions) == (3 / 4 + 1 / 2) / 2
    assert metrics.precision(labels, predictions) == 1 / 2
    assert metrics.recall([0, 1, 1, 1], [1, 1, 0, 0]) == 1 / 3
    assert metrics.precision([0, 1], [0, 0]) == metrics.recall([0, 0], [0, 1]) == 0.0


def test_balanced_accuracy_needs_both_classes():
    with pytest.raises(InputError) as refused:
        metrics.balanced_accuracy([1, 1], [0, 1])
    assert str(refused.value) == "texts of both classes are needed, found 0 human and 2 ai"


def test_calls_at_leaves_open_what_lies_between():
    assert metrics.calls_at([-1.0, 0.0, 0.5, 1.0, 2.0], 0.0, 1.0).tolist() == [0, -1, -1, 1, 1]
    assert metrics.calls_at([0.0, 1.0], 1.0, 1.0).tolist() == [0, 1]


def test_calls_at_compares_float32_scores_with_the_threshold_in_float64():
    human = np.float32(0.1)
    threshold = float(np.nextafter(np.float64(human), np.inf))
    assert metrics.calls_at(np.array([human, 1], dtype=np.float32), threshold, threshold).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([0.0], 1.0, 0.5), "lower must be at most upper, found 1.0 and 0.5"),
        (([0.0, np.nan, -np.inf], 0.0, 1.0), "scores must be finite, found 2 of 3 that are not"),
    ],
)
def test_calls_at_refuses_what_decides_nothing(arguments, text):
    with pytest.raises(InputError) as refused:
        metrics.calls_at(*arguments)
    assert str(refused.value) == text


def test_c_at_1_of_a_hand_worked_case():
    # Of five texts two are right and two left open, which are worth 2/5 each.
    assert metrics.c_at_1([0, 0, 1, 1, 1], [0, -1, 1, 0, -1]) == pytest.approx((2 + 2 * 2 / 5) / 5)


def test_f05u_of_a_hand_worked_case():
    # Two found, one missed, two left open (one of each class), one false alarm.
    labels, calls = [1, 1, 1, 1, 0, 0, 0], [1, 1, 0, -1, -1, 1, 0]
    assert metrics.f05u(labels, calls) == pytest.approx(2.5 / (2.5 + 0.25 * (1 + 2) + 1))
    assert metrics.f05u([0, 0], [0, 0]) == 0.0


@settings(deadline=None)
@given(labelled(st.integers(0, 1)))
def test_with_nothing_left_open_the_figures_of_pan_are_the_usual_ones(data):
    assert metrics.c_at_1(*data) == pytest.approx(sk.accuracy_score(*data))
    assert metrics.f05u(*data) == pytest.approx(sk.fbeta_score(*data, beta=0.5))


def test_brier_complement_of_a_hand_worked_case():
    assert metrics.brier_complement([0, 1], [0.5, 1.0]) == 1 - 0.125


def test_a_short_roc_curve_is_given_whole():
    assert metrics.roc([0, 0, 1, 1], [0.0, 1.0, 1.0, 2.0]) == {"fpr": [0, 0, 0.5, 1], "tpr": [0, 0.5, 1, 1]}


def test_a_roc_curve_of_no_more_points_than_asked_for_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 100)
    scores = rng.normal(labels, 1)
    found = metrics.roc(labels, scores, points=101)
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    assert found["fpr"] == pytest.approx(fpr)
    assert found["tpr"] == pytest.approx(tpr)


def test_a_thinned_roc_curve_keeps_its_ends_its_small_rates_and_its_shape():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10_000)
    scores = rng.normal(2 * labels, 1)
    found = metrics.roc(labels, scores, points=200)
    fpr, tpr = np.array(found["fpr"]), np.array(found["tpr"])
    assert 150 < fpr.size <= 200
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()
    exact = set(zip(*sk.roc_curve(labels, scores, drop_intermediate=False)[:2], strict=True))
    assert set(zip(found["fpr"], found["tpr"], strict=True)) <= exact
    assert ((fpr > 0) & (fpr < 0.001)).sum() >= 5
    assert ((fpr > 0.001) & (fpr < 0.01)).sum() >= 10
    assert sk.auc(fpr, tpr) == pytest.approx(metrics.auroc(labels, scores), abs=2e-3)


def test_a_roc_curve_of_too_few_points_is_refused():
    with pytest.raises(InputError) as refused:
        metrics.roc([0, 1], [0.0, 1.0], points=9)
    assert str(refused.value) == "points must be at least 10, found 9"


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


@pytest.mark.parametrize("figure", [metrics.c_at_1, metrics.f05u])
def test_scores_given_as_calls_are_refused(figure):
    with pytest.raises(InputError) as refused:
        figure([0, 1], [-1, 2])
    assert str(refused.value) == "calls must be 0 (human), 1 (ai) or -1 (uncertain), found 2.0"


PREDICTED = [metrics.accuracy, metrics.f1, metrics.balanced_accuracy, metrics.precision, metrics.recall]


@pytest.mark.parametrize("figure", PREDICTED)
def test_probabilities_given_as_predictions_are_refused(figure):
    with pytest.raises(InputError) as refused:
        figure([0, 1], [0.0, 0.7])
    assert str(refused.value) == "predictions must be 0 (human) or 1 (ai), found 0.7"


LABELS = [0, 0, 0, 0, 1, 1]
SCORES = [-3.0, -2.0, -1.0, 1.0, 1.0, 4.0]
P = [0.1, 0.2, 0.3, 0.6, 0.5, 0.9]
CALLS = {0.05: [0, 0, -1, 1, 1, 1], 0.001: [0, 0, -1, -1, -1, 1]}


@settings(deadline=None)
@given(labelled(st.tuples(TIED_SCORES, PROBABILITIES, st.integers(0, 3), st.integers(-1, 1))))
def test_weighted_figures_are_those_of_repeated_texts(data):
    labels, (scores, p, counts, calls) = data[0], data[1].T
    counts = counts.astype(np.int64)
    counts[:2] += 1  # of each class one
    found = summary.weighted_figures(labels, scores, p, calls)(counts)
    y, s, q, made = (np.repeat(values, counts) for values in (labels, scores, p, calls))
    pan = [
        metrics.auroc(y, s),
        metrics.brier_complement(y, q),
        metrics.c_at_1(y, made),
        metrics.f1(y, q >= 0.5),
        metrics.f05u(y, made),
    ]
    assert found == pytest.approx(
        {
            "auroc": metrics.auroc(y, s),
            "tpr_at_fpr_1": metrics.tpr_at_fpr(y, s, 0.01),
            "tpr_at_fpr_5": metrics.tpr_at_fpr(y, s, 0.05),
            "f1": metrics.f1(y, q >= 0.5),
            "balanced_accuracy": metrics.balanced_accuracy(y, q >= 0.5),
            "ece": metrics.ece(y, q),
            "brier": metrics.brier(y, q),
            "log_loss": metrics.log_loss(y, q),
            "brier_complement": metrics.brier_complement(y, q),
            "c_at_1": metrics.c_at_1(y, made),
            "f05u": metrics.f05u(y, made),
            "pan_mean": sum(pan) / 5,
        },
        abs=1e-12,
    )


def without_bounds(figures):
    return {name: figure for name, figure in figures.items() if not name.endswith(("_low", "_high"))}


def test_report_holds_the_figures_of_the_single_functions():
    predictions = [0, 0, 0, 1, 1, 1]
    expected = {
        "auroc": metrics.auroc(LABELS, SCORES),
        "brier_complement": metrics.brier_complement(LABELS, P),
        "c_at_1": metrics.c_at_1(LABELS, CALLS[0.05]),
        "f1": metrics.f1(LABELS, predictions),
        "f05u": metrics.f05u(LABELS, CALLS[0.05]),
    }
    assert without_bounds(summary.report(LABELS, SCORES, P, CALLS)) == pytest.approx(
        expected
        | {
            "n_human": 4,
            "n_ai": 2,
            "tpr_at_fpr_0_1": None,
            "tpr_at_fpr_1": metrics.tpr_at_fpr(LABELS, SCORES, 0.01),
            "tpr_at_fpr_5": metrics.tpr_at_fpr(LABELS, SCORES, 0.05),
            "accuracy": metrics.accuracy(LABELS, predictions),
            "balanced_accuracy": metrics.balanced_accuracy(LABELS, predictions),
            "precision": metrics.precision(LABELS, predictions),
            "recall": metrics.recall(LABELS, predictions),
            "ece": metrics.ece(LABELS, P),
            "brier": metrics.brier(LABELS, P),
            "log_loss": metrics.log_loss(LABELS, P),
            "fpr_at_target_5": 1 / 4,
            "tpr_at_target_5": 1.0,
            "uncertain_share_at_5": 1 / 6,
            "fpr_at_target_0_1": 0.0,
            "tpr_at_target_0_1": 1 / 2,
            "uncertain_share_at_0_1": 1 / 2,
            "uncertain_share": 1 / 6,
            "pan_mean": sum(expected.values()) / 5,
        }
    )


def test_report_bounds_rates_by_their_counts():
    figures = summary.report(LABELS, SCORES, P, CALLS)
    for name, successes, trials in [
        ("accuracy", 5, 6),
        ("precision", 2, 3),
        ("recall", 2, 2),
        ("fpr_at_target_5", 1, 4),
        ("tpr_at_target_5", 2, 2),
        ("uncertain_share_at_5", 1, 6),
        ("fpr_at_target_0_1", 0, 4),
        ("tpr_at_target_0_1", 1, 2),
        ("uncertain_share_at_0_1", 3, 6),
        ("uncertain_share", 1, 6),
    ]:
        assert (figures[f"{name}_low"], figures[f"{name}_high"]) == metrics.rate_interval(successes, trials), name


def test_report_judges_by_the_default_target():
    figures = summary.report(LABELS, SCORES, P, CALLS, default_target=0.001, rounds=0)
    assert figures["uncertain_share"] == figures["uncertain_share_at_0_1"] == 1 / 2
    assert figures["c_at_1"] == metrics.c_at_1(LABELS, CALLS[0.001])
    assert figures["f05u"] == metrics.f05u(LABELS, CALLS[0.001])


def test_report_refuses_a_default_target_without_calls():
    with pytest.raises(InputError) as refused:
        summary.report(LABELS, SCORES, P, CALLS, default_target=0.01)
    assert str(refused.value) == "the default target must be one of [0.001, 0.05], found 0.01"


def test_report_without_targets_leaves_out_what_needs_calls():
    figures = summary.report(LABELS, SCORES, P, {}, rounds=0)
    for name in ("uncertain_share", "uncertain_share_low", "uncertain_share_high", "c_at_1", "f05u", "pan_mean"):
        assert figures[name] is None
    assert figures["brier_complement"] == metrics.brier_complement(LABELS, P)


def many(human, ai=100):
    labels = np.repeat([0, 1], [human, ai])
    scores = np.random.default_rng(0).normal(3 * labels, 1)
    return labels, scores, 1 / (1 + np.exp(1.5 - scores))


def test_report_bounds_the_other_figures_by_a_bootstrap_of_the_groups():
    labels, scores, p = many(1000)
    groups = np.arange(labels.size) % 300
    calls = metrics.calls_at(scores, 1.0, 2.0)
    figures = summary.report(labels, scores, p, {0.05: calls}, groups=groups, rounds=30, seed=7)
    expected = bootstrap(summary.weighted_figures(labels, scores, p, calls), labels, groups, rounds=30, seed=7)
    assert set(expected) == set(summary.RESAMPLED)
    found = {name: (figures[f"{name}_low"], figures[f"{name}_high"]) for name in summary.RESAMPLED}
    assert found == expected
    assert all(low <= figures[name] <= high for name, (low, high) in found.items() if name != "ece")


@pytest.mark.parametrize("groups", [None, ["one"] * 6])
def test_report_without_anything_to_resample_has_no_bootstrap_bounds(groups):
    figures = summary.report(LABELS, SCORES, P, {}, groups=groups, rounds=0 if groups is None else 200)
    for name in summary.RESAMPLED:
        assert figures[f"{name}_low"] is figures[f"{name}_high"] is None
    assert figures["auroc"] is not None


def test_report_gives_tpr_at_a_thousandth_from_a_thousand_human_texts_on():
    for human, enough in ((999, False), (1000, True)):
        labels, scores, p = many(human)
        figures = summary.report(labels, scores, p, {}, rounds=5)
        expected = metrics.tpr_at_fpr(labels, scores, 0.001) if enough else None
        assert figures["tpr_at_fpr_0_1"] == expected
        assert (figures["tpr_at_fpr_0_1_low"] is not None) is enough


def test_report_tells_tpr_at_one_percent_from_tpr_at_five():
    labels, scores = [0] * 100 + [1] * 4, [*range(100), 97.5, 98.5, 98.5, 99.5]
    figures = summary.report(labels, scores, [0.5] * 104, {}, rounds=0)
    assert (figures["tpr_at_fpr_1"], figures["tpr_at_fpr_5"]) == (0.75, 1.0)


@pytest.mark.parametrize("label", [0, 1])
def test_report_of_one_class_leaves_out_exactly_what_needs_both(label):
    figures = summary.report([label] * 3, [0.0, 1.0, 2.0], [0.2, 0.6, 0.8], {0.01: [0, -1, 1]})
    missing = {name for name, figure in figures.items() if figure is None}
    resampled = {
        "auroc",
        "tpr_at_fpr_0_1",
        "tpr_at_fpr_1",
        "tpr_at_fpr_5",
        "balanced_accuracy",
        "f1",
        "f05u",
        "pan_mean",
    }
    bounds = {f"{name}_{bound}" for name in resampled for bound in ("low", "high")}
    of_class = {"tpr_at_target_1", "recall"} if label == 0 else {"fpr_at_target_1"}
    assert missing == resampled | bounds | of_class | {"precision"}
    assert (figures["precision_low"], figures["precision_high"]) == (0.0, 1.0)


def test_report_refuses_calls_that_are_none():
    with pytest.raises(InputError) as refused:
        summary.report(LABELS, SCORES, P, {0.05: SCORES})
    assert str(refused.value) == "calls must be 0 (human), 1 (ai) or -1 (uncertain), found -3.0"


def test_report_of_15000_texts_takes_seconds():
    labels, scores, p = many(7500, 7500)
    start = time.process_time()
    summary.report(labels, scores, p, {0.01: metrics.calls_at(scores, 0.0, 2.0)}, groups=np.arange(15000) // 3)
    assert time.process_time() - start < 3


def test_report_survives_json():
    figures = summary.report(np.array(LABELS), np.array(SCORES), np.array(P), {0.05: np.array(CALLS[0.05])})
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
