"""Exact and near duplicates: MinHash signatures, LSH bands, and clusters of near duplicates. Pure.

MinHash (Broder 1997) with locality-sensitive hashing by bands (Leskovec, Rajaraman & Ullman, Mining of Massive
Datasets, chapter 3): texts become candidates if a whole band of their signatures is equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Hashes = NDArray[np.uint64]
Signatures = NDArray[np.uint32]

NUM_PERM = 128
# For near duplicates with a Jaccard similarity of at least 0.8. A pair of similarity s becomes a candidate with
# probability 1 - (1 - s^7)^18: 0.985 at 0.8, 0.79 at 0.7, 0.13 at 0.5, 0.004 at 0.3. The number of equal places of its
# signatures is binomial: 93 or more for 39 in 40 pairs at 0.8, for half of the pairs at 0.72, for 1% at 0.63.
BANDS, BAND_SIZE = 18, 7
MIN_AGREEMENT = 93
_SEED = 1
_SHINGLE = 5  # words
_NEIGHBOURS = 32
_BLOCK = 1 << 14  # rows of signatures in memory at once: 8 MB
_EMPTY = np.iinfo(np.uint32).max
# Powers of an odd number (2**64 / golden ratio), for hashes of rows.
_WEIGHTS: Hashes = np.cumprod(np.full(NUM_PERM, 0x9E3779B97F4A7C15, np.uint64), dtype=np.uint64)


def exact_duplicates(digests: Hashes, labels: NDArray[np.int8], keys: Hashes) -> tuple[Bools, Ints]:
    """Find exact duplicates. Of rows with the same text, the one with the smallest key stays, regardless of order.

    Labels are 0 or 1. Keys are unique among the rows of a text. All arrays have shape (rows,).

    Returns:
        Whether the text occurs with both labels, so none of its rows can stay; and a position: for a duplicate that of
        the row that stays, for a text with both labels that of its first row with the other label, otherwise -1.
    """
    rows = pd.DataFrame({"digest": digests, "label": labels}).iloc[np.argsort(keys, kind="stable")]
    positions = rows.index.to_series()
    first = [positions.where(rows["label"] == label).groupby(rows["digest"]).transform("first") for label in (0, 1)]
    both = first[0].notna() & first[1].notna()
    duplicate_of = first[0].where((rows["label"] == 0) != both, first[1])
    duplicate_of = duplicate_of.where(duplicate_of != positions, -1)
    return both.sort_index().to_numpy(bool), duplicate_of.sort_index().to_numpy(np.int64)


def signatures(texts: Sequence[str]) -> Signatures:
    """MinHash signatures of normalised texts over their case-folded word 5-grams, shape (texts, 128).

    A text of fewer than five words is one shingle. A text without words has no shingles: every value of its signature
    is the maximum, and it matches no other text.
    """
    from rensa import RMinHash

    rows = np.empty((len(texts), NUM_PERM), np.uint32)
    for position, text in enumerate(texts):
        words = text.casefold().split()
        shingles = list(map(" ".join, zip(*(words[start:] for start in range(_SHINGLE)), strict=False)))
        sketch = RMinHash(num_perm=NUM_PERM, seed=_SEED)
        sketch.update(shingles or [" ".join(words)] * bool(words))
        rows[position] = sketch.digest()
    return rows


def near_duplicate_clusters(signatures: Signatures) -> Ints:
    """Clusters of near duplicates: for each row the position of the first row of its cluster, shape (rows,).

    The signatures have shape (rows, 128) and may be a `np.memmap`; further memory is below 100 bytes per row. Equal
    signatures are compared once. Each text is compared with the 32 texts after it in the same band, in an order that
    depends on their content, unless both are already connected: 100,000 variants of one text cost no more than 100,000
    different texts. The clusters do not depend on the order of the rows.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    hashes = _hashes(signatures, 0, NUM_PERM)
    rows = np.flatnonzero(hashes != _hashes(np.full((1, NUM_PERM), _EMPTY, np.uint32), 0, NUM_PERM))
    _, first, copy_of = np.unique(hashes[rows], return_index=True, return_inverse=True)
    distinct = rows[first]
    labels = np.arange(len(distinct), dtype=np.int64)
    for start in range(0, BANDS * BAND_SIZE, BAND_SIZE):
        keys = _hashes(signatures, start, start + BAND_SIZE)[distinct]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        lower = np.arange(len(keys), dtype=np.int64)  # first of each pair of equal keys 1 place apart, then 2, ...
        for distance in range(1, _NEIGHBOURS + 1):
            lower = lower[lower < len(keys) - distance]
            lower = lower[keys[lower] == keys[lower + distance]]
            if not len(lower):
                break
            pairs = order[np.stack([lower, lower + distance], axis=1)]
            pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
            pairs = pairs[_agreement(signatures, distinct[pairs]) >= MIN_AGREEMENT]
            if len(pairs):
                edges = (np.ones(len(pairs), np.bool_), tuple(labels[pairs].T))
                graph = coo_array(edges, shape=(len(labels), len(labels)))
                labels = connected_components(graph, directed=False)[1].astype(np.int64)[labels]
    clusters = np.arange(len(signatures), len(signatures) + len(signatures), dtype=np.int64)  # empty texts: alone
    clusters[rows] = labels[copy_of]
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)


def _hashes(signatures: Signatures, start: int, stop: int) -> Hashes:
    """A hash of some columns of each signature, shape (rows,)."""
    hashes = np.empty(len(signatures), np.uint64)
    for at in range(0, len(signatures), _BLOCK):
        hashes[at : at + _BLOCK] = signatures[at : at + _BLOCK, start:stop].astype(np.uint64) @ _WEIGHTS[: stop - start]
    return hashes


def _agreement(signatures: Signatures, pairs: Ints) -> Ints:
    """Number of places in which the signatures of each pair are equal, shape (pairs,)."""
    equal = np.empty(len(pairs), np.int64)
    for at in range(0, len(pairs), _BLOCK):
        first, second = pairs[at : at + _BLOCK].T
        equal[at : at + _BLOCK] = (signatures[first] == signatures[second]).sum(axis=1)
    return equal
