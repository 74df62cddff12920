from itertools import chain, pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detect_ai.corpus.manifest import ORIGINAL
from detect_ai.models.batch import (
    LENGTH_MULTIPLE,
    attention_mask,
    collate,
    length_multiple,
    num_steps,
    padded_length,
    plan_scoring,
    plan_steps,
)
from detect_ai.text import windows
from detect_ai.training import data
from detect_ai.training.data import Frame, TrainingPlan, microbatch

LENGTHS = st.lists(st.integers(0, 600), max_size=120)
SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))
PREFIX, SUFFIX = np.asarray([101], dtype=np.int32), np.asarray([102], dtype=np.int32)
FRAME = Frame(PREFIX, SUFFIX, pad_id=0, content=62, stride=48)


def steps(lengths, sizes, seed=0, labels=None):
    lengths = np.asarray(lengths, dtype=np.int64)
    labels = np.arange(len(lengths)) % 2 if labels is None else labels
    return plan_steps(lengths, labels, *sizes, np.random.default_rng(seed))


def realistic_labels(n=2000, ai=0.5, seed=2):
    """Labels in random order."""
    return (np.random.default_rng(seed).random(n) < ai).astype(int)


def realistic_lengths(labels=None, longest=510, seed=1):
    """Lengths of one window each of news stories and essays: lognormal, cut at the window; AI texts vary less."""
    labels = realistic_labels() if labels is None else labels
    rng = np.random.default_rng(seed)
    lengths = np.where(labels, rng.lognormal(5.5, 0.35, len(labels)), rng.lognormal(5.2, 0.6, len(labels)))
    return np.minimum(lengths.astype(int) + 20, longest)


# The plan of a training epoch


@given(LENGTHS, SIZES, st.integers(0, 5))
def test_every_document_stands_in_exactly_one_microbatch(lengths, sizes, seed):
    planned = chain.from_iterable(chain.from_iterable(steps(lengths, sizes, seed)))
    assert sorted(planned) == list(range(len(lengths)))


@given(LENGTHS, SIZES)
def test_there_are_as_many_steps_as_the_rows_need_and_they_differ_by_at_most_one_row(lengths, sizes):
    found = [sum(map(len, step)) for step in steps(lengths, sizes)]
    assert len(found) == num_steps(len(lengths), sizes[0])
    assert max(found, default=0) <= sizes[0]
    assert max(found, default=0) - min(found, default=0) <= 1


@given(LENGTHS, SIZES)
def test_the_microbatches_of_a_step_keep_to_their_size_and_differ_by_at_most_one_row(lengths, sizes):
    for step in steps(lengths, sizes):
        found = list(map(len, step))
        assert max(found) <= sizes[1]
        assert min(found) >= 1
        assert max(found) - min(found) <= 1


@given(LENGTHS, SIZES, st.integers(0, 5))
def test_the_plan_is_a_function_of_lengths_and_seed_alone(lengths, sizes, seed):
    first, second = (steps(lengths, sizes, seed) for _ in range(2))
    assert [[part.tolist() for part in step] for step in first] == [[part.tolist() for part in step] for step in second]


def test_another_seed_makes_other_steps_in_another_order():
    lengths = realistic_lengths(realistic_labels(200))
    first, second = ([set(np.concatenate(step)) for step in steps(lengths, (16, 8), seed)] for seed in (0, 1))
    assert first != second
    assert {frozenset(step) for step in first} != {frozenset(step) for step in second}


def test_steps_come_in_random_order_and_not_by_length():
    means = [realistic_lengths()[np.concatenate(step)].mean() for step in steps(realistic_lengths(), (16, 8))]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@given(LENGTHS, SIZES)
def test_the_microbatches_of_a_step_come_by_length_and_never_interleave(lengths, sizes):
    padded = padded_length(np.asarray(lengths, dtype=np.int64))
    for step in steps(lengths, sizes):
        assert all(padded[left].max() <= padded[right].min() for left, right in pairwise(step))


@given(LENGTHS, SIZES)
def test_within_a_class_the_lengths_of_two_steps_never_interleave(lengths, sizes):
    padded, labels = padded_length(np.asarray(lengths, dtype=np.int64)), np.arange(len(lengths)) % 2
    for label in (0, 1):
        chosen = [positions[labels[positions] == label] for positions in map(np.concatenate, steps(lengths, sizes))]
        ranges = sorted((padded[part].min(), padded[part].max()) for part in chosen if len(part))
        assert all(left[1] <= right[0] for left, right in pairwise(ranges))


@pytest.mark.parametrize("ai", [0.5, 0.1])
def test_every_step_has_the_share_of_classes_of_its_pool(ai):
    """Steps of like length alone would be steps of one class wherever the classes differ in length."""
    labels = realistic_labels(ai=ai)
    counts = [labels[np.concatenate(step)].sum() for step in steps(realistic_lengths(labels), (16, 8), labels=labels)]
    assert max(counts) - min(counts) <= 2


def spans_of_random_length():
    documents = [np.zeros(300, np.int32)] * 4096
    return np.asarray([len(row) + 2 for row in windows.sample_span(documents, 126, 32, np.random.default_rng(0))])


@pytest.mark.parametrize("sizes", [(16, 4), (16, 8), (64, 16)])
@pytest.mark.parametrize("lengths", [realistic_lengths(), spans_of_random_length()], ids=["documents", "spans"])
def test_padding_is_at_most_five_percent(lengths, sizes):
    used = padded = 0
    for part in chain.from_iterable(steps(lengths, sizes, labels=realistic_labels(len(lengths)))):
        rows = [np.zeros(lengths[i] - len(PREFIX) - len(SUFFIX), np.int32) for i in part]
        batch = collate(rows, PREFIX, SUFFIX, 0)
        used += batch.lengths.sum()
        padded += batch.input_ids.size
    assert used == lengths.sum()
    assert 1 - used / padded <= 0.05


def test_a_pool_is_planned_by_lengths_with_special_tokens():
    """Rows of 6 and 7 tokens are padded to 8 and 16 when two special tokens frame them."""
    lengths = [6] * 8 + [7] * 8
    table = pa.table(
        {
            "input_ids": pa.array([[9] * n for n in lengths], pa.list_(pa.int32())),
            "label": pa.array([0, 1] * 8, pa.int8()),
            "weight": pa.array([1.0] * 16, pa.float32()),
            "attack": [ORIGINAL] * 16,
        }
    )
    widths = sorted(row.batch.input_ids.shape for row in training_rows(table, 1, sizes=(8, 8)))
    assert widths == [(8, 8), (8, 16)]


# The plan of scoring


@given(st.lists(st.integers(1, 600), max_size=120), st.integers(1, 5000))
def test_scoring_reads_every_window_once_within_its_budget_of_padded_tokens(lengths, budget):
    lengths = np.asarray(lengths, dtype=np.int64)
    planned = plan_scoring(lengths, budget)
    assert sorted(chain.from_iterable(planned)) == list(range(len(lengths)))
    for part in planned:
        assert len(part) == 1 or len(part) * padded_length(int(lengths[part].max())) <= budget


@given(st.lists(st.integers(1, 600), min_size=1, max_size=120), st.integers(1, 5000))
def test_the_longest_windows_are_scored_first(lengths, budget):
    lengths = np.asarray(lengths, dtype=np.int64)
    in_order = lengths[np.concatenate(plan_scoring(lengths, budget))]
    assert (np.diff(in_order) <= 0).all()


@given(st.lists(st.integers(1, 600), min_size=2, max_size=120), st.integers(1, 5000))
def test_no_scoring_batch_has_room_for_the_next_window(lengths, budget):
    lengths = np.asarray(lengths, dtype=np.int64)
    for part in plan_scoring(lengths, budget)[:-1]:
        assert (len(part) + 1) * padded_length(int(lengths[part].max())) > budget


# Framing and padding


@given(st.lists(st.lists(st.integers(5, 99), max_size=40), min_size=1, max_size=8), st.integers(0, 3))
def test_a_batch_holds_each_row_framed_by_special_tokens_and_nothing_but_padding_after_it(rows, pad_id):
    batch = collate([np.asarray(row, dtype=np.int32) for row in rows], PREFIX, SUFFIX, pad_id)
    assert batch.input_ids.dtype == batch.lengths.dtype == np.int32
    for row, ids, length in zip(rows, batch.input_ids, batch.lengths, strict=True):
        assert ids[:length].tolist() == [101, *row, 102]
        assert (ids[length:] == pad_id).all()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_a_batch_is_as_wide_as_its_longest_row_rounded_up(lengths):
    batch = collate([np.zeros(length, np.int32) for length in lengths], PREFIX, SUFFIX, 0)
    width = batch.input_ids.shape[1]
    assert width % LENGTH_MULTIPLE == 0
    assert 0 <= width - (max(lengths) + 2) < LENGTH_MULTIPLE


def test_several_special_tokens_frame_a_row():
    prefix, suffix = np.asarray([1, 2], np.int32), np.asarray([3, 4], np.int32)
    batch = collate([np.asarray([7], np.int32)], prefix, suffix, 9)
    assert batch.input_ids.tolist() == [[1, 2, 7, 3, 4, 9, 9, 9]]


def test_the_attention_mask_covers_tokens_and_no_padding():
    mask = attention_mask(np.asarray([3, 1, 4], np.int32), 4)
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


# What the ranks get. Ray Data deals row i to rank i mod W.


def corpus_table(num_rows, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 200, num_rows)
    return pa.table(
        {
            "input_ids": pa.array([rng.integers(5, 99, n).astype(np.int32) for n in lengths], pa.list_(pa.int32())),
            "label": pa.array(np.arange(num_rows) % 2, pa.int8()),
            "weight": pa.array(rng.choice([0.5, 1.0, 2.0], num_rows), pa.float32()),
            "attack": rng.choice([ORIGINAL, "homoglyph"], num_rows),
        }
    )


def training_rows(table, num_workers, first=0, epoch=0, seed=3, sizes=(8, 3), skip=0, **settings):
    plan = TrainingPlan(*sizes, epochs=2, seed=seed, num_workers=num_workers, **settings)
    pool = {"number": 0, "first": first, "rows": len(table), "epoch": epoch, "skip": skip}
    return [microbatch(row) for row in data._training_rows(table, pool, FRAME, plan)]


def steps_of_rank(rows, rank, num_workers):
    """The steps of one rank, each a list of microbatches."""
    found, step = [], []
    for row in rows[rank::num_workers]:
        step.append(row)
        if row.last:
            found.append(step)
            step = []
    assert not step
    return found


def documents(step):
    return [int(i) for part in step for i in part.documents if i >= 0]


def test_what_is_left_of_a_pool_are_its_last_steps():
    table = corpus_table(40)
    whole = steps_of_rank(training_rows(table, 2), 0, 2)
    rest = steps_of_rank(training_rows(table, 2, skip=3), 0, 2)
    assert [documents(step) for step in rest] == [documents(step) for step in whole[3:]]
    for left, right in zip(rest, whole[3:], strict=True):
        for found, expected in zip(left, right, strict=True):
            assert np.array_equal(found.batch.input_ids, expected.batch.input_ids)


def test_class_weights_count_in_the_rows_and_in_their_step():
    table = corpus_table(16)
    plain = training_rows(table, 1)
    for before, after in zip(plain, training_rows(table, 1, class_weights=(2.0, 0.5)), strict=True):
        np.testing.assert_allclose(after.weights, before.weights * np.where(before.labels == 0, 2.0, 0.5))
    rows = training_rows(table, 2, class_weights=(2.0, 0.5))
    for left, right in zip(steps_of_rank(rows, 0, 2), steps_of_rank(rows, 1, 2), strict=True):
        assert left[0].step_weight == pytest.approx(sum(part.weights.sum() for part in left + right))


def test_changed_copies_weigh_what_they_are_given():
    table = corpus_table(16)
    changed = np.asarray(table["attack"].to_pylist()) != ORIGINAL
    assert 0 < changed.sum() < 16
    for before, after in zip(training_rows(table, 1), training_rows(table, 1, attack_weight=0.25), strict=True):
        np.testing.assert_allclose(after.weights, before.weights * np.where(changed[before.documents], 0.25, 1.0))


# One row short of a full step, fewer rows than ranks, one row, a full pool.
ROWS = [40, 39, 41, 2, 1, 17]


@pytest.mark.parametrize("num_rows", ROWS)
def test_a_step_holds_the_same_documents_at_any_number_of_workers(num_rows):
    table = corpus_table(num_rows)
    found = {}
    for workers in (1, 2, 3):
        rows = training_rows(table, workers)
        ranks = [steps_of_rank(rows, rank, workers) for rank in range(workers)]
        found[workers] = [sorted(chain.from_iterable(map(documents, step))) for step in zip(*ranks, strict=True)]
    assert found[1] == found[2] == found[3]
    assert sorted(chain.from_iterable(found[1])) == list(range(num_rows))


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_every_rank_gets_the_same_number_of_microbatches_and_ends_its_steps_with_the_others(num_rows, workers):
    rows = training_rows(corpus_table(num_rows), workers)
    last = [[row.last for row in rows[rank::workers]] for rank in range(workers)]
    assert all(flags == last[0] for flags in last)
    assert sum(last[0]) == num_steps(num_rows, 8)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_weight_of_a_step_is_that_of_all_its_documents_on_all_ranks(workers):
    table = corpus_table(39)
    weights = table["weight"].to_numpy()
    rows = training_rows(table, workers)
    for step in zip(*(steps_of_rank(rows, rank, workers) for rank in range(workers)), strict=True):
        parts = list(chain.from_iterable(step))
        held = [i for part in step for i in documents(part)]
        assert {part.step_weight for part in parts} == {float(weights[held].sum())}
        assert sum(float(part.weights.sum()) for part in parts) == float(weights[held].sum())


def test_an_empty_microbatch_is_a_row_of_special_tokens_that_weighs_nothing():
    empty = [row for row in training_rows(corpus_table(1), 3) if row.documents[0] < 0]
    assert len(empty) == 2
    for row in empty:
        assert row.batch.input_ids.tolist() == [[101, 102, 0, 0, 0, 0, 0, 0]]
        assert (row.batch.lengths.tolist(), row.labels.tolist(), row.weights.tolist()) == ([2], [0], [0.0])
        assert row.weights.dtype == np.float32


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 64), st.integers(16, 600))
def test_so_many_padded_lengths_are_all_that_there_are_and_none_is_wider_than_a_window(lengths, window):
    frame = Frame(FRAME.prefix, FRAME.suffix, 0, window - 2, window - 2)
    multiple = length_multiple(lengths, window)
    widths = set()
    for tokens in range(window - 1):
        row = data._row([np.zeros(tokens, np.int32)], frame, multiple)
        (width,) = {len(ids) for ids in row["input_ids"].to_pylist()}
        assert tokens + 2 <= width <= padded_length(window)
        widths.add(width)
    assert len(widths) <= lengths
    assert length_multiple(0, window) == 8


def test_a_plan_of_few_lengths_pads_to_them():
    table = corpus_table(40)
    widths = {row.batch.input_ids.shape[1] for row in training_rows(table, 1, multiple=16)}
    assert len(widths) > 2
    assert all(width % 16 == 0 or width == FRAME.widest for width in widths)
    assert any(row.batch.input_ids.shape[1] % 16 for row in training_rows(table, 1))


def test_a_microbatch_carries_the_tokens_labels_and_weights_of_its_documents():
    table = corpus_table(23)
    ids, labels = table["input_ids"].to_pylist(), table["label"].to_pylist()
    weights = table["weight"].to_pylist()
    for row in training_rows(table, 2, first=100, epoch=1):
        if row.documents[0] < 0:
            continue
        assert row.epoch == 1
        for tokens, length, document, label, weight in zip(
            row.batch.input_ids, row.batch.lengths, row.documents - 100, row.labels, row.weights, strict=True
        ):
            content = tokens[1 : length - 1].tolist()
            starts = range(len(ids[document]) - len(content) + 1)
            assert any(ids[document][i : i + len(content)] == content for i in starts)
            assert len(content) == min(FRAME.content, len(ids[document]))
            assert (label, weight) == (labels[document], weights[document])


def test_each_epoch_reads_other_windows_in_other_steps_and_the_same_epoch_the_same():
    table = corpus_table(40)
    first, again, other = (
        [row.batch.input_ids.tobytes() for row in training_rows(table, 2, epoch=epoch)] for epoch in (0, 0, 1)
    )
    assert first == again
    assert len(set(first) & set(other)) < len(first) / 4  # a class of few lengths makes the same microbatch again


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("num_rows", ROWS)
def test_scoring_reads_every_window_of_every_document_once_and_equally_often_on_all_ranks(num_rows, workers):
    table = corpus_table(num_rows)
    pool = {"number": 0, "first": 0, "rows": num_rows}
    rows = [microbatch(row) for row in data._scoring_rows(table, pool, FRAME, workers, 512)]
    assert len(rows) % workers == 0
    read = sorted(
        (int(document), tokens[1 : length - 1].tolist())
        for row in rows
        for tokens, length, document in zip(row.batch.input_ids, row.batch.lengths, row.documents, strict=True)
        if document >= 0
    )
    cut, owners = data.windows.split_windows(data._token_ids(table), FRAME.content, FRAME.stride)
    assert read == sorted((int(owner), ids.tolist()) for ids, owner in zip(cut, owners, strict=True))
    assert all(row.batch.input_ids.size <= 512 for row in rows)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_ids_of_a_table_in_several_chunks_are_those_of_its_rows(sizes):
    parts = [corpus_table(size, seed) for seed, size in enumerate(sizes)]
    joined = pa.concat_tables(parts)
    assert [ids.tolist() for ids in data._token_ids(joined)] == joined["input_ids"].to_pylist()
    assert [ids.tolist() for ids in data._token_ids(joined.slice(1))] == joined["input_ids"].to_pylist()[1:]


def test_like_lengths_meet_on_the_ranks_of_a_step():
    """Ranks that wait for each other lose at most 3% where a step has two microbatches or more for each."""
    labels = realistic_labels()
    lengths = realistic_lengths(labels)
    for step in (planned := steps(lengths, (16, 4), labels=labels)):
        assert len(step) == 4
    sizes = np.asarray([[len(part) * padded_length(lengths[part].max()) for part in step] for step in planned])
    assert sizes.reshape(-1, 2).max(axis=1).sum() * 2 <= 1.03 * sizes.sum()


def test_the_shards_of_a_corpus_are_pools_with_the_positions_of_their_rows():
    shards = [type("Shard", (), {"rows": rows})() for rows in (3, 5, 2)]
    corpus = type("Corpus", (), {"shards": lambda _, split: shards, "shard_key": lambda _, shard: str(shard.rows)})()
    found = data._pools(corpus, "train")
    assert [(pool["key"], pool["number"], pool["first"], pool["rows"]) for pool in found] == [
        ("3", 0, 0, 3),
        ("5", 1, 3, 5),
        ("2", 2, 8, 2),
    ]
