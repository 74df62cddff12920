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
    share=st.floats(0.01, 0.99),
    runs=st.integers(1, 4),
)


@some_mixes
def test_the_spans_are_the_ai_sentences_and_nothing_else(human, ai, seed, share, runs):
    found = mixed(human, ai, seed, share=share, runs=runs)
    parts = [found.text[start:end] for start, end in found.ai_spans]
    assert " ".join(parts) in story("Machine", ai)
    assert all(len(sentences(part)) >= 2 for part in parts)
    rest = found.text
    for start, end in reversed(found.ai_spans):
        assert rest[start - 1] == rest[end] == " "
        rest = rest[:start] + rest[end + 1 :]
    assert rest == story("Human", human)


@some_mixes
def test_labels_by_sentence_are_the_truth(human, ai, seed, share, runs):
    found = mixed(human, ai, seed, share=share, runs=runs)
    spans = sentences(found.text)
    truth = [found.text[start:end].startswith("Machine") for start, end in spans]
    assert sentence_labels(spans, found.ai_spans).tolist() == truth


@pytest.mark.parametrize(("share", "count"), [(0.1, 2), (0.5, 20), (0.2, 5), (0.9, 40)])
def test_the_share_is_of_the_mixed_texts_sentences(share, count):
    found = mixed(20, 40, share=share)
    assert sentence_labels(sentences(found.text), found.ai_spans).sum() == count


def test_as_many_runs_as_asked_and_as_there_is_room_for():
    assert len(mixed(10, 10, share=0.5, runs=3).ai_spans) == 3
    assert len(mixed(10, 5, share=0.5, runs=3).ai_spans) == 2
    assert len(mixed(2, 9, share=0.8, runs=3).ai_spans) == 1


def test_runs_are_of_any_length_from_two():
    first = (mixed(10, 10, seed, share=0.5, runs=2) for seed in range(60))
    lengths = {len(sentences(found.text[slice(*found.ai_spans[0])])) for found in first}
    assert lengths == set(range(2, 9))


def test_the_seed_draws_place_and_sentences():
    assert mixed(seed=3) == mixed(seed=3)
    texts = {mixed(seed=seed).text for seed in range(20)}
    assert len(texts) > 10
    assert len({mixed(seed=seed).ai_spans[0][0] for seed in range(40)}) == 9


def test_paragraphs_part_the_authors_where_they_part_the_human():
    found = mix("One here.\n\nTwo here.", "A is so. B is so.", np.random.default_rng(0))
    assert found.text == "One here.\n\nA is so. B is so.\n\nTwo here."


@pytest.mark.parametrize(
    "options", [{"share": 0.0}, {"share": 1.0}, {"share": float("nan")}, {"runs": 0}, {"human": 1}, {"ai": 1}]
)
def test_what_cannot_be_mixed_is_refused(options):
    with pytest.raises(InputError, match="mix: need"):
        mixed(**options)


def test_a_sentence_is_the_ais_by_more_than_half():
    spans = [(0, 10), (10, 20), (20, 30), (30, 40), (40, 40)]
    labels = sentence_labels(spans, [(5, 10), (10, 16), (21, 24), (25, 28)])
    assert labels.tolist() == [0, 1, 1, 0, 0]
    assert labels.dtype == np.int64
    assert sentence_labels(spans, []).tolist() == [0] * 5
    assert sentence_labels([], [(0, 1)]).tolist() == []
