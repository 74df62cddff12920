"""Scores of what was read lately, by a hash of its tokens: bounded, off by default, no text in it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


class ScoreCache:
    """Log-odds of token sequences, the least recently asked for dropped first. Used from one thread.

    Args:
        size: of them; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._scores: OrderedDict[bytes, float] = OrderedDict()

    def find(self, rows: Sequence[Ids]) -> NDArray[np.float64]:
        """What is known of each row, shape (rows,); NaN for the others."""
        if not self._scores:
            return np.full(len(rows), np.nan)
        return np.asarray([self._find(_key(row)) for row in rows])

    def _find(self, key: bytes) -> float:
        if key not in self._scores:
            return np.nan
        self._scores.move_to_end(key)
        return self._scores[key]

    def keep(self, rows: Sequence[Ids], scores: NDArray[np.float64]) -> None:
        """Remember the log-odds of rows, shape (rows,)."""
        if not self._size:
            return
        for row, score in zip(rows, scores, strict=True):
            self._scores[_key(row)] = float(score)
            self._scores.move_to_end(_key(row))
        while len(self._scores) > self._size:
            self._scores.popitem(last=False)


def _key(row: Ids) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(row, dtype=np.int32).tobytes(), digest_size=16).digest()
