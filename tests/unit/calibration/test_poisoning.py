"""Contributors whose labels move a threshold: dishonest and honest ones."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from detect_ai.calibration.conformal import conformal_threshold
from detect_ai.calibration.poisoning import MAX_CHANCE, poisoning_keys

DRAWS = 200


def sample(seed, n, poisoned=0.1, distance=3.0):
    """Scores and keys of n texts: human texts of nine contributors, a fraction `poisoned` with AI scores of another."""
    rng, bad = np.random.default_rng(seed), round(poisoned * n)
    keys = np.asarray([f"k{i % 9}" for i in range(n - bad)] + ["bad"] * bad)
    return np.concatenate([rng.normal(size=n - bad), rng.normal(distance, 1.0, bad)]), keys


def interval_width(scores, target):
    """Width of the 95% confidence interval of a threshold, by order statistics."""
    ordered = np.sort(scores)[::-1]
    first, last = (int(binom.ppf(tail, len(scores), target)) for tail in (0.025, 0.975))
    return ordered[max(0, first - 1)] - ordered[last]


@pytest.mark.parametrize(("n", "target"), [(200, 0.01), (200, 0.05), (1000, 0.01)])
def test_one_false_contributor_moves_the_threshold_by_less_than_half_its_interval(n, target):
    found = 0
    for seed in range(DRAWS):
        scores, keys = sample(seed, n)
        excluded = poisoning_keys(scores, keys, target)
        found += "bad" in excluded
        honest = scores[keys != "bad"]
        before = conformal_threshold(honest, target, "expectation").score
        after = conformal_threshold(scores[~np.isin(keys, excluded)], target, "expectation").score
        assert abs(after - before) < 0.5 * interval_width(honest, target)
    assert found > 0.9 * DRAWS


@pytest.mark.parametrize(("n", "target"), [(100, 0.01), (200, 0.01), (200, 0.05)])
def test_honest_contributors_stay(n, target):
    wrong = sum(bool(poisoning_keys(*sample(seed, n, distance=0.0), target)) for seed in range(DRAWS))
    assert binomtest(wrong, DRAWS, MAX_CHANCE, alternative="greater").pvalue > 0.01


def test_false_contributors_are_found_one_after_the_other():
    """The contributor with the highest scores hides the other."""
    scores, keys = sample(0, 1000)
    worse = np.random.default_rng(1).normal(20.0, 1.0, 100)
    assert poisoning_keys(np.append(scores, worse), np.append(keys, ["worse"] * 100), 0.01) == ["worse", "bad"]


def test_a_majority_and_texts_without_a_contributor_stay():
    scores = np.concatenate([np.zeros(90), np.full(110, 9.0)]) + np.random.default_rng(0).normal(size=200)
    for minority, majority in (("few", "many"), ("few", ""), ("", "many")):
        assert poisoning_keys(scores, np.repeat([minority, majority], [90, 110]), 0.01) == []
    assert poisoning_keys(-scores, np.repeat(["", "low"], [90, 110]), 0.01) == []
    assert poisoning_keys([], [], 0.01) == []


def test_low_scores_are_not_poison():
    """They change the threshold by no more than their fraction of the texts."""
    scores, keys = sample(0, 200, distance=-9.0)
    assert poisoning_keys(scores, keys, 0.01) == []
