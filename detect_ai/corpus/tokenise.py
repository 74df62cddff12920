"""Tokenise normalised texts and write them as shards."""

from __future__ import annotations

import hashlib
import io
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detect_ai.config import ModelConfig
from detect_ai.model import load_tokenizer
from detect_ai.storage import Storage
from detect_ai.tokenizer import Tokenizer

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("label", pa.int8()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("generator", pa.string()),
        ("group", pa.string()),
        ("language", pa.string()),
        ("attack", pa.string()),
        ("weight", pa.float32()),
        ("input_ids", pa.list_(pa.int32())),
        ("num_tokens", pa.int32()),
    ]
)


def tokenise(table: pa.Table, model: ModelConfig) -> pa.Table:
    """Add `input_ids` (whole text, no special tokens) and `num_tokens` to rows with `normalised`."""
    ids = _tokenizer(model.path, model.revision, model.sha256).encode(table["normalised"].to_pylist())
    lists = pa.array(ids, type=pa.list_(pa.int32()))
    table = table.append_column("input_ids", lists)
    return table.append_column("num_tokens", pa.array([len(i) for i in ids], pa.int32()))


@cache
def _tokenizer(path: str, revision: str, sha256: str) -> Tokenizer:
    """One tokenizer for a worker process: loading it for every batch would cost more than the batch."""
    return load_tokenizer(ModelConfig(path=path, revision=revision, sha256=sha256))


def write_shard(table: pa.Table, storage_root: str, key: str) -> pa.Table:
    """Write all rows of one shard in their order, and say what was written: split, name, rows, sha256."""
    table = _one_per_position(table)
    split, number = table["split"][0].as_py(), table["shard"][0].as_py()
    name = f"{number:05d}.parquet"
    data = _parquet(table)
    Storage(storage_root).write_bytes(f"{key}/{split}/{name}", data)
    digest = hashlib.sha256(data).hexdigest()
    return pa.table({"split": [split], "name": [name], "rows": [len(table)], "sha256": [digest]})


def _one_per_position(table: pa.Table) -> pa.Table:
    """Sort by position and keep the first of rows with one id and one normalised text: they share their place."""
    table = table.sort_by([("position", "ascending"), ("text", "ascending")])
    positions = table["position"].to_numpy()
    return table.filter(pa.array(np.r_[True, positions[1:] != positions[:-1]]))


def _parquet(table: pa.Table) -> bytes:
    constant: dict[str, Any] = {"attack": "none", "weight": 1.0}
    for name, value in constant.items():
        table = table.append_column(name, pa.array([value] * len(table), SCHEMA.field(name).type))
    sink = io.BytesIO()
    pq.write_table(table.select(SCHEMA.names).cast(SCHEMA), sink, compression="zstd")
    return sink.getvalue()
