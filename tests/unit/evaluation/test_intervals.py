import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from detect_ai import metrics
from detect_ai.core.errors import InputError
from detect_ai.evaluation import intervals, summary


@settings(deadline=None)
@given(st.integers(1, 500), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_rate_interval_matches_the_exact_interval_of_scipy(trials, data, confidence):
    successes = data.draw(st.integers(0, trials))
    expected = binomtest(successes, trials).proportion_ci(confidence, method="exact")
    found = intervals.rate_interval(successes, trials, confidence)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-7, abs=1e-12)


def test_rate_interval_of_no_trials_says_nothing():
    assert intervals.rate_interval(0, 0) == (0.0, 1.0)


def test_rate_interval_is_one_of_the_metrics_too():
    assert metrics.rate_interval is intervals.rate_interval


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((4, 3), "successes must be in [0, 3], found 4"),
        ((1, 3, 95), "confidence must be in (0, 1), found 95"),
    ],
)
def test_rate_interval_refuses_what_is_no_rate(arguments, text):
    with pytest.raises(InputError) as refused:
        intervals.rate_interval(*arguments)
    assert str(refused.value) == text


def test_groups_are_numbered_by_their_first_text_and_none_is_a_group_of_its_own():
    assert intervals.group_numbers(["b", None, "a", "b", None], 5).tolist() == [0, 1, 2, 0, 3]
    assert intervals.group_numbers(np.array([7, 3, 7]), 3).tolist() == [0, 1, 0]
    assert intervals.group_numbers(None, 3).tolist() == [0, 1, 2]


def resamples(labels, groups=None, rounds=50, seed=0):
    """The multiplicities that `bootstrap` gives to a figure."""
    seen = []

    def figure(counts):
        seen.append(counts.copy())
        return {"texts": float(counts.sum())}

    intervals.bootstrap(figure, labels, groups, rounds, seed)
    return np.array(seen)


def test_texts_of_one_group_go_together():
    groups = [0, 1, 2, 3] * 5
    drawn = resamples([0, 1] * 10, groups)
    assert drawn.shape == (50, 20)
    assert (drawn == np.tile(drawn[:, :4], 5)).all()
    assert (drawn[:, :4].sum(axis=1) == 4).all()
    assert (drawn[:, :4].std(axis=1) > 0).any()


def test_every_text_is_drawn_once_a_round_on_average():
    drawn = resamples([0, 1] * 20, rounds=2000)
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.12)
    np.testing.assert_allclose(drawn.var(axis=0), 1 - 1 / 40, atol=0.2)


def test_every_round_has_both_classes_where_the_texts_have():
    labels = np.array([1, 0, 0, 0])
    drawn = resamples(labels, rounds=200)
    assert (drawn[:, labels == 1].sum(axis=1) > 0).all()
    assert (drawn[:, labels == 0].sum(axis=1) > 0).all()


def test_rounds_that_never_have_both_classes_are_given_up(monkeypatch):
    monkeypatch.setattr(intervals, "MAX_DRAWS", 1)
    with pytest.raises(InputError) as refused:
        resamples([0, 1], rounds=100)
    assert str(refused.value) == "1 resamples of 2 groups in a row had texts of one class only"


def test_texts_of_one_class_are_resampled_too():
    assert resamples([1, 1, 1], rounds=7).shape == (7, 3)


def test_one_seed_draws_the_same_resamples_and_another_draws_others():
    labels = [0, 1] * 10
    assert (resamples(labels, seed=3) == resamples(labels, seed=3)).all()
    assert (resamples(labels, seed=3) != resamples(labels, seed=4)).any()


def test_the_bounds_are_percentiles_of_the_rounds():
    values = iter(range(101))
    found = intervals.bootstrap(lambda counts: {"a": float(next(values))}, [0, 1], rounds=101, confidence=0.8)
    assert found["a"] == pytest.approx((10.0, 90.0))


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = intervals.bootstrap_interval(lambda labels, x: float(x.mean()), [[0, 1] * 200, values], rounds=2000)
    margin = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - margin, values.mean() + margin), abs=0.03)


def test_texts_that_repeat_others_do_not_narrow_the_interval_of_their_groups():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 50)
    scores = rng.normal(labels, 1)
    once = intervals.bootstrap_interval(metrics.auroc, [labels, scores])
    tenfold = [np.repeat(labels, 10), np.repeat(scores, 10)]
    assert intervals.bootstrap_interval(metrics.auroc, tenfold, np.repeat(np.arange(100), 10)) == pytest.approx(once)
    low, high = intervals.bootstrap_interval(metrics.auroc, tenfold)
    assert high - low < 0.5 * (once[1] - once[0])


def test_a_figure_of_resampled_texts_has_the_interval_of_the_weighted_one():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 300)
    scores, groups = np.round(rng.normal(labels, 1), 1), rng.integers(0, 80, 300)
    p = 1 / (1 + np.exp(-scores))
    weighted = intervals.bootstrap(summary.weighted_figures(labels, scores, p), labels, groups, rounds=40, seed=5)
    for name, figure, values in [
        ("auroc", metrics.auroc, scores),
        ("tpr_at_fpr_5", lambda y, s: metrics.tpr_at_fpr(y, s, 0.05), scores),
        ("ece", metrics.ece, p),
        ("brier", metrics.brier, p),
    ]:
        found = intervals.bootstrap_interval(figure, [labels, values], groups, rounds=40, seed=5)
        assert found == pytest.approx(weighted[name], abs=1e-12), name


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"rounds": 0}, "rounds must be at least 1, found 0"),
        ({"confidence": 95}, "confidence must be in (0, 1), found 95"),
        ({"groups": ["a"] * 4}, "a bootstrap needs texts of at least 2 groups, found 1"),
        ({"groups": ["a"] * 3}, "groups must have the shape of the labels, (4,), found (3,)"),
        ({"arrays": [[0, 1], [0.0]]}, "arrays must have one length, found [(2,), (1,)]"),
        ({"arrays": [[], []]}, "a bootstrap needs texts of at least 2 groups, found 0"),
        (
            {"figure": lambda labels, x: np.nan, "rounds": 5},
            "the figure must be finite in every resample, found 5 of 5 that are not",
        ),
    ],
)
def test_a_bootstrap_that_cannot_be_is_refused_with_what_was_found(arguments, text):
    given = {"figure": metrics.auroc, "arrays": [[0, 0, 1, 1], [0.0, 1.0, 2.0, 3.0]]} | arguments
    with pytest.raises(InputError) as refused:
        intervals.bootstrap_interval(**given)
    assert str(refused.value) == text
