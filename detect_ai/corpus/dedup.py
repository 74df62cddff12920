"""Exact and near duplicates: MinHash signatures, LSH bands, and clusters of near duplicates. Pure.

MinHash (Broder 1997) with locality-sensitive hashing by bands (Leskovec, Rajaraman & Ullman, Mining of Massive
Datasets, chapter 3): texts become candidates if a whole band of their signatures is equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Signatures = NDArray[np.uint32]

NUM_PERM = 128
SIMILARITY = 0.8  # least Jaccard index of the shingles of near duplicates
_SEED = 1
_SHINGLE = 5  # words
_RECALL = 0.975  # of the bands, and of the check after them, each at the threshold
_NEIGHBOURS = 32
_BLOCK = 1 << 14  # rows of signatures in memory at once: 8 MB
_EMPTY = np.iinfo(np.uint32).max
# Powers of an odd number (2**64 / golden ratio), for hashes of rows.
_WEIGHTS: Hashes = np.cumprod(np.full(NUM_PERM, 0x9E3779B97F4A7C15, np.uint64), dtype=np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class ExactDuplicates:
    """Rows that have the text of another one, all of shape (rows,).

    Attributes:
        both_labels: the text occurs with both labels: none of its rows can stay.
        duplicate: the row is not the one that stays of its text.
        duplicate_of: position of the row that stays of a duplicate, of the first row with the other label of a text
            with both, else -1.
    """

    both_labels: NDArray[np.bool_]
    duplicate: NDArray[np.bool_]
    duplicate_of: Ints


def exact_duplicates(digests: Hashes, labels: NDArray[np.int8], keys: NDArray[np.uint64 | np.str_]) -> ExactDuplicates:
    """Find exact duplicates. Of the rows of a text the one with the smallest key stays, whatever their order.

    Args:
        digests: of the texts, shape (rows,).
        labels: 0 or 1, shape (rows,).
        keys: unique among the rows of a text, shape (rows,).
    """
    order = np.argsort(keys, kind="stable")
    order = order[np.argsort(digests[order], kind="stable")]
    digests, labels = digests[order], labels[order]
    starts = np.ones(len(order), np.bool_)
    starts[1:] = digests[1:] != digests[:-1]
    text = np.cumsum(starts) - 1
    first = np.full((2, int(starts.sum())), -1, np.int64)  # of each label and text
    for label in (0, 1):
        own = np.flatnonzero(labels == label)[::-1]  # of repeated places the last one written stays
        first[label, text[own]] = order[own]
    both = np.all(first >= 0, axis=0)[text]
    duplicate = ~both & ~starts
    duplicate_of = np.where(both, first[1 - labels, text], np.where(duplicate, first[labels, text], -1))
    back = np.argsort(order)
    return ExactDuplicates(both[back], duplicate[back], duplicate_of[back])


def signatures(texts: Sequence[str]) -> Signatures:
    """MinHash signatures of normalised texts over their case-folded word 5-grams, shape (texts, 128).

    A text of fewer than five words is one shingle. One without a word has no shingles: its signature is the largest
    number throughout, and it resembles no other text.
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
    """Number of bands and rows a band: the longest rows that find a pair at the threshold with probability 0.975.

    A pair of Jaccard similarity s becomes a candidate with probability 1 - (1 - s^rows)^bands. At a threshold of 0.8
    these are 18 bands of 7 rows: 0.985 at 0.8, 0.79 at 0.7, 0.13 at 0.5, 0.004 at 0.3.
    """
    choices = ((NUM_PERM // rows, rows) for rows in range(NUM_PERM, 0, -1))
    return next((c for c in choices if 1 - (1 - threshold ** c[1]) ** c[0] >= _RECALL), (NUM_PERM, 1))


def min_agreement(threshold: float) -> int:
    """Minimum number of equal values, of 128, for a pair to count as near duplicates.

    Signatures of a pair at the threshold agree in a binomial number of places; 39 in 40 reach this one. Together with
    `bands`, 95% of the pairs at the threshold are found (and more above it). The cost is pairs just below: at a
    threshold of 0.8 half of the pairs at 0.72 count, 1% at 0.63, none in practice below 0.55.
    """
    from scipy.special import bdtr

    below = np.asarray(bdtr(np.arange(NUM_PERM, dtype=float), NUM_PERM, threshold))
    return int((below <= 1 - _RECALL).sum())


def near_duplicate_clusters(signatures: Signatures, threshold: float = SIMILARITY) -> Ints:
    """Clusters of near duplicates: for each row the position of the first row of its cluster, shape (rows,).

    Band by band, so that memory in addition to the signatures stays below 100 bytes a row. Equal signatures are
    compared once. Of texts that agree in a band, each is compared with the 32 after it in an order of their content,
    unless the two are connected already: a hundred thousand variants of one text cost no more than a hundred thousand
    texts. Which texts are in one cluster does not depend on the order of the rows.

    Args:
        signatures: shape (rows, 128); a `np.memmap` is read in blocks.
        threshold: Jaccard similarity from which texts are near duplicates, in (0, 1]; see `min_agreement`.
    """
    num_bands, num_rows = bands(threshold)
    required = min_agreement(threshold)
    distinct, copies = _distinct(signatures)
    labels = np.arange(len(distinct), dtype=np.int64)
    for start in range(0, num_bands * num_rows, num_rows):
        keys = _hashes(signatures, start, start + num_rows)[distinct]
        order = np.argsort(keys, kind="stable")
        for neighbours in _neighbours(keys[order]):
            pairs = order[neighbours]
            pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
            pairs = pairs[_agreement(signatures, distinct[pairs]) >= required]
            if len(pairs):
                labels = _connected(len(labels), labels[pairs])[labels]
    clusters = np.arange(len(signatures), len(signatures) + len(signatures), dtype=np.int64)  # empty texts: alone
    clusters[distinct] = labels
    clusters[copies[:, 1]] = clusters[copies[:, 0]]
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)


def _connected(n: int, pairs: Ints) -> Ints:
    """Labels of the connected components of a graph of `n` nodes, shape (n,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


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
    """Positions of equal keys in sorted ones, shape (pairs, 2): adjacent ones first, then those two apart, ..."""
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
