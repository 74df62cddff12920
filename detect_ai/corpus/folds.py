"""What an audit learns from which rows, and judges on which: the training split and the others, or folds by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detect_ai.core.errors import CorpusError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Plan = list[tuple[Ints, Ints]]  # rows to learn from, rows to judge on
Fit = Callable[[Ints, Ints], Floats]  # learns from the first rows, scores the second

FOLDS = 5


@dataclass(frozen=True)
class Rows:
    """Labelled rows and what is learnt on which.

    Attributes:
        labels: 0 human, 1 ai; shape (rows,).
        weights: in the loss; shape (rows,).
        train: positions of the training split; of all rows where there are no splits.
        held: positions of the other splits; none where there are no splits.
        within: folds of the training split, by group.
        across: the training split against the others; `within` where there are no splits.
        slices: values by column, each of shape (rows,).
    """

    labels: Ints
    weights: Floats
    train: Ints
    held: Ints
    within: Plan
    across: Plan
    slices: Mapping[str, NDArray[Any]]


def plan(labels: ArrayLike, slices: Mapping[str, Sequence[str]], weights: ArrayLike | None) -> Rows:
    """Lay out the rows. Raises CorpusError when a class is missing where something is learnt or judged."""
    truth = np.asarray(labels, np.int64)
    columns = {name: np.asarray(values, object).astype(str) for name, values in slices.items()}
    split = columns.get("split")
    everything = np.arange(len(truth))
    train = everything if split is None else np.flatnonzero(split == "train")
    held = np.setdiff1d(everything, train)
    _require_both_classes(truth[train], "to learn from")
    if split is not None:
        _require_both_classes(truth[held], "held out")
    within = folds(truth, train, columns.get("group"))
    return Rows(
        labels=truth,
        weights=np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64),
        train=train,
        held=held,
        within=within,
        across=within if split is None else [(train, held)],
        slices=columns,
    )


def folds(labels: Ints, rows: Ints, groups: NDArray[Any] | None = None) -> Plan:
    """Stratified folds that keep groups whole; by row where there is one group, or none is given.

    Args:
        labels: of all rows.
        rows: positions of the rows to fold.
        groups: of all rows.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    codes = rows if groups is None else np.unique(groups[rows], return_inverse=True)[1]
    size = min(FOLDS, int(np.bincount(labels[rows]).min()), len(np.unique(codes)))
    if groups is None or size < 2:
        size = max(2, min(FOLDS, int(np.bincount(labels[rows]).min())))
        dealt = StratifiedKFold(size, shuffle=True, random_state=0).split(rows, labels[rows])
    else:
        dealt = StratifiedGroupKFold(size, shuffle=True, random_state=0).split(rows, labels[rows], codes)
    return [(rows[learn], rows[judge]) for learn, judge in dealt]


def predict(rows: Rows, using: Plan, fit: Fit) -> tuple[Ints, Floats]:
    """Positions of the rows judged, and their scores; 0 for a fold that has one class to learn from."""
    found = [
        fit(learn, judge) if len(np.unique(rows.labels[learn])) == 2 else np.zeros(len(judge)) for learn, judge in using
    ]
    return np.concatenate([judge for _, judge in using]), np.concatenate(found)


def _require_both_classes(labels: Ints, what: str) -> None:
    ai = int(labels.sum())
    if not 0 < ai < len(labels):
        raise CorpusError(f"audit: expected both classes in the texts {what}, found {len(labels) - ai} human, {ai} ai")
