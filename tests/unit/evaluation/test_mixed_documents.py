"""Mixed documents, and the labels of their sentences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.evaluation.mixed_documents import mix, sentence_labels
from detect_ai.text.sentences import sentences


def story(word, count):
    return " ".join(f"{word} number {i} stands here." for i in range(count))


def mixed(human=10, ai=10, seed=0, fraction=0.3, runs=1):
    return mix(story("Human", human), story("Machine", ai), np.random.default_rng(seed), fraction, runs)


some_mixes = given(
    human=st.integers(2, 12),
    ai=st.integers(2, 12),
    seed=st.integers(0, 99),
    fraction=st.floats(0.01, 0.99),
    runs=st.integers(1, 4),
)


@some_mixes
def test_spans_are_the_ai_sentences(human, ai, seed, fraction, runs):
    rest, ai_spans = mixed(human, ai, seed, fraction, runs)
    parts = [rest[start:end] for start, end in ai_spans]
    assert " ".join(parts) in story("Machine", ai)
    assert all(len(sentences(part)) >= 2 for part in parts)
    for start, end in reversed(ai_spans):
        assert rest[start - 1] == rest[end] == " "
        rest = rest[:start] + rest[end + 1 :]
    assert rest == story("Human", human)


@some_mixes
def test_sentence_labels_are_the_truth(human, ai, seed, fraction, runs):
    text, ai_spans = mixed(human, ai, seed, fraction, runs)
    spans = sentences(text)
    truth = [text[start:end].startswith("Machine") for start, end in spans]
    assert sentence_labels(spans, ai_spans).tolist() == truth


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 2), (0.5, 20), (0.2, 5), (0.9, 40)])
def test_fraction_is_of_the_sentences(fraction, count):
    text, ai_spans = mixed(20, 40, fraction=fraction)
    assert sentence_labels(sentences(text), ai_spans).sum() == count


def test_runs_fit_the_room():
    counts = [len(mixed(*sizes, fraction=0.5, runs=3)[1]) for sizes in ((10, 10), (10, 5), (2, 9))]
    assert counts == [3, 2, 1]


def test_seed_draws_place_and_sentences():
    assert mixed(seed=3) == mixed(seed=3)
    assert len({mixed(seed=seed)[0] for seed in range(20)}) > 10
    assert len({mixed(seed=seed)[1][0][0] for seed in range(40)}) == 9


def test_paragraphs_stay_between_the_authors():
    text, _ = mix("One here.\n\nTwo here.", "A is so. B is so.", np.random.default_rng(0), 0.3, 1)
    assert text == "One here.\n\nA is so. B is so.\n\nTwo here."


def test_labels_need_more_than_half():
    spans = [(0, 10), (10, 20), (20, 30), (30, 40), (40, 40)]
    labels = sentence_labels(spans, [(5, 10), (10, 16), (21, 24), (25, 28)])
    assert labels.tolist() == [0, 1, 1, 0, 0]
    assert labels.dtype == np.int64
    assert sentence_labels(spans, []).tolist() == [0] * 5
    assert sentence_labels([], [(0, 1)]).tolist() == []
