"""The batch plan: which documents make a step, and how they are padded. Pure functions of lengths and a seed.

A *step* is `batch_size` documents of like length, whatever the number of workers; it is cut into *microbatches* of
neighbouring lengths. Microbatches are dealt to the ranks one by one, so that all ranks work on like lengths at the
same time and a step's content does not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
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


def plan_steps(lengths: Ints, batch_size: int, microbatch_size: int, rng: np.random.Generator) -> list[list[Ints]]:
    """Cut a pool of documents into steps of microbatches.

    Lengths are compared as they will be padded; within a class the order is random, so that no two epochs have the
    same batches. Steps differ by at most one document and come in random order.

    Args:
        lengths: tokens of each document as it will be read, special tokens included, shape (n,).
        batch_size: documents in a step, at most.
        microbatch_size: documents in a microbatch, at most.
        rng: decides every order.

    Returns:
        For each step its microbatches, each an array of positions in `lengths`. Every position stands once.
    """
    order = rng.permutation(len(lengths))
    order = order[np.argsort(-(-lengths[order] // LENGTH_MULTIPLE), kind="stable")]
    steps = np.array_split(order, max(1, num_steps(len(lengths), batch_size)))
    cut = [np.array_split(step, max(1, num_steps(len(step), microbatch_size))) for step in steps if len(step)]
    return [cut[i] for i in rng.permutation(len(cut))]


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


def padded_length(length: int) -> int:
    """The length that rows of at most `length` tokens are padded to."""
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def collate(
    rows: Sequence[NDArray[np.int32]], prefix: NDArray[np.int32], suffix: NDArray[np.int32], pad_id: int
) -> Batch:
    """Frame each row with the special tokens and pad all to the same length."""
    lengths = np.asarray([len(prefix) + len(row) + len(suffix) for row in rows], dtype=np.int32)
    input_ids = np.full((len(rows), padded_length(int(lengths.max(initial=1)))), pad_id, dtype=np.int32)
    for i, row in enumerate(rows):
        input_ids[i, : lengths[i]] = np.concatenate((prefix, row, suffix))
    return Batch(input_ids, lengths)


def attention_mask(lengths: NDArray[np.int32], width: int) -> NDArray[np.int64]:
    """1 where a token is, 0 where padding is: shape (rows, width)."""
    return (np.arange(width)[None, :] < lengths[:, None]).astype(np.int64)
