"""Contributors of human texts whose labels move a threshold further than chance explains. Pure.

AI texts declared human raise a threshold until nothing is found. A contributor is recognised only if its texts stand
out: false labels of as many texts as the target allows (1 in 100 at 1%), or of several contributors together, do not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom, hypergeom

from detect_ai.metrics import Floats, largest_count

CONFIDENCE = 0.95  # of the interval of a threshold
MIN_SHIFT = 0.5  # of that interval
MAX_CHANCE = 0.01  # that any contributor of texts like those of the others is excluded


def poisoning_keys(human_scores: ArrayLike, keys: ArrayLike, target_fpr: float) -> list[str]:
    """The contributors to leave out, the one that moves the threshold furthest first.

    `human_scores` are standardised, `keys` name who vouches for each text ("": nobody, never left out); shape (n,). A
    contributor of less than half of the texts is left out if it raises the threshold of the others by at least half
    of its 95% interval, and has more texts above it than exchangeable texts would.
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
    """How far texts raise the threshold of the others, over its interval; 0 where chance explains what is above it."""
    ordered, together = np.sort(others)[::-1], np.sort(np.concatenate([own, others]))[::-1]
    rank = _rank(ordered.size, target_fpr)
    threshold = ordered[rank - 1]
    above = int((own > threshold).sum())
    # Of the highest texts of all, down to the last one above: so many are its own by chance, if all are exchangeable.
    if not above or hypergeom.sf(above - 1, together.size, own.size, above + rank - 1) > max_chance:
        return 0.0
    tails = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    first, last = (int(binom.ppf(tail, ordered.size, target_fpr)) for tail in tails)  # texts above the interval's ends
    high, low = ordered[max(0, first - 1)], ordered[min(last, ordered.size - 1)]
    return float((together[_rank(together.size, target_fpr) - 1] - threshold) / max(high - low, 1e-12))


def _rank(n: int, target_fpr: float) -> int:
    """That of the threshold's score from above, as `conformal_threshold` in expectation; 1 with too few texts."""
    return max(1, largest_count(target_fpr, n + 1))
