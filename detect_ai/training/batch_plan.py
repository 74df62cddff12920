"""The batch plan: which documents belong to each optimizer step. A pure function of lengths, labels and a seed.

A *step* has `batch_size` documents for any number of workers. Every step has the class proportions of its pool, and
within a class its documents are of similar length. A step is split into *microbatches* of similar length, which are
assigned to the ranks round-robin: all ranks process similar lengths at the same time, and the content of a step does
not depend on the number of ranks.

Steps are planned by class because human and AI texts differ in length: steps of similar length alone would contain
nearly one class, and a model learns much less from them (measurements in docs/TRAINING.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detect_ai.models.batch import Batch, Ints, padded_length


@dataclass(frozen=True)
class Microbatch:
    """One forward pass of one rank. An empty microbatch has a single row with weight 0 and document -1."""

    batch: Batch
    labels: Ints  # shape (rows,), as `weights` and `documents`
    weights: NDArray[np.float32]
    documents: Ints  # position of each row's document in the split
    step_weight: float  # sum of the weights of all documents of the step, over all ranks
    slot: int  # position in the step over all ranks: rank r of W has slots r, r + W, r + 2 W …
    last: bool  # whether it is the last of the step on this rank


def joined(microbatches: Sequence[Microbatch], max_tokens: int, pad_id: int) -> list[Microbatch]:
    """Join neighbouring microbatches of a step of one rank up to `max_tokens` padded tokens; their gradient is the sum.

    Microbatches with more tokens stay as they are.
    """
    groups: list[list[Microbatch]] = []
    for part in microbatches:
        together = [*(groups[-1] if groups else []), part]
        rows = sum(len(p.batch.input_ids) for p in together)
        width = max(p.batch.input_ids.shape[1] for p in together)
        if len(together) > 1 and rows * width <= max_tokens:
            groups[-1] = together
        else:
            groups.append([part])
    return [_join(group, pad_id) if len(group) > 1 else group[0] for group in groups]


def _join(parts: list[Microbatch], pad_id: int) -> Microbatch:
    width = max(part.batch.input_ids.shape[1] for part in parts)
    ids = [part.batch.input_ids for part in parts]
    padded = [np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=pad_id) for rows in ids]
    batch = Batch(np.concatenate(padded), np.concatenate([part.batch.lengths for part in parts]))
    return replace(
        parts[-1],
        batch=batch,
        labels=np.concatenate([part.labels for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        documents=np.concatenate([part.documents for part in parts]),
    )


def num_steps(num_rows: int, batch_size: int) -> int:
    """Number of steps in a pool of documents."""
    return math.ceil(num_rows / batch_size)


def plan_steps(
    lengths: Ints, labels: Ints, batch_size: int, microbatch_size: int, rng: np.random.Generator
) -> list[list[Ints]]:
    """Split a pool of documents into steps of microbatches, in a random order that `rng` determines.

    Documents of equal padded length are in random order, so that no two epochs have the same batches. `lengths` are in
    tokens as read, including special tokens, shape (n,). Sizes are maximum numbers of documents; step sizes differ by
    at most one. Returns the microbatches of each step, shortest first: arrays of positions; each position occurs once.
    """
    padded = padded_length(lengths)
    order = rng.permutation(len(lengths))
    order = order[np.argsort(padded[order], kind="stable")]
    # The k-th shortest of a class of n is at (k + u) / n: consecutive steps of this order take evenly from each class.
    places = np.empty(len(lengths))
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        places[of_class] = (np.arange(len(of_class)) + rng.random()) / len(of_class)
    order = np.argsort(places, kind="stable")
    steps = []
    for step in np.array_split(order, max(1, num_steps(len(lengths), batch_size))):
        if len(step):
            by_length = step[np.argsort(padded[step], kind="stable")]
            steps.append(np.array_split(by_length, num_steps(len(step), microbatch_size)))
    return [steps[i] for i in rng.permutation(len(steps))]


def pad_to_world_size(microbatches: list[Ints], world_size: int) -> list[Ints]:
    """Append empty microbatches up to a multiple of the number of ranks."""
    missing = -len(microbatches) % world_size
    return [*microbatches, *[np.empty(0, dtype=np.int64)] * missing]
