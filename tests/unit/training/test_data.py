"""What a training run reads of a shard. How it is dealt to ranks: tests/integration/test_training_data.py."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from detect_ai.core.config import Config
from detect_ai.corpus.manifest import ORIGINAL
from detect_ai.training import data
from detect_ai.training.data import Frame
from detect_ai.training.train import training_plan

CONTENT, LENGTHS = 62, [5, 30, 62, 200, 500, 61] * 8
FRAME = Frame(np.asarray([1], np.int32), np.asarray([2], np.int32), 0, CONTENT, 48)


def plan_of(shortest_span):
    config = Config()
    config.train.shortest_span, config.train.microbatch_size = shortest_span, 4
    return training_plan(config)


def read(shortest_span, epoch=0):
    """The tokens that an epoch reads of each document, by its position."""
    documents = [np.arange(100, 100 + length, dtype=np.int32) for length in LENGTHS]
    table = pa.table(
        {
            "input_ids": pa.array([ids.tolist() for ids in documents], pa.list_(pa.int32())),
            "label": [0] * len(LENGTHS),
            "weight": pa.array([1.0] * len(LENGTHS), pa.float32()),
            "attack": [ORIGINAL] * len(LENGTHS),
        }
    )
    pool = {"epoch": epoch, "number": 0, "first": 0, "skip": 0}
    found = {}
    for row in data._training_rows(table, pool, FRAME, plan_of(shortest_span)):
        found |= rows_of(row)
    return [found[i] for i in range(len(LENGTHS))]


def rows_of(row):
    part = data.microbatch(row)
    rows = zip(part.documents.tolist(), part.batch.input_ids, part.batch.lengths, strict=True)
    return {number: ids[:length][1:-1].tolist() for number, ids, length in rows if number >= 0}


def test_spans_of_many_lengths_are_read_where_a_shortest_is_given():
    parts = read(10)
    for length, part in zip(LENGTHS, parts, strict=True):
        assert min(10, length) <= len(part) <= min(CONTENT, length)
        assert part == list(range(part[0], part[0] + len(part)))
    assert len({len(part) for length, part in zip(LENGTHS, parts, strict=True) if length >= CONTENT}) > 5
    assert any((part[0] - 100) % FRAME.stride for part in parts)


def test_whole_windows_are_read_where_none_is_given():
    for length, part in zip(LENGTHS, read(0), strict=True):
        assert len(part) == min(CONTENT, length)


@pytest.mark.parametrize("shortest_span", [0, 10])
def test_another_epoch_reads_other_parts_and_the_same_epoch_the_same(shortest_span):
    assert read(shortest_span) == read(shortest_span)
    assert read(shortest_span) != read(shortest_span, epoch=1)
