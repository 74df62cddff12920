"""Binary classification metrics for AI-text detectors. Pure.

Labels are 0 (human) or 1 (AI), higher scores mean more AI, probabilities are P(AI), and predictions are 0 (human),
1 (AI) or -1 (uncertain). All arrays have shape (n,).
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detect_ai.core.errors import InputError

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]

RELIABILITY_BINS = 15


def check_binary(labels: ArrayLike, values: ArrayLike, name: str = "scores") -> tuple[Labels, Floats]:
    """Convert labels and values to int64 and float64 arrays of shape (n,).

    Raises:
        InputError: the shapes differ or are not (n,) with n >= 1, a label is neither 0 nor 1, or a value is not finite.
    """
    truth, numbers = np.asarray(labels), np.asarray(values, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != numbers.shape or not truth.size:
        raise InputError(
            f"labels and {name} must have one shape (n,) with n >= 1, found {truth.shape} and {numbers.shape}"
        )
    unknown = truth[~np.isin(truth, (0, 1))]
    if unknown.size:
        raise InputError(f"labels must be 0 (human) or 1 (ai), found {unknown[0]}")
    not_finite = int((~np.isfinite(numbers)).sum())
    if not_finite:
        raise InputError(f"{name} must be finite, found {not_finite} of {numbers.size} that are not")
    return truth.astype(np.int64), numbers


def key_of_target(target: float) -> str:
    """Suffix of a metric at a target FPR: "1" for 0.01, "0_1" for 0.001."""
    return f"{100 * target:g}".replace(".", "_")


def largest_count(rate: float, trials: int) -> int:
    """The largest k with k / trials <= rate, compared as floats.

    The product `rate * trials` alone is not safe: 0.29 * 100 is 28.999999999999996. The correctly rounded
    quotient 29 / 100 equals the literal 0.29, so the quotient decides.
    """
    nearest = round(rate * trials)
    return nearest if nearest / trials <= rate else nearest - 1


def predictions_at(scores: ArrayLike, lower: float, upper: float) -> Labels:
    """Predictions at two thresholds: 0 below `lower`, 1 from `upper` on, -1 between them; compared in float64."""
    values = np.asarray(scores, dtype=np.float64)
    return np.where(values >= upper, 1, np.where(values < lower, 0, -1)).astype(np.int64)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve from the Mann-Whitney statistic, ties counted as one half.

    Raises:
        InputError: as `check_binary`, or one class is missing.
    """
    from scipy.stats import rankdata

    truth, values = _check_both(labels, scores)
    num_ai = int(truth.sum())
    above = rankdata(values)[truth == 1].sum() - num_ai * (num_ai + 1) / 2
    return float(above / (num_ai * (truth.size - num_ai)))


def tpr_at_fpr(labels: ArrayLike, scores: ArrayLike, fpr: float) -> float:
    """The largest detection rate (TPR) over all thresholds whose FPR on these texts is at most `fpr`.

    Texts with equal scores are predicted together and nothing is interpolated, so the value belongs to a threshold
    that exists.

    Raises:
        InputError: as `auroc`.
    """
    truth, values = _check_both(labels, scores)
    human = np.sort(values[truth == 0])[::-1]
    allowed = largest_count(fpr, human.size)
    return 1.0 if allowed == human.size else float((values[truth == 1] > human[allowed]).mean())


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Fraction of texts whose predicted class is their label."""
    return float((np.asarray(labels) == np.asarray(predictions)).mean())


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative log-likelihood in nats; see `log_losses`."""
    return float(log_losses(*check_binary(labels, probabilities, "probabilities")).mean())


def log_losses(truth: Labels, probabilities: Floats) -> Floats:
    """Negative log-likelihood of each text, shape (n,); P(AI) is clipped one float64 epsilon away from 0 and 1."""
    epsilon = np.finfo(np.float64).eps
    clipped = np.clip(probabilities, epsilon, 1 - epsilon)
    return np.asarray(-np.log(np.where(truth == 1, clipped, 1 - clipped)), np.float64)


def roc(labels: ArrayLike, scores: ArrayLike, points: int = 200) -> dict[str, list[float]]:
    """The ROC curve from (0, 0) to (1, 1), thinned to about `points` points for plotting.

    The points are spread evenly over the FPR and the TPR, and logarithmically over small FPRs.

    Raises:
        InputError: as `auroc`.
    """
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(*_check_both(labels, scores), drop_intermediate=True)
    if fpr.size > points:
        grid, small = np.linspace(0, 1, points // 3), np.geomspace(1e-4, 0.01, points // 3)
        at_fpr = np.searchsorted(fpr, np.concatenate([grid, small]), side="right") - 1
        kept = np.union1d(at_fpr, np.searchsorted(tpr, grid))
        fpr, tpr = fpr[kept], tpr[kept]
    return {"fpr": fpr.tolist(), "tpr": tpr.tolist()}


def bin_numbers(probabilities: Floats) -> Labels:
    """The bin of each probability: `RELIABILITY_BINS` bins of equal width, the last one includes 1.0."""
    return np.minimum((probabilities * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)


def reliability(labels: ArrayLike, probabilities: ArrayLike, prevalence: float) -> list[dict[str, Any]]:
    """Reliability diagram at a prevalence of AI texts: `count`, `mean_probability` and `fraction_ai` of each bin.

    Raises:
        InputError: as `auroc`.
    """
    truth, p = _check_both(labels, probabilities)
    num_ai = int(truth.sum())
    weights = np.where(truth == 1, prevalence / num_ai, (1 - prevalence) / (truth.size - num_ai))
    rows, numbers = [], bin_numbers(p)
    for i in np.unique(numbers):
        own = numbers == i
        probability, fraction = (float(np.average(v[own], weights=weights[own])) for v in (p, truth))
        rows.append({"count": int(own.sum()), "mean_probability": probability, "fraction_ai": fraction})
    return rows


def _check_both(labels: ArrayLike, values: ArrayLike) -> tuple[Labels, Floats]:
    truth, numbers = check_binary(labels, values)
    num_ai = int(truth.sum())
    if not 0 < num_ai < truth.size:
        raise InputError(f"texts of both classes are needed, found {truth.size - num_ai} human and {num_ai} ai")
    return truth, numbers
