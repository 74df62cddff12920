from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.models.batch import LENGTH_MULTIPLE, attention_mask, collate, lane_tokens, padded_length, plan_scoring

PREFIX, SUFFIX = np.asarray([101, 102], dtype=np.int32), np.asarray([103], dtype=np.int32)
LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=120)


@given(st.lists(st.lists(st.integers(5, 99), max_size=40), min_size=1, max_size=8), st.integers(0, 3))
def test_rows_have_special_tokens_and_padding_after_them(rows, pad_id):
    batch = collate([np.asarray(row, dtype=np.int32) for row in rows], PREFIX, SUFFIX, pad_id)
    assert batch.input_ids.dtype == batch.lengths.dtype == np.int32
    for row, ids, length in zip(rows, batch.input_ids, batch.lengths, strict=True):
        assert ids[:length].tolist() == [101, 102, *row, 103]
        assert (ids[length:] == pad_id).all()
    width = batch.input_ids.shape[1]
    assert width % LENGTH_MULTIPLE == 0
    assert 0 <= width - batch.lengths.max() < LENGTH_MULTIPLE


def test_attention_mask_covers_tokens_only():
    mask = attention_mask(np.asarray([3, 1, 4], np.int32), 4)
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


@given(LENGTHS, st.integers(1, 5000))
def test_scoring_plan_fills_batches_within_budget_longest_first(lengths, budget):
    lengths = np.asarray(lengths, dtype=np.int64)
    planned = plan_scoring(lengths, budget)
    assert sorted(chain.from_iterable(planned)) == list(range(len(lengths)))
    assert (np.diff(lengths[np.concatenate(planned)]) <= 0).all()
    for i, part in enumerate(planned):
        width = padded_length(int(lengths[part].max()))
        assert len(part) == 1 or len(part) * width <= budget
        assert part is planned[-1] or (len(part) + 1) * width > budget, f"batch {i} has room"


def test_threads_share_the_token_budget():
    assert lane_tokens(8192, 4) == 2048
    assert lane_tokens(2048, 8) == 1024  # smaller batches would cost time
    assert lane_tokens(512, 4) == 512
