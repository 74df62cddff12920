"""Exact duplicates, MinHash signatures and clusters of near duplicates."""

import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detect_ai.corpus.dedup import NUM_PERM, exact_duplicates, near_duplicate_clusters, signatures

WORDS = [f"word{number}" for number in range(2000)]


def jaccard(a, b):
    a, b = (
        {tuple(words[i : i + 5]) for i in range(len(words) - 4)} or {tuple(words)}
        for words in (text.casefold().split() for text in (a, b))
    )
    return len(a & b) / len(a | b)


def family(draw, size, edits, length=200):
    """A text and variants of it, each with `edits` words replaced."""
    words = draw.choices(WORDS, k=length)
    texts = []
    for number in range(size):
        copy = list(words)
        for _ in range(edits if number else 0):
            copy[draw.randrange(length)] = draw.choice(WORDS)
        texts.append(" ".join(copy))
    return texts


def partition(texts):
    members = defaultdict(set)
    for text, label in zip(texts, clusters(signatures(texts)), strict=True):
        members[label].add(text)
    return {frozenset(cluster) for cluster in members.values()}


def clusters(rows):
    return near_duplicate_clusters(rows).tolist()


def random_signatures(rows, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32 - 1, (rows, NUM_PERM), dtype=np.uint32)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), max_size=30), st.randoms(use_true_random=False))
def test_exact_duplicates_match_brute_force(rows, draw):
    keys = draw.sample(range(len(rows)), len(rows))
    digests, labels = np.array([d for d, _ in rows], np.uint64), np.array([label for _, label in rows], np.int8)
    both, duplicate_of = exact_duplicates(digests, labels, np.array(keys, np.uint64))
    for i, (digest, label) in enumerate(rows):
        first = min((j for j, other in enumerate(rows) if other == (digest, label)), key=keys.__getitem__)
        others = sorted((j for j, other in enumerate(rows) if other == (digest, 1 - label)), key=keys.__getitem__)
        assert both[i] == bool(others)
        assert duplicate_of[i] == (others[0] if others else -1 if first == i else first)


def test_recall_and_precision_against_exact_jaccard():
    draw = random.Random(3)
    texts = [text for _ in range(600) for text in family(draw, 2, draw.choice([2, 3, 4, 5, 6, 8, 12]))]
    exact = np.array([jaccard(a, b) for a, b in zip(texts[::2], texts[1::2], strict=True)])
    labels = near_duplicate_clusters(signatures(texts))
    assert (np.unique(labels // 2, return_counts=True)[1] == 2).all(), "unrelated texts in one cluster"
    matches = labels[::2] == labels[1::2]
    near_threshold = (exact >= 0.8) & (exact < 0.86)
    assert near_threshold.sum() > 50
    assert matches[near_threshold].mean() >= 0.95
    assert matches[exact >= 0.86].all()
    assert exact[matches].min() >= 0.6


def test_chain_is_one_cluster():
    words = random.Random(4).choices(WORDS, k=400)
    links = [" ".join(words[start : start + 300]) for start in range(0, 100, 10)]
    assert jaccard(links[0], links[-1]) < 0.6
    assert partition(links) == {frozenset(links)}


def test_agreement_decides_within_a_band():
    rows = random_signatures(2)
    rows[:, :90] = rows[0, :90]
    assert clusters(rows) == [0, 1]
    rows[:, :100] = rows[0, :100]
    assert clusters(rows) == [0, 0]


def test_small_crowd_is_compared_pairwise():
    rows = random_signatures(30)
    rows[:, :70] = rows[0, :70]
    scattered = [column for column in range(70, NUM_PERM) if column % 7]
    rows[1::2, scattered] = rows[::2, scattered]
    assert clusters(rows) == [i // 2 * 2 for i in range(30)]


def test_texts_of_few_words():
    assert clusters(signatures(["yes", "no", "Yes", "yess", "no", "", " ", ""])) == [0, 1, 0, 3, 1, 5, 6, 7]
    assert clusters(signatures(["a b c d", "a b c", "d c b a", "Straße am See", "STRASSE AM SEE"])) == [0, 1, 2, 3, 3]
    assert clusters(random_signatures(0)) == []


CROWD = family(random.Random(5), 60, 4) + family(random.Random(6), 3, 2) + family(random.Random(7), 20, 9, 100) + [""]


@given(st.permutations(range(len(CROWD))))
@settings(max_examples=10)
def test_clusters_do_not_depend_on_row_order(order):
    assert partition([CROWD[i] for i in order]) == partition(CROWD)


@pytest.mark.slow
@pytest.mark.parametrize("edits", [0, 1])
def test_a_hundred_thousand_variants_are_one_cluster(edits):
    rows = np.repeat(random_signatures(1), 100_000, axis=0)
    if edits:
        rows[:, 10] = np.arange(len(rows))
    assert not near_duplicate_clusters(rows).any()


@pytest.mark.slow
def test_large_crowd_hides_no_pair():
    rows = random_signatures(20_000)
    rows[:, :70] = rows[0, :70]
    rows[17_000, :110] = rows[5, :110]
    labels = near_duplicate_clusters(rows)
    assert labels[17_000] == labels[5] == 5
    assert len(np.unique(labels)) == 19_999
