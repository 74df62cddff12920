"""The threshold for texts of a domain that calibration never saw, by random effects over the domains that it holds.

Domains are a sample of all kinds of writing. Each has a tail quantile of its human scores, measured with an error; the
quantiles of domains vary between them. A new domain's quantile is predicted from their mean and variance, as the effect
of a new study is in meta-analysis (Higgins, Thompson and Spiegelhalter 2009, "A re-evaluation of random-effects
meta-analysis"). The prediction is exact for quantiles that are normally distributed over domains.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import betainc
from scipy.stats import t as student_t

from detect_ai.core.errors import CalibrationError
from detect_ai.metrics import Floats

MIN_DOMAINS = 5  # fewer say nothing about how domains differ


class Tail(NamedTuple):
    """The score that a target fraction of a domain's human texts reaches, and its standard error."""

    quantile: float
    error: float


def tail(human_scores: ArrayLike, target_fpr: float) -> Tail:
    """The upper quantile of human scores, shape (n,), as a weighted mean of their order statistics.

    Harrell and Davis (1982) with the standard error of Maritz and Jarrett (1978): both are defined for any n, also
    where n times the target is below one, and vary less than a single order statistic.
    """
    scores = np.sort(np.asarray(human_scores, np.float64))
    n, level = scores.size, 1.0 - target_fpr
    weights = np.diff(betainc((n + 1) * level, (n + 1) * target_fpr, np.arange(n + 1) / n))
    quantile = float(weights @ scores)
    return Tail(quantile, float(np.sqrt(max(0.0, weights @ (scores - quantile) ** 2))))


def between_domain_variance(values: Floats, errors: Floats) -> float:
    """The variance of values over domains beyond their standard errors, by Paule and Mandel (1982); at least 0."""

    def excess(variance: float) -> float:
        weights = 1 / (errors**2 + variance)
        return float(weights @ (values - np.average(values, weights=weights)) ** 2 - (values.size - 1))

    upper = float(values.var(ddof=1))  # the variance with all errors counted as differences
    if upper == 0 or excess(1e-12 * upper) <= 0:
        return 0.0
    return float(brentq(excess, 1e-12 * upper, upper)) if excess(upper) < 0 else upper


def new_domain_threshold(tails: Sequence[Tail], confidence: float) -> float:
    """The score that, with this confidence, a new domain's quantile does not exceed.

    Raises CalibrationError for fewer than `MIN_DOMAINS` domains.
    """
    count = len(tails)
    if count < MIN_DOMAINS:
        raise CalibrationError(
            f"texts of a new domain need calibration texts of at least {MIN_DOMAINS} domains, found {count}: add "
            "domains to the calibration split"
        )
    values, errors = np.asarray(tails, np.float64).T
    variance = between_domain_variance(values, errors)
    weights = 1 / np.maximum(errors**2 + variance, np.finfo(np.float64).tiny)
    mean = float(np.average(values, weights=weights))
    return mean + float(student_t.ppf(confidence, count - 1)) * float(np.sqrt(variance + 1 / weights.sum()))
