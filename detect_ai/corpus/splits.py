"""Row selection and splits: which rows stay, the split of each group, and the weight of each training row. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detect_ai.core.config import SPLITS, CorpusConfig
from detect_ai.core.errors import CorpusError
from detect_ai.corpus.dedup import exact_duplicates

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

OVER_LIMIT = "over_limit"
ANY = (1 << len(SPLITS)) - 1  # a mask of splits, one bit each in the order of `SPLITS`
TEST = 1 << SPLITS.index("test")
# Near duplicates join groups while the joined group stays below this fraction of the rows. The thousands of essays on
# a prompt would otherwise be joined to those on every other prompt by a few copied ones.
MAX_JOINED_FRACTION = 0.02
MIN_JOINED_ROWS = 16  # in a small corpus
LENGTH_STEP = np.log(1.5)  # a length class spans n to 1.5 n words
MAX_WEIGHT, MIN_WEIGHT = 4.0, 0.25


class Rows:
    """The rows of a scan and what was decided about each, in the corpus's order.

    Args:
        index: of the scan.
        corpus: the configuration.

    Attributes:
        reason: why a row is dropped, "" while it stays; shape (rows,).
        duplicate_of: position of the row it duplicates, -1 for none; shape (rows,).
        split: position in `SPLITS`, shape (rows,).
        weight: in the loss; float32, shape (rows,).
        masks: splits that each row may go to, shape (rows,).
        contaminated: near duplicates of the corpus and evaluation sets as (ours, theirs), shape (pairs, 2).
    """

    def __init__(self, index: pd.DataFrame, corpus: CorpusConfig) -> None:
        self.index, self.corpus = index, corpus
        self.against: Bools = index["against"].to_numpy(bool)
        self.labels: NDArray[np.int8] = index["label"].to_numpy(np.int8)
        self.reason = np.array(index["problem"].astype(str).to_numpy(), dtype=object)
        self.duplicate_of = np.full(len(index), -1, np.int64)
        self.split = np.zeros(len(index), np.int64)
        self.weight = index["weight"].to_numpy(np.float32).copy()
        self.masks = _allowed_splits(index, corpus)
        self.contaminated = np.empty((0, 2), np.int64)

    @property
    def stays(self) -> Bools:
        """Rows of the corpus that are not dropped."""
        return np.asarray((self.reason == "") & ~self.against)

    @property
    def dropped(self) -> dict[str, int]:
        """Number of dropped rows by reason."""
        own = self.reason[~self.against]
        reasons, counts = np.unique(own[own != ""].astype(str), return_counts=True)
        return dict(zip(reasons.tolist(), counts.tolist(), strict=True))

    def drop(self, rows: Bools | Ints, reason: str, duplicate_of: Ints | None = None) -> None:
        """Drop rows, except those already dropped and those of evaluation sets.

        Args:
            rows: a mask, or positions.
            reason: of all of them.
            duplicate_of: with positions: the row that each duplicates.
        """
        mask = np.zeros(len(self.reason), bool)
        mask[rows] = True
        mask &= self.stays
        if duplicate_of is not None:
            originals = np.full(len(mask), -1, np.int64)
            originals[rows] = duplicate_of
            self.duplicate_of = np.where(mask, originals, self.duplicate_of)
        self.reason[mask] = reason

    def codes(self, *columns: str) -> tuple[Ints, list[str]]:
        """One code a row for a combination of columns, and the name of each code."""
        joined = self.index[columns[0]].astype(str)
        for column in columns[1:]:
            joined = joined + "\0" + self.index[column].astype(str)
        codes, names = pd.factorize(joined)
        return codes.astype(np.int64), [str(name) for name in names]


# Selection


def drop_exact_duplicates(rows: Rows) -> None:
    """Drop texts with both labels, and all but one of equal texts: the one in the split nearest to the test stays."""
    alive = np.flatnonzero(rows.stays)
    digests, labels = rows.index["digest"].to_numpy(np.uint64)[alive], rows.labels[alive]
    # A row that may only be tested on comes first, then the corpus's order.
    rank = np.argsort(np.lexsort((alive, -_lowest_split(rows.masks[alive]))), kind="stable").astype(np.uint64)
    found = exact_duplicates(digests, labels, rank)
    for mask, reason in ((found.both_labels, "both_labels"), (found.duplicate, "duplicate")):
        rows.drop(alive[mask], reason, alive[found.duplicate_of[mask]])


def drop_contaminated(rows: Rows, clusters: Ints) -> None:
    """Drop texts with a near duplicate in an evaluation set, and remember the first such pair of each.

    Args:
        rows: after `drop_exact_duplicates`.
        clusters: code of each row's near duplicates, evaluation sets among them; shape (rows,).
    """
    theirs = np.flatnonzero(rows.against)
    codes, first = np.unique(clusters[theirs], return_index=True)
    ours = np.flatnonzero(rows.stays & np.isin(clusters, codes))
    originals = theirs[first[np.searchsorted(codes, clusters[ours])]] if len(ours) else ours
    rows.contaminated = np.stack([ours, originals], axis=1)
    rows.drop(ours, "contaminated", originals)


def drop_over_limit(rows: Rows) -> None:
    """Keep whole groups of a source, in the corpus's order, until its limit is reached."""
    sources = rows.index["source"].astype(str).to_numpy()
    groups, _ = rows.codes("source", "group")
    for source in rows.corpus.sources:
        if not source.limit:
            continue
        own = np.flatnonzero(rows.stays & (sources == source.name))
        codes, first, counts = np.unique(groups[own], return_index=True, return_counts=True)
        order = np.argsort(first)
        before = np.cumsum(counts[order]) - counts[order]
        kept = codes[order][before < source.limit]
        rows.drop(own[~np.isin(groups[own], kept)], OVER_LIMIT)


def require_unique_ids(rows: Rows) -> None:
    """Raise CorpusError if two texts that stay have one id: scores are joined to texts by it."""
    ids = rows.index["id"][rows.stays]
    if (repeated := ids[ids.duplicated()]).size:
        raise CorpusError(
            f"two different texts have the id {str(repeated.iloc[0])!r}: expected ids that are unique over all "
            f"sources; without a column `id` each text gets one of its own"
        )


def require_both_classes(rows: Rows) -> None:
    """Raise CorpusError for a split that lacks a class: no metric of it would mean anything."""
    splits, labels = rows.split[rows.stays], rows.labels[rows.stays]
    for position, name in enumerate(SPLITS):
        human, ai = (int(((splits == position) & (labels == label)).sum()) for label in (0, 1))
        if not human or not ai:
            raise CorpusError(
                f"split '{name}' has {human} human and {ai} AI texts: expected both classes in every split. Add texts "
                f"or groups of the missing class, or give the split a larger fraction in corpus.split. Of "
                f"{int((~rows.against).sum())} rows read, dropped by reason: {rows.dropped or 'none'}"
            )


# Splits


def split_rows(rows: Rows, clusters: Ints, seed: int) -> None:
    """Assign a split to every row that stays; drop rows that would leak from one split into another."""
    rows.drop(rows.masks == 0, "held_out")
    alive = np.flatnonzero(rows.stays)
    if not len(alive):
        return
    groups, names = rows.codes("group")
    masks = rows.masks[alive]
    joined = join_groups(groups[alive], masks, clusters[alive])
    strata, _ = rows.codes("label", "domain", "generator")
    rows.split[alive] = assign_splits(joined, names, strata[alive], masks, rows.corpus.split, seed)
    rows.drop(alive[(masks >> rows.split[alive] & 1) == 0], "leak")
    alive = np.flatnonzero(rows.stays)
    gone, kept = cross_split_duplicates(rows.split[alive], clusters[alive])
    rows.drop(alive[gone], "leak", alive[kept])
    holdout = rows.corpus.holdout
    if holdout.column == "generator":  # held-out generators are in the test split only, and alone there with humans
        is_held = rows.index["generator"].astype(str).isin(holdout.values).to_numpy()
        rows.drop((rows.labels == 1) & (is_held != (rows.split == SPLITS.index("test"))), "held_out")


def join_groups(groups: Ints, masks: Ints, clusters: Ints) -> Ints:
    """Join the groups of near duplicates, so that they share a split.

    Groups that no split may hold together are not joined, nor those that would exceed `MAX_JOINED_FRACTION` of the rows
    (or `MIN_JOINED_ROWS`); `cross_split_duplicates` finds what then crosses two splits.

    Args:
        groups: code of each row's group, shape (rows,).
        masks: splits that each row may go to, shape (rows,).
        clusters: code of each row's near duplicates, shape (rows,).

    Returns:
        Codes, shape (rows,).
    """
    limit = max(MIN_JOINED_ROWS, int(MAX_JOINED_FRACTION * len(groups)))
    count = int(groups.max(initial=-1)) + 1
    parent = list(range(count))
    size = np.bincount(groups, minlength=count).tolist()
    allowed = _allowed_in_all(groups, masks, count).tolist()

    def root(group: int) -> int:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    leaders = np.stack([groups[_first_of_each(clusters)], groups], axis=1)
    for first, second in np.unique(leaders[leaders[:, 0] != leaders[:, 1]], axis=0).tolist():
        a, b = sorted((root(first), root(second)))
        if a != b and allowed[a] & allowed[b] and size[a] + size[b] <= limit:
            parent[b], size[a], allowed[a] = a, size[a] + size[b], allowed[a] & allowed[b]
    roots: Ints = np.asarray([root(group) for group in range(count)], dtype=np.int64)
    return roots[groups]


def assign_splits(
    groups: Ints, names: Sequence[str], strata: Ints, masks: Ints, fractions: Mapping[str, float], seed: int
) -> Ints:
    """The split of every row: whole groups, each split with its fraction of each stratum as far as groups allow.

    Groups come in the order of their size, then in one drawn from the seed; each goes to the split where its strata are
    furthest below their target, measured at the middle of the group. If the rows of one group may only go to different
    splits, the split nearest to the test wins.

    Args:
        groups: code of each row's group, shape (rows,).
        names: name of each code; with the seed it decides the order of groups of one size.
        strata: code of each row's stratum (label x domain x generator), shape (rows,).
        masks: splits that each row may go to, shape (rows,).
        fractions: fraction of each split.
        seed: of the order.

    Returns:
        Position in `SPLITS` for each row, shape (rows,).
    """
    content: dict[int, Counter[int]] = defaultdict(Counter)
    for group, stratum in zip(groups.tolist(), strata.tolist(), strict=True):
        content[group][stratum] += 1
    allowed = _allowed_in_all(groups, masks, len(names))
    in_any = np.zeros(len(names), dtype=np.int64)
    np.bitwise_or.at(in_any, groups, masks)
    by_mask: dict[int, list[int]] = defaultdict(list)
    for group in sorted(content, key=lambda group: (-content[group].total(), shuffle_key(seed, names[group]))):
        by_mask[int(allowed[group]) or 1 << int(in_any[group]).bit_length() - 1].append(group)
    chosen = np.full(len(names), -1, dtype=np.int64)
    for mask, members in by_mask.items():
        places = [i for i in range(len(SPLITS)) if mask >> i & 1]
        total: Counter[int] = Counter()
        for group in members:
            total.update(content[group])
        whole = sum(fractions[SPLITS[i]] for i in places)
        target = {i: {s: count * fractions[SPLITS[i]] / whole for s, count in total.items()} for i in places}
        filled: dict[int, Counter[int]] = {i: Counter() for i in places}
        for group in members:
            own = content[group]
            fullness = {i: sum(n * (filled[i][s] + n / 2) / target[i][s] for s, n in own.items()) for i in places}
            chosen[group] = min(places, key=fullness.__getitem__)
            filled[int(chosen[group])].update(own)
    return chosen[groups]


def cross_split_duplicates(splits: Ints, clusters: Ints) -> tuple[Ints, Ints]:
    """Near duplicates that are in several splits, as (rows to drop, a row that stays for each of them).

    Those that stay are in the split nearest to the test: metrics must not rest on texts that training has seen.
    """
    order = np.lexsort((-splits, clusters))  # of each cluster the split nearest to the test first
    best = order[_first_of_each(clusters[order])]
    is_behind = splits[order] < splits[best]
    return order[is_behind], best[is_behind]


def shuffle_key(seed: int, name: str) -> int:
    """A number of 64 bits that orders names at random, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def _allowed_splits(index: pd.DataFrame, corpus: CorpusConfig) -> Ints:
    """Masks of the splits that each row may go to, by its source's own split and by the holdout."""
    masks = np.full(len(index), ANY, np.int64)
    sources, splits = index["source"].astype(str).to_numpy(), index["split"].astype(str).to_numpy()
    for source in corpus.sources:
        for value, names in source.splits.items():
            chosen = (sources == source.name) & ((splits == value) | (value == "*"))
            masks[chosen] &= _mask_of(names)
    holdout = corpus.holdout
    if holdout.column:
        values = index[holdout.column].astype(str)
        known = sorted(set(values[~index["against"].to_numpy(bool)]))
        if missing := sorted(set(holdout.values) - set(known)):
            shown = ", ".join(map(repr, known[:20])) + (" …" if len(known) > 20 else "")
            raise CorpusError(
                f"corpus.holdout.values: no {holdout.column} {missing[0]!r} in the sources; found {shown}"
            )
        if holdout.column != "generator":
            masks &= np.where(values.isin(holdout.values).to_numpy(), TEST, ANY & ~TEST)
    return masks


def _mask_of(names: Iterable[str]) -> int:
    return sum(1 << SPLITS.index(name) for name in set(names))


def _allowed_in_all(groups: Ints, masks: Ints, count: int) -> Ints:
    """Splits that all rows of a group may go to."""
    allowed = np.full(count, ANY, dtype=np.int64)
    np.bitwise_and.at(allowed, groups, masks)
    return allowed


def _lowest_split(masks: Ints) -> Ints:
    """The split furthest from the test that a row may go to; rows without one count as free."""
    bits = (np.where(masks == 0, ANY, masks)[:, None] >> np.arange(len(SPLITS))) & 1
    lowest: Ints = bits.argmax(axis=1)
    return lowest


def _first_of_each(clusters: Ints) -> Ints:
    """For each row the position of the first row of its cluster, shape (rows,)."""
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    positions: Ints = first[inverse]
    return positions


# Weights


def weigh(rows: Rows) -> None:
    """Multiply the weights of training rows by those that balance the classes, with `corpus.balance=weight`."""
    if rows.corpus.balance == "none":
        return
    train = np.flatnonzero(rows.stays & (rows.split == SPLITS.index("train")))
    domains, _ = rows.codes("domain")
    num_words = rows.index["num_words"].to_numpy(np.int64)
    rows.weight[train] *= balancing_weights(domains[train], num_words[train], rows.labels[train])


def balancing_weights(domains: Ints, num_words: Ints, labels: NDArray[np.int8]) -> NDArray[np.float32]:
    """Weights that give both classes of each domain and length class the same sum, within bounds; mean 1.

    A cell with one class keeps weight 1: there is nothing to balance it with. All shapes (rows,).
    """
    lengths = np.floor(np.log(np.maximum(num_words, 1)) / LENGTH_STEP).astype(np.int64)
    cell = np.unique(np.stack([domains, lengths]), axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)
    size = int(cell.max(initial=-1)) + 1
    human, ai = (np.bincount(cell[labels == label], minlength=size)[cell] for label in (0, 1))
    own, total = np.where(labels == 1, ai, human), human + ai
    weights = np.where(own == total, 1.0, np.clip(total / (2 * own), MIN_WEIGHT, MAX_WEIGHT))
    return (weights / weights.mean()).astype(np.float32) if len(weights) else weights.astype(np.float32)
