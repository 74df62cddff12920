import random
import time
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detect_ai.corpus.dedup import NUM_PERM, bands, clusters, least_agreement, signatures, similar_pairs

WORDS = [f"word{number}" for number in range(2000)]


def shingles(text):
    words = text.casefold().split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)} or {tuple(words)}


def jaccard(a, b):
    a, b = shingles(a), shingles(b)
    return len(a & b) / len(a | b)


def edited(words, edits, draw):
    words = list(words)
    for _ in range(edits):
        words[draw.randrange(len(words))] = draw.choice(WORDS)
    return " ".join(words)


def family(draw, size, edits, length=200):
    """A text and variants of it, each with so many words replaced."""
    words = draw.choices(WORDS, k=length)
    return [edited(words, edits if number else 0, draw) for number in range(size)]


def partition(texts, threshold=0.8):
    """The clusters, as sets of texts: what does not hang on the order of the rows."""
    labels = clusters(len(texts), similar_pairs(signatures(texts), threshold))
    members = defaultdict(set)
    for text, label in zip(texts, labels.tolist(), strict=True):
        members[label].add(text)
    return {frozenset(found) for found in members.values()}


def random_signatures(rows, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32 - 1, (rows, NUM_PERM), dtype=np.uint32)


# Signatures


def test_signatures_agree_as_often_as_shingles_do():
    draw = random.Random(1)
    texts = [text for edits in (1, 3, 6, 10, 20, 40) for _ in range(20) for text in family(draw, 2, edits)]
    sketched = signatures(texts)
    agreement = (sketched[::2] == sketched[1::2]).mean(axis=1)
    exact = np.array([jaccard(a, b) for a, b in zip(texts[::2], texts[1::2], strict=True)])
    assert np.abs(agreement - exact).max() < 0.2
    assert abs((agreement - exact).mean()) < 0.02


@given(st.lists(st.text("ab ", max_size=12), max_size=8))
def test_a_signature_hangs_on_its_own_text_alone(texts):
    together = signatures(texts)
    assert (together.shape, together.dtype) == ((len(texts), NUM_PERM), np.uint32)
    for row, text in zip(together, texts, strict=True):
        assert np.array_equal(row, signatures([text])[0])


def test_case_does_not_count():
    one, other = signatures(["Straße und Haus am See", "STRASSE UND HAUS AM SEE"])
    assert np.array_equal(one, other)


def test_a_text_of_fewer_words_than_a_shingle_is_one():
    rows = signatures(["a b c d", "a b c d", "a b c", "d c b a", "a b c d e"])
    agreement = (rows == rows[0]).mean(axis=1)
    assert agreement[1] == 1
    assert (agreement[2:] < 0.1).all()


# Pairs


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_and_check_together_find_95_in_100_at_the_threshold(threshold):
    num_bands, num_rows = bands(threshold)
    assert num_bands * num_rows <= NUM_PERM
    draw = np.random.default_rng(2)
    equal = draw.random((20_000, NUM_PERM)) < threshold
    in_band = equal[:, : num_bands * num_rows].reshape(-1, num_bands, num_rows).all(axis=2).any(axis=1)
    assert (in_band & (equal.sum(axis=1) >= least_agreement(threshold))).mean() >= 0.95


def test_recall_and_precision_against_exact_jaccard():
    draw = random.Random(3)
    texts = [text for _ in range(600) for text in family(draw, 2, draw.choice([2, 3, 4, 5, 6, 8, 12]))]
    exact = np.array([jaccard(a, b) for a, b in zip(texts[::2], texts[1::2], strict=True)])
    pairs = similar_pairs(signatures(texts), 0.8)
    found = np.zeros(len(exact), bool)
    assert (pairs[:, 0] // 2 == pairs[:, 1] // 2).all(), "a pair of texts that have nothing to do with each other"
    found[pairs[:, 0] // 2] = True
    near_threshold = (exact >= 0.8) & (exact < 0.86)
    assert near_threshold.sum() > 50
    assert found[near_threshold].mean() >= 0.95
    assert found[exact >= 0.86].all()
    assert exact[found].min() >= 0.6
    assert (exact < 0.6).sum() > 50


def test_every_pair_of_clusters_that_are_no_crowd_is_found():
    draw = random.Random(8)
    texts = family(draw, 33, 2) + family(draw, 3, 2) * 2 + family(draw, 20, 3)
    draw.shuffle(texts)
    sketched = signatures(texts)
    pairs = similar_pairs(sketched, 0.8)
    labels = clusters(len(sketched), pairs)
    agreement = (sketched[:, None] == sketched[None]).sum(axis=2)
    alike = (agreement >= least_agreement(0.8)) & (labels[:, None] == labels[None])
    assert pairs.tolist() == np.argwhere(np.triu(alike, 1)).tolist()
    assert len(pairs) > 300


def test_a_crowd_among_small_clusters_costs_them_no_pair():
    rows = random_signatures(12_000)
    rows[3000:] = rows[3000]
    rows[:3000] = np.repeat(rows[:1000], 3, axis=0)
    pairs = similar_pairs(rows, 0.8)
    assert len(pairs) == 1000 * 3 + 8999


def test_a_chain_hangs_together():
    draw = random.Random(4)
    words = draw.choices(WORDS, k=400)
    links = [" ".join(words[start : start + 300]) for start in range(0, 100, 10)]
    assert jaccard(links[0], links[-1]) < 0.6
    assert partition(links) == {frozenset(links)}


@pytest.mark.parametrize("edits", [0, 1])
def test_many_copies_and_variants_take_seconds_and_few_pairs(edits):
    rows = np.repeat(random_signatures(1), 100_000, axis=0)
    if edits:
        rows[:, 10] = np.arange(len(rows))
    start = time.process_time()
    pairs = similar_pairs(rows, 0.8)
    assert time.process_time() - start < 10
    assert len(pairs) < 18 * len(rows)
    assert not clusters(len(rows), pairs).any()


def test_a_crowd_that_shares_bands_costs_seconds_and_hides_no_pair():
    rows = random_signatures(20_000)
    rows[:, :70] = rows[0, :70]
    rows[17_000, :110] = rows[5, :110]
    start = time.process_time()
    assert similar_pairs(rows, 0.8).tolist() == [[5, 17_000]]
    assert time.process_time() - start < 20


def test_in_a_small_crowd_every_two_are_compared():
    rows = random_signatures(30)
    rows[:, :70] = rows[0, :70]
    scattered = [column for column in range(70, NUM_PERM) if column % 7]
    rows[1::2, scattered] = rows[::2, scattered]
    assert similar_pairs(rows, 0.8).tolist() == [[first, first + 1] for first in range(0, 30, 2)]


def test_rows_that_share_a_band_and_little_else_are_no_pair():
    rows = random_signatures(2)
    rows[:, :90] = rows[0, :90]
    assert similar_pairs(rows, 0.8).tolist() == []
    rows[:, :100] = rows[0, :100]
    assert similar_pairs(rows, 0.8).tolist() == [[0, 1]]


def test_texts_without_words_are_like_no_other():
    assert similar_pairs(signatures(["", " ", "", "a"]), 0.8).tolist() == []


def test_texts_of_one_word_are_alike_when_they_are_equal():
    assert similar_pairs(signatures(["yes", "no", "Yes", "yess", "no"]), 0.8).tolist() == [[0, 2], [1, 4]]


@pytest.mark.parametrize("count", [0, 1])
def test_no_pairs_in_nothing(count):
    assert similar_pairs(random_signatures(count), 0.8).shape == (0, 2)


CROWD = family(random.Random(5), 120, 4) + family(random.Random(6), 3, 2) + family(random.Random(7), 40, 9, 100) + [""]


@given(st.permutations(range(len(CROWD))))
@settings(max_examples=25)
def test_what_hangs_together_does_not_hang_on_the_order_of_the_rows(order):
    assert partition([CROWD[i] for i in order]) == partition(CROWD)


@given(st.lists(st.sampled_from(CROWD), max_size=30))
def test_pairs_are_sorted_and_of_texts_that_are_alike(texts):
    pairs = similar_pairs(signatures(texts), 0.8)
    assert pairs.tolist() == sorted(pairs.tolist())
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert all(jaccard(texts[a], texts[b]) > 0.6 for a, b in pairs)


def test_a_memory_map_gives_the_same_pairs(tmp_path):
    rows = signatures(CROWD)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert np.array_equal(similar_pairs(mapped, 0.8), similar_pairs(rows, 0.8))


# Clusters and groups

PAIRS = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=20).map(
    lambda pairs: np.array(pairs, np.int64).reshape(-1, 2)
)


def reachable(n, pairs):
    """The smallest member of what can be reached from each of `n`, by brute force."""
    labels = list(range(n))
    for _ in range(n):
        for a, b in pairs.tolist():
            labels[a] = labels[b] = min(labels[a], labels[b])
    return labels


@given(PAIRS)
def test_clusters_are_what_can_be_reached_and_are_named_by_their_smallest_member(pairs):
    assert clusters(15, pairs).tolist() == reachable(15, pairs)
