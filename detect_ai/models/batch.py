"""Padded batches of token ids, and the plan that groups windows into batches for scoring. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
LEAST_LANE_TOKENS = 1024  # smaller batches cost more time than they save
LENGTH_MULTIPLE = 8  # padded lengths are multiples of this: few shapes, efficient on tensor cores


@dataclass(frozen=True)
class Batch:
    """Token ids with special tokens, padded to a common length."""

    input_ids: NDArray[np.int32]  # shape (rows, length)
    lengths: NDArray[np.int32]  # shape (rows,): tokens of each row that are not padding


def padded_length(length: Any, multiple: int = LENGTH_MULTIPLE) -> Any:
    """The padded length of rows with at most `length` tokens; `length` is a number or an array."""
    return -(-length // multiple) * multiple


def collate(
    rows: Sequence[NDArray[np.int32]], prefix: NDArray[np.int32], suffix: NDArray[np.int32], pad_id: int
) -> Batch:
    """Add the special tokens `prefix` and `suffix` to each row of token ids and pad all rows to the same length."""
    lengths = np.asarray([len(prefix) + len(row) + len(suffix) for row in rows], dtype=np.int32)
    input_ids = np.full((len(rows), padded_length(int(lengths.max(initial=1)))), pad_id, dtype=np.int32)
    for i, row in enumerate(rows):
        input_ids[i, : lengths[i]] = np.concatenate((prefix, row, suffix))
    return Batch(input_ids, lengths)


def attention_mask(lengths: NDArray[np.int32], width: int) -> NDArray[np.int64]:
    """1 for tokens, 0 for padding: shape (rows, width)."""
    return (np.arange(width)[None, :] < lengths[:, None]).astype(np.int64)


def plan_scoring(lengths: Ints, batch_tokens: int) -> list[Ints]:
    """Group windows into batches of similar length, each within a budget of padded tokens (or of one window).

    The longest come first, so that a batch that does not fit into memory fails at once.
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
    """The token budget of one batch if `lanes` threads run batches concurrently and share the budget."""
    return min(batch_tokens, max(LEAST_LANE_TOKENS, batch_tokens // lanes))
