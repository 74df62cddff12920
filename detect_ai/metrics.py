"""Figures that judge a detector, from labels (0 human, 1 AI), scores (higher = more AI) and probabilities.

Every function takes arrays of shape (n,) and raises `InputError` when their lengths differ, a label is
neither 0 nor 1, or a value is not finite.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from detect_ai.errors import InputError

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


def check_binary(labels: ArrayLike, values: ArrayLike, name: str = "scores") -> tuple[Labels, Floats]:
    """Checks labelled values and converts them to arrays.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        values: one finite number a text, shape (n,).
        name: what the values are, for the error text.

    Returns:
        The labels as int64 and the values as float64, both of shape (n,).

    Raises:
        InputError: the shapes differ or are not (n,) with n >= 1; a label is neither 0 nor 1; a value is not
            finite.
    """
    found, numbers = np.asarray(labels), np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or found.shape != numbers.shape or not found.size:
        raise InputError(
            f"labels and {name} must have one shape (n,) with n >= 1, found {found.shape} and {numbers.shape}"
        )
    strangers = found[~np.isin(found, (0, 1))]
    if strangers.size:
        raise InputError(f"labels must be 0 (human) or 1 (ai), found {strangers[0]}")
    not_finite = int((~np.isfinite(numbers)).sum())
    if not_finite:
        raise InputError(f"{name} must be finite, found {not_finite} of {numbers.size} that are not")
    return found.astype(np.int64), numbers


def largest_count(rate: float, trials: int) -> int:
    """The largest k with k / trials <= rate, compared as floats.

    The product `rate * trials` alone is not safe: 0.29 * 100 is 28.999999999999996. The correctly rounded
    quotient 29 / 100 equals the literal 0.29, so the quotient decides.
    """
    nearest = round(rate * trials)
    return nearest if nearest / trials <= rate else nearest - 1


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """The probability that a random AI text scores above a random human text, ties counted as one half.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        scores: higher = more AI, shape (n,).

    Returns:
        The area under the ROC curve, in [0, 1].

    Raises:
        InputError: as `check_binary`, or one class is missing.
    """
    human, ai = _by_class(labels, scores)
    below = np.searchsorted(human, ai, side="left").sum()
    below_or_equal = np.searchsorted(human, ai, side="right").sum()
    return float((below + below_or_equal) / (2 * human.size * ai.size))


def tpr_at_fpr(labels: ArrayLike, scores: ArrayLike, fpr: float) -> float:
    """The largest TPR of all thresholds whose FPR on these texts is at most `fpr`.

    A text is called AI iff its score is at least the threshold. Texts of one score are called together and
    nothing is interpolated between thresholds, so the figure belongs to a threshold that exists.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        scores: higher = more AI, shape (n,).
        fpr: the largest share of human texts that may be called AI, in [0, 1].

    Returns:
        The share of AI texts called AI, in [0, 1].

    Raises:
        InputError: as `auroc`, or `fpr` is outside [0, 1].
    """
    if not 0.0 <= fpr <= 1.0:
        raise InputError(f"fpr must be in [0, 1], found {fpr}")
    human, ai = _by_class(labels, scores)
    allowed = largest_count(fpr, human.size)
    if allowed == human.size:
        return 1.0
    first_refused = human[-1 - allowed]
    return float((ai > first_refused).mean())


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The share of texts whose predicted class (0 or 1) is their label."""
    truth, calls = _checked_predictions(labels, predictions)
    return float((truth == calls).mean())


def f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The harmonic mean of precision and recall of the class AI; 0.0 where no text is AI and none is called AI."""
    truth, calls = _checked_predictions(labels, predictions)
    positives = truth.sum() + calls.sum()
    return float(2 * (truth * calls).sum() / positives) if positives else 0.0


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The mean squared distance of P(AI) from the label (Brier 1950), in [0, 1]."""
    truth, p = _checked_probabilities(labels, probabilities)
    return float(((p - truth) ** 2).mean())


def ece(labels: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error of P(AI) over bins of equal width.

    In each bin, the distance of the mean probability from the share of AI texts, weighted by the bin's share
    of the texts (Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"). A bin
    holds its lower edge; the last one holds 1.0 as well.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        probabilities: P(AI), shape (n,).
        bins: number of bins on [0, 1].

    Returns:
        The error, in [0, 1].

    Raises:
        InputError: as `check_binary`, or a probability is outside [0, 1].
    """
    truth, p = _checked_probabilities(labels, probabilities)
    bin_of_text = np.minimum((p * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(bin_of_text, weights=p - truth)).sum() / p.size)


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The mean negative log-likelihood in nats; P(AI) is held one float64 epsilon away from 0 and 1."""
    truth, p = _checked_probabilities(labels, probabilities)
    epsilon = np.finfo(np.float64).eps
    p = np.clip(p, epsilon, 1 - epsilon)
    return float(-np.log(np.where(truth == 1, p, 1 - p)).mean())


def rate_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a binomial rate (Clopper and Pearson 1934).

    Args:
        successes: how often it happened, in [0, trials].
        trials: how often it could have happened; 0 says nothing, so the interval is (0.0, 1.0).
        confidence: the coverage that is at least held, in (0, 1).

    Returns:
        The lower and the upper bound.

    Raises:
        InputError: `successes` is outside [0, trials], or `confidence` outside (0, 1).
    """
    if not 0 <= successes <= trials:
        raise InputError(f"successes must be in [0, {trials}], found {successes}")
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence must be in (0, 1), found {confidence}")
    tail = (1 - confidence) / 2
    failures = trials - successes
    low = float(betaincinv(successes, failures + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, failures, 1 - tail)) if failures else 1.0
    return low, high


def report(
    labels: ArrayLike,
    scores: ArrayLike,
    probabilities: ArrayLike,
    upper_by_target: Mapping[float, float],
) -> dict[str, float | int | None]:
    """All figures of one set of texts, ready for JSON.

    A set with one class (a slice by generator, say) is reported too: what needs the missing class is None.
    Accuracy and F1 call a text AI from probability 0.5 on. For a target of 5% the figures of its threshold
    are `fpr_at_target_5` and `tpr_at_target_5`, each with `_low` and `_high` (95%, Clopper-Pearson); for 0.1%
    they end in `_0_1`.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        scores: higher = more AI, shape (n,).
        probabilities: P(AI), shape (n,).
        upper_by_target: the threshold by target FPR; a text is called AI iff its score is at least that.

    Returns:
        Figures by name.

    Raises:
        InputError: as `check_binary`, or a probability is outside [0, 1].
    """
    truth, s = check_binary(labels, scores)
    _, p = _checked_probabilities(labels, probabilities)
    calls = p >= 0.5
    num_ai = int(truth.sum())
    both = 0 < num_ai < truth.size
    figures: dict[str, float | int | None] = {
        "n_human": truth.size - num_ai,
        "n_ai": num_ai,
        "auroc": auroc(truth, s) if both else None,
        "tpr_at_fpr_1": tpr_at_fpr(truth, s, 0.01) if both else None,
        "tpr_at_fpr_5": tpr_at_fpr(truth, s, 0.05) if both else None,
        "accuracy": accuracy(truth, calls),
        "f1": f1(truth, calls) if both else None,
        "ece": ece(truth, p),
        "brier": brier(truth, p),
        "log_loss": log_loss(truth, p),
    }
    for target, threshold in upper_by_target.items():
        percent = f"{100 * target:g}".replace(".", "_")
        figures |= _rate_at_threshold(f"fpr_at_target_{percent}", s[truth == 0], threshold)
        figures |= _rate_at_threshold(f"tpr_at_target_{percent}", s[truth == 1], threshold)
    return figures


def _rate_at_threshold(name: str, scores: Floats, threshold: float) -> dict[str, float | int | None]:
    called = int((scores >= threshold).sum())
    low, high = rate_interval(called, scores.size)
    return {name: called / scores.size if scores.size else None, f"{name}_low": low, f"{name}_high": high}


def _by_class(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """The human and the AI scores, each sorted ascending."""
    truth, values = check_binary(labels, scores)
    human, ai = np.sort(values[truth == 0]), np.sort(values[truth == 1])
    if not (human.size and ai.size):
        raise InputError(f"texts of both classes are needed, found {human.size} human and {ai.size} ai")
    return human, ai


def _checked_predictions(labels: ArrayLike, predictions: ArrayLike) -> tuple[Labels, Labels]:
    truth, calls = check_binary(labels, predictions, "predictions")
    strangers = calls[~np.isin(calls, (0, 1))]
    if strangers.size:
        raise InputError(f"predictions must be 0 (human) or 1 (ai), found {strangers[0]}")
    return truth, calls.astype(np.int64)


def _checked_probabilities(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Labels, Floats]:
    truth, p = check_binary(labels, probabilities, "probabilities")
    outside = p[(p < 0) | (p > 1)]
    if outside.size:
        raise InputError(f"probabilities must be in [0, 1], found {outside[0]}")
    return truth, p
