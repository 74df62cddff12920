"""The batch plan: which documents make a step, and how they are padded. Pure functions of lengths and a seed.

A *step* is `batch_size` documents, whatever the number of workers. Each class gives its share of every step, and within
a class the documents of a step are of like length. A step is cut into *microbatches* of neighbouring lengths, which are
dealt to the ranks one by one, so that all ranks work on like lengths at the same time and a step's content does not
depend on the number of ranks.

Why by class: human and AI texts differ in length, so steps of like length alone would nearly be steps of one class, and
a model learns much less from them (docs/TRAINING.md has the figures).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
LEAST_LANE_TOKENS = 1024  # smaller batches take more time than they save
LENGTH_MULTIPLE = 8  # padded lengths are multiples of this: few shapes, and what tensor cores want


@dataclass(frozen=True)
class Batch:
    """Token ids framed by special tokens and padded to a common length.

    Attributes:
        input_ids: int32, shape (rows, length).
        lengths: int32, shape (rows,): tokens of each row that are not padding.
    """

    input_ids: NDArray[np.int32]
    lengths: NDArray[np.int32]


def num_steps(num_rows: int, batch_size: int) -> int:
    """Steps that a pool of documents makes."""
    return math.ceil(num_rows / batch_size)


def plan_steps(
    lengths: Ints,
    labels: Ints,
    batch_size: int,
    microbatch_size: int,
    rng: np.random.Generator,
    multiple: int = LENGTH_MULTIPLE,
) -> list[list[Ints]]:
    """Cut a pool of documents into steps of microbatches.

    Lengths are compared as they will be padded; documents of equal length are in random order, so that no two epochs
    have the same batches. Steps differ by at most one document and come in random order.

    Args:
        lengths: tokens of each document as it will be read, special tokens included, shape (n,).
        labels: class of each document, shape (n,).
        batch_size: documents in a step, at most.
        microbatch_size: documents in a microbatch, at most.
        rng: decides every order.
        multiple: of which padded lengths are.

    Returns:
        For each step its microbatches, each an array of positions in `lengths`, shortest first. Every position stands
        once.
    """
    padded = padded_length(lengths, multiple)
    order = rng.permutation(len(lengths))
    order = order[np.argsort(padded[order], kind="stable")]
    # The k-th shortest of a class of n stands at (k + u) / n: steps cut from this order take alike from every class.
    places = np.empty(len(lengths))
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        places[of_class] = (np.arange(len(of_class)) + rng.random()) / len(of_class)
    order = np.argsort(places, kind="stable")
    steps = np.array_split(order, max(1, num_steps(len(lengths), batch_size)))
    cut = [_microbatches(step, padded, microbatch_size) for step in steps if len(step)]
    return [cut[i] for i in rng.permutation(len(cut))]


def _microbatches(step: Ints, padded: Ints, size: int) -> list[Ints]:
    by_length = step[np.argsort(padded[step], kind="stable")]
    return np.array_split(by_length, num_steps(len(step), size))


def plan_scoring(lengths: Ints, batch_tokens: int) -> list[Ints]:
    """Cut windows into batches of like length, each within a budget of padded tokens (or of one window).

    The longest come first: a batch that does not fit the memory fails at once.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[Ints] = []
    start = 0
    while start < len(order):
        width = padded_length(int(lengths[order[start]]))
        stop = start + max(1, batch_tokens // width)
        batches.append(order[start:stop])
        start = stop
    return batches


def lane_tokens(batch_tokens: int, lanes: int) -> int:
    """The budget of a batch where several run at once and share one between them."""
    return min(batch_tokens, max(LEAST_LANE_TOKENS, batch_tokens // lanes))


def padded_length(length: Any, multiple: int = LENGTH_MULTIPLE) -> Any:
    """The length that rows of at most `length` tokens are padded to; of a number, or of each in an array."""
    return -(-length // multiple) * multiple


def length_multiple(lengths: int, window: int) -> int:
    """Of what padded lengths are multiples when there may be so many, for rows of at most `window` tokens; 0: any."""
    return int(padded_length(-(-window // lengths))) if lengths else LENGTH_MULTIPLE


def collate(
    rows: Sequence[NDArray[np.int32]],
    prefix: NDArray[np.int32],
    suffix: NDArray[np.int32],
    pad_id: int,
    multiple: int = LENGTH_MULTIPLE,
    widest: int = sys.maxsize,
) -> Batch:
    """Frame each row with the special tokens and pad all to the same length, a multiple, but no wider than need be.

    Args:
        rows: token ids of each.
        prefix: of every row.
        suffix: of every row.
        pad_id: fills rows up.
        multiple: of which the length is.
        widest: the length of the longest row there can be, padded.
    """
    lengths = np.asarray([len(prefix) + len(row) + len(suffix) for row in rows], dtype=np.int32)
    width = min(padded_length(int(lengths.max(initial=1)), multiple), widest)
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int32)
    for i, row in enumerate(rows):
        input_ids[i, : lengths[i]] = np.concatenate((prefix, row, suffix))
    return Batch(input_ids, lengths)


def attention_mask(lengths: NDArray[np.int32], width: int) -> NDArray[np.int64]:
    """1 where a token is, 0 where padding is: shape (rows, width)."""
    return (np.arange(width)[None, :] < lengths[:, None]).astype(np.int64)
