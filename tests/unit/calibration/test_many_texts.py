"""Statements about lists of texts hold on simulated ones."""

import numpy as np
import pytest
from scipy.stats import binomtest

from detect_ai.calibration.conformal import p_value
from detect_ai.calibration.many_texts import (
    any_false_accusation,
    false_discovery_flags,
    precision,
    precision_table,
    prevalence_interval,
    unlike_all,
)
from detect_ai.calibration.new_domain import fit_domain_effects


def test_of_the_flagged_texts_few_are_human():
    """200 lists of 100 texts, a fifth of them AI, each with its own calibration texts."""
    rng = np.random.default_rng(0)
    rates, found = [], []
    for _ in range(200):
        calibration = np.sort(rng.normal(0, 1, 1000))
        is_ai = np.arange(100) < 20
        flags = false_discovery_flags(p_value(calibration, rng.normal(4.0 * is_ai, 1)), 0.1)
        rates.append((flags & ~is_ai).sum() / max(1, flags.sum()))
        found.append(flags[is_ai].mean())
    lists_above = sum(rate > 0.2 for rate in rates)  # few lists exceed twice the guarantee
    assert binomtest(lists_above, 200, 0.1, alternative="greater").pvalue > 0.001
    assert np.mean(rates) <= 0.1
    assert np.mean(rates) > 0.04  # not so careful that it says nothing
    assert np.mean(found) > 0.8


def test_of_the_flagged_texts_of_a_new_domain_few_are_human():
    """200 calibrations of 12 domains, each with a list of 50 texts of one more domain, a fifth of them AI."""
    rng, rates, found = np.random.default_rng(2), [], []
    for _ in range(200):
        means = rng.normal(0, 0.7, 13)
        human = {f"d{i}": rng.normal(mean, 1, 150) for i, mean in enumerate(means[:-1])}
        styles = {name: np.empty((150, 0)) for name in human}
        effects = fit_domain_effects(human, styles, (0.001, 0.003, 0.01, 0.03, 0.1), 0.9)
        needed, is_ai = effects.thresholds(np.empty((1, 0)))[0], np.arange(50) < 10
        reached = rng.normal(means[-1] + 6.0 * is_ai, 1)[:, None] >= needed
        p_values = np.where(reached.any(1), np.asarray(effects.rates)[reached.argmax(1)], 1.0)
        flags = false_discovery_flags(p_values, 0.1)
        rates.append((flags & ~is_ai).sum() / max(1, flags.sum()))
        found.append(flags[is_ai].mean())
    assert np.mean(rates) <= 0.1
    assert np.mean(found) > 0.5
    exceeded = sum(rate > 0.1 for rate in rates)
    assert binomtest(exceeded, 200, 0.1, alternative="greater").pvalue > 0.001


def test_lists_of_human_texts_are_seldom_flagged():
    """Without AI texts every flag is a false discovery: one list in ten may have any."""
    rng = np.random.default_rng(3)
    lists = [
        false_discovery_flags(p_value(np.sort(rng.normal(size=1000)), rng.normal(size=50)), 0.1) for _ in range(500)
    ]
    flagged = sum(flags.any() for flags in lists)
    assert binomtest(flagged, 500, 0.1, alternative="greater").pvalue > 0.001
    assert flagged > 25  # not so careful that it says nothing


@pytest.mark.parametrize(
    ("p_values", "flagged"),
    [
        ([0.01, 0.02, 0.9], [True, True, False]),
        ([0.05, 0.06, 0.9], [True, True, False]),  # the second passes at rank 2 and takes the first with it
        ([0.5, 0.6], [False, False]),
        ([0.02, 0.02], [True, True]),
        ([], []),
    ],
)
def test_flags_follow_the_ranks(p_values, flagged):
    assert false_discovery_flags(p_values, 0.1).tolist() == flagged


@pytest.mark.parametrize("prevalence", [0.0, 0.05, 0.5, 1.0])
def test_the_interval_of_the_prevalence_covers_it(prevalence):
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        num_ai = rng.binomial(200, prevalence)
        labelled = rng.binomial(num_ai, 0.6) + rng.binomial(200 - num_ai, 0.01)
        low, high = prevalence_interval(labelled, 200, 0.01, 0.6)
        covered += low <= prevalence <= high
    assert binomtest(covered, 400, 0.95, alternative="less").pvalue > 0.001


def test_extreme_lists_have_an_interval():
    assert prevalence_interval(0, 10, 0.01, 0.5) == (0.0, pytest.approx(0.617, abs=1e-3))
    assert prevalence_interval(10, 10, 0.01, 0.5)[1] == 1.0
    assert prevalence_interval(3, 10, 0.01, 0.0)[1] == 1.0


def test_a_rare_class_is_often_accused_wrongly():
    assert precision(0.05, 0.02, 0.55) == pytest.approx(0.59, abs=0.005)
    assert precision(0.05, 0.0, 0.0) is precision(0.05, 0.02, None) is precision(0.05, None, 0.5) is None
    assert [round(row["ppv"], 2) for row in precision_table(0.02, 0.55)] == [0.22, 0.59, 0.87, 0.96]
    assert any_false_accusation(30, 0.01) == pytest.approx(0.26, abs=0.005)


def test_scores_beyond_all_domains_are_unlike_them():
    rng = np.random.default_rng(2)
    domains = [rng.normal(mean, 1, 200) for mean in rng.normal(0, 0.5, 12)]
    assert unlike_all(rng.normal(0.3, 1, 200), domains) < 1
    assert unlike_all(rng.normal(4, 1, 200), domains) > 1
    assert unlike_all(rng.normal(0, 1, 5), domains[:1]) is None
    assert unlike_all(np.empty(0), domains) is None
