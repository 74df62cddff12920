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


def made(lengths):
    """Documents whose tokens are all different."""
    ends = np.cumsum([0, *lengths])
    return [np.arange(start, stop, dtype=np.int32) for start, stop in pairwise(ends)]


@given(DOCUMENTS, SHAPES)
def test_windows_cover_every_token_of_their_document_and_none_of_another(lengths, shape):
    documents = made(lengths)
    rows, owners = split_windows(documents, *shape)
    for owner, ids in enumerate(documents):
        own = [row for row, o in zip(rows, owners, strict=True) if o == owner]
        assert own
        assert set(np.concatenate(own).tolist()) == set(ids.tolist())


@given(DOCUMENTS, SHAPES)
def test_windows_hold_neighbouring_tokens_and_fit_their_size(lengths, shape):
    rows, owners = split_windows(made(lengths), *shape)
    assert owners.dtype == np.int64
    assert (np.diff(owners) >= 0).all()
    for row, owner in zip(rows, owners, strict=True):
        assert len(row) == min(shape[0], lengths[owner])
        assert (np.diff(row) == 1).all()


def test_every_document_has_a_window_even_an_empty_one():
    rows, owners = split_windows(made([0, 5, 0]), 4, 2)
    assert [row.tolist() for row in rows] == [[], [0, 1, 2, 3], [1, 2, 3, 4], []]
    assert owners.tolist() == [0, 1, 1, 2]


def test_no_documents_have_no_windows_and_no_scores():
    rows, owners = split_windows([], 4, 2)
    assert (rows, owners.tolist()) == ([], [])
    assert aggregate_windows(np.empty(0), owners, 0).tolist() == []


def test_the_score_of_a_document_is_the_mean_over_its_windows_in_any_order():
    scores, owners = np.asarray([1.0, -4.0, 2.0, 6.0]), np.asarray([1, 0, 1, 1])
    assert aggregate_windows(scores, owners, 2).tolist() == [-4.0, 3.0]


@given(DOCUMENTS.filter(bool), SHAPES, st.integers(0, 3))
def test_one_window_of_each_document_is_one_of_its_windows(lengths, shape, seed):
    documents = made(lengths)
    rows, owners = split_windows(documents, *shape)
    drawn = sample_window(documents, *shape, np.random.default_rng(seed))
    assert len(drawn) == len(documents)
    for owner, window in enumerate(drawn):
        own = [row.tolist() for row, o in zip(rows, owners, strict=True) if o == owner]
        assert window.tolist() in own


def test_in_many_epochs_every_window_of_a_document_is_drawn():
    documents = made([100])
    rng = np.random.default_rng(0)
    drawn = {sample_window(documents, 10, 10, rng)[0][0] for _ in range(200)}
    assert drawn == set(range(0, 100, 10))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_drawn_windows_are_a_function_of_the_seed(seed):
    documents = made([100, 300, 20])
    first, second = (sample_window(documents, 10, 5, np.random.default_rng(seed)) for _ in range(2))
    assert [row.tolist() for row in first] == [row.tolist() for row in second]


# Spans of every length


@given(st.integers(0, 600), st.sets(st.integers(MIN_SPAN_TOKENS + 1, 400), max_size=4).map(sorted), st.integers(0, 3))
def test_a_document_has_a_span_in_every_range_that_it_fills_and_is_itself_the_last(length, edges, seed):
    *short, whole = sample_spans_by_length(length, edges, np.random.default_rng(seed))
    filled = [(low, high) for low, high in pairwise([MIN_SPAN_TOKENS, *edges]) if high <= length]
    assert whole == (0, length)
    assert len(short) == len(filled)
    for (start, stop), (low, high) in zip(short, filled, strict=True):
        assert low <= stop - start < high
        assert 0 <= start <= stop <= length


def test_spans_have_all_lengths_of_their_range_and_all_places():
    drawn = [sample_spans_by_length(20, [10], np.random.default_rng(seed))[0] for seed in range(300)]
    assert {stop - start for start, stop in drawn} == {8, 9}
    assert {start for start, stop in drawn if stop - start == 9} == set(range(12))


def test_spans_are_a_function_of_the_seed():
    first, again, other = (
        sample_spans_by_length(500, [64, 128, 256], np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@given(DOCUMENTS, st.integers(1, 40).flatmap(lambda content: st.tuples(st.integers(1, content), st.just(content))))
def test_a_drawn_span_is_a_part_of_its_document_as_long_as_allowed(lengths, shape):
    shortest, content = shape
    drawn = sample_span(made(lengths), content, shortest, np.random.default_rng(0))
    assert len(drawn) == len(lengths)
    for ids, part in zip(made(lengths), drawn, strict=True):
        assert min(shortest, len(ids)) <= len(part) <= min(content, len(ids))
        assert part.tolist() == [] or part.tolist() == list(range(part[0], part[-1] + 1))
        assert set(part.tolist()) <= set(ids.tolist())


def test_one_span_in_four_is_as_long_as_a_window_and_the_logarithms_of_the_others_are_even():
    lengths = np.asarray([len(part) for part in sample_span(made([300] * 4000), 256, 16, np.random.default_rng(0))])
    shorter = lengths[lengths < 256]
    assert 1 - len(shorter) / 4000 == pytest.approx(0.25, abs=0.03)
    # Between 16 and 256 every doubling has as many.
    shares = np.histogram(shorter, [16, 32, 64, 128, 256])[0] / len(shorter)
    assert shares == pytest.approx([0.25] * 4, abs=0.03)


def test_drawn_spans_reach_both_ends_of_a_document():
    starts = {int(part[0]) for part in sample_span([np.arange(10)] * 300, 8, 8, np.random.default_rng(0))}
    assert starts == {0, 1, 2}


def test_drawn_spans_are_a_function_of_the_seed():
    documents = made([300] * 20)
    first, again, other = (
        [part.tolist() for part in sample_span(documents, 100, 10, np.random.default_rng(seed))] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(1, 60), st.data())
def test_windows_cover_all_tokens_in_order_and_end_with_them(num_tokens, window, data):
    stride = data.draw(st.integers(1, window))
    spans = window_spans(num_tokens, window, stride)
    assert spans[0][0] == 0
    assert spans[-1][1] == num_tokens
    assert all(end - start == min(window, num_tokens) for start, end in spans)
    steps = [after[0] - before[0] for before, after in pairwise(spans)]
    assert all(step == stride for step in steps[:-1])
    assert all(0 < step <= stride for step in steps[-1:])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 4, 2), [(0, 0)]),
        ((3, 4, 2), [(0, 3)]),
        ((4, 4, 2), [(0, 4)]),
        ((8, 4, 2), [(0, 4), (2, 6), (4, 8)]),
        ((9, 4, 4), [(0, 4), (4, 8), (5, 9)]),
    ],
)
def test_windows_of(arguments, expected):
    assert window_spans(*arguments) == expected


@pytest.mark.parametrize(("window", "stride"), [(0, 1), (4, 0), (4, 5), (-1, -1)])
def test_window_spans_names_what_was_given(window, stride):
    with pytest.raises(InputError) as error:
        window_spans(10, window, stride)
    assert str(error.value) == f"need window >= 1 and 1 <= stride <= window, got window={window}, stride={stride}"
