import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.corpus import balance

CORPORA = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 400), st.integers(0, 1)), min_size=1, max_size=80)


def arrays(rows):
    domains, words, labels = np.asarray(rows, np.int64).T
    return balance.cells(domains, words), labels.astype(np.int8)


def test_a_cell_is_a_domain_and_a_length_class():
    cells = balance.cells(np.asarray([0, 0, 0, 1]), np.asarray([100, 105, 300, 100]))
    assert cells[0] == cells[1]
    assert len(set(cells.tolist())) == 3


def test_both_classes_of_a_cell_weigh_the_same():
    cell, labels = np.zeros(10, np.int64), np.asarray([0] * 7 + [1] * 3, np.int8)
    weights = balance.weights(cell, labels)
    assert np.isclose(weights[labels == 0].sum(), weights[labels == 1].sum())
    assert np.isclose(weights.mean(), 1)


def test_one_text_of_a_class_does_not_outweigh_the_rest():
    cell, labels = np.zeros(1001, np.int64), np.asarray([0] * 1000 + [1], np.int8)
    weights = balance.weights(cell, labels)
    assert weights.max() / weights.min() <= balance.MOST / balance.LEAST


def test_a_cell_with_one_class_is_left_alone():
    cell, labels = np.asarray([0, 0, 1, 1]), np.asarray([0, 0, 0, 1], np.int8)
    assert np.allclose(balance.weights(cell, labels), 1)
    assert not balance.surplus(cell, labels).any()


@given(CORPORA)
def test_dropping_leaves_as_many_of_both_classes_in_every_cell_that_has_both(rows):
    cell, labels = arrays(rows)
    kept = ~balance.surplus(cell, labels)
    for each in set(cell.tolist()):
        human, ai = (((cell == each) & (labels == label)).sum() for label in (0, 1))
        left = [((cell == each) & (labels == label) & kept).sum() for label in (0, 1)]
        assert left == ([min(human, ai)] * 2 if human and ai else [human, ai])


def test_the_first_in_order_stay():
    cell, labels = np.zeros(5, np.int64), np.asarray([0, 0, 0, 1, 1], np.int8)
    assert balance.surplus(cell, labels).tolist() == [False, False, True, False, False]
