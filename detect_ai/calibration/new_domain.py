"""Thresholds for texts of a domain that calibration never saw, by random effects over the calibration domains.

Domains are a sample of all kinds of writing. Each has a tail quantile of its human scores, measured with an error; the
quantiles vary between domains, and vary less between domains of similar style. The quantile of a new domain is
predicted as the effect of a new study in meta-analysis (Higgins, Thompson and Spiegelhalter 2009, "A re-evaluation of
random-effects meta-analysis"), with effects correlated by style: a Gaussian process with an unknown mean (universal
kriging; Rasmussen and Williams 2006, "Gaussian processes for machine learning", section 2.7). A text similar to known
domains gets a threshold near theirs; for a text unlike all domains, the full variance between domains is added to their
mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ConfigDict
from scipy.linalg import solve_triangular
from scipy.optimize import brentq
from scipy.special import betainc
from scipy.stats import t as student_t

from detect_ai.core.errors import CalibrationError
from detect_ai.metrics import Floats

MIN_DOMAINS = 5  # with fewer, the variation between domains cannot be estimated
# Candidates: distances between styles, which lie on the unit sphere, and fractions of the variance between domains that
# style does not explain. They are never 0: domains of the same style differ too.
LENGTH_SCALES, UNEXPLAINED = (0.5, 0.8, 1.2, 2.0), (0.1, 0.2, 0.4)
NO_STYLE = (1.0, 1.0)
PENALTY = 2.0


class Tail(NamedTuple):
    """The score that the target fraction of a domain's human texts reaches, and its standard error."""

    quantile: float
    error: float


class _Prediction(NamedTuple):
    """Precomputed values of the domains for predictions."""

    variance: Floats  # between domains, shape (rates, 1)
    mean: Floats  # over domains, shape (rates, 1)
    information: Floats  # about that mean, shape (rates, 1)
    slopes: Floats  # change of a prediction with the correlation to each domain, shape (rates, domains)
    losses: Floats  # change of the weight of the mean, shape (rates, domains)
    inverses: Floats  # of Cholesky factors of the tails' covariance, times the variance, (rates * domains, domains)
    confidence: float  # quantile of Student's t at the confidence


@dataclass(frozen=True)
class DomainEffects:
    """How the tails of the human scores vary between domains, at several false positive rates.

    Attributes:
        domains: names.
        styles: mean style of the human texts of each domain, shape (domains, dimensions).
        rates: false positive rates, ascending.
        quantiles, errors: tail quantiles and their standard errors, shape (rates, domains).
        variances: between domains, by rate.
        length_scale: distance of styles over which domains are similar.
        unexplained: fraction of the variance that does not depend on style.
        confidence: probability that the quantile of a new domain is below its threshold.
        reach: cosine similarity to the nearest domain below which a text is unlike all domains, so that its score
            is uninformative; -1: all texts are within reach.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    domains: tuple[str, ...]
    styles: tuple[tuple[float, ...], ...]
    rates: tuple[float, ...]
    quantiles: tuple[tuple[float, ...], ...]
    errors: tuple[tuple[float, ...], ...]
    variances: tuple[float, ...]
    length_scale: float
    unexplained: float
    confidence: float
    reach: float = -1.0

    def thresholds(self, styles: ArrayLike) -> Floats:
        """The scores that texts of a new domain must reach, for styles of shape (n, dimensions); shape (n, rates).

        Tails at small rates are estimated less precisely, but the threshold of a smaller rate is never lower. Texts out
        of reach have infinite thresholds.
        """
        similarity = _similarity(np.asarray(styles, np.float64), self._styles, self.length_scale)
        scores = self._predict((1 - self.unexplained) * similarity)
        return np.where(self.similarity_to_nearest(styles)[:, None] < self.reach, np.inf, scores)

    def similarity_to_nearest(self, styles: ArrayLike, other_than: str = "") -> Floats:
        """Cosine similarity of styles, shape (n, dimensions), to the nearest domain but `other_than`; shape (n,)."""
        similarities = np.asarray(styles, np.float64) @ self._styles.T
        return np.asarray(similarities[:, [name != other_than for name in self.domains]].max(1))

    @property
    def highest_thresholds(self) -> Floats:
        """The thresholds for a text unlike all domains, shape (rates,)."""
        return np.asarray(self._predict(np.zeros((1, len(self.domains))))[0])

    def without(self, domain: str, rate: float) -> DomainEffects:
        """The effects without a domain, at one of the rates; length scale and unexplained fraction stay the same."""
        kept, row = [i for i, name in enumerate(self.domains) if name != domain], self.rates.index(rate)
        quantiles, errors = (np.asarray(rows[row])[kept] for rows in (self.quantiles, self.errors))
        correlation = _correlation(self._styles[kept], self.length_scale, self.unexplained)
        return replace(
            self,
            domains=tuple(self.domains[i] for i in kept),
            styles=tuple(self.styles[i] for i in kept),
            rates=(rate,),
            quantiles=(tuple(quantiles.tolist()),),
            errors=(tuple(errors.tolist()),),
            variances=(between_domain_variance(quantiles, errors, correlation),),
        )

    def nearest(self, style: ArrayLike) -> str:
        """The name of the domain with the most similar style."""
        return self.domains[int((self._styles @ np.asarray(style, np.float64)).argmax())]

    def _predict(self, kernel: Floats) -> Floats:
        """Thresholds of texts from their correlation with each domain, shape (n, domains)."""
        kernel, own = kernel.T, self._prediction
        known = (own.inverses @ kernel).reshape(*own.slopes.shape, -1) ** 2
        lost = (1 - own.losses @ kernel) ** 2 / own.information
        deviation = np.sqrt(np.maximum(0, own.variance - known.sum(1) + lost))
        raw = own.mean + own.slopes @ kernel + own.confidence * deviation
        return np.asarray(np.maximum.accumulate(raw[::-1])[::-1].T, np.float64)

    @cached_property
    def _styles(self) -> Floats:
        return np.asarray(self.styles, np.float64)

    @cached_property
    def _prediction(self) -> _Prediction:
        correlation = _correlation(self._styles, self.length_scale, self.unexplained)
        rows = []
        for tails, errors, between in zip(self.quantiles, self.errors, self.variances, strict=True):
            factor = np.linalg.cholesky(_covariance(correlation, between, np.asarray(errors)))
            inverse = solve_triangular(factor, np.eye(len(tails)), lower=True)
            ones, values = inverse.sum(1), inverse @ np.asarray(tails)
            information = ones @ ones
            mean = ones @ values / information
            inverse *= between
            rows.append(([between], [mean], [information], (values - mean * ones) @ inverse, ones @ inverse, inverse))
        variance, mean, information, slopes, losses, inverses = map(np.asarray, zip(*rows, strict=True))
        stacked = inverses.reshape(-1, len(self.styles))
        confidence = float(student_t.ppf(self.confidence, len(self.styles) - 1))
        return _Prediction(variance, mean, information, slopes, losses, stacked, confidence)


def tail(human_scores: ArrayLike, target_fpr: float) -> Tail:
    """The upper quantile of human scores, shape (n,), as a weighted mean of their order statistics.

    Harrell and Davis (1982) with the standard error of Maritz and Jarrett (1978): both are defined for any n, even if
    n times the target is below one, and vary less than a single order statistic.
    """
    scores = np.sort(np.asarray(human_scores, np.float64))
    n, level = scores.size, 1.0 - target_fpr
    weights = np.diff(betainc((n + 1) * level, (n + 1) * target_fpr, np.arange(n + 1) / n))
    quantile = float(weights @ scores)
    return Tail(quantile, float(np.sqrt(max(0.0, weights @ (scores - quantile) ** 2))))


def fit_domain_effects(
    human: Mapping[str, ArrayLike], styles: Mapping[str, ArrayLike], rates: Sequence[float], confidence: float
) -> DomainEffects:
    """Fit to the human scores of each domain, shape (texts,), and the styles of the same texts, (texts, dimensions).

    The variance between domains is that of Paule and Mandel (1982) for correlated effects; length scale and
    unexplained fraction are the candidates with the highest restricted likelihood, on average over the rates. Style
    is used only if it improves the log-likelihood by more than the cost of two parameters (Akaike 1974).

    Raises CalibrationError for fewer than `MIN_DOMAINS` domains.
    """
    if len(human) < MIN_DOMAINS:
        raise CalibrationError(
            f"texts of a new domain need calibration texts of at least {MIN_DOMAINS} domains, found {len(human)}: add "
            "domains to the calibration split"
        )
    centres = np.stack([mean_style(styles[name]) for name in human])
    tails = np.asarray([[tail(scores, rate) for scores in human.values()] for rate in rates])  # (rates, domains, 2)

    def likelihood(candidate: tuple[float, float]) -> float:
        correlation = _correlation(centres, *candidate)
        return float(
            np.mean(
                [
                    _log_likelihood(_covariance(correlation, between_domain_variance(q, e, correlation), e), q)
                    for q, e in tails.transpose(0, 2, 1)
                ]
            )
        )

    best = max(product(LENGTH_SCALES, UNEXPLAINED), key=likelihood)
    length_scale, unexplained = best if likelihood(best) > likelihood(NO_STYLE) + PENALTY else NO_STYLE
    correlation = _correlation(centres, length_scale, unexplained)
    return DomainEffects(
        domains=tuple(human),
        styles=tuple(map(tuple, centres.tolist())),
        rates=tuple(map(float, rates)),
        quantiles=tuple(map(tuple, tails[..., 0].tolist())),
        errors=tuple(map(tuple, tails[..., 1].tolist())),
        variances=tuple(between_domain_variance(q, e, correlation) for q, e in tails.transpose(0, 2, 1)),
        length_scale=length_scale,
        unexplained=unexplained,
        confidence=confidence,
    )


def mean_style(styles: ArrayLike) -> Floats:
    """The mean of styles of shape (n, dimensions), scaled to a unit vector."""
    mean = np.asarray(styles, np.float64).mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))


def between_domain_variance(values: Floats, errors: Floats, correlation: Floats | None = None) -> float:
    """The variance of values over domains beyond their standard errors, by Paule and Mandel (1982); at least 0.

    `correlation` is the correlation of the domains, shape (domains, domains); None for independent domains.
    """
    correlation = np.eye(len(values)) if correlation is None else correlation

    def excess(variance: float) -> float:
        return _quadratic_form(_inverse(_covariance(correlation, variance, errors)), values) - (len(values) - 1)

    scale = float(values.var(ddof=1))
    if scale == 0 or excess(1e-9 * scale) <= 0:
        return 0.0
    upper = scale
    while excess(upper) > 0:
        upper *= 4
    return float(brentq(excess, 1e-9 * scale, upper, xtol=1e-6 * scale))


def _similarity(styles: Floats, centres: Floats, length_scale: float) -> Floats:
    squared = (styles**2).sum(1)[:, None] + (centres**2).sum(1) - 2 * styles @ centres.T
    return np.asarray(np.exp(-np.maximum(squared, 0) / (2 * length_scale**2)))


def _correlation(centres: Floats, length_scale: float, unexplained: float) -> Floats:
    explained = (1 - unexplained) * _similarity(centres, centres, length_scale)
    return explained + unexplained * np.eye(len(centres))


def _covariance(correlation: Floats, variance: float, errors: Floats) -> Floats:
    """Covariance of measured tails; errors of 0, of domains with identical scores, are replaced by tiny ones."""
    return variance * correlation + np.diag(np.maximum(errors, 1e-6) ** 2)


def _log_likelihood(covariance: Floats, values: Floats) -> float:
    """Restricted log-likelihood of values with this covariance and an unknown mean, up to a constant."""
    inverse = _inverse(covariance)
    log_determinant = float(np.linalg.slogdet(covariance)[1])
    return -0.5 * (log_determinant + float(np.log(inverse.sum())) + _quadratic_form(inverse, values))


def _inverse(covariance: Floats) -> Floats:
    return np.asarray(np.linalg.inv(covariance), np.float64)


def _quadratic_form(inverse: Floats, values: Floats) -> float:
    """Quadratic form of the residuals from the weighted mean, with the inverse of the covariance."""
    weights = inverse.sum(1)
    residuals = values - weights @ values / weights.sum()
    return float(residuals @ inverse @ residuals)
