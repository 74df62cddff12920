"""Windows and spans of token sequences, and the aggregation of window scores."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detect_ai.core.errors import InputError
from detect_ai.text.windows import (
    MIN_SPAN_TOKENS,
    aggregate_windows,
    sample_span,
    sample_spans_by_length,
    sample_window,
    split_windows,
    window_spans,
)

SHAPES = st.integers(1, 40).flatmap(lambda content: st.tuples(st.just(content), st.integers(1, content)))
DOCUMENTS = st.lists(st.integers(0, 200), max_size=8)


def documents_of(lengths):
    """Documents without repeated tokens."""
    ends = np.cumsum([0, *lengths])
    return [np.arange(start, stop, dtype=np.int32) for start, stop in pairwise(ends)]


def rng(seed=0):
    return np.random.default_rng(seed)


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(1, 60), st.data())
def test_window_spans_cover_all_tokens_in_order(num_tokens, window, data):
    stride = data.draw(st.integers(1, window))
    spans = window_spans(num_tokens, window, stride)
    assert (spans[0][0], spans[-1][1]) == (0, num_tokens)
    assert all(end - start == min(window, num_tokens) for start, end in spans)
    steps = [after[0] - before[0] for before, after in pairwise(spans)]
    assert all(step == stride for step in steps[:-1])
    assert all(0 < step <= stride for step in steps[-1:])


@pytest.mark.parametrize(("window", "stride"), [(0, 1), (4, 0), (4, 5), (-1, -1)])
def test_impossible_window_is_refused(window, stride):
    with pytest.raises(InputError, match=f"window={window}, stride={stride}"):
        window_spans(10, window, stride)


@given(DOCUMENTS, SHAPES)
def test_split_windows_cover_their_own_document_only(lengths, shape):
    documents = documents_of(lengths)
    rows, owners = split_windows(documents, *shape)
    assert owners.dtype == np.int64
    assert (np.diff(owners) >= 0).all()
    for owner, ids in enumerate(documents):
        own = [row for row, o in zip(rows, owners, strict=True) if o == owner]
        assert all(len(row) == min(shape[0], len(ids)) and (np.diff(row) == 1).all() for row in own)
        assert set(np.concatenate(own).tolist()) == set(ids.tolist())


def test_document_score_is_the_mean_of_its_windows():
    scores, owners = np.asarray([1.0, -4.0, 2.0, 6.0]), np.asarray([1, 0, 1, 1])
    assert aggregate_windows(scores, owners, 2).tolist() == [-4.0, 3.0]
    assert aggregate_windows(np.empty(0), np.empty(0, np.int64), 0).tolist() == []


@given(DOCUMENTS.filter(bool), SHAPES, st.integers(0, 3))
def test_sampled_window_is_one_of_the_document(lengths, shape, seed):
    documents = documents_of(lengths)
    rows, owners = split_windows(documents, *shape)
    sampled = sample_window(documents, *shape, rng(seed))
    assert len(sampled) == len(documents)
    for owner, window in enumerate(sampled):
        assert window.tolist() in [row.tolist() for row, o in zip(rows, owners, strict=True) if o == owner]


@given(DOCUMENTS, st.integers(1, 40).flatmap(lambda content: st.tuples(st.integers(1, content), st.just(content))))
def test_sampled_span_is_a_part_of_its_document(lengths, shape):
    shortest, content = shape
    documents = documents_of(lengths)
    sampled = sample_span(documents, content, shortest, rng())
    assert len(sampled) == len(documents)
    for ids, part in zip(documents, sampled, strict=True):
        assert min(shortest, len(ids)) <= len(part) <= min(content, len(ids))
        assert part.tolist() == [] or part.tolist() == list(range(part[0], part[-1] + 1))
        assert set(part.tolist()) <= set(ids.tolist())


def test_sampled_span_lengths_are_log_uniform_with_full_windows():
    lengths = np.asarray([len(part) for part in sample_span(documents_of([300] * 4000), 256, 16, rng())])
    shorter = lengths[lengths < 256]
    assert 1 - len(shorter) / 4000 == pytest.approx(0.25, abs=0.03)
    fractions = np.histogram(shorter, [16, 32, 64, 128, 256])[0] / len(shorter)
    assert fractions == pytest.approx([0.25] * 4, abs=0.03)


@given(st.integers(0, 600), st.sets(st.integers(MIN_SPAN_TOKENS + 1, 400), max_size=4).map(sorted), st.integers(0, 3))
def test_spans_by_length_fill_every_range(length, edges, seed):
    *short, whole = sample_spans_by_length(length, edges, rng(seed))
    ranges = [(low, high) for low, high in pairwise([MIN_SPAN_TOKENS, *edges]) if high <= length]
    assert whole == (0, length)
    assert len(short) == len(ranges)
    for (start, stop), (low, high) in zip(short, ranges, strict=True):
        assert low <= stop - start < high
        assert 0 <= start <= stop <= length
