"""Near duplicates: MinHash signatures, the pairs they tell of, and what hangs together by pairs. Pure.

MinHash (Broder 1997) with locality-sensitive hashing by bands (Leskovec, Rajaraman & Ullman, Mining of Massive
Datasets, chapter 3): texts become candidates when a whole band of their signatures is equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Signatures = NDArray[np.uint32]

NUM_PERM = 128
_SEED = 1
_SHINGLE = 5  # words
_RECALL = 0.975  # of the bands, and of the check behind them, each at the threshold
_NEIGHBOURS = 32
_PAIRS_PER_ROW = 16  # enough for every pair of clusters of up to 33
_BLOCK = 1 << 14  # rows of signatures in memory at once: 8 MB
_EMPTY = np.iinfo(np.uint32).max
# Powers of an odd number (2**64 / golden ratio), for hashes of rows.
_WEIGHTS: Hashes = np.cumprod(np.full(NUM_PERM, 0x9E3779B97F4A7C15, np.uint64), dtype=np.uint64)


def signatures(texts: Sequence[str]) -> Signatures:
    """MinHash signatures of normalised texts over their case-folded word 5-grams, shape (texts, 128).

    A text of fewer than five words is one shingle. One without a word has no shingles: its signature is the largest
    number throughout, and it is like no other text.
    """
    from rensa import RMinHash

    rows = np.empty((len(texts), NUM_PERM), np.uint32)
    for position, text in enumerate(texts):
        sketch = RMinHash(num_perm=NUM_PERM, seed=_SEED)
        sketch.update(_shingles(text))
        rows[position] = sketch.digest()
    return rows


def _shingles(text: str) -> list[str]:
    words = text.casefold().split()
    if len(words) < _SHINGLE:
        return [" ".join(words)] if words else []
    return list(map(" ".join, zip(*(words[start:] for start in range(_SHINGLE)), strict=False)))


def bands(threshold: float) -> tuple[int, int]:
    """How many bands of how many rows: the longest rows that still find a pair at the threshold 39 times in 40.

    A pair of Jaccard similarity s becomes a candidate with probability 1 - (1 - s^rows)^bands. At a threshold of 0.8
    these are 18 bands of 7 rows: 0.985 at 0.8, 0.79 at 0.7, 0.13 at 0.5, 0.004 at 0.3.
    """
    plans = ((NUM_PERM // rows, rows) for rows in range(NUM_PERM, 0, -1))
    return next((plan for plan in plans if 1 - (1 - threshold ** plan[1]) ** plan[0] >= _RECALL), (NUM_PERM, 1))


def least_agreement(threshold: float) -> int:
    """How many of the 128 numbers must be equal for a pair to count.

    Signatures of a pair at the threshold agree in a binomial number of places; 39 in 40 reach this one. Together with
    `bands` at least 95 in 100 pairs at the threshold are found (and more above it). The price are pairs just below:
    at a threshold of 0.8 half of the pairs at 0.72 count, 1 in 100 at 0.63, none in practice below 0.55.
    """
    from scipy.special import bdtr

    below = np.asarray(bdtr(np.arange(NUM_PERM, dtype=float), NUM_PERM, threshold))
    return int((below <= 1 - _RECALL).sum())


def similar_pairs(signatures: Signatures, threshold: float) -> Ints:
    """Pairs of near duplicates: every one, but in crowds only enough to connect them.

    Crowds are the largest clusters, those that would make it more than 16 pairs a row; clusters of up to 33 never are.
    Where every text alike another must be found, act on whole `clusters`. Which texts hang together does not depend on
    the order of the rows.

    Args:
        signatures: shape (rows, 128); a `np.memmap` will do, see `_connecting`.
        threshold: Jaccard similarity from which texts are near duplicates, in (0, 1]; see `least_agreement`.

    Returns:
        Positions, the smaller one first, sorted, each pair once, shape (pairs, 2).
    """
    floor = least_agreement(threshold)
    connecting = _connecting(signatures, *bands(threshold), floor)
    inside = _inside(clusters(len(signatures), connecting))
    pairs = np.concatenate([connecting, *(found[_agreement(signatures, found) >= floor] for found in inside)])
    pairs = np.unique(np.sort(pairs, axis=1) @ np.array([len(signatures), 1]))
    return np.stack(np.divmod(pairs, max(1, len(signatures))), axis=1)


def _connecting(signatures: Signatures, num_bands: int, num_rows: int, floor: int) -> Ints:
    """Pairs that connect all that hangs together, shape (pairs, 2).

    Band by band, so that beside the signatures memory stays below 100 bytes a row. Equal signatures are compared once.
    Of texts that agree in a band, each is compared with the 32 behind it in an order of their content, unless the two
    are connected already. So a hundred thousand variants of one text cost no more than a hundred thousand texts.
    """
    distinct, copies = _distinct(signatures)
    found = [copies]
    labels = np.arange(len(distinct), dtype=np.int64)
    for start in range(0, num_bands * num_rows, num_rows):
        keys = _hashes(signatures, start, start + num_rows)[distinct]
        order = np.argsort(keys, kind="stable")
        for near in _neighbours(keys[order]):
            pairs = order[near]
            pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
            pairs = pairs[_agreement(signatures, distinct[pairs]) >= floor]
            if len(pairs):
                joins = labels[pairs]
                _, first = np.unique(np.sort(joins, axis=1), axis=0, return_index=True)
                found.append(distinct[pairs[first]])
                labels = clusters(len(labels), joins[first])[labels]
    return np.concatenate(found)


def _inside(labels: Ints) -> Iterator[Ints]:
    """All pairs of members of one cluster, for clusters of three and more from the smallest on, within the budget."""
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sizes = np.bincount(counts)
    cost = np.cumsum(sizes * np.arange(len(sizes)) * (np.arange(len(sizes)) - 1) // 2)
    order = np.argsort(labels, kind="stable")
    size_of_row = counts[codes][order]
    for size in np.flatnonzero((sizes > 0) & (cost <= _PAIRS_PER_ROW * len(labels))).tolist():
        if size > 2:
            members = order[size_of_row == size].reshape(-1, size)
            yield np.stack([members[:, side] for side in np.triu_indices(size, 1)], axis=-1).reshape(-1, 2)


def _hashes(signatures: Signatures, start: int, stop: int) -> Hashes:
    """A hash of some columns of each signature, shape (rows,)."""
    hashes = np.empty(len(signatures), np.uint64)
    for at in range(0, len(signatures), _BLOCK):
        hashes[at : at + _BLOCK] = signatures[at : at + _BLOCK, start:stop].astype(np.uint64) @ _WEIGHTS[: stop - start]
    return hashes


def _distinct(signatures: Signatures) -> tuple[Ints, Ints]:
    """The first row of each signature that is not empty, in an order of their content; and its copies, as pairs."""
    hashes = _hashes(signatures, 0, NUM_PERM)
    empty = _hashes(np.full((1, NUM_PERM), _EMPTY, np.uint32), 0, NUM_PERM)
    order = np.argsort(hashes, kind="stable")
    order = order[hashes[order] != empty]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = hashes[order[1:]] != hashes[order[:-1]]
    firsts = order[is_first]
    originals = firsts[np.cumsum(is_first) - 1]
    return firsts, np.stack([originals, order], axis=1)[~is_first]


def _neighbours(keys: Hashes) -> Iterator[Ints]:
    """Positions of equal keys in sorted ones, shape (pairs, 2): neighbours first, then those two apart, and so on."""
    first: Ints = np.arange(len(keys), dtype=np.int64)
    for distance in range(1, _NEIGHBOURS + 1):
        first = first[first < len(keys) - distance]
        first = first[keys[first] == keys[first + distance]]
        if not len(first):
            return
        yield np.stack([first, first + distance], axis=1)


def _agreement(signatures: Signatures, pairs: Ints) -> Ints:
    """In how many places the signatures of each pair are equal, shape (pairs,)."""
    equal = np.empty(len(pairs), np.int64)
    for at in range(0, len(pairs), _BLOCK):
        first, second = pairs[at : at + _BLOCK].T
        equal[at : at + _BLOCK] = (signatures[first] == signatures[second]).sum(axis=1)
    return equal


def clusters(n: int, pairs: Ints) -> Ints:
    """What hangs together by pairs: for each of `n` positions the smallest member of its cluster, shape (n,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    count, found = connected_components(graph, directed=False)
    smallest = np.empty(count, np.int64)
    smallest[found[::-1]] = np.arange(n - 1, -1, -1)  # of repeated places the last one written stays
    labels: Ints = smallest[found]
    return labels
