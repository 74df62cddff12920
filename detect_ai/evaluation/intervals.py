"""Confidence intervals of figures: exact ones of rates, bootstrap ones of everything else.

The bootstrap draws groups, not texts: texts that share a prompt, a source document or an author are no independent
evidence, and an interval that takes them for such is too narrow (Field and Welsh 2007, "Bootstrapping clustered data").
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from detect_ai.core.errors import InputError

Counts = NDArray[np.int64]

# A set with both classes gives a resample without one of them with probability 1/2 at most (two groups).
MAX_DRAWS = 100


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
    check_confidence(confidence)
    tail = (1 - confidence) / 2
    failures = trials - successes
    low = float(betaincinv(successes, failures + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, failures, 1 - tail)) if failures else 1.0
    return low, high


def check_confidence(confidence: float) -> None:
    """Raises InputError when a confidence is outside (0, 1)."""
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence must be in (0, 1), found {confidence}")


def group_numbers(groups: ArrayLike | None, texts: int) -> Counts:
    """Numbers the groups of texts 0, 1, ... in the order of their first text.

    Args:
        groups: the group of each text, of any hashable kind, shape (texts,). A text whose group is None is a group of
            its own; None instead of the array says so of every text.
        texts: number of texts.

    Returns:
        The number of the group of each text, shape (texts,).

    Raises:
        InputError: `groups` has another shape.
    """
    if groups is None:
        return np.arange(texts, dtype=np.int64)
    found = np.asarray(groups, dtype=object)
    if found.shape != (texts,):
        raise InputError(f"groups must have the shape of the labels, ({texts},), found {found.shape}")
    names = [object() if group is None else group for group in found.tolist()]
    numbers: dict[Any, int] = {}
    return np.asarray([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def bootstrap(
    figures: Callable[[Counts], Mapping[str, float]],
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    rounds: int = 200,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of several figures from the same resamples (Efron 1979), groups drawn with replacement.

    A resample is given as the number of times that each text is in it, so a figure can sort its texts once for all
    rounds (see `summary.weighted_figures`). Where the texts have both classes, so has every resample: others are drawn
    again.

    Args:
        figures: the figures by name, of the multiplicity of each text (int64, shape (n,)); in every round the same
            names.
        labels: 0 human, 1 AI, shape (n,).
        groups: see `group_numbers`.
        rounds: number of resamples, at least 1.
        seed: of the resamples; the same one draws the same resamples.
        confidence: the share of the resamples inside the interval, in (0, 1).

    Returns:
        The lower and the upper bound by name.

    Raises:
        InputError: fewer than two groups, which leave nothing to resample; groups of another shape; no round; a
            confidence outside (0, 1); a figure is not finite in some rounds; or 100 draws in a row lacked a class.
    """
    check_confidence(confidence)
    if rounds < 1:
        raise InputError(f"rounds must be at least 1, found {rounds}")
    is_ai = np.asarray(labels) == 1
    number = group_numbers(groups, is_ai.size)
    if number.size == 0 or number.max() < 1:
        raise InputError(f"a bootstrap needs texts of at least 2 groups, found {int(np.unique(number).size)}")
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, value in figures(_resample(rng, number, is_ai)).items():
            found.setdefault(name, []).append(value)
    return {name: _percentiles(name, values, confidence) for name, values in found.items()}


def bootstrap_interval(
    figure: Callable[..., float],
    arrays: Sequence[ArrayLike],
    groups: ArrayLike | None = None,
    rounds: int = 200,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """The percentile interval of any figure of labelled texts; the resamples are those of `bootstrap`.

    Args:
        figure: called with the resampled arrays, in their order.
        arrays: the labels (0 human, 1 AI) and whatever else the figure takes, each of shape (n, ...).
        groups: see `group_numbers`.
        rounds: number of resamples, at least 1.
        seed: of the resamples.
        confidence: the share of the resamples inside the interval, in (0, 1).

    Returns:
        The lower and the upper bound.

    Raises:
        InputError: as `bootstrap`, or the arrays have different lengths.
    """
    values = [np.asarray(array) for array in arrays]
    if len({array.shape[:1] for array in values}) != 1:
        raise InputError(f"arrays must have one length, found {[array.shape for array in values]}")

    def resampled(counts: Counts) -> dict[str, float]:
        return {"the figure": figure(*(np.repeat(array, counts, axis=0) for array in values))}

    return bootstrap(resampled, values[0], groups, rounds, seed, confidence)["the figure"]


def _resample(rng: np.random.Generator, number: Counts, is_ai: NDArray[np.bool_]) -> Counts:
    """How often each text is in one resample of as many groups as there are."""
    groups = int(number.max()) + 1
    needs_both = 0 < is_ai.sum() < is_ai.size
    for _ in range(MAX_DRAWS):
        counts: Counts = np.bincount(rng.integers(groups, size=groups), minlength=groups)[number]
        if not needs_both or 0 < counts[is_ai].sum() < counts.sum():
            return counts
    raise InputError(f"{MAX_DRAWS} resamples of {groups} groups in a row had texts of one class only")


def _percentiles(name: str, values: Sequence[float], confidence: float) -> tuple[float, float]:
    found = np.asarray(values, dtype=np.float64)
    not_finite = int((~np.isfinite(found)).sum())
    if not_finite:
        raise InputError(f"{name} must be finite in every resample, found {not_finite} of {found.size} that are not")
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)
