"""Decide over all rows at once: what is dropped and why, which split each row goes to, what it weighs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detect_ai.core.config import SPLITS, CorpusConfig
from detect_ai.core.errors import CorpusError
from detect_ai.corpus import balance
from detect_ai.corpus.cleaning import exact
from detect_ai.corpus.splits import ANY, TEST, assign_splits, crossing, first_of_each, join_groups, mask_of

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

OVER_LIMIT = "over_limit"


class Rows:
    """The rows of a scan and what was decided of each, in the corpus's order.

    Args:
        index: of the scan.
        corpus: the rules.

    Attributes:
        index: of the scan.
        corpus: the rules.
        reason: why a row is dropped, "" while it stays; shape (rows,).
        twin: position of the row it duplicates, -1 for none; shape (rows,).
        split: position in `SPLITS`, shape (rows,).
        weight: in the loss; float32, shape (rows,).
        contaminated: near duplicates of the corpus and evaluation sets as (ours, theirs), shape (pairs, 2).
    """

    def __init__(self, index: pd.DataFrame, corpus: CorpusConfig) -> None:
        self.index, self.corpus = index, corpus
        self.against: Bools = index["against"].to_numpy(bool)
        self.labels: NDArray[np.int8] = index["label"].to_numpy(np.int8)
        self.reason = np.array(index["problem"].astype(str).to_numpy(), dtype=object)
        self.twin = np.full(len(index), -1, np.int64)
        self.split = np.zeros(len(index), np.int64)
        self.weight = index["weight"].to_numpy(np.float32).copy()
        self.masks = _masks(index, corpus)
        self.contaminated = np.empty((0, 2), np.int64)

    @property
    def stays(self) -> Bools:
        """Rows of the corpus that nothing has dropped."""
        return np.asarray((self.reason == "") & ~self.against)

    def drop(self, rows: Bools | Ints, reason: str, twins: Ints | None = None) -> None:
        """Drop rows, except those that are dropped already or belong to an evaluation set.

        Args:
            rows: a mask, or positions.
            reason: of all of them.
            twins: with positions: what each duplicates.
        """
        mask = np.zeros(len(self.reason), bool)
        mask[rows] = True
        mask &= self.stays
        if twins is not None:
            found = np.full(len(mask), -1, np.int64)
            found[rows] = twins
            self.twin = np.where(mask, found, self.twin)
        self.reason[mask] = reason

    def codes(self, *columns: str) -> tuple[Ints, list[str]]:
        """One code a row for a combination of columns, and the name of each code."""
        joined = self.index[columns[0]].astype(str)
        for column in columns[1:]:
            joined = joined + "\0" + self.index[column].astype(str)
        codes, names = pd.factorize(joined)
        return codes.astype(np.int64), [str(name) for name in names]


def drop_exact(rows: Rows) -> None:
    """Drop texts that carry both labels, and all but one of equal texts: one of the split nearest to the test stays."""
    alive = np.flatnonzero(rows.stays)
    digests, labels = rows.index["digest"].to_numpy(np.uint64)[alive], rows.labels[alive]
    # A row that may only be tested on comes first, then the corpus's order.
    rank = np.argsort(np.lexsort((alive, -_lowest_split(rows.masks[alive]))), kind="stable").astype(np.uint64)
    found = exact(digests, labels, rank)
    for mask, reason in ((found.both_labels, "both_labels"), (found.duplicate, "duplicate")):
        rows.drop(alive[mask], reason, alive[found.twin[mask]])


def drop_near(rows: Rows, clusters: Ints) -> None:
    """Drop what an evaluation set holds too, and all but one of near duplicates, as the configuration says.

    Args:
        rows: after `drop_exact`.
        clusters: code of each row's near duplicates, evaluation sets among them; shape (rows,).
    """
    _find_contaminated(rows, clusters)
    if rows.corpus.contamination == "drop":
        rows.drop(rows.contaminated[:, 0], "contaminated", rows.contaminated[:, 1])
    if rows.corpus.near_duplicates == "drop":
        alive = np.flatnonzero(rows.stays)
        # A row that may only be tested on comes first, then the corpus's order.
        alive = alive[np.lexsort((alive, -_lowest_split(rows.masks[alive])))]
        kept = alive[first_of_each(clusters[alive])]
        rows.drop(alive[kept != alive], "near_duplicate", kept[kept != alive])


def _find_contaminated(rows: Rows, clusters: Ints) -> None:
    """Pair each text of the corpus with the first one of an evaluation set among its near duplicates."""
    theirs = np.flatnonzero(rows.against)
    codes, first = np.unique(clusters[theirs], return_index=True)
    ours = np.flatnonzero(rows.stays & np.isin(clusters, codes))
    twins = theirs[first[np.searchsorted(codes, clusters[ours])]] if len(ours) else ours
    rows.contaminated = np.stack([ours, twins], axis=1)


def drop_over_limit(rows: Rows) -> None:
    """Keep whole groups of a source, in the corpus's order, until its limit is reached."""
    sources = rows.index["source"].astype(str).to_numpy()
    groups, _ = rows.codes("source", "group")
    for source in rows.corpus.sources:
        if not source.limit:
            continue
        mine = np.flatnonzero(rows.stays & (sources == source.name))
        codes, first, counts = np.unique(groups[mine], return_index=True, return_counts=True)
        order = np.argsort(first)
        before = np.cumsum(counts[order]) - counts[order]
        kept = codes[order][before < source.limit]
        rows.drop(mine[~np.isin(groups[mine], kept)], OVER_LIMIT)


def split(rows: Rows, clusters: Ints, seed: int) -> None:
    """Give every row that stays its split, and drop what would stand in two."""
    rows.drop(rows.masks == 0, "held_out")
    alive = np.flatnonzero(rows.stays)
    if not len(alive):
        return
    groups, names = rows.codes("group")
    masks, joined = rows.masks[alive], groups[alive]
    if rows.corpus.near_duplicates == "group":
        joined = join_groups(joined, masks, clusters[alive])
    strata, _ = rows.codes("label", "domain", "generator")
    rows.split[alive] = assign_splits(joined, names, strata[alive], masks, rows.corpus.split, seed)
    rows.drop(alive[(masks >> rows.split[alive] & 1) == 0], "leak")
    if rows.corpus.near_duplicates != "keep":
        alive = np.flatnonzero(rows.stays)
        gone, stay = crossing(rows.split[alive], clusters[alive])
        rows.drop(alive[gone], "leak", alive[stay])
    _hold_out_generators(rows)


def _hold_out_generators(rows: Rows) -> None:
    """Texts of the generators left out stand only in the test split, and alone there beside the human ones."""
    holdout = rows.corpus.holdout
    if holdout.column != "generator":
        return
    is_held = rows.index["generator"].astype(str).isin(holdout.values).to_numpy()
    is_test = rows.split == SPLITS.index("test")
    rows.drop((rows.labels == 1) & (is_held != is_test), "held_out")


def require_unique_ids(rows: Rows) -> None:
    """Raise CorpusError when two texts that stay have one id: scores find their texts by it."""
    ids = rows.index["id"][rows.stays]
    if (twice := ids[ids.duplicated()]).size:
        raise CorpusError(
            f"two different texts have the id {str(twice.iloc[0])!r}: expected ids that are unique over all sources; "
            f"without a column `id` each text gets one of its own"
        )


def weigh(rows: Rows) -> None:
    """Balance the training split as the configuration says."""
    mode = rows.corpus.balance
    if mode == "none":
        return
    train = np.flatnonzero(rows.stays & (rows.split == SPLITS.index("train")))
    domains, _ = rows.codes("domain")
    cells = balance.cells(domains[train], rows.index["num_words"].to_numpy(np.int64)[train])
    if mode == "weight":
        rows.weight[train] *= balance.weights(cells, rows.labels[train])
    else:
        rows.drop(train[balance.surplus(cells, rows.labels[train])], "balance")


def _masks(index: pd.DataFrame, corpus: CorpusConfig) -> Ints:
    """The splits that each row may go to, by its source's own split and by the holdout."""
    masks = np.full(len(index), ANY, np.int64)
    sources, splits = index["source"].astype(str).to_numpy(), index["split"].astype(str).to_numpy()
    for source in corpus.sources:
        for value, names in source.splits.items():
            chosen = (sources == source.name) & ((splits == value) | (value == "*"))
            masks[chosen] &= mask_of(names)
    holdout = corpus.holdout
    if holdout.column:
        values = index[holdout.column].astype(str)
        _require_values(holdout.column, holdout.values, values[~index["against"].to_numpy(bool)])
        if holdout.column != "generator":
            is_held = values.isin(holdout.values).to_numpy()
            masks &= np.where(is_held, TEST, ANY & ~TEST)
    return masks


def _require_values(column: str, wanted: Sequence[str], found: pd.Series) -> None:
    known = sorted(set(found))
    if missing := sorted(set(wanted) - set(known)):
        shown = ", ".join(map(repr, known[:20])) + (" …" if len(known) > 20 else "")
        raise CorpusError(f"corpus.holdout.values: no {column} {missing[0]!r} in the sources; found {shown}")


def _lowest_split(masks: Ints) -> Ints:
    """The position of the split furthest from the test that a row may go to; rows without one count as free."""
    bits = (np.where(masks == 0, ANY, masks)[:, None] >> np.arange(len(SPLITS))) & 1
    lowest: Ints = bits.argmax(axis=1)
    return lowest


@dataclass(frozen=True)
class Counts:
    """What a decision left: rows read, dropped by reason, and those of evaluation sets."""

    rows_read: int
    dropped: dict[str, int]

    @classmethod
    def of(cls, rows: Rows) -> Counts:
        """Count the rows of the corpus; those of evaluation sets are none of it."""
        own = rows.reason[~rows.against]
        reasons, counts = np.unique(own[own != ""].astype(str), return_counts=True)
        return cls(len(own), dict(zip(reasons.tolist(), counts.tolist(), strict=True)))
