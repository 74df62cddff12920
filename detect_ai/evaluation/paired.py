"""Is one detector better than another on the same texts? Tests that use the pairing."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtr, ndtri

from detect_ai.core.errors import InputError
from detect_ai.evaluation.intervals import Counts, bootstrap, check_confidence
from detect_ai.metrics import Floats, check_binary


def delong(labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, confidence: float = 0.95) -> dict[str, float]:
    """Compares two AUROCs of the same texts (DeLong, DeLong and Clarke-Pearson 1988).

    The share of the human texts that an AI text scores above (its placement) and vice versa is found by sorting, in
    O(n log n), as in Sun and Xu 2014, "Fast implementation of DeLong's algorithm", where it is a difference of two
    midranks. The test takes texts for independent: where they come in groups, use `paired_bootstrap`.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        scores_a: of the first detector, higher = more AI, shape (n,).
        scores_b: of the second, on the same texts.
        confidence: of the interval, in (0, 1).

    Returns:
        "auroc_a", "auroc_b", their "difference" a - b, its bounds "low" and "high" by the normal distribution, and the
        two-sided "p_value" of equal AUROCs. Without variance (say, of two perfect detectors) the interval is the
        difference alone, and the p-value 1.0 or 0.0.

    Raises:
        InputError: as `metrics.check_binary`, fewer than two texts of a class, or a confidence outside (0, 1).
    """
    check_confidence(confidence)
    truth, a = check_binary(labels, scores_a)
    _, b = check_binary(labels, scores_b)
    num_ai = int(truth.sum())
    num_human = truth.size - num_ai
    if min(num_ai, num_human) < 2:
        raise InputError(f"at least 2 texts of each class are needed, found {num_human} human and {num_ai} ai")
    ai_a, human_a = _placements(a[truth == 0], a[truth == 1])
    ai_b, human_b = _placements(b[truth == 0], b[truth == 1])
    difference = float(ai_a.mean() - ai_b.mean())
    # The variance of l' S l with l = (1, -1) is that of the differences of the placements.
    variance = np.var(ai_a - ai_b, ddof=1) / num_ai + np.var(human_a - human_b, ddof=1) / num_human
    error = float(np.sqrt(variance))
    margin = float(ndtri((1 + confidence) / 2)) * error
    without_variance = 1.0 if difference == 0 else 0.0
    return {
        "auroc_a": float(ai_a.mean()),
        "auroc_b": float(ai_b.mean()),
        "difference": difference,
        "low": difference - margin,
        "high": difference + margin,
        "p_value": float(2 * ndtr(-abs(difference) / error)) if error > 0 else without_variance,
    }


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> dict[str, float | int]:
    """Compares how often two detectors are right on the same texts (McNemar 1947), by the exact binomial test.

    Args:
        correct_a: whether the first detector is right about a text, bool or 0 and 1, shape (n,).
        correct_b: the same of the second detector.

    Returns:
        "only_a" and "only_b": the number of texts that only one of them is right about; "p_value": two-sided, of both
        being right equally often. Where they are right about the same texts it is 1.0.

    Raises:
        InputError: the shapes differ or are not (n,) with n >= 1, or a value is neither 0 nor 1.
    """
    a, b = _flags("correct_a", correct_a), _flags("correct_b", correct_b)
    if a.shape != b.shape:
        raise InputError(f"correct_a and correct_b must have one shape (n,), found {a.shape} and {b.shape}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p_value = min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))
    return {"only_a": only_a, "only_b": only_b, "p_value": p_value}


def paired_bootstrap(
    figure: Callable[[ArrayLike, ArrayLike], float],
    labels: ArrayLike,
    values_a: ArrayLike,
    values_b: ArrayLike,
    groups: ArrayLike | None = None,
    rounds: int = 200,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, float]:
    """Compares any figure of two detectors on the same texts: in each resample of groups both see the same texts.

    Args:
        figure: of labels and values, e.g. `metrics.auroc`.
        labels: 0 human, 1 AI, shape (n,).
        values_a: scores, probabilities or calls of the first detector, shape (n,).
        values_b: those of the second detector.
        groups: see `intervals.group_numbers`.
        rounds: number of resamples, at least 1.
        seed: of the resamples.
        confidence: the share of the resamples inside the interval, in (0, 1).

    Returns:
        The figures "a" and "b", their "difference" a - b, and its percentile interval "low", "high".

    Raises:
        InputError: as `metrics.check_binary`, `intervals.bootstrap` or the figure.
    """
    truth, a = check_binary(labels, values_a, "values_a")
    _, b = check_binary(labels, values_b, "values_b")

    def resampled(counts: Counts) -> dict[str, float]:
        drawn = np.repeat(truth, counts)
        return {"difference": figure(drawn, np.repeat(a, counts)) - figure(drawn, np.repeat(b, counts))}

    low, high = bootstrap(resampled, truth, groups, rounds, seed, confidence)["difference"]
    figure_a, figure_b = figure(truth, a), figure(truth, b)
    return {"a": figure_a, "b": figure_b, "difference": figure_a - figure_b, "low": low, "high": high}


def _flags(name: str, values: ArrayLike) -> NDArray[np.bool_]:
    found = np.asarray(values)
    if found.ndim != 1 or not found.size:
        raise InputError(f"{name} must have the shape (n,) with n >= 1, found {found.shape}")
    strangers = found[~np.isin(found, (0, 1))]
    if strangers.size:
        raise InputError(f"{name} must be 0 (wrong) or 1 (right), found {strangers[0]}")
    return found.astype(np.bool_)


def _placements(human: Floats, ai: Floats) -> tuple[Floats, Floats]:
    """The share of the other class on the right side of each AI and of each human text, ties counted as one half."""
    return _share_below(ai, human), 1 - _share_below(human, ai)


def _share_below(values: Floats, others: Floats) -> Floats:
    ordered = np.sort(others)
    twice = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    return np.asarray(twice / (2 * ordered.size), dtype=np.float64)
