"""Row selection and splits: which rows stay, the split of each group, and the weight of each training row. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detect_ai.core.config import SPLITS, CorpusConfig
from detect_ai.core.errors import CorpusError
from detect_ai.corpus.dedup import Bools, Ints, exact_duplicates

CONTAMINATED, EXCLUDED = "contaminated", "excluded"
ANY = (1 << len(SPLITS)) - 1  # mask of splits: one bit per split in the order of `SPLITS`
CALIBRATION, TEST = (1 << SPLITS.index(name) for name in ("calibration", "test"))
# Near duplicates join groups while the joined group stays below this fraction of the rows. Otherwise a few copied
# essays would join the thousands of essays on a prompt to those on every other prompt.
MAX_JOINED_FRACTION = 0.02
MIN_JOINED_ROWS = 16  # in a small corpus
LENGTH_STEP = np.log(1.5)  # a length class spans n to 1.5 n words
MAX_WEIGHT, MIN_WEIGHT = 4.0, 0.25


class Rows:
    """The rows of a scan and the decisions about each, in the corpus's order. Arrays have shape (rows,)."""

    def __init__(self, index: pd.DataFrame, corpus: CorpusConfig) -> None:
        self.index, self.corpus = index, corpus
        self.against: Bools = index["against"].to_numpy(bool)
        self.labels: NDArray[np.int8] = index["label"].to_numpy(np.int8)
        # Why a row is dropped; "" while it stays.
        self.reason = np.array(index["problem"].astype(str).to_numpy(), dtype=object)
        self.duplicate_of = np.full(len(index), -1, np.int64)  # position of the row it duplicates, -1 for none
        self.split = np.zeros(len(index), np.int64)  # position in `SPLITS`
        self.weight = index["weight"].to_numpy(np.float32).copy()  # in the loss
        self.masks = _allowed_splits(index, corpus)  # splits that each row may go to
        for column, values in corpus.exclude.items():
            self.drop(np.flatnonzero(_rows_with(index, column, values, f"corpus.exclude.{column}")), EXCLUDED)

    @property
    def stays(self) -> Bools:
        """Rows of the corpus that are not dropped."""
        return np.asarray((self.reason == "") & ~self.against)

    @property
    def dropped(self) -> dict[str, int]:
        """Number of dropped rows by reason."""
        reasons = self.reason[~self.against & (self.reason != "")].tolist()
        return dict(sorted(Counter(reasons).items()))

    def drop(self, rows: Ints, reason: str, duplicate_of: Ints | None = None) -> None:
        """Drop the rows at these positions (duplicates of those at others) that stay; shapes (dropped,)."""
        own = self.stays[rows]
        self.reason[rows[own]] = reason
        if duplicate_of is not None:
            self.duplicate_of[rows[own]] = duplicate_of[own]


# Selection


def drop_exact_duplicates(rows: Rows) -> None:
    """Drop texts with both labels, and all but one of equal texts: the one whose split is nearest to test stays."""
    alive = np.flatnonzero(rows.stays)
    digests, labels, masks = rows.index["digest"].to_numpy(np.uint64)[alive], rows.labels[alive], rows.masks[alive]
    # The allowed split of each row that is furthest from the test split; rows without one count as unrestricted.
    lowest = ((np.where(masks == 0, ANY, masks)[:, None] >> np.arange(len(SPLITS))) & 1).argmax(axis=1)
    # Rows that may only go to the test split come first, then the corpus's order.
    rank = np.argsort(np.lexsort((alive, -lowest)), kind="stable").astype(np.uint64)
    both, duplicate_of = exact_duplicates(digests, labels, rank)
    for mask, reason in ((both, "both_labels"), (~both & (duplicate_of >= 0), "duplicate")):
        rows.drop(alive[mask], reason, alive[duplicate_of[mask]])


def drop_contaminated(rows: Rows, clusters: Ints) -> None:
    """Drop texts with a near duplicate in an evaluation set, as duplicates of the first such text.

    `clusters`: near-duplicate cluster of each row, including rows of evaluation sets; shape (rows,).
    """
    theirs = np.flatnonzero(rows.against)
    codes, first = np.unique(clusters[theirs], return_index=True)
    ours = np.flatnonzero(rows.stays & np.isin(clusters, codes))
    rows.drop(ours, CONTAMINATED, theirs[first[np.searchsorted(codes, clusters[ours])]])


def check_rows(rows: Rows) -> None:
    """Raise CorpusError if a split lacks a class (its metrics would be meaningless) or two texts have the same id."""
    splits, labels = rows.split[rows.stays], rows.labels[rows.stays]
    for position, name in enumerate(SPLITS):
        human, ai = (int(((splits == position) & (labels == label)).sum()) for label in (0, 1))
        if not human or not ai:
            raise CorpusError(
                f"split '{name}' has {human} human and {ai} AI texts: expected both classes in every split. Add texts "
                f"or groups of the missing class, or give the split a larger fraction in corpus.split. Of "
                f"{int((~rows.against).sum())} rows read, dropped by reason: {rows.dropped or 'none'}"
            )
    ids = rows.index["id"][rows.stays]  # scores are joined to texts by id
    if (repeated := ids[ids.duplicated()]).size:
        raise CorpusError(
            f"two different texts have the id {str(repeated.iloc[0])!r}: expected ids that are unique over all "
            f"sources; without a column `id` each text gets one of its own"
        )


# Splits


def split_rows(rows: Rows, clusters: Ints, seed: int) -> None:
    """Assign a split to every row that stays; drop rows that would leak from one split into another.

    Of near duplicates in several splits, those in the split nearest to the test split stay: metrics must not depend on
    texts seen in training.
    """
    rows.drop(np.flatnonzero(rows.masks == 0), "held_out")
    alive = np.flatnonzero(rows.stays)
    if not len(alive):
        return
    groups, names = pd.factorize(rows.index["group"].astype(str))
    strata = rows.index.groupby(["label", "domain", "generator"], observed=True, sort=False).ngroup().to_numpy()
    masks = rows.masks[alive]
    joined = join_groups(groups[alive], masks, clusters[alive])
    rows.split[alive] = assign_splits(joined, names.tolist(), strata[alive], masks, rows.corpus.split, seed)
    rows.drop(alive[(masks >> rows.split[alive] & 1) == 0], "leak")
    alive = np.flatnonzero(rows.stays)
    alive = alive[np.lexsort((-rows.split[alive], clusters[alive]))]  # by cluster, the split nearest to test first
    nearest = alive[_first_of_each(clusters[alive])]
    leaks = rows.split[alive] < rows.split[nearest]
    rows.drop(alive[leaks], "leak", nearest[leaks])
    holdout = rows.corpus.holdout
    if holdout.column == "generator":  # the AI texts of the test split are exactly those of held-out generators
        is_held = rows.index["generator"].astype(str).isin(holdout.values).to_numpy()
        is_test = rows.split == SPLITS.index("test")
        rows.drop(np.flatnonzero((rows.labels == 1) & (is_held != is_test)), "held_out")


def join_groups(groups: Ints, masks: Ints, clusters: Ints) -> Ints:
    """Join the groups of near duplicates, so that they share a split.

    Groups are not joined if they have no allowed split in common, or together exceed `MAX_JOINED_FRACTION` of the rows
    (or `MIN_JOINED_ROWS`). Arguments: codes of groups, masks of allowed splits, codes of near duplicates, all (rows,).
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
    """Position in `SPLITS` of every row. Groups stay whole; each split gets its fraction of each stratum if possible.

    Groups are assigned largest first, ties in an order drawn from the seed; each goes to the split where its strata are
    furthest below their target, measured at the middle of the group. If the rows of a group have no allowed split in
    common, the split nearest to the test split wins.

    `groups`, `strata` (label x domain x generator) and `masks` (allowed splits) are codes per row, shape (rows,);
    `names` are the names of the groups, `fractions` the fractions of the rows by split.
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


def shuffle_key(seed: int, name: str) -> int:
    """A 64-bit number that orders names at random, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def _allowed_splits(index: pd.DataFrame, corpus: CorpusConfig) -> Ints:
    """Mask of allowed splits of each row, from the split in its source and from the holdout."""
    masks = np.full(len(index), ANY, np.int64)
    sources, splits = index["source"].astype(str).to_numpy(), index["split"].astype(str).to_numpy()
    for source in corpus.sources:
        for value, names in source.splits.items():
            chosen = (sources == source.name) & ((splits == value) | (value == "*"))
            masks[chosen] &= sum(1 << SPLITS.index(name) for name in set(names))
    holdout = corpus.holdout
    if holdout.column:
        is_held = _rows_with(index, holdout.column, holdout.values, "corpus.holdout.values")
        if holdout.column != "generator":
            masks &= np.where(is_held, TEST, ANY & ~TEST)
    for column, chosen_values in corpus.calibrate_only.items():
        masks[_rows_with(index, column, chosen_values, f"corpus.calibrate_only.{column}")] = CALIBRATION
    return masks


def _rows_with(index: pd.DataFrame, column: str, chosen: Sequence[str], key: str) -> Bools:
    """Mask of the rows with one of these values. Raises CorpusError for a value that no source has."""
    values = index[column].astype(str)
    known = sorted(set(values[~index["against"].to_numpy(bool)]))
    if missing := sorted(set(chosen) - set(known)):
        shown = ", ".join(map(repr, known[:20])) + (" …" if len(known) > 20 else "")
        raise CorpusError(f"{key}: no {column} {missing[0]!r} in the sources; found {shown}")
    return np.asarray(values.isin(chosen), np.bool_)


def _allowed_in_all(groups: Ints, masks: Ints, count: int) -> Ints:
    """For each group, the splits that all its rows may go to."""
    allowed = np.full(count, ANY, dtype=np.int64)
    np.bitwise_and.at(allowed, groups, masks)
    return allowed


def _first_of_each(clusters: Ints) -> Ints:
    """For each row the position of the first row of its cluster, shape (rows,)."""
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    positions: Ints = first[inverse]
    return positions


# Weights


def balance_classes(rows: Rows) -> None:
    """Multiply the weights of training rows so that both classes of each domain and length class have the same sum.

    The factors are bounded and have a mean of 1. A domain and length class with only one label cannot be balanced: its
    factor is 1 before the division by the mean.
    """
    train = np.flatnonzero(rows.stays & (rows.split == SPLITS.index("train")))
    labels, num_words = rows.labels[train], rows.index["num_words"].to_numpy(np.int64)[train]
    lengths = np.floor(np.log(np.maximum(num_words, 1)) / LENGTH_STEP).astype(np.int64)
    domains = pd.factorize(rows.index["domain"].astype(str))[0][train]
    cell = np.unique(np.stack([domains, lengths]), axis=1, return_inverse=True)[1].reshape(-1)
    human, ai = (np.bincount(cell[labels == label], minlength=len(cell))[cell] for label in (0, 1))
    own, total = np.where(labels == 1, ai, human), human + ai
    weights = np.where(own == total, 1.0, np.clip(total / (2 * own), MIN_WEIGHT, MAX_WEIGHT))
    rows.weight[train] *= (weights / weights.mean()).astype(np.float32)
