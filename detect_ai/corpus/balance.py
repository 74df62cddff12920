"""Balance the classes within each domain and length, so that neither tells them apart. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

LENGTH_STEP = np.log(1.5)  # a length class reaches from n words to 1.5 n
MOST, LEAST = 4.0, 0.25  # no text counts for more than four, nor for less than a quarter


def cells(domains: Ints, num_words: Ints) -> Ints:
    """The cell of each text: domain x length class, shape (rows,)."""
    lengths = np.floor(np.log(np.maximum(num_words, 1)) / LENGTH_STEP).astype(np.int64)
    return np.unique(np.stack([domains, lengths]), axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)


def weights(cell: Ints, labels: NDArray[np.int8]) -> NDArray[np.float32]:
    """A weight for each text that gives both classes of a cell the same sum, within bounds; mean 1.

    A cell with one class keeps weight 1: there is nothing to balance it with.
    """
    human, ai = _counts(cell, labels)
    own = np.where(labels == 1, ai[cell], human[cell])
    total = human[cell] + ai[cell]
    balanced = np.clip(total / (2 * own), LEAST, MOST)
    found = np.where(own == total, 1.0, balanced)
    return (found / found.mean()).astype(np.float32) if len(found) else found.astype(np.float32)


def surplus(cell: Ints, labels: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Texts to drop, so that the larger class of each cell with both is cut to the smaller one: the last in order."""
    human, ai = _counts(cell, labels)
    smaller = np.minimum(human, ai)[cell]
    return np.asarray((smaller > 0) & (_rank_within(cell * 2 + labels) >= smaller))


def _counts(cell: Ints, labels: NDArray[np.int8]) -> tuple[Ints, Ints]:
    size = int(cell.max(initial=-1)) + 1
    return np.bincount(cell[labels == 0], minlength=size), np.bincount(cell[labels == 1], minlength=size)


def _rank_within(keys: Ints) -> Ints:
    """For each row, how many rows with its key stand before it."""
    order = np.argsort(keys, kind="stable")
    _, first, counts = np.unique(keys[order], return_index=True, return_counts=True)
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.arange(len(keys)) - np.repeat(first, counts)
    return ranks
