from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.windows import cut, document_scores, one_each

SHAPES = st.integers(1, 40).flatmap(lambda content: st.tuples(st.just(content), st.integers(1, content)))
DOCUMENTS = st.lists(st.integers(0, 200), max_size=8)


def made(lengths):
    """Documents whose tokens are all different."""
    ends = np.cumsum([0, *lengths])
    return [np.arange(start, stop, dtype=np.int32) for start, stop in pairwise(ends)]


@given(DOCUMENTS, SHAPES)
def test_windows_cover_every_token_of_their_document_and_none_of_another(lengths, shape):
    documents = made(lengths)
    rows, owners = cut(documents, *shape)
    for owner, ids in enumerate(documents):
        own = [row for row, o in zip(rows, owners, strict=True) if o == owner]
        assert own
        assert set(np.concatenate(own).tolist()) == set(ids.tolist())


@given(DOCUMENTS, SHAPES)
def test_windows_hold_neighbouring_tokens_and_fit_their_size(lengths, shape):
    rows, owners = cut(made(lengths), *shape)
    assert owners.dtype == np.int64
    assert (np.diff(owners) >= 0).all()
    for row, owner in zip(rows, owners, strict=True):
        assert len(row) == min(shape[0], lengths[owner])
        assert (np.diff(row) == 1).all()


def test_every_document_has_a_window_even_an_empty_one():
    rows, owners = cut(made([0, 5, 0]), 4, 2)
    assert [row.tolist() for row in rows] == [[], [0, 1, 2, 3], [1, 2, 3, 4], []]
    assert owners.tolist() == [0, 1, 1, 2]


def test_no_documents_have_no_windows_and_no_scores():
    rows, owners = cut([], 4, 2)
    assert (rows, owners.tolist()) == ([], [])
    assert document_scores(np.empty(0), owners, 0).tolist() == []


def test_the_score_of_a_document_is_the_mean_over_its_windows_in_any_order():
    scores, owners = np.asarray([1.0, -4.0, 2.0, 6.0]), np.asarray([1, 0, 1, 1])
    assert document_scores(scores, owners, 2).tolist() == [-4.0, 3.0]


@given(DOCUMENTS.filter(bool), SHAPES, st.integers(0, 3))
def test_one_window_of_each_document_is_one_of_its_windows(lengths, shape, seed):
    documents = made(lengths)
    rows, owners = cut(documents, *shape)
    drawn = one_each(documents, *shape, np.random.default_rng(seed))
    assert len(drawn) == len(documents)
    for owner, window in enumerate(drawn):
        own = [row.tolist() for row, o in zip(rows, owners, strict=True) if o == owner]
        assert window.tolist() in own


def test_in_many_epochs_every_window_of_a_document_is_drawn():
    documents = made([100])
    rng = np.random.default_rng(0)
    drawn = {one_each(documents, 10, 10, rng)[0][0] for _ in range(200)}
    assert drawn == set(range(0, 100, 10))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_drawn_windows_are_a_function_of_the_seed(seed):
    documents = made([100, 300, 20])
    first, second = (one_each(documents, 10, 5, np.random.default_rng(seed)) for _ in range(2))
    assert [row.tolist() for row in first] == [row.tolist() for row in second]
