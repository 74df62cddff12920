"""Mixed documents, and the labels of their sentences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.core.errors import InputError
from detect_ai.evaluation.mixed_documents import mix, sentence_labels
from detect_ai.text.sentences import sentences


def story(word, count):
    return " ".join(f"{word} number {i} stands here." for i in range(count))


def mixed(human=10, ai=10, seed=0, **options):
    return mix(story("Human", human), story("Machine", ai), np.random.default_rng(seed), **options)


some_mixes = given(
    human=st.integers(2, 12),
    ai=st.integers(2, 12),
    seed=st.integers(0, 99),
    fraction=st.floats(0.01, 0.99),
    runs=st.integers(1, 4),
)


@some_mixes
def test_spans_are_the_ai_sentences(human, ai, seed, fraction, runs):
    found = mixed(human, ai, seed, fraction=fraction, runs=runs)
    parts = [found.text[start:end] for start, end in found.ai_spans]
    assert " ".join(parts) in story("Machine", ai)
    assert all(len(sentences(part)) >= 2 for part in parts)
    rest = found.text
    for start, end in reversed(found.ai_spans):
        assert rest[start - 1] == rest[end] == " "
        rest = rest[:start] + rest[end + 1 :]
    assert rest == story("Human", human)


@some_mixes
def test_sentence_labels_are_the_truth(human, ai, seed, fraction, runs):
    found = mixed(human, ai, seed, fraction=fraction, runs=runs)
    spans = sentences(found.text)
    truth = [found.text[start:end].startswith("Machine") for start, end in spans]
    assert sentence_labels(spans, found.ai_spans).tolist() == truth


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 2), (0.5, 20), (0.2, 5), (0.9, 40)])
def test_fraction_is_of_the_sentences(fraction, count):
    found = mixed(20, 40, fraction=fraction)
    assert sentence_labels(sentences(found.text), found.ai_spans).sum() == count


def test_runs_fit_the_room():
    assert len(mixed(10, 10, fraction=0.5, runs=3).ai_spans) == 3
    assert len(mixed(10, 5, fraction=0.5, runs=3).ai_spans) == 2
    assert len(mixed(2, 9, fraction=0.8, runs=3).ai_spans) == 1


def test_runs_have_two_or_more_sentences():
    first = (mixed(10, 10, seed, fraction=0.5, runs=2) for seed in range(60))
    lengths = {len(sentences(found.text[slice(*found.ai_spans[0])])) for found in first}
    assert lengths == set(range(2, 9))


def test_seed_draws_place_and_sentences():
    assert mixed(seed=3) == mixed(seed=3)
    texts = {mixed(seed=seed).text for seed in range(20)}
    assert len(texts) > 10
    assert len({mixed(seed=seed).ai_spans[0][0] for seed in range(40)}) == 9


def test_paragraphs_stay_between_the_authors():
    found = mix("One here.\n\nTwo here.", "A is so. B is so.", np.random.default_rng(0))
    assert found.text == "One here.\n\nA is so. B is so.\n\nTwo here."


@pytest.mark.parametrize("options", [{"human": 1}, {"ai": 1}])
def test_single_sentences_are_refused(options):
    with pytest.raises(InputError, match="mix: need"):
        mixed(**options)


def test_labels_need_more_than_half():
    spans = [(0, 10), (10, 20), (20, 30), (30, 40), (40, 40)]
    labels = sentence_labels(spans, [(5, 10), (10, 16), (21, 24), (25, 28)])
    assert labels.tolist() == [0, 1, 1, 0, 0]
    assert labels.dtype == np.int64
    assert sentence_labels(spans, []).tolist() == [0] * 5
    assert sentence_labels([], [(0, 1)]).tolist() == []
