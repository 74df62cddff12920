"""The threshold of new domains: its parts against known values, its promise against simulated domains."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from scipy.stats.mstats import hdquantiles, mjci

from detect_ai.calibration.new_domain import Tail, between_domain_variance, new_domain_threshold, tail
from detect_ai.core.errors import CalibrationError


def simulated(rng, domains, texts, spread):
    """Human scores of domains whose means vary."""
    return [rng.normal(mean, 1.0, texts) for mean in rng.normal(0, spread, domains)]


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
    true, errors = rng.normal(0, 2.0, 4000), np.full(4000, 1.5)
    assert between_domain_variance(true + rng.normal(0, 1.5, 4000), errors) == pytest.approx(4.0, rel=0.1)
    assert between_domain_variance(rng.normal(0, 1.0, 4000), errors) == 0
    assert between_domain_variance(np.ones(5), np.zeros(5)) == 0
    assert between_domain_variance(np.arange(5.0), np.zeros(5)) == pytest.approx(2.5)


@pytest.mark.parametrize("domains", [8, 40])
@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
def test_the_promise_holds_for_simulated_domains(domains, spread):
    """The true FPR in a new domain exceeds the target in at most one of ten draws of calibration and domain."""
    rng, kept, rates = np.random.default_rng(domains), 0, []
    for _ in range(300):
        threshold = new_domain_threshold([tail(s, 0.01) for s in simulated(rng, domains, 200, spread)], 0.9)
        rates.append(norm.sf(threshold - rng.normal(0, spread)))
        kept += rates[-1] <= 0.01
    assert binomtest(kept, 300, 0.9, alternative="less").pvalue > 0.001
    assert np.mean(rates) <= 0.02


def test_more_confidence_and_more_spread_raise_the_threshold():
    tails = [Tail(float(value), 0.1) for value in range(6)]
    far = [Tail(2 * tail.quantile, 0.1) for tail in tails]
    assert new_domain_threshold(tails, 0.8) < new_domain_threshold(tails, 0.9) < new_domain_threshold(far, 0.9)


def test_few_domains_are_refused():
    with pytest.raises(CalibrationError, match="at least 5 domains, found 4"):
        new_domain_threshold([Tail(0.0, 0.1)] * 4, 0.9)
