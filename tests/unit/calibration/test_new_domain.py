"""Thresholds for new domains: their parts against known values, their guarantee on simulated domains."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, norm, t
from scipy.stats.mstats import hdquantiles, mjci

from detect_ai.calibration.new_domain import between_domain_variance, fit_domain_effects, tail
from detect_ai.core.errors import CalibrationError

DIMENSIONS = 3
AXES = np.eye(DIMENSIONS)


def simulated(rng, domains, spread, explained=0.0, texts=200):
    """Means of domains, human scores around them, and styles around one of the axes.

    `explained` is the fraction of the variance of the means that is between the axes.
    """
    of_axis = rng.normal(0, spread * np.sqrt(explained), DIMENSIONS)
    axes = rng.integers(0, DIMENSIONS, domains)
    means = of_axis[axes] + rng.normal(0, spread * np.sqrt(1 - explained), domains)
    styles = [styles_like(rng, AXES[axis], texts) for axis in axes]
    return means, [rng.normal(mean, 1.0, texts) for mean in means], styles


def styles_like(rng, style, texts):
    drawn = style + rng.normal(0, 0.15, (texts, DIMENSIONS))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def fit(human, styles=None, rates=(0.01,), confidence=0.9):
    names = [f"d{i:02d}" for i in range(len(human))]
    styles = [np.empty((len(own), 0)) for own in human] if styles is None else styles
    return fit_domain_effects(*(dict(zip(names, v, strict=True)) for v in (human, styles)), rates, confidence)


@pytest.mark.parametrize(("n", "target"), [(40, 0.01), (250, 0.01), (1000, 0.05)])
def test_tail_matches_scipy(n, target):
    scores = np.random.default_rng(n).normal(size=n)
    assert tail(scores, target).quantile == pytest.approx(float(hdquantiles(scores, [1 - target])[0]))
    assert tail(scores, 0.5).error == pytest.approx(float(mjci(scores, [0.5])[0]), rel=0.1)


def test_tail_error_is_the_spread_over_samples():
    rng = np.random.default_rng(0)
    tails = [tail(rng.normal(size=400), 0.05) for _ in range(400)]
    values, errors = np.asarray(tails).T
    assert values.mean() == pytest.approx(norm.ppf(0.95), abs=0.02)
    assert errors.mean() == pytest.approx(values.std(), rel=0.15)


def test_variance_between_domains_leaves_out_the_errors():
    rng = np.random.default_rng(1)
    true, errors = rng.normal(0, 2.0, 800), np.full(800, 1.5)
    assert between_domain_variance(true + rng.normal(0, 1.5, 800), errors) == pytest.approx(4.0, rel=0.15)
    assert between_domain_variance(rng.normal(0, 1.0, 800), errors) == 0
    assert between_domain_variance(np.ones(5), np.zeros(5)) == 0
    assert between_domain_variance(np.arange(5.0), np.zeros(5)) == pytest.approx(2.5)


def test_without_styles_the_threshold_is_that_of_random_effects():
    rng = np.random.default_rng(2)
    _, human, _ = simulated(rng, 12, 1.0)
    values, errors = np.asarray([tail(scores, 0.01) for scores in human]).T
    weights = 1 / (errors**2 + between_domain_variance(values, errors))
    mean = np.average(values, weights=weights)
    spread = np.sqrt(between_domain_variance(values, errors) + 1 / weights.sum())
    fitted = fit(human).thresholds(np.empty((2, 0)))
    np.testing.assert_allclose(fitted, mean + t.ppf(0.9, 11) * spread, rtol=1e-5)


def test_predictions_are_those_of_a_gaussian_process_with_unknown_mean():
    rng = np.random.default_rng(3)
    _, human, styles = simulated(rng, 12, 2.0, 0.9)
    fitted = fit(human, styles, (0.01, 0.05))
    query, tails = styles_like(rng, AXES[0], 1), np.asarray([tail(scores, 0.05) for scores in human])
    centres = np.stack([own.mean(0) / np.linalg.norm(own.mean(0)) for own in styles])

    def covariance(a, b):
        squared = ((a[:, None] - b[None]) ** 2).sum(2)
        return fitted.variances[1] * (1 - fitted.unexplained) * np.exp(-squared / (2 * fitted.length_scale**2))

    own = covariance(centres, centres) + np.diag(fitted.variances[1] * fitted.unexplained + tails[:, 1] ** 2)
    system = np.block([[own, np.ones((12, 1))], [np.ones((1, 12)), np.zeros((1, 1))]])
    right = np.append(covariance(centres, query)[:, 0], 1.0)
    weights = np.linalg.solve(system, right)  # weights of the best linear unbiased prediction
    variance = fitted.variances[1] - weights @ right
    expected = weights[:12] @ tails[:, 0] + t.ppf(0.9, 11) * np.sqrt(variance)
    assert fitted.thresholds(query)[0, 1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("domains", "spread", "explained"), [(20, 0.0, 0.0), (8, 0.5, 0.0), (20, 2.0, 0.0), (20, 2.0, 0.9)]
)
def test_the_promise_holds_for_simulated_domains(domains, spread, explained):
    """The true FPR in a new domain exceeds the target in at most one of ten draws of calibration set and domain."""
    rng, kept, rates = np.random.default_rng(0), 0, []
    for _ in range(200):
        means, human, styles = simulated(rng, domains + 1, spread, explained)
        thresholds = fit(human[:-1], styles[:-1]).thresholds(styles[-1])[:, 0]
        rates.append(norm.sf(thresholds - means[-1]).mean())
        kept += rates[-1] <= 0.01
    assert binomtest(kept, 200, 0.9, alternative="less").pvalue > 0.001


def test_style_tells_domains_apart():
    rng = np.random.default_rng(4)
    human = [rng.normal(3.0 * (i % 2), 1.0, 200) for i in range(20)]
    styles = [styles_like(rng, AXES[i % 2], 200) for i in range(20)]
    fitted = fit(human, styles)
    low, high, unlike = fitted.thresholds(np.stack([AXES[0], AXES[1], -AXES[2] * 9]))[:, 0]
    assert low == pytest.approx(norm.ppf(0.99), abs=0.4)
    assert high == pytest.approx(3.0 + norm.ppf(0.99), abs=0.4)
    assert unlike == pytest.approx(fitted.highest_thresholds[0])
    assert low < unlike < high  # unlike both kinds: between them, but nearer to the upper one
    assert [int(fitted.nearest(AXES[axis])[1:]) % 2 for axis in (0, 1)] == [0, 1]


def test_effects_without_a_domain_are_those_of_the_others():
    _, human, styles = simulated(np.random.default_rng(6), 12, 1.0, 0.5)
    fitted, others = fit(human, styles), fit(human[:-1], styles[:-1])
    found = replace(others, length_scale=fitted.length_scale, unexplained=fitted.unexplained, variances=())
    assert replace(fitted.without("d11", 0.01), variances=()) == found
    assert fitted.without("other", 0.01).variances == pytest.approx(fitted.variances)
    far = fit([*human[:-1], human[-1] + 50], styles)
    assert far.variances[0] > 10 * far.without("d11", 0.01).variances[0]
    assert fit(human, styles, (0.01, 0.05)).without("d11", 0.05).rates == (0.05,)


def test_thresholds_rise_with_confidence_and_fall_with_the_rate():
    _, human, styles = simulated(np.random.default_rng(5), 12, 1.0, 0.5, texts=60)
    rates = (0.0005, 0.001, 0.01, 0.05, 0.5)
    low, high = (fit(human, styles, rates, confidence).thresholds(AXES) for confidence in (0.8, 0.9))
    assert (low < high).all()
    assert (np.diff(high, axis=1) <= 0).all()


def test_few_domains_are_refused():
    with pytest.raises(CalibrationError, match="at least 5 domains, found 4"):
        fit([np.arange(60.0)] * 4)
