"""Documents as overlapping windows of tokens, and window scores as document scores. The same in every stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detect_ai.text import windows

Ids = NDArray[np.int32]


def cut(documents: Sequence[Ids], content: int, stride: int) -> tuple[list[Ids], NDArray[np.int64]]:
    """All windows of all documents.

    Args:
        documents: token ids of each document, without special tokens.
        content: tokens in a window, special tokens not counted.
        stride: tokens between the starts of neighbouring windows.

    Returns:
        The windows in order, and for each the position of its document, shape (windows,). Every document has one.
    """
    rows: list[Ids] = []
    owners: list[int] = []
    for owner, ids in enumerate(documents):
        spans = windows(len(ids), content, stride)
        rows += [ids[start:stop] for start, stop in spans]
        owners += [owner] * len(spans)
    return rows, np.asarray(owners, dtype=np.int64)


def document_scores(scores: NDArray[np.float64], owners: NDArray[np.int64], num_documents: int) -> NDArray[np.float64]:
    """The score of a document: the mean log-odds of its windows, shape (num_documents,)."""
    totals = np.bincount(owners, weights=scores, minlength=num_documents)
    counts = np.bincount(owners, minlength=num_documents)
    means: NDArray[np.float64] = totals / counts
    return means


def one_each(documents: Sequence[Ids], content: int, stride: int, rng: np.random.Generator) -> list[Ids]:
    """One window of each document, drawn from all of its windows: what an epoch of training reads."""
    drawn = []
    for ids in documents:
        spans = windows(len(ids), content, stride)
        start, stop = spans[int(rng.integers(len(spans)))]
        drawn.append(ids[start:stop])
    return drawn
