"""The batch plan: which documents make an optimizer step. A pure function of lengths, labels and a seed.

A *step* is `batch_size` documents for any number of workers. Every step has the classes in the proportions of its
pool, and within a class its documents are of similar length. A step is cut into *microbatches* of neighbouring lengths,
which are dealt to the ranks in turn: all ranks work on similar lengths at the same time, and the content of a step does
not depend on the number of ranks.

Why by class: human and AI texts differ in length, so steps of similar length alone would be nearly of one class, and a
model learns much less from them (docs/TRAINING.md has the measurements).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detect_ai.models.batch import Batch, Ints, padded_length


@dataclass(frozen=True)
class Microbatch:
    """One forward pass of one rank. An empty one has a single row of weight 0, of document -1."""

    batch: Batch
    labels: Ints  # shape (rows,), as those below
    weights: NDArray[np.float32]
    documents: Ints  # position of each row's document in the split
    step_weight: float  # of all documents of the whole step, over all ranks
    slot: int  # its place in the step over all ranks: rank r of W has those of r, r + W, r + 2 W …
    last: bool  # whether the step ends with it on this rank


def num_steps(num_rows: int, batch_size: int) -> int:
    """Number of steps that a pool of documents makes."""
    return math.ceil(num_rows / batch_size)


def plan_steps(
    lengths: Ints, labels: Ints, batch_size: int, microbatch_size: int, rng: np.random.Generator
) -> list[list[Ints]]:
    """Cut a pool of documents into steps of microbatches, in a random order that `rng` determines.

    Documents of equal padded length are in random order, so that no two epochs have the same batches. `lengths` are in
    tokens as read, special tokens included, shape (n,); sizes are in documents, at most, and those of steps differ by
    one at most. Returns for each step its microbatches, shortest first: arrays of positions, where each occurs once.
    """
    padded = padded_length(lengths)
    order = rng.permutation(len(lengths))
    order = order[np.argsort(padded[order], kind="stable")]
    # The k-th shortest of a class of n is placed at (k + u) / n: steps cut from this order take evenly from each class.
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
