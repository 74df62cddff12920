"""The columns of a shard, and the token ids of its texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from detect_ai.corpus.columns import ROW_SCHEMA

if TYPE_CHECKING:
    from detect_ai.models.tokenizer import Tokenizer

_QUARANTINED = ("id", "text", "label", "source", "domain", "generator", "group")
SCHEMA = pa.schema(
    [
        *(ROW_SCHEMA.field(name) for name in (*_QUARANTINED, "language", "attack", "weight")),
        ("input_ids", pa.list_(pa.int32())),
        ("num_tokens", pa.int32()),
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        *map(ROW_SCHEMA.field, _QUARANTINED),
        ("reason", pa.string()),
        ("twin", pa.string()),  # id of the row that it duplicates
    ]
)
BATCH_ROWS = 512  # texts that the tokenizer takes at once: their encodings weigh ten times their token ids


def tokenise(table: pa.Table, tokenizer: Tokenizer) -> pa.Table:
    """Add `input_ids` (whole text, no special tokens) and `num_tokens` to rows with `normalised`."""
    parts = []
    for batch in table.select(["normalised"]).to_batches(max_chunksize=BATCH_ROWS):
        ids = tokenizer.encode(batch.column(0).to_pylist())
        lengths = np.asarray([len(each) for each in ids], dtype=np.int32)
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        values = np.concatenate(ids) if ids else np.empty(0, np.int32)
        parts.append((pa.ListArray.from_arrays(offsets, values), lengths))
    lists = pa.chunked_array([lists for lists, _ in parts], pa.list_(pa.int32()))
    table = table.append_column("input_ids", lists)
    counts = pa.chunked_array([pa.array(lengths) for _, lengths in parts], pa.int32())
    return table.append_column("num_tokens", counts)
