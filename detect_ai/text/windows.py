"""Split documents into overlapping token windows, sample windows, and aggregate window scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from detect_ai.core.errors import InputError

Ids = NDArray[np.int32]
MIN_SPAN_TOKENS = 8
FULL_WINDOW_FRACTION = 0.25


def window_spans(num_tokens: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Token spans `[start, end)` of the overlapping windows that cover a document.

    The last window ends with the document, so its step may be shorter; a document shorter than a window is one window.

    Raises:
        InputError: `window` is below 1, or `stride` is not between 1 and `window`.
    """
    if not 1 <= stride <= window:
        raise InputError(f"need window >= 1 and 1 <= stride <= window, got window={window}, stride={stride}")
    if num_tokens <= window:
        return [(0, num_tokens)]
    last = num_tokens - window
    return [(start, start + window) for start in (*range(0, last, stride), last)]


def split_windows(documents: Sequence[Ids], content: int, stride: int) -> tuple[list[Ids], NDArray[np.int64]]:
    """Split documents of token ids into overlapping windows of `content` tokens, not counting special tokens.

    Returns:
        The windows in order, and the document index of each, shape (num_windows,). Every document has at least one.
    """
    spans = [window_spans(len(ids), content, stride) for ids in documents]
    rows = [ids[start:stop] for ids, own in zip(documents, spans, strict=True) for start, stop in own]
    return rows, np.repeat(np.arange(len(documents)), [len(own) for own in spans])


def aggregate_windows(
    scores: NDArray[np.float64], owners: NDArray[np.int64], num_documents: int
) -> NDArray[np.float64]:
    """Scores of documents, shape (num_documents,): the mean log-odds of their windows; each has at least one.

    `scores` are the log-odds and `owners` the document index of each window, shape (num_windows,).
    """
    totals = np.bincount(owners, weights=scores, minlength=num_documents)
    means: NDArray[np.float64] = totals / np.bincount(owners, minlength=num_documents)
    return means


def sample_window(documents: Sequence[Ids], content: int, stride: int, rng: np.random.Generator) -> list[Ids]:
    """Sample one window of each document uniformly, for one training epoch."""
    samples = []
    for ids in documents:
        spans = window_spans(len(ids), content, stride)
        start, stop = spans[int(rng.integers(len(spans)))]
        samples.append(ids[start:stop])
    return samples


def sample_span(documents: Sequence[Ids], content: int, shortest: int, rng: np.random.Generator) -> list[Ids]:
    """Sample a span of random length from each document, to train on short texts as well.

    One in four spans has the length of a window. The others have log-uniform lengths between `shortest` and `content`
    tokens. Positions are uniform. Documents shorter than the sampled length are used whole.
    """
    lengths = np.exp(rng.uniform(np.log(shortest), np.log(content), len(documents)))
    lengths[rng.random(len(documents)) < FULL_WINDOW_FRACTION] = content
    samples = []
    for ids, length in zip(documents, lengths.astype(np.int64).clip(shortest, content), strict=True):
        start = int(rng.integers(max(0, len(ids) - length) + 1))
        samples.append(ids[start : start + length])
    return samples


def sample_spans_by_length(num_tokens: int, edges: Sequence[int], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Sample a span `[start, end)` of a document for each length range below its length, and add the whole document.

    Lengths and positions are uniform. `edges` are ascending token counts that separate the length ranges.
    """
    spans = []
    for low, high in pairwise([MIN_SPAN_TOKENS, *edges]):
        if low < high <= num_tokens:
            size = int(rng.integers(low, high))
            start = int(rng.integers(num_tokens - size + 1))
            spans.append((start, start + size))
    return [*spans, (0, num_tokens)]
