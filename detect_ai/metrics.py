"""Figures that judge a detector, from labels (0 human, 1 AI), scores (higher = more AI), probabilities and calls.

Predictions decide about every text (0 human, 1 AI); calls may leave a text open (-1 uncertain). Every function takes
arrays of shape (n,) and raises `InputError` when their lengths differ, a label is neither 0 nor 1, or a value is not
finite.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detect_ai.core.errors import InputError
from detect_ai.evaluation.intervals import rate_interval as rate_interval

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


def calls_at(scores: ArrayLike, lower: float, upper: float) -> Labels:
    """The calls of two thresholds: below `lower` human (0), from `upper` on AI (1), between them uncertain (-1).

    Args:
        scores: higher = more AI, shape (n,); compared in float64.
        lower: the first score that is not human.
        upper: the first score that is AI, at least `lower`.

    Returns:
        0, 1 or -1 a text, shape (n,).

    Raises:
        InputError: a score is not finite, or the thresholds are not in order.
    """
    if not lower <= upper:
        raise InputError(f"lower must be at most upper, found {lower} and {upper}")
    values = np.asarray(scores, dtype=np.float64)
    not_finite = int((~np.isfinite(values)).sum())
    if not_finite:
        raise InputError(f"scores must be finite, found {not_finite} of {values.size} that are not")
    return np.where(values >= upper, 1, np.where(values < lower, 0, -1)).astype(np.int64)


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
    return area(*roc_counts(*_check_both(labels, scores))(None))


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
    return tpr_of(fpr, *roc_counts(*_check_both(labels, scores))(None))


def roc(labels: ArrayLike, scores: ArrayLike, points: int = 200) -> dict[str, list[float]]:
    """The ROC curve, thinned for plotting; every point belongs to a threshold that exists.

    A third of the points is spread evenly over the FPR, one over the TPR, and one logarithmically over the FPR below
    1%, where detectors are used. A curve of fewer points is given whole.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        scores: higher = more AI, shape (n,).
        points: the most points, at least 10.

    Returns:
        "fpr" and "tpr", both ascending from 0.0 to 1.0.

    Raises:
        InputError: as `auroc`, or fewer than 10 points.
    """
    if points < 10:
        raise InputError(f"points must be at least 10, found {points}")
    false, true = roc_counts(*_check_both(labels, scores))(None)
    fpr, tpr = false / false[-1], true / true[-1]
    if fpr.size > points:
        grid = np.linspace(0, 1, points // 3)
        small = np.geomspace(min(1 / false[-1], 0.01), 0.01, points // 3)
        chosen = np.union1d(
            np.searchsorted(fpr, np.concatenate([grid, small]), side="right") - 1, np.searchsorted(tpr, grid)
        )
        fpr, tpr = fpr[chosen], tpr[chosen]
    return {"fpr": fpr.tolist(), "tpr": tpr.tolist()}


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The share of texts whose predicted class (0 or 1) is their label."""
    truth, calls = _checked_predictions(labels, predictions)
    return float((truth == calls).mean())


def balanced_accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The mean of the share of human texts predicted human and that of AI texts predicted AI; needs both classes."""
    truth, calls = _checked_predictions(labels, predictions)
    _check_both(truth, calls)
    return balanced_of(confusion(truth, calls))


def precision(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The share of AI texts among those predicted AI; 0.0 where none is."""
    _, fp, _, tp = confusion(*_checked_predictions(labels, predictions))
    return tp / (tp + fp) if tp + fp else 0.0


def recall(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The share of AI texts predicted AI; 0.0 where no text is AI."""
    _, _, fn, tp = confusion(*_checked_predictions(labels, predictions))
    return tp / (tp + fn) if tp + fn else 0.0


def f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The harmonic mean of precision and recall of the class AI; 0.0 where no text is AI and none is called AI."""
    return f1_of(confusion(*_checked_predictions(labels, predictions)))


def c_at_1(labels: ArrayLike, calls: ArrayLike) -> float:
    """Accuracy that credits an uncertain text with the accuracy over all texts, (n_c + n_u * n_c / n) / n.

    n_c texts are called right and n_u left open (Peñas and Rodrigo 2011, "A Simple Measure to Assess Non-response").

    Args:
        labels: 0 human, 1 AI, shape (n,).
        calls: 0 human, 1 AI, -1 uncertain, shape (n,).

    Returns:
        The figure, in [0, 1]; without uncertain texts the accuracy.

    Raises:
        InputError: as `check_binary`, or a call is none of these.
    """
    truth, made = checked_calls(labels, calls)
    return c_at_1_of(truth, made, np.ones_like(truth))


def f05u(labels: ArrayLike, calls: ArrayLike) -> float:
    """F0.5 of the class AI with uncertain texts as missed ones: 1.25 TP / (1.25 TP + 0.25 (FN + U) + FP).

    U are the uncertain texts of both classes (Bevendorff et al. 2019, "Generalizing Unmasking for Short Texts").

    Args:
        labels: 0 human, 1 AI, shape (n,).
        calls: 0 human, 1 AI, -1 uncertain, shape (n,).

    Returns:
        The figure, in [0, 1]; 0.0 where all texts are human and called human.

    Raises:
        InputError: as `c_at_1`.
    """
    truth, made = checked_calls(labels, calls)
    return f05u_of(truth, made, np.ones_like(truth))


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The mean squared distance of P(AI) from the label (Brier 1950), in [0, 1]."""
    truth, p = checked_probabilities(labels, probabilities)
    return float(((p - truth) ** 2).mean())


def brier_complement(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """One minus `brier`: higher is better, as in the evaluations of PAN."""
    return 1 - brier(labels, probabilities)


def ece(labels: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error of P(AI) over bins of equal width.

    In each bin, the distance of the mean probability from the share of AI texts, weighted by the bin's share
    of the texts (Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"). A bin
    holds its lower edge; the last one holds 1.0 as well.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        probabilities: P(AI), shape (n,).
        bins: number of bins on [0, 1], at least 1.

    Returns:
        The error, in [0, 1].

    Raises:
        InputError: as `check_binary`, a probability is outside [0, 1], or there is no bin.
    """
    truth, p = checked_probabilities(labels, probabilities)
    return float(np.abs(np.bincount(bins_of(p, bins), weights=p - truth)).sum() / p.size)


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> list[dict[str, float | int]]:
    """What stands behind `ece`: probability and truth, bin by bin.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        probabilities: P(AI), shape (n,).
        bins: number of bins on [0, 1], at least 1.

    Returns:
        For each bin with texts, ascending: its edges "low" and "high", the "count" of texts, their "mean_probability",
        the "share_ai" of AI texts and its 95% interval "share_low", "share_high" (Clopper-Pearson).

    Raises:
        InputError: as `ece`.
    """
    truth, p = checked_probabilities(labels, probabilities)
    bin_of_text = bins_of(p, bins)
    counts = np.bincount(bin_of_text).tolist()
    ai = np.bincount(bin_of_text[truth == 1], minlength=len(counts)).tolist()
    sums = np.bincount(bin_of_text, weights=p).tolist()
    rows: list[dict[str, float | int]] = []
    for number, count in enumerate(counts):
        if count:
            low, high = rate_interval(ai[number], count)
            edges = {"low": number / bins, "high": (number + 1) / bins}
            share = {"share_ai": ai[number] / count, "share_low": low, "share_high": high}
            rows.append({**edges, "count": count, "mean_probability": sums[number] / count, **share})
    return rows


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The mean negative log-likelihood in nats; P(AI) is held one float64 epsilon away from 0 and 1."""
    return float(losses_of(*checked_probabilities(labels, probabilities)).mean())


def roc_counts(truth: Labels, scores: Floats) -> Callable[[Labels | None], tuple[Labels, Labels]]:
    """Sorts once; gives, for how often each text counts, the ROC curve in texts.

    That is the false and the true positives of each distinct score as threshold, descending, after those of none.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    ai = truth[order]

    def points(counts: Labels | None) -> tuple[Labels, Labels]:
        weights = np.ones_like(ai) if counts is None else counts[order]
        true, all_called = (np.cumsum(np.add.reduceat(w, first)) for w in (weights * ai, weights))
        start = np.zeros(1, dtype=np.int64)
        return np.concatenate([start, all_called - true]), np.concatenate([start, true])

    return points


def area(false: Labels, true: Labels) -> float:
    """The area under a curve of `roc_counts`."""
    twice = (np.diff(false) * (true[1:] + true[:-1])).sum()
    return float(twice / (2 * false[-1] * true[-1]))


def tpr_of(fpr: float, false: Labels, true: Labels) -> float:
    """The largest TPR on a curve of `roc_counts` at an FPR of at most `fpr`."""
    allowed = largest_count(fpr, int(false[-1]))
    return float(true[np.searchsorted(false, allowed, side="right") - 1] / true[-1])


def confusion(truth: Labels, predictions: Labels) -> tuple[int, int, int, int]:
    """True negatives, false positives, false negatives, true positives."""
    return counted(2 * truth + predictions, None)


def counted(outcome: Labels, counts: Labels | None) -> tuple[int, int, int, int]:
    """As `confusion`, of outcomes 2 * label + prediction, each text counted so often."""
    tn, fp, fn, tp = np.bincount(outcome, weights=counts, minlength=4).astype(np.int64).tolist()
    return tn, fp, fn, tp


def balanced_of(table: tuple[int, int, int, int]) -> float:
    """Balanced accuracy of a `confusion`."""
    tn, fp, fn, tp = table
    return (tn / (tn + fp) + tp / (tp + fn)) / 2


def f1_of(table: tuple[int, int, int, int]) -> float:
    """F1 of a `confusion`."""
    _, fp, fn, tp = table
    positives = 2 * tp + fp + fn
    return 2 * tp / positives if positives else 0.0


def c_at_1_of(truth: Labels, calls: Labels, counts: Labels) -> float:
    """`c_at_1` of texts that count so often each."""
    texts = int(counts.sum())
    right, uncertain = int(counts[truth == calls].sum()), int(counts[calls == -1].sum())
    return (right + uncertain * right / texts) / texts


def f05u_of(truth: Labels, calls: Labels, counts: Labels) -> float:
    """`f05u` of texts that count so often each."""
    tp, fp = (int(counts[(calls == 1) & (truth == label)].sum()) for label in (1, 0))
    missed = int(counts[(calls == -1) | ((calls == 0) & (truth == 1))].sum())
    total = 1.25 * tp + 0.25 * missed + fp
    return 1.25 * tp / total if total else 0.0


def losses_of(truth: Labels, p: Floats) -> Floats:
    """The negative log-likelihood of each text, shape (n,)."""
    epsilon = np.finfo(np.float64).eps
    held = np.clip(p, epsilon, 1 - epsilon)
    return np.asarray(-np.log(np.where(truth == 1, held, 1 - held)), np.float64)


def bins_of(p: Floats, bins: int) -> Labels:
    """The bin of each probability, of equal width; the last one holds 1.0. Raises InputError without a bin."""
    if bins < 1:
        raise InputError(f"bins must be at least 1, found {bins}")
    return np.minimum((p * bins).astype(np.int64), bins - 1)


def _check_both(labels: ArrayLike, values: ArrayLike) -> tuple[Labels, Floats]:
    truth, numbers = check_binary(labels, values)
    num_ai = int(truth.sum())
    if not 0 < num_ai < truth.size:
        raise InputError(f"texts of both classes are needed, found {truth.size - num_ai} human and {num_ai} ai")
    return truth, numbers


def _checked_predictions(labels: ArrayLike, predictions: ArrayLike) -> tuple[Labels, Labels]:
    truth, calls = check_binary(labels, predictions, "predictions")
    strangers = calls[~np.isin(calls, (0, 1))]
    if strangers.size:
        raise InputError(f"predictions must be 0 (human) or 1 (ai), found {strangers[0]}")
    return truth, calls.astype(np.int64)


def checked_calls(labels: ArrayLike, calls: ArrayLike) -> tuple[Labels, Labels]:
    """Labels and calls as arrays. Raises InputError for a call that is none of 0, 1 and -1."""
    truth, made = check_binary(labels, calls, "calls")
    strangers = made[~np.isin(made, (-1, 0, 1))]
    if strangers.size:
        raise InputError(f"calls must be 0 (human), 1 (ai) or -1 (uncertain), found {strangers[0]}")
    return truth, made.astype(np.int64)


def checked_probabilities(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Labels, Floats]:
    """Labels and probabilities as arrays. Raises InputError for a probability outside [0, 1]."""
    truth, p = check_binary(labels, probabilities, "probabilities")
    outside = p[(p < 0) | (p > 1)]
    if outside.size:
        raise InputError(f"probabilities must be in [0, 1], found {outside[0]}")
    return truth, p
