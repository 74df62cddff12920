"""Documents as overlapping windows of tokens, and window scores as document scores. The same in every stage."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from detect_ai.text.normalize import windows

Ids = NDArray[np.int32]
SHORTEST_SPAN = 8  # tokens
FULL_SHARE = 0.25


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


def spans(length: int, edges: Sequence[int], rng: np.random.Generator) -> list[tuple[int, int]]:
    """The whole of a document, and a span of it for each shorter range of lengths.

    Args:
        length: of the document, in tokens.
        edges: lengths that part the ranges, ascending; without any there is only the whole.
        rng: draws lengths and places, each evenly.

    Returns:
        Spans `[start, end)`, the whole document last.
    """
    found = []
    for low, high in pairwise([SHORTEST_SPAN, *edges]):
        if low < high <= length:
            size = int(rng.integers(low, high))
            start = int(rng.integers(length - size + 1))
            found.append((start, start + size))
    return [*found, (0, length)]


def document_scores(scores: NDArray[np.float64], owners: NDArray[np.int64], num_documents: int) -> NDArray[np.float64]:
    """The score of a document: the mean log-odds of its windows, shape (num_documents,)."""
    totals = np.bincount(owners, weights=scores, minlength=num_documents)
    counts = np.bincount(owners, minlength=num_documents)
    means: NDArray[np.float64] = totals / counts
    return means


def span_each(documents: Sequence[Ids], content: int, shortest: int, rng: np.random.Generator) -> list[Ids]:
    """A span of each document, so that a detector learns short texts, too.

    One in four is as long as a window; the logarithm of the other lengths is even between `shortest` tokens and a
    window. The place is even, too. A shorter document is taken whole.
    """
    lengths = np.exp(rng.uniform(np.log(shortest), np.log(content), len(documents)))
    lengths[rng.random(len(documents)) < FULL_SHARE] = content
    drawn = []
    for ids, length in zip(documents, lengths.astype(np.int64).clip(shortest, content), strict=True):
        start = int(rng.integers(max(0, len(ids) - length) + 1))
        drawn.append(ids[start : start + length])
    return drawn


def one_each(documents: Sequence[Ids], content: int, stride: int, rng: np.random.Generator) -> list[Ids]:
    """One window of each document, drawn from all of its windows: what an epoch of training reads."""
    drawn = []
    for ids in documents:
        spans = windows(len(ids), content, stride)
        start, stop = spans[int(rng.integers(len(spans)))]
        drawn.append(ids[start:stop])
    return drawn
