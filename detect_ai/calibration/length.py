"""Puts document scores of texts of any length on one scale: mean and deviation of scores as functions of length.

The score of a document is a mean over its windows, so scores of short texts vary more and are closer to zero: at the
same threshold, short texts have another false positive rate than long ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ConfigDict
from scipy.optimize import nnls

from detect_ai.metrics import Floats

MIN_VARIANCE = 1e-6


@dataclass(frozen=True)
class LengthModel:
    """Mean and variance of the scores of a class: linear in 1 / length, with the length in windows.

    Attributes:
        window: text tokens per window.
        mean: for infinitely long texts, and its change with 1 / length.
        variance: likewise: between documents, and between the windows of a document. Neither is negative.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    window: int
    mean: tuple[float, float] = (0.0, 0.0)
    variance: tuple[float, float] = (1.0, 0.0)

    def standardise(self, scores: ArrayLike, num_tokens: ArrayLike) -> Floats:
        """Scores in standard deviations from the mean of texts of the same length, in the shape of `scores`."""
        mean, deviation = self._moments(num_tokens)
        return np.asarray((np.asarray(scores, np.float64) - mean) / deviation, np.float64)

    def score(self, standardised: float, num_tokens: int) -> float:
        """The score of a text of this length with a standardised score."""
        mean, deviation = self._moments(num_tokens)
        return float(mean + standardised * deviation)

    def _moments(self, num_tokens: ArrayLike) -> tuple[Floats, Floats]:
        inverse = self.window / np.maximum(1, np.asarray(num_tokens, np.float64))
        mean, variance = (values[0] + values[1] * inverse for values in (self.mean, self.variance))
        return mean, np.sqrt(np.maximum(variance, MIN_VARIANCE))


def fit_length_model(scores: ArrayLike, num_tokens: ArrayLike, domains: ArrayLike, window: int) -> LengthModel:
    """Fit the scores of one class; arrays have shape (n,).

    The change with length is fitted within domains (integer codes), because domains differ in both mean and length,
    which must not be mistaken for an effect of length. All domains have the same weight.
    """
    values, codes = np.asarray(scores, np.float64), np.unique(np.asarray(domains), return_inverse=True)[1]
    inverse = window / np.maximum(1, np.asarray(num_tokens, np.float64))
    counts = np.bincount(codes)
    weights = 1 / counts[codes]

    def centred(x: Floats) -> Floats:
        return np.asarray(x - (np.bincount(codes, x) / counts)[codes])

    spread = float(weights @ centred(inverse) ** 2)
    slope = float(weights @ (centred(inverse) * centred(values))) / spread if spread > 0 else 0.0
    level = float(np.average(values - slope * inverse, weights=weights))
    residuals = centred(values - slope * inverse)
    design = np.column_stack([np.ones_like(inverse), inverse]) * np.sqrt(weights)[:, None]
    variance = nnls(design, residuals**2 * np.sqrt(weights))[0]
    return LengthModel(window, (level, slope), (max(float(variance[0]), MIN_VARIANCE), float(variance[1])))
