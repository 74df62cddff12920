"""Platt scaling: raw scores to calibrated probabilities."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ConfigDict
from scipy.optimize import minimize
from scipy.special import expit

from detect_ai.metrics import Floats, check_binary

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class Scaling:
    """P(AI) = sigmoid((score - midpoint) / temperature).

    Attributes:
        temperature: positive; larger means less confident.
        midpoint: the raw score with a probability of one half.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    temperature: float
    midpoint: float

    def probability(self, scores: ArrayLike, prior_shift: float = 0.0) -> Floats:
        """Calibrated P(AI) of raw scores, in their shape, at the prevalence that the scaling was fitted for.

        `prior_shift` is added to the log-odds; for another prevalence use `Calibration.prior_shift`.
        """
        scaled = (np.asarray(scores, dtype=np.float64) - self.midpoint) / self.temperature
        return np.asarray(expit(scaled + prior_shift), dtype=np.float64)


def fit_scaling(labels: ArrayLike, scores: ArrayLike, prevalence: float = 0.5) -> Scaling:
    """Fit Platt scaling (Platt 1999).

    Temperature scaling (Guo et al. 2017) is the case midpoint = 0. An encoder fine-tuned on few texts often ranks well
    but its scores have an offset, which no temperature corrects. The targets are smoothed as in Platt's method, so that
    perfectly separated classes have a finite solution; the temperature stays in [0.05, 20].

    Labels (0 human, 1 AI) and raw document scores have shape (n,). `prevalence` is the fraction of AI texts that the
    probabilities assume, regardless of the fraction in `labels`. Raises InputError as `metrics.check_binary`.
    """
    truth, logits = check_binary(labels, scores, both_classes=True)
    num_ai = int(truth.sum())
    num_human = truth.size - num_ai
    targets = np.where(truth == 1, (num_ai + 1) / (num_ai + 2), 1 / (num_human + 2))
    weights = np.where(truth == 1, prevalence / num_ai, (1 - prevalence) / num_human)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slope, intercept = parameters
        z = slope * logits + intercept
        error = weights * (expit(z) - targets)
        value = float(weights @ (np.logaddexp(0.0, z) - targets * z))
        return value, np.asarray([error @ logits, error.sum()])

    bounds = [(1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE), (None, None)]
    start = np.asarray([1.0, -float(np.median(logits))])
    slope, intercept = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Scaling(float(1 / slope), float(-intercept / slope))
