"""Give every group to one split: stratified, by a seed, within what the sources and a holdout allow. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from detect_ai.core.config import SPLITS
from detect_ai.core.errors import CorpusError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ANY = (1 << len(SPLITS)) - 1
TEST = 1 << SPLITS.index("test")
# Near duplicates join groups while the joined group stays below this share of the rows. A prompt's essays, some
# thousand of them, would else hang together with those of every other prompt by a few copied ones.
MAX_JOINED_SHARE = 0.02
MIN_JOINED_ROWS = 16  # in a small corpus


def mask_of(names: Iterable[str]) -> int:
    """Splits as bits, in the order of `SPLITS`."""
    return sum(1 << SPLITS.index(name) for name in set(names))


def join_groups(groups: Ints, masks: Ints, clusters: Ints) -> Ints:
    """Join the groups of near duplicates, so that one split gets them all.

    Groups that no split may hold together are not joined, nor those that would grow beyond `MAX_JOINED_SHARE` of the
    rows (or `MIN_JOINED_ROWS`); what then crosses two splits is found by `crossing`.

    Args:
        groups: code of each row's group, shape (rows,).
        masks: splits that each row may go to, shape (rows,).
        clusters: code of each row's near duplicates, shape (rows,).

    Returns:
        Codes, shape (rows,).
    """
    limit = max(MIN_JOINED_ROWS, int(MAX_JOINED_SHARE * len(groups)))
    count = int(groups.max(initial=-1)) + 1
    parent = list(range(count))
    size = np.bincount(groups, minlength=count).tolist()
    allowed = _allowed(groups, masks, count).tolist()

    def root(group: int) -> int:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    leaders = np.stack([groups[first_of_each(clusters)], groups], axis=1)
    for first, second in np.unique(leaders[leaders[:, 0] != leaders[:, 1]], axis=0).tolist():
        a, b = sorted((root(first), root(second)))
        if a != b and allowed[a] & allowed[b] and size[a] + size[b] <= limit:
            parent[b], size[a], allowed[a] = a, size[a] + size[b], allowed[a] & allowed[b]
    roots: Ints = np.asarray([root(group) for group in range(count)], dtype=np.int64)
    return roots[groups]


def first_of_each(clusters: Ints) -> Ints:
    """For each row the position of the first row of its cluster, shape (rows,)."""
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    found: Ints = first[inverse]
    return found


def _allowed(groups: Ints, masks: Ints, count: int) -> Ints:
    """Splits that all rows of a group may go to."""
    allowed = np.full(count, ANY, dtype=np.int64)
    np.bitwise_and.at(allowed, groups, masks)
    return allowed


def assign_splits(
    groups: Ints, names: Sequence[str], strata: Ints, masks: Ints, shares: Mapping[str, float], seed: int
) -> Ints:
    """The split of every row: whole groups, so that each split gets its share of each stratum as far as groups allow.

    Groups come in the order of their size, then in one drawn from the seed; each goes where its strata are furthest
    from their share. Where rows of one group may only go to different splits, the split nearest to the test wins.

    Args:
        groups: code of each row's group, shape (rows,).
        names: name of each code; with the seed it decides the order of groups of one size.
        strata: code of each row's stratum (label x domain x generator), shape (rows,).
        masks: splits that each row may go to, shape (rows,).
        shares: of each split, in the order of `SPLITS`.
        seed: of the order.

    Returns:
        Position in `SPLITS` for each row, shape (rows,).
    """
    content: dict[int, Counter[int]] = defaultdict(Counter)
    for group, stratum in zip(groups.tolist(), strata.tolist(), strict=True):
        content[group][stratum] += 1
    allowed = _allowed(groups, masks, len(names))
    some = np.zeros(len(names), dtype=np.int64)
    np.bitwise_or.at(some, groups, masks)
    order = sorted(content, key=lambda group: (-content[group].total(), shuffle_key(seed, names[group])))
    fill = _Fill(shares)
    chosen = np.full(len(names), -1, dtype=np.int64)
    by_mask: dict[int, list[int]] = defaultdict(list)
    for group in order:
        by_mask[int(allowed[group]) or 1 << int(some[group]).bit_length() - 1].append(group)
    for mask, members in by_mask.items():
        fill.expect(mask, (content[group] for group in members))
        for group in members:
            chosen[group] = fill.place(content[group])
    return chosen[groups]


class _Fill:
    """How far each split is from its share of each stratum, among groups with the same choice of splits."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        self._shares = [shares[name] for name in SPLITS]

    def expect(self, mask: int, contents: Iterable[Counter[int]]) -> None:
        """Begin with groups that may go to the splits of a mask."""
        total: Counter[int] = Counter()
        for content in contents:
            total.update(content)
        self._splits = [i for i in range(len(SPLITS)) if mask >> i & 1]
        whole = sum(self._shares[i] for i in self._splits)
        self._wanted = {
            i: {stratum: count * self._shares[i] / whole for stratum, count in total.items()} for i in self._splits
        }
        self._have: dict[int, Counter[int]] = {i: Counter() for i in self._splits}

    def place(self, content: Counter[int]) -> int:
        """The emptiest split for a group of this content, measured at the middle of the group."""

        def fullness(split: int) -> float:
            have, wanted = self._have[split], self._wanted[split]
            return sum(count * (have[s] + count / 2) / wanted[s] for s, count in content.items())

        best = min(self._splits, key=fullness)
        self._have[best].update(content)
        return best


def crossing(splits: Ints, clusters: Ints) -> tuple[Ints, Ints]:
    """Near duplicates that stand in several splits, as (those to drop, one that stays for each of them).

    Those that stay are in the split nearest to the test: figures must not rest on texts that training has seen.
    """
    order = np.lexsort((-splits, clusters))  # of each cluster the split nearest to the test first
    best = order[first_of_each(clusters[order])]
    is_behind = splits[order] < splits[best]
    return order[is_behind], best[is_behind]


def require_both_classes(labels: NDArray[np.int8], splits: Ints) -> None:
    """Raise CorpusError for a split that lacks a class: no figure of it would mean anything."""
    for position, name in enumerate(SPLITS):
        human, ai = (int(((splits == position) & (labels == label)).sum()) for label in (0, 1))
        if not human or not ai:
            raise CorpusError(
                f"split '{name}' has {human} human and {ai} AI texts: expected both classes in every split. "
                f"Add texts or groups of the missing class, or give the split a larger share in corpus.split"
            )


def shuffle_key(seed: int, name: str) -> int:
    """A number of 64 bits that orders names at random, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
