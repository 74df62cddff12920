"""Scores standardised by length have one false positive rate at all lengths."""

import numpy as np
import pytest
from scipy.stats import binomtest

from detect_ai.calibration.conformal import conformal_threshold
from detect_ai.calibration.length import LengthModel, fit_length_model

WINDOW = 100


def simulated(rng, n, level=0.0, domains=4):
    """Scores of documents whose windows vary within them; short texts score higher."""
    tokens = np.exp(rng.uniform(np.log(25), np.log(1600), n)).astype(int)
    domain = rng.integers(domains, size=n)
    inverse = WINDOW / tokens
    scores = level + 3.0 * domain + 0.5 * inverse + rng.normal(0, np.sqrt(1.0 + 2.0 * inverse))
    return scores, tokens, domain


def test_the_fit_finds_the_change_with_length_within_domains():
    scores, tokens, domain = simulated(np.random.default_rng(0), 20_000)
    fitted = fit_length_model(scores, tokens, domain, WINDOW)
    assert fitted.mean == pytest.approx((4.5, 0.5), abs=0.1)
    assert fitted.variance == pytest.approx((1.0, 2.0), abs=0.2)


def test_short_texts_of_a_domain_have_the_rate_of_long_ones():
    rng = np.random.default_rng(1)
    fitted = fit_length_model(*simulated(rng, 20_000, domains=1), WINDOW)
    scores, tokens, _ = simulated(rng, 200_000, domains=1)
    standardised = fitted.standardise(scores, tokens)
    threshold, raw = np.quantile(standardised, 0.99), np.quantile(scores, 0.99)
    short, long = tokens < 50, tokens > 800
    assert (standardised[short] >= threshold).mean() == pytest.approx(0.01, abs=0.002)
    assert (standardised[long] >= threshold).mean() == pytest.approx(0.01, abs=0.002)
    assert (scores[short] >= raw).mean() > 5 * (scores[long] >= raw).mean()


def test_texts_of_any_length_keep_the_target_over_calibration_sets():
    """A new text of each length for each of 250 calibration sets, with a 5% threshold on standardised scores."""
    rng, labelled, raw = np.random.default_rng(2), np.zeros(3, int), np.zeros(3, int)
    lengths = np.asarray([25, 200, 1600])
    for _ in range(250):
        scores, tokens, domain = simulated(rng, 300, domains=1)
        fitted = fit_length_model(scores, tokens, domain, WINDOW)
        threshold = conformal_threshold(fitted.standardise(scores, tokens), 0.05, "expectation").score
        new = 0.5 * WINDOW / lengths + rng.normal(0, np.sqrt(1.0 + 2.0 * WINDOW / lengths))
        labelled += fitted.standardise(new, lengths) >= threshold
        raw += new >= conformal_threshold(scores, 0.05, "expectation").score
    for count in labelled:
        assert binomtest(int(count), 250, 0.05).pvalue > 0.001
    assert binomtest(int(raw[0]), 250, 0.05).pvalue < 1e-9
    assert raw[2] == 0


def test_score_inverts_standardise():
    length = LengthModel(WINDOW, (1.0, 2.0), (4.0, 5.0))
    score = length.score(1.5, 50)
    assert score == pytest.approx(1.0 + 2.0 * 2 + 1.5 * np.sqrt(4.0 + 5.0 * 2))
    assert length.standardise(score, 50) == pytest.approx(1.5)
    assert np.isfinite(length.standardise([0.0], [0])).all()


@pytest.mark.parametrize("tokens", [[300, 300, 300], [1, 1, 1]])
def test_texts_of_one_length_have_no_change_with_it(tokens):
    fitted = fit_length_model([1.0, 2.0, 3.0], tokens, ["a"] * 3, WINDOW)
    assert fitted.standardise([1.0, 3.0], tokens[:2]) == pytest.approx([-1.2247, 1.2247], abs=1e-3)
