"""Input streams of the ranks. Ray Data deals row i to rank i mod W; on a real cluster: test_training_data.py."""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detect_ai.core.config import Config, TrainConfig
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import ORIGINAL
from detect_ai.text.windows import split_windows
from detect_ai.training import data
from detect_ai.training.batch_plan import num_steps
from detect_ai.training.checkpoint import SNAPSHOT
from detect_ai.training.data import StreamDataConfig, WindowFormat
from detect_ai.training.worker import group_steps

FORM = WindowFormat(np.asarray([101], np.int32), np.asarray([102], np.int32), pad_id=0, window=64, stride=48)
CONTENT = 62
ROWS = [40, 39, 41, 2, 1, 17]  # among them fewer rows than ranks, and one row short of a full step


def corpus_table(num_rows, seed=0, lengths=None):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 200, num_rows) if lengths is None else lengths
    return pa.table(
        {
            "input_ids": pa.array([rng.integers(5, 99, n).astype(np.int32) for n in lengths], pa.list_(pa.int32())),
            "label": pa.array(np.arange(num_rows) % 2, pa.int8()),
            "weight": pa.array(rng.choice([0.5, 1.0, 2.0], num_rows), pa.float32()),
            "attack": rng.choice([ORIGINAL, "homoglyph"], num_rows),
        }
    )


def config_of(batch_size=8, microbatch_size=3, shortest_span=0, attack_weight=1.0):
    sizes = {"epochs": 2, "batch_size": batch_size, "microbatch_size": microbatch_size}
    return Config(seed=3, train=TrainConfig(**sizes, shortest_span=shortest_span, attack_weight=attack_weight))


def training_parts(table, num_workers=1, first=0, epoch=0, skip=0, **changes):
    pool = {"number": 0, "first": first, "rows": len(table), "epoch": epoch, "skip": skip}
    return list(data.training_microbatches(table, pool, FORM, config_of(**changes), num_workers))


def steps_of_rank(parts, rank, num_workers):
    return list(group_steps(parts[rank::num_workers], rank, num_workers))


def documents(step):
    return [int(i) for part in step for i in part.documents if i >= 0]


def contents(parts):
    """The tokens read from each document, by its position."""
    return {
        int(document): ids[1 : length - 1].tolist()
        for part in parts
        for document, ids, length in zip(part.documents, part.batch.input_ids, part.batch.lengths, strict=True)
        if document >= 0
    }


@pytest.mark.parametrize("num_rows", ROWS)
def test_steps_hold_the_same_documents_at_any_world_size(num_rows):
    by_workers = {}
    for workers in (1, 2, 3, 5):
        parts = training_parts(corpus_table(num_rows), workers)
        ranks = [steps_of_rank(parts, rank, workers) for rank in range(workers)]
        by_workers[workers] = [sorted(chain.from_iterable(map(documents, step))) for step in zip(*ranks, strict=True)]
    assert by_workers[1] == by_workers[2] == by_workers[3] == by_workers[5]
    assert len(by_workers[1]) == num_steps(num_rows, 8)
    assert sorted(chain.from_iterable(by_workers[1])) == list(range(num_rows))


@pytest.mark.parametrize("workers", [1, 3])
def test_step_weight_is_the_sum_over_all_ranks(workers):
    table = corpus_table(39)
    weights = np.where(np.asarray(table["attack"]) == ORIGINAL, 1, 0.25) * table["weight"].to_numpy()
    parts = training_parts(table, workers, attack_weight=0.25)
    for step in zip(*(steps_of_rank(parts, rank, workers) for rank in range(workers)), strict=True):
        of_step = list(chain.from_iterable(step))
        held = [i for part in step for i in documents(part)]
        assert {part.step_weight for part in of_step} == {float(weights[held].sum())}
        assert sum(float(part.weights.sum()) for part in of_step) == float(weights[held].sum())


def test_skipped_steps_leave_the_rest_unchanged():
    table = corpus_table(40)
    whole, rest = (steps_of_rank(training_parts(table, 2, skip=skip), 0, 2) for skip in (0, 3))
    assert [documents(step) for step in rest] == [documents(step) for step in whole[3:]]
    for left, right in zip(chain.from_iterable(rest), chain.from_iterable(whole[3:]), strict=True):
        assert np.array_equal(left.batch.input_ids, right.batch.input_ids)


def test_empty_microbatches_weigh_nothing():
    empty = [part for part in training_parts(corpus_table(1), 3) if part.documents[0] < 0]
    assert len(empty) == 2
    for part in empty:
        assert part.batch.input_ids.tolist() == [[101, 102, 0, 0, 0, 0, 0, 0]]
        assert (part.batch.lengths.tolist(), part.labels.tolist(), part.weights.tolist()) == ([2], [0], [0.0])


def test_microbatches_carry_tokens_labels_and_weights():
    table = corpus_table(23)
    ids, labels, weights = (table[name].to_pylist() for name in ("input_ids", "label", "weight"))
    for part in training_parts(table, 2, first=100, epoch=1):
        real = part.documents >= 0
        assert part.labels[real].tolist() == [labels[i] for i in part.documents[real] - 100]
        assert part.weights[real].tolist() == [weights[i] for i in part.documents[real] - 100]
        for document, content in contents([part]).items():
            whole = ids[document - 100]
            assert len(content) == min(CONTENT, len(whole))
            assert any(whole[i : i + len(content)] == content for i in range(len(whole) - len(content) + 1))


def test_batches_are_planned_by_lengths_with_special_tokens():
    """Rows of 6 and 7 tokens are padded to 8 and 16 with two special tokens."""
    parts = training_parts(corpus_table(16, lengths=[6] * 8 + [7] * 8), microbatch_size=8)
    assert sorted(part.batch.input_ids.shape for part in parts) == [(8, 8), (8, 16)]


@pytest.mark.parametrize("shortest_span", [0, 10])
def test_epochs_read_different_parts_reproducibly(shortest_span):
    table = corpus_table(40)
    read = [contents(training_parts(table, epoch=epoch, shortest_span=shortest_span)) for epoch in (0, 0, 1)]
    assert read[0] == read[1] != read[2]


def test_shortest_span_samples_spans_of_many_lengths():
    lengths = [5, 30, 62, 200, 500, 61] * 8
    parts = contents(training_parts(corpus_table(48, lengths=lengths), shortest_span=10))
    for document, length in enumerate(lengths):
        assert min(10, length) <= len(parts[document]) <= min(CONTENT, length)
    assert len({len(parts[i]) for i, length in enumerate(lengths) if length >= CONTENT}) > 5


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("num_rows", ROWS)
def test_scoring_reads_every_window_once(num_rows, workers):
    table = corpus_table(num_rows)
    pool = {"number": 0, "first": 0, "rows": num_rows}
    parts = list(data.scoring_microbatches(table, pool, FORM, workers, 512))
    assert len(parts) % workers == 0
    read = sorted(
        (int(document), tokens[1 : length - 1].tolist())
        for part in parts
        for tokens, length, document in zip(part.batch.input_ids, part.batch.lengths, part.documents, strict=True)
        if document >= 0
    )
    ids = [np.asarray(row, np.int32) for row in table["input_ids"].to_pylist()]
    rows, owners = split_windows(ids, CONTENT, FORM.stride)
    assert read == sorted((int(owner), row.tolist()) for row, owner in zip(rows, owners, strict=True))
    assert all(part.batch.input_ids.size <= 512 for part in parts)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_chunked_and_sliced_tables_keep_their_rows(sizes):
    joined = pa.concat_tables([corpus_table(size, seed) for seed, size in enumerate(sizes)])
    for table in (joined, joined.slice(1)):
        assert [ids.tolist() for ids in data._token_ids(table)] == table["input_ids"].to_pylist()


class FakeCorpus:
    """A corpus of three shards; like a real one it knows their keys and rows."""

    def __init__(self, storage):
        self.storage = storage

    def shards(self, split):
        return [type("Shard", (), {"rows": rows})() for rows in (3, 5, 2)]

    def shard_key(self, shard):
        return str(shard.rows)


def test_pools_after_a_step_cover_the_remaining_steps():
    config, corpus = config_of(batch_size=2, microbatch_size=1), FakeCorpus(None)
    total = data.steps_per_epoch(corpus, 2)
    assert total == 2 + 3 + 1
    for start in range(2 * total + 1):
        pools = data.training_pools(corpus, config, start)
        assert sum(num_steps(pool["rows"], 2) - pool["skip"] for pool in pools) == 2 * total - start
    whole = [(pool["key"], pool["number"], pool["first"]) for pool in data.training_pools(corpus, config, 0)]
    assert sorted(whole[:3]) == sorted(whole[3:]) == [("2", 2, 8), ("3", 0, 0), ("5", 1, 3)]


def test_stream_starts_at_the_last_registered_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    storage, starts = Storage(str(tmp_path)), []
    plan = SimpleNamespace(dataset=lambda: None)
    monkeypatch.setattr(data, "training_plan", lambda *arguments: starts.append(arguments[3:]) or plan)
    monkeypatch.setattr(data.DataConfig, "configure", lambda *_: None)
    streams = StreamDataConfig(FakeCorpus(storage), FORM, config_of(), "runs/a/train-1")
    streams.configure({"train": None}, 2)
    latest = {"checkpoint_dir_name": "checkpoint_1", "metrics": {"step": 6, "auroc": -1.0}}
    storage.write_json(f"runs/a/train-1/{SNAPSHOT}", {"latest_checkpoint_result": latest})
    streams.configure({"train": None}, 3)
    assert starts == [(2, 0), (3, 6)]


def test_microbatches_are_made_ahead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "AHEAD", 2)
    made = []

    def read(pool):
        for i in range(pool["rows"]):
            made.append(i)
            yield i

    stream = data.Plan([{"rows": 2}, {"rows": 3}], read, 1).microbatches()
    assert next(stream) == 0
    time.sleep(0.1)
    assert made == [0, 1, 0]
    assert list(stream) == [1, 0, 1, 2]


def test_a_stream_that_is_left_reads_no_further(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "AHEAD", 100)
    made = []

    def read(pool):
        for i in range(1000):
            time.sleep(0.01)
            made.append(i)
            yield i

    stream = data.Plan([{}], read, 1).microbatches()
    next(stream)
    stream.close()
    assert len(made) < 10


def test_an_error_while_reading_ends_the_stream():
    def read(pool):
        yield 0
        raise OSError("the bucket does not answer")

    with pytest.raises(OSError, match="does not answer"):
        list(data.Plan([{}], read, 1).microbatches())
