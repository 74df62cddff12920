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


def check_binary(labels: ArrayLike, scores: ArrayLike, both_classes: bool = False) -> tuple[Labels, Floats]:
    """Convert labels and scores to int64 and float64 arrays of shape (n,).

    Raises:
        InputError: the shapes differ or are not (n,) with n >= 1, a label is neither 0 nor 1, a score is not finite, or
            a class is missing with `both_classes`.
    """
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape or not truth.size:
        raise InputError(
            f"labels and scores must have one shape (n,) with n >= 1, found {truth.shape} and {values.shape}"
        )
    if not np.isin(truth, (0, 1)).all():
        raise InputError(f"labels must be 0 (human) or 1 (ai), found {truth[~np.isin(truth, (0, 1))][0]}")
    if not np.isfinite(values).all():
        raise InputError(f"scores must be finite, found {(~np.isfinite(values)).sum()} of {values.size} that are not")
    num_ai = int(truth.sum())
    if both_classes and not 0 < num_ai < truth.size:
        raise InputError(f"texts of both classes are needed, found {truth.size - num_ai} human and {num_ai} ai")
    return truth.astype(np.int64), values


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


def exact_rate_interval(successes: float, trials: float) -> tuple[float, float]:
    """The exact 95% interval of a rate of independent trials; both arguments may be fractional.

    Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the binomial".
    """
    from scipy.stats import beta

    low = float(beta.ppf(0.025, successes, trials - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(0.975, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve from the Mann-Whitney statistic, ties counted as one half. Raises InputError."""
    from scipy.stats import rankdata

    truth, values = check_binary(labels, scores, both_classes=True)
    num_ai = int(truth.sum())
    above = rankdata(values)[truth == 1].sum() - num_ai * (num_ai + 1) / 2
    return float(above / (num_ai * (truth.size - num_ai)))


def tpr_at_fpr(labels: ArrayLike, scores: ArrayLike, fpr: float) -> float:
    """The largest detection rate (TPR) over all thresholds whose FPR on these texts is at most `fpr`.

    Texts with equal scores get the same prediction and nothing is interpolated, so a threshold with this value exists.
    Raises InputError.
    """
    truth, values = check_binary(labels, scores, both_classes=True)
    human = np.sort(values[truth == 0])[::-1]
    allowed = largest_count(fpr, human.size)
    return 1.0 if allowed == human.size else float((values[truth == 1] > human[allowed]).mean())


def log_losses(labels: Labels, probabilities: Floats) -> Floats:
    """Negative log-likelihood of each text in nats; P(AI) is clipped one float64 epsilon away from 0 and 1."""
    epsilon = np.finfo(np.float64).eps
    clipped = np.clip(probabilities, epsilon, 1 - epsilon)
    return np.asarray(-np.log(np.where(labels == 1, clipped, 1 - clipped)), np.float64)


def roc(labels: ArrayLike, scores: ArrayLike) -> dict[str, list[float]]:
    """The ROC curve from (0, 0) to (1, 1), thinned to about 200 points for plotting. Raises InputError.

    The points are spread evenly over the FPR and the TPR, and logarithmically over small FPRs.
    """
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(*check_binary(labels, scores, both_classes=True), drop_intermediate=True)
    if fpr.size > 200:
        grid, small = np.linspace(0, 1, 66), np.geomspace(1e-4, 0.01, 66)
        at_fpr = np.searchsorted(fpr, np.concatenate([grid, small]), side="right") - 1
        kept = np.union1d(at_fpr, np.searchsorted(tpr, grid))
        fpr, tpr = fpr[kept], tpr[kept]
    return {"fpr": fpr.tolist(), "tpr": tpr.tolist()}


def bin_numbers(probabilities: Floats) -> Labels:
    """The bin of each probability: `RELIABILITY_BINS` bins of equal width; the last bin includes 1.0."""
    return np.minimum((probabilities * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)


def reliability(labels: Labels, p: Floats, prevalence: float) -> list[dict[str, Any]]:
    """Reliability diagram at an AI prevalence: `count`, `mean_probability` and `fraction_ai` of each bin."""
    ai, numbers = labels == 1, bin_numbers(p)
    weights = np.where(ai, prevalence / ai.sum(), (1 - prevalence) / (~ai).sum())
    rows = []
    for i in np.unique(numbers):
        own = numbers == i
        probability, fraction = (float(np.average(v[own], weights=weights[own])) for v in (p, labels))
        rows.append({"count": int(own.sum()), "mean_probability": probability, "fraction_ai": fraction})
    return rows
