from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.models.batch import Batch, padded_length
from detect_ai.text import windows
from detect_ai.training.batch_plan import Microbatch, joined, num_steps, pad_to_world_size, plan_steps

LENGTHS = st.lists(st.integers(0, 600), max_size=120)
SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))


def plan(lengths, sizes, seed=0, labels=None):
    lengths = np.asarray(lengths, dtype=np.int64)
    labels = np.arange(len(lengths)) % 2 if labels is None else labels
    return plan_steps(lengths, labels, *sizes, np.random.default_rng(seed))


def realistic_labels(n=2000, ai=0.5):
    return (np.random.default_rng(2).random(n) < ai).astype(int)


def realistic_lengths(labels):
    """Lognormal lengths, as of news stories and essays, truncated to a window of 510; AI texts vary less."""
    rng = np.random.default_rng(1)
    lengths = np.where(labels, rng.lognormal(5.5, 0.35, len(labels)), rng.lognormal(5.2, 0.6, len(labels)))
    return np.minimum(lengths.astype(int) + 20, 510)


@given(LENGTHS, SIZES, st.integers(0, 5))
def test_every_document_is_in_one_of_even_steps(lengths, sizes, seed):
    planned = plan(lengths, sizes, seed)
    assert sorted(chain.from_iterable(chain.from_iterable(planned))) == list(range(len(lengths)))
    rows = [sum(map(len, step)) for step in planned]
    assert len(rows) == num_steps(len(lengths), sizes[0])
    assert max(rows, default=0) <= sizes[0]
    assert max(rows, default=0) - min(rows, default=0) <= 1


@given(LENGTHS, SIZES)
def test_microbatches_of_a_step_are_even_and_ordered_by_length(lengths, sizes):
    padded = padded_length(np.asarray(lengths, dtype=np.int64))
    for step in plan(lengths, sizes):
        rows = list(map(len, step))
        assert 1 <= min(rows) <= max(rows) <= sizes[1]
        assert max(rows) - min(rows) <= 1
        assert all(padded[left].max() <= padded[right].min() for left, right in pairwise(step))


def test_seed_determines_the_steps():
    lengths = realistic_lengths(realistic_labels(200))
    first, again, other = ([part.tolist() for step in plan(lengths, (16, 8), s) for part in step] for s in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("ai", [0.5, 0.1])
def test_every_step_has_the_class_proportions_of_its_pool(ai):
    labels = realistic_labels(ai=ai)
    counts = [labels[np.concatenate(step)].sum() for step in plan(realistic_lengths(labels), (16, 8), labels=labels)]
    assert max(counts) - min(counts) <= 2


def spans_of_random_length():
    documents = [np.zeros(300, np.int32)] * 4096
    return np.asarray([len(row) + 2 for row in windows.sample_span(documents, 126, 32, np.random.default_rng(0))])


@pytest.mark.parametrize("sizes", [(16, 4), (16, 8), (64, 16)])
@pytest.mark.parametrize("kind", ["documents", "spans"])
def test_padding_is_at_most_five_percent(kind, sizes):
    lengths = realistic_lengths(realistic_labels()) if kind == "documents" else spans_of_random_length()
    parts = list(chain.from_iterable(plan(lengths, sizes, labels=realistic_labels(len(lengths)))))
    padded = sum(len(part) * padded_length(int(lengths[part].max())) for part in parts)
    assert 1 - lengths.sum() / padded <= 0.05


def test_ranks_of_a_step_get_similar_lengths():
    """Waiting ranks lose at most 3% of the time if a step has at least two microbatches for each rank."""
    labels = realistic_labels()
    lengths = realistic_lengths(labels)
    planned = plan(lengths, (16, 4), labels=labels)
    sizes = np.asarray([[len(part) * padded_length(lengths[part].max()) for part in step] for step in planned])
    assert sizes.reshape(-1, 2).max(axis=1).sum() * 2 <= 1.03 * sizes.sum()


def test_steps_are_padded_with_empty_microbatches():
    assert [len(part) for part in pad_to_world_size([np.arange(3)] * 4, 3)] == [3, 3, 3, 3, 0, 0]
    assert len(pad_to_world_size([np.arange(3)] * 4, 2)) == 4


def microbatch(first, rows, width):
    ids = np.full((rows, width), width, np.int32)
    columns = np.zeros(rows, np.int64), np.ones(rows, np.float32), np.arange(first, first + rows)
    return Microbatch(Batch(ids, np.full(rows, width, np.int32)), *columns, step_weight=9.0, slot=first, last=False)


@pytest.mark.parametrize(
    ("max_tokens", "documents"),
    [
        (0, [[0, 1], [2, 3], [4, 5, 6]]),
        (4 * 16 - 1, [[0, 1], [2, 3], [4, 5, 6]]),
        (4 * 16, [[0, 1, 2, 3], [4, 5, 6]]),  # the wider one counts for all rows
        (7 * 24, [[0, 1, 2, 3, 4, 5, 6]]),
    ],
)
def test_microbatches_are_joined_up_to_a_number_of_tokens(max_tokens, documents):
    parts = [microbatch(0, 2, 8), microbatch(2, 2, 16), microbatch(4, 3, 24)]
    together = joined(parts, max_tokens, pad_id=1)
    assert [part.documents.tolist() for part in together] == documents
    for part in together:
        tokens = np.arange(part.batch.input_ids.shape[1]) < part.batch.lengths[:, None]
        assert (part.batch.input_ids[~tokens] == 1).all()
        assert (part.batch.input_ids.max(axis=1) == part.batch.lengths).all()
        assert len(part.labels) == len(part.weights) == len(part.documents)
