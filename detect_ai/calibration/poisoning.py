"""Finds contributors of human texts whose labels shift a threshold more than chance explains. Pure.

AI texts declared human raise a threshold until nothing is detected. A contributor is found only if its texts stand out:
false labels on as many texts as the target allows (1 in 100 at 1%), or by several contributors together, do not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom, hypergeom

from detect_ai.metrics import Floats, largest_count

CONFIDENCE = 0.95  # of the interval of a threshold
MIN_SHIFT = 0.5  # fraction of that interval
MAX_CHANCE = 0.01  # probability that any contributor with texts like those of the others is excluded


def poisoning_keys(human_scores: ArrayLike, keys: ArrayLike, target_fpr: float) -> list[str]:
    """The contributors to exclude, the one with the largest shift of the threshold first.

    `human_scores` are standardised, `keys` name who vouches for each text ("": nobody, never excluded); shape (n,). A
    contributor of less than half of the texts is excluded if it raises the threshold of the others by at least half of
    the threshold's 95% interval, and has more texts above the threshold than exchangeable texts would.
    """
    scores, owners = np.asarray(human_scores, np.float64), np.asarray(keys, str)
    excluded: list[str] = []
    while True:
        names, counts = np.unique(owners, return_counts=True)
        shifts = {
            str(name): _shift(scores[owners == name], scores[owners != name], target_fpr, MAX_CHANCE / len(names))
            for name, count in zip(names, counts, strict=True)
            if name and 2 * count < len(owners)
        }
        worst = max(shifts, key=shifts.__getitem__, default="")
        if not worst or shifts[worst] < MIN_SHIFT:
            return excluded
        excluded.append(worst)
        scores, owners = scores[owners != worst], owners[owners != worst]


def _shift(own: Floats, others: Floats, target_fpr: float, max_chance: float) -> float:
    """How much texts raise the threshold of the others, relative to its interval; 0 if chance explains it."""
    ordered, together = np.sort(others)[::-1], np.sort(np.concatenate([own, others]))[::-1]
    rank = _rank(ordered.size, target_fpr)
    threshold = ordered[rank - 1]
    above = int((own > threshold).sum())
    # Probability that so many of the highest texts are its own, if all texts are exchangeable.
    if not above or hypergeom.sf(above - 1, together.size, own.size, above + rank - 1) > max_chance:
        return 0.0
    tails = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    first, last = (int(binom.ppf(tail, ordered.size, target_fpr)) for tail in tails)  # texts above the interval's ends
    high, low = ordered[max(0, first - 1)], ordered[min(last, ordered.size - 1)]
    return float((together[_rank(together.size, target_fpr) - 1] - threshold) / max(high - low, 1e-12))


def _rank(n: int, target_fpr: float) -> int:
    """Rank from above of the threshold's score, as in `conformal_threshold` (`expectation`); 1 with too few texts."""
    return max(1, largest_count(target_fpr, n + 1))
