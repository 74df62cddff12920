"""Raw scores to probabilities: Platt scaling and isotonic regression. Pure."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit

from detect_ai.core.errors import CalibrationError
from detect_ai.metrics import Floats, Labels, check_binary

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
Knots = tuple[tuple[float, float], ...]  # (score, probability), ascending; linear between


def fit(truth: Labels, scores: Floats, method: str, prevalence: float) -> tuple[float, float, Knots]:
    """Temperature, midpoint and knots (none for `platt`) by a method, `platt` or `isotonic`."""
    temperature, midpoint = fit_scaling(truth, scores, prevalence)
    if method == "platt":
        return temperature, midpoint, ()
    knots = fit_isotonic(truth, scores, prevalence)
    return temperature, _halfway(knots), knots


def _halfway(knots: Sequence[tuple[float, float]]) -> float:
    """The score with a probability of one half; an end where there is none."""
    at, values = np.asarray(knots).T
    i = int(np.searchsorted(values, 0.5))
    if i in (0, len(at)):
        return float(at[min(i, len(at) - 1)])
    return float(at[i - 1] + (0.5 - values[i - 1]) / (values[i] - values[i - 1]) * (at[i] - at[i - 1]))


def fit_isotonic(labels: ArrayLike, logits: ArrayLike, prevalence: float = 0.5) -> Knots:
    """Isotonic regression (Zadrozny and Elkan 2002): the knots (score, probability) between which it is linear.

    Probabilities stay a step away from 0 and 1, by Laplace's rule over the texts of each class.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        logits: raw document scores, shape (n,).
        prevalence: share of AI texts that the probabilities assume, whatever that of `labels` is.

    Raises:
        CalibrationError: one class is missing.
        InputError: labels and logits do not fit (see `metrics.check_binary`).
    """
    from sklearn.isotonic import IsotonicRegression

    truth, scores = both_classes(labels, logits)
    num_ai = int(truth.sum())
    low, high = 1 / (truth.size - num_ai + 2), 1 - 1 / (num_ai + 2)
    model = IsotonicRegression(y_min=low, y_max=high, out_of_bounds="clip")
    model.fit(scores, truth, sample_weight=_weights(truth, prevalence) * truth.size)
    return tuple(zip(model.X_thresholds_.tolist(), model.y_thresholds_.tolist(), strict=True))


def fit_scaling(labels: ArrayLike, logits: ArrayLike, prevalence: float = 0.5) -> tuple[float, float]:
    """Platt scaling: the temperature T and the midpoint m of P(AI) = sigmoid((logit - m) / T).

    Temperature scaling (Guo et al. 2017) is the case m = 0. A fine-tuned encoder on few texts is often right in order
    and wrong in level, which no temperature can mend. The targets are smoothed as by Platt (1999), so that perfectly
    separated classes have a finite solution; T stays in [0.05, 20].

    Args:
        labels: 0 human, 1 AI, shape (n,).
        logits: raw document scores, shape (n,).
        prevalence: share of AI texts that the probabilities assume, whatever that of `labels` is.

    Returns:
        Temperature and midpoint.

    Raises:
        CalibrationError: one class is missing.
        InputError: labels and logits do not fit (see `metrics.check_binary`).
    """
    truth, scores = both_classes(labels, logits)
    num_ai = int(truth.sum())
    num_human = truth.size - num_ai
    targets = np.where(truth == 1, (num_ai + 1) / (num_ai + 2), 1 / (num_human + 2))
    weights = _weights(truth, prevalence)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slope, intercept = parameters
        z = slope * scores + intercept
        error = weights * (expit(z) - targets)
        value = float(weights @ (np.logaddexp(0.0, z) - targets * z))
        return value, np.asarray([error @ scores, error.sum()])

    bounds = [(1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE), (None, None)]
    start = np.asarray([1.0, -float(np.median(scores))])
    slope, intercept = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(1 / slope), float(-intercept / slope)


def probability(logits: ArrayLike, temperature: float, midpoint: float = 0.0) -> Floats:
    """P(AI) = sigmoid((logit - midpoint) / temperature), of the shape of `logits`, without overflow.

    It is calibrated for the prevalence that the scaling was fitted for.
    """
    scaled = (np.asarray(logits, dtype=np.float64) - midpoint) / temperature
    return np.asarray(expit(scaled), dtype=np.float64)


def _weights(truth: Labels, prevalence: float) -> Floats:
    """Of each text, so that AI texts have the share `prevalence` of the whole, which is 1."""
    num_ai = int(truth.sum())
    return np.where(truth == 1, prevalence / num_ai, (1 - prevalence) / (truth.size - num_ai))


def both_classes(labels: ArrayLike, logits: ArrayLike) -> tuple[Labels, Floats]:
    """Labels and scores as arrays. Raises CalibrationError when a class is missing, InputError as `check_binary`."""
    truth, scores = check_binary(labels, logits, "logits")
    num_ai = int(truth.sum())
    if not 0 < num_ai < truth.size:
        raise CalibrationError(
            f"calibration needs texts of both classes, found {truth.size - num_ai} human and {num_ai} ai"
        )
    return truth, scores
