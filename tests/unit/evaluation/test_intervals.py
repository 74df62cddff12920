import numpy as np
import pytest
from scipy.stats import beta

from detect_ai import metrics
from detect_ai.evaluation import intervals


def clustered_events(rng, groups=40, size=25):
    """False positives whose rate varies between groups: Beta(0.5, 4.5), a mean of 10%."""
    rates = rng.beta(0.5, 4.5, groups)
    return (rng.random((groups, size)) < rates[:, None]).ravel(), np.repeat(np.arange(groups), size)


def test_groups_without_a_name_are_singletons():
    assert intervals.group_ids(np.asarray(["b", "", "a", "b", ""])).tolist() == [1, 2, 0, 1, 3]


def test_interval_width_on_clustered_data_matches_a_simulation():
    rng = np.random.default_rng(0)
    rates = [clustered_events(rng)[0].mean() for _ in range(2000)]
    expected = np.subtract(*np.quantile(rates, [0.975, 0.025]))
    widths = [np.subtract(*intervals.rate_interval(*clustered_events(rng))[::-1]) for _ in range(30)]
    assert np.mean(widths) == pytest.approx(expected, rel=0.15)
    exact = np.subtract(*metrics.exact_rate_interval(100, 1000)[::-1])
    assert np.mean(widths) > 2 * exact


def test_clustered_intervals_cover_the_true_rate():
    rng = np.random.default_rng(1)
    bounds = [intervals.rate_interval(*clustered_events(rng)) for _ in range(200)]
    assert np.mean([low <= 0.1 <= high for low, high in bounds]) > 0.85


def test_rare_events_are_never_narrower_than_exact():
    events, ids = np.isin(np.arange(500), (3, 400)), np.arange(500) // 25
    low, high = intervals.rate_interval(events, ids)
    exact = metrics.exact_rate_interval(2, 500)
    assert low <= exact[0]
    assert high >= exact[1]


@pytest.mark.parametrize("successes", [0, 7, 20])
def test_independent_rates_are_clopper_pearson(successes):
    low, high = intervals.rate_interval(np.arange(20) < successes, np.arange(20))
    assert low == pytest.approx(beta.ppf(0.025, successes, 21 - successes) if successes else 0)
    assert high == pytest.approx(beta.ppf(0.975, successes + 1, 20 - successes) if successes < 20 else 1)


def test_few_groups_have_no_interval():
    events = np.arange(90) % 7 == 0
    assert intervals.rate_interval(events, np.arange(90) % 9) == (None, None)
    assert None not in intervals.rate_interval(events, np.arange(90) % 10)


def test_without_events_groups_are_the_trials():
    ids = np.repeat(np.arange(12), 100)
    assert intervals.rate_interval(np.zeros(1200, bool), ids) == metrics.exact_rate_interval(0, 12)
    assert intervals.rate_interval(np.ones(1200, bool), ids) == metrics.exact_rate_interval(12, 12)


def test_spread_covers_large_groups_only():
    ids = np.repeat([0, 1, 2, 3], [20, 20, 40, 3])
    events = np.concatenate([np.arange(20) < 2, np.zeros(20), np.arange(40) < 20, np.ones(3)]).astype(bool)
    assert intervals.group_spread(events, ids) == {"groups": 3, "min": 0.0, "median": 0.1, "max": 0.5}
    assert intervals.group_spread(events[:20], ids[:20]) is None


def two_detectors(seed=0, groups=40, size=10):
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(groups), size)
    labels = ids % 2
    shift = rng.normal(0, 1.5, (2, groups))
    scores = [labels + shift[k][ids] + rng.normal(0, 0.3, ids.size) for k in (0, 1)]
    return labels, scores, [(values > 1).astype(int) for values in scores], ids


def test_differences_are_those_of_the_metrics():
    labels, scores, predictions, ids = two_detectors()
    differences = intervals.paired_differences(labels, scores, predictions, ids)
    areas = [metrics.auroc(labels, values) for values in scores]
    assert differences["auroc_difference"] == pytest.approx(areas[0] - areas[1])
    for name, label in (("fpr", 0), ("tpr", 1)):
        rates = [(values == 1)[labels == label].mean() for values in predictions]
        assert differences[f"{name}_difference"] == pytest.approx(rates[0] - rates[1])
        low, high = differences[f"{name}_difference_low"], differences[f"{name}_difference_high"]
        assert low < differences[f"{name}_difference"] < high


def test_differences_are_resampled_by_group():
    labels, scores, predictions, ids = two_detectors()
    by_group, by_text = (
        intervals.paired_differences(labels, scores, predictions, used) for used in (ids, np.arange(len(ids)))
    )
    for name in ("auroc_difference", "fpr_difference"):
        widths = [result[f"{name}_high"] - result[f"{name}_low"] for result in (by_group, by_text)]
        assert widths[0] > 2 * widths[1]


def test_paired_intervals_are_narrower_than_the_sum():
    labels, scores, predictions, ids = two_detectors()
    other = [scores[0], scores[0] + np.random.default_rng(1).normal(0, 0.05, len(ids))]
    paired = intervals.paired_differences(labels, other, predictions, ids)
    curves = intervals.weighted_roc(labels, scores[0])
    alone = intervals.bootstrap(lambda drawn: {"auroc": intervals.area(*curves(drawn))}, ids)
    assert paired["auroc_difference_high"] - paired["auroc_difference_low"] < 0.3 * np.subtract(*alone["auroc"][::-1])


@pytest.mark.parametrize(("labels", "missing"), [([0] * 20, "tpr"), ([1] * 20, "fpr")])
def test_a_missing_class_has_no_difference(labels, missing):
    scores = np.random.default_rng(0).normal(size=(2, 20))
    differences = intervals.paired_differences(np.asarray(labels), scores, scores > 0, np.arange(20))
    assert differences["auroc_difference"] is differences[f"{missing}_difference"] is None
    assert {name for name, value in differences.items() if value is not None} == {
        f"{'tpr' if missing == 'fpr' else 'fpr'}_difference{end}" for end in ("", "_low", "_high")
    }


def test_equal_detectors_have_no_interval_of_zero_width():
    labels, scores, predictions, ids = two_detectors()
    differences = intervals.paired_differences(labels, [scores[0]] * 2, [predictions[0]] * 2, ids)
    assert differences["auroc_difference"] == 0
    assert differences["auroc_difference_low"] is differences["auroc_difference_high"] is None
