"""The two passes of `prepare` over its texts with Ray Data: scan sources to scratch files, then write shards.

The first pass reads and cleans the rows, computes their signatures and writes them to scratch files in the corpus's
order; the driver keeps an index of numbers and names. The second pass reads the rows of each shard from the scratch
files and tokenises them. The full corpus is never in memory.
"""

from __future__ import annotations

import hashlib
import pickle
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detect_ai.core.config import SPLITS, Config, CorpusConfig
from detect_ai.core.errors import CorpusError, DetectAIError, unwrap_ray_error
from detect_ai.core.storage import Storage, parquet
from detect_ai.corpus.augment import add_augmented_rows, attack_copies
from detect_ai.corpus.cleaning import clean
from detect_ai.corpus.columns import ROW_SCHEMA
from detect_ai.corpus.dedup import NUM_PERM
from detect_ai.corpus.manifest import QUARANTINE, Shard
from detect_ai.corpus.sources import Piece, list_pieces, read_piece
from detect_ai.corpus.splits import Rows, shuffle_key
from detect_ai.models.tokenizer import Tokenizer

SHARD_ROWS = 4096
ROW_GROUP = 128  # rows: the unit that the second pass reads
TASK_BYTES = 8 << 20  # one task reads several small files up to this total size
MIN_SCRATCH_ROWS, MAX_SCRATCH_ROWS = 4_096, 131_072
SCRATCH_FILES = 64  # target: with more files, a shard needs fewer rows of each row group
TOKENIZE_ROWS = 512  # texts per tokenizer call: their encodings take ten times the memory of their token ids
_ROW_BYTES = 2_000
_CATEGORIES = ("source", "domain", "generator", "group", "language", "split", "attack", "problem")
_DESCRIBED = ("id", "text", "label", "source", "domain", "generator", "group")
_SCRATCH = (*_DESCRIBED, "normalised", "language", "attack", "num_words")
SCHEMA = pa.schema(
    [
        *(ROW_SCHEMA.field(name) for name in (*_DESCRIBED, "language", "attack", "weight")),
        ("input_ids", pa.list_(pa.int32())),
        ("num_tokens", pa.int32()),
    ]
)
# `duplicate_of`: id of the original of a duplicate.
QUARANTINE_SCHEMA = pa.schema(
    [*map(ROW_SCHEMA.field, _DESCRIBED), ("reason", pa.string()), ("duplicate_of", pa.string())]
)


@contextmanager
def reraise_own_errors() -> Iterator[None]:
    """Raise a worker's DetectAIError without Ray's wrappers and the advice that Ray appends."""
    try:
        yield
    except Exception as error:
        cause = unwrap_ray_error(error)
        if isinstance(cause, DetectAIError):
            raise type(cause)(str(cause).split("\n")[0]) from error
        raise


# The first pass


@dataclass(frozen=True)
class Scan:
    """Every row of the sources, in the corpus's order.

    The columns of the index are `file` and `row` (position of the row), `order` (uint64, drawn from the seed), `id`,
    `digest`, `label` (-1: none), `num_words`, `weight`, `against` (the row belongs to an evaluation set, not to the
    corpus), `arrival` (its position in the signatures), and names as categories.
    """

    files: list[str]  # keys of the scratch files
    index: pd.DataFrame
    signatures: NDArray[np.uint32]  # MinHash, by arrival, shape (rows, NUM_PERM), mapped from a file


@contextmanager
def scan_sources(corpus: CorpusConfig, seed: int, storage: Storage, key: str, folder: Path) -> Iterator[Scan]:
    """Scan the sources of a corpus. The scratch files are under `key` and are deleted when the context ends.

    Every node must reach `storage`; `folder` is local and holds the signatures. Raises CorpusError if a source is
    missing, empty or malformed, lacks a column or has an unknown label.
    """
    tables, path = [], folder / "signatures"
    try:
        with path.open("wb") as file, reraise_own_errors():
            for table in _scanned_rows(corpus, seed, storage, key):
                for chunk in table["signature"].chunks:
                    file.write(chunk.flatten().to_numpy().astype(np.uint32, copy=False).tobytes())
                # Copy, because the original table keeps its whole block in Ray's object store.
                tables.append(table.drop(["signature"]).take(pa.array(np.arange(len(table)))))
        if not tables:
            raise CorpusError("the sources contain no rows: expected texts with labels")
        index = pa.concat_tables(tables).to_pandas(categories=[*_CATEGORIES, "file"])
        index["label"] = index["label"].fillna(-1).astype(np.int8)
        index["arrival"] = np.arange(len(index))
        files = index["file"].cat.categories.tolist()
        index["file"] = index["file"].cat.codes.astype(np.int32)
        index = index.sort_values(["order", "id"], kind="stable", ignore_index=True)
        yield Scan(files, index, np.memmap(path, np.uint32, "r", shape=(len(index), NUM_PERM)))
    finally:
        storage.delete(key)


def _scanned_rows(corpus: CorpusConfig, seed: int, storage: Storage, key: str) -> Iterator[pa.Table]:
    import ray

    tasks, size = _tasks(corpus)
    file_rows = int(np.clip(size // (SCRATCH_FILES * _ROW_BYTES), MIN_SCRATCH_ROWS, MAX_SCRATCH_ROWS))

    def scan(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for table in _gathered(pickle.loads(batch["item"][0]), file_rows):  # noqa: S301 - pickled by `_scanned_rows`
            yield _write_scratch_file(table, corpus, seed, storage.root, key)

    # One operator: with two, reading would fill the object store faster than cleaning empties it.
    rows = ray.data.from_items([pickle.dumps(task) for task in tasks], override_num_blocks=len(tasks)).map_batches(
        scan, batch_size=1, num_cpus=1, compute=ray.data.TaskPoolStrategy(size=corpus.workers)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")  # small corpora need fewer
        yield from rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _tasks(corpus: CorpusConfig) -> tuple[list[list[tuple[Piece, bool]]], int]:
    """Inputs of the tasks, each a large file or many small ones, as (piece, is evaluation set); and the total bytes."""
    pieces = [(piece, False) for source in corpus.sources for piece in list_pieces(source)]
    pieces += [(piece, True) for source in corpus.against for piece in list_pieces(source, unlabelled=True)]
    tasks: list[list[tuple[Piece, bool]]] = []
    room = 0
    for piece, against in pieces:
        if not tasks or piece.size > room:
            tasks.append([])
            room = TASK_BYTES
        tasks[-1].append((piece, against))
        room -= piece.size
    return tasks, sum(piece.size for piece, _ in pieces)


def _gathered(task: list[tuple[Piece, bool]], num_rows: int) -> Iterator[pa.Table]:
    """The rows of several pieces as tables of about `num_rows` rows, with the column `against`."""
    waiting: list[pa.Table] = []
    for piece, against in task:
        for table in read_piece(piece):
            waiting.append(table.append_column("against", pa.array([against] * len(table))))
            if sum(map(len, waiting)) >= num_rows:
                yield pa.concat_tables(waiting)
                waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _write_scratch_file(table: pa.Table, corpus: CorpusConfig, seed: int, root: str, key: str) -> pa.Table:
    """Clean rows and write them, sorted by `order`, to a scratch file. Returns the columns of the index."""
    table = clean(table, corpus)
    names = zip(table["id"].to_pylist(), table["digest"].to_pylist(), strict=True)
    order = np.asarray([shuffle_key(seed, f"{name}\0{digest}") for name, digest in names], np.uint64)
    table = table.append_column("order", pa.array(order)).take(pa.array(np.argsort(order, kind="stable")))
    name, storage = f"{key}/{uuid.uuid4().hex}.parquet", Storage(root)
    storage.filesystem.create_dir(storage.path(key), recursive=True)
    options = {"row_group_size": ROW_GROUP, "compression": "zstd", "compression_level": 1, "write_statistics": False}
    pq.write_table(table.select(_SCRATCH), storage.path(name), filesystem=storage.filesystem, **options)
    table = table.drop(["text", "normalised"]).append_column("row", pa.array(np.arange(len(table), dtype=np.int32)))
    return table.append_column("file", pa.array([name] * len(table), pa.string()))


# The second pass


@dataclass(frozen=True)
class ShardPlan:
    """One shard before it is written."""

    split: str  # one of `SPLITS`, or the quarantine
    number: int  # counted from 0 within the split
    # `file` and `row` of each row, in the shard's order, with `weight` and `copy` (the attack on a copy, or ""), or in
    # the quarantine with `reason` and `duplicate_of`. The data frame's index is the position in the scan.
    rows: pd.DataFrame


def plan_shards(rows: Rows, config: Config) -> list[ShardPlan]:
    """The shards of all splits and of the quarantine."""
    plans, size = [], SHARD_ROWS
    places = rows.index[["file", "row"]].astype(np.int32)
    for position, name in enumerate(SPLITS):
        members = np.flatnonzero(rows.stays & (rows.split == position))
        for number, start in enumerate(range(0, len(members), size)):
            part = members[start : start + size]
            attacks = [""] * len(part)
            if name == "train":
                part, attacks = add_augmented_rows(part, rows.index, config.corpus, config.seed)
            plans.append(ShardPlan(name, number, places.iloc[part].assign(weight=rows.weight[part], copy=attacks)))
    ids = np.append(rows.index["id"].to_numpy(object), "")  # the last one is for -1, no row
    dropped = places.assign(reason=rows.reason, duplicate_of=ids[rows.duplicate_of])
    dropped = dropped[~rows.stays & ~rows.against]
    for number, start in enumerate(range(0, len(dropped), size)):
        plans.append(ShardPlan(QUARANTINE, number, dropped[start : start + size]))
    return plans


def write_shards(
    plans: Sequence[ShardPlan], files: Sequence[str], tokenizer: Tokenizer, workers: int, root: str, key: str
) -> list[Shard]:
    """Write every shard of the corpus `key` from the scratch files with at most `workers` actors."""
    import ray

    with reraise_own_errors():
        written = (
            ray.data.from_items([pickle.dumps(plan) for plan in plans], override_num_blocks=len(plans))
            .map_batches(
                ShardWriter,
                batch_size=1,
                num_cpus=1,
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(plans))),
                # The driver loads the tokenizer: loading it imports torch, which takes seconds in every actor.
                fn_constructor_args=(tokenizer, list(files), root, key),
            )
            .take_all()
        )
    return sorted((Shard(**row) for row in written), key=lambda shard: (shard.split, shard.name))


class ShardWriter:
    """An actor that holds the tokenizer and writes shards; arguments as in `write_shards`."""

    def __init__(self, tokenizer: Tokenizer, files: list[str], root: str, key: str) -> None:
        self._tokenizer, self._files, self._key = tokenizer, files, key
        self._storage = Storage(root)

    def _row_groups(self, file: str, groups: list[int]) -> pa.Table:
        with self._storage.filesystem.open_input_file(self._storage.path(file)) as opened:
            return pq.ParquetFile(opened).read_row_groups(groups)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write the shard of a plan."""
        plan: ShardPlan = pickle.loads(batch["item"][0])  # noqa: S301 - pickled by `write_shards`
        tables, order = [], []
        for file, own in plan.rows.reset_index(drop=True).groupby("file"):
            group, place = own["row"].to_numpy() // ROW_GROUP, own["row"].to_numpy() % ROW_GROUP
            groups = np.unique(group)  # read only the row groups that hold the rows
            table = self._storage.read(self._files[file], partial(self._row_groups, self._files[file], groups.tolist()))
            tables.append(table.take(pa.array(np.searchsorted(groups, group) * ROW_GROUP + place)))
            order.append(own.index.to_numpy())
        table = pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(order))))
        for column in plan.rows.columns.drop(["file", "row"]):
            table = table.append_column(column, pa.array(plan.rows[column].tolist()))
        schema = QUARANTINE_SCHEMA
        if plan.split != QUARANTINE:
            table, schema = tokenize(attack_copies(table), self._tokenizer), SCHEMA
        data = parquet(table.select(schema.names).cast(schema))
        name = f"{plan.number:05d}.parquet"
        self._storage.write_bytes(f"{self._key}/{plan.split}/{name}", data)
        digest = hashlib.sha256(data).hexdigest()
        return {"split": [plan.split], "name": [name], "rows": [len(table)], "sha256": [digest]}


def tokenize(table: pa.Table, tokenizer: Tokenizer) -> pa.Table:
    """Add `input_ids` (whole text, no special tokens) and `num_tokens` to rows with `normalised`."""
    ids = [
        pa.array(tokenizer.encode(batch.column(0).to_pylist()), pa.list_(pa.int32()))
        for batch in table.select(["normalised"]).to_batches(max_chunksize=TOKENIZE_ROWS)
    ]
    lists = pa.chunked_array(ids, pa.list_(pa.int32()))
    return table.append_column("input_ids", lists).append_column("num_tokens", pc.list_value_length(lists))
