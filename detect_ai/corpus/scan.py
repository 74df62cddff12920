"""The first pass over the sources: read, clean, lay the rows down on scratch files, keep an index of them.

Texts never gather in memory: a scratch file holds some thousand rows in the corpus's order, in small row groups, so
that the second pass (`shards.py`) reads just what belongs into its shard. The driver keeps numbers and names of rows.
"""

from __future__ import annotations

import ctypes
import pickle
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detect_ai.core.config import CorpusConfig
from detect_ai.core.errors import CorpusError, DetectAIError, ours
from detect_ai.core.storage import Storage
from detect_ai.corpus.cleaning import clean
from detect_ai.corpus.dedup import NUM_PERM
from detect_ai.corpus.sources import Piece, list_pieces, read_piece
from detect_ai.corpus.splits import shuffle_key

ROW_GROUP = 128  # rows: the unit that the second pass reads
PIECES_BYTES = 8 << 20  # small files are read together up to this size
SCRATCH_ROWS = (4_096, 131_072)  # least and most
SCRATCH_FILES = 64  # aimed at: the more there are, the less of each row group a shard needs
_ROW_BYTES = 2_000
_CATEGORIES = ("source", "domain", "generator", "group", "language", "split", "attack", "problem")
_KEPT = (
    "id",
    "text",
    "normalised",
    "label",
    "source",
    "domain",
    "generator",
    "group",
    "language",
    "attack",
    "num_words",
)


@dataclass(frozen=True)
class Scan:
    """Every row of the sources, in the corpus's order.

    Attributes:
        files: keys of the scratch files.
        index: one row for each row read: `file` and `row` (where it lies), `order` (uint64, drawn from the seed), `id`,
            `digest`, `label` (-1: none), `num_words`, `weight`, `against` (it belongs to an evaluation set, not to the
            corpus), `arrival` (its place in the signatures), and names as categories.
        path: file of the signatures.
    """

    files: list[str]
    index: pd.DataFrame
    path: Path

    def signatures(self) -> NDArray[np.uint32]:
        """MinHash signatures by arrival, shape (rows, NUM_PERM): a view of the file, for as long as it is needed."""
        shape = (len(self.index), NUM_PERM)
        return np.memmap(self.path, np.uint32, "r", shape=shape) if len(self.index) else np.empty(shape, np.uint32)


@contextmanager
def scanned(corpus: CorpusConfig, seed: int, storage: Storage, key: str, folder: Path) -> Iterator[Scan]:
    """Scan the sources of a corpus. The scratch files lie under `key` and go when the context ends.

    Args:
        corpus: sources and rules.
        seed: of the order.
        storage: where the scratch files lie: every node must reach it.
        key: of the scratch folder.
        folder: local, for the signatures.

    Raises:
        CorpusError: a source is missing, cannot be parsed, lacks a column or has an unknown label.
    """
    try:
        yield _scan(corpus, seed, storage, key, folder)
    finally:
        storage.delete(key)


def _scan(corpus: CorpusConfig, seed: int, storage: Storage, key: str, folder: Path) -> Scan:
    tables, path = [], folder / "signatures"
    with path.open("wb") as signatures, plainly():
        for table in _rows(corpus, seed, storage, key):
            _append(signatures, table)
            tables.append(_copied(table.drop(["signature"])))
    index, files = _indexed(tables)
    return Scan(files, index, path)


@contextmanager
def plainly() -> Iterator[None]:
    """Raise what we said in a worker, without the wrappers of Ray and the advice that it adds."""
    try:
        yield
    except Exception as error:
        cause = ours(error)
        if isinstance(cause, DetectAIError):
            raise type(cause)(str(cause).split("\n")[0]) from error
        raise


def _rows(corpus: CorpusConfig, seed: int, storage: Storage, key: str) -> Iterator[pa.Table]:
    import ray

    work, size = _work(corpus)
    enough = scratch_rows(size)

    def scan(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for table in _gathered(pickle.loads(batch["item"][0]), enough):  # noqa: S301 - our own
            yield _lay_down(table, corpus, seed, storage.root, key)

    # One step from file to file: between two, reading would fill the object store faster than cleaning empties it.
    rows = ray.data.from_items([pickle.dumps(each) for each in work], override_num_blocks=len(work)).map_batches(
        scan, batch_size=1, num_cpus=1, compute=ray.data.TaskPoolStrategy(size=corpus.workers)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")  # small corpora need fewer
        yield from rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _gathered(pieces_at_once: list[tuple[Piece, bool]], enough: int) -> Iterator[pa.Table]:
    """The rows of some pieces as tables of about so many rows; `against` says where they belong."""
    waiting: list[pa.Table] = []
    for piece, against in pieces_at_once:
        for table in read_piece(piece):
            waiting.append(table.append_column("against", pa.array([against] * len(table))))
            if sum(map(len, waiting)) >= enough:
                yield pa.concat_tables(waiting)
                waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _work(corpus: CorpusConfig) -> tuple[list[list[tuple[Piece, bool]]], int]:
    """What one task reads: a large file, or many small ones. And the bytes of all."""
    found = [(piece, False) for source in corpus.sources for piece in list_pieces(source)]
    found += [(piece, True) for source in corpus.against for piece in list_pieces(source, unlabelled=True)]
    work: list[list[tuple[Piece, bool]]] = []
    room = 0
    for piece, against in found:
        if not work or piece.size > room:
            work.append([])
            room = PIECES_BYTES
        work[-1].append((piece, against))
        room -= piece.size
    return work, sum(piece.size for piece, _ in found)


def scratch_rows(size: int) -> int:
    """Rows of a scratch file for sources of a size in bytes."""
    return int(np.clip(size // (SCRATCH_FILES * _ROW_BYTES), *SCRATCH_ROWS))


def _lay_down(table: pa.Table, corpus: CorpusConfig, seed: int, root: str, key: str) -> pa.Table:
    """Clean rows and write them to a scratch file in their order; hand on what the index needs."""
    against = table["against"]
    table = clean(table.drop(["against"]), corpus).append_column("against", against)
    names = zip(table["id"].to_pylist(), table["digest"].to_pylist(), strict=True)
    order = np.asarray([shuffle_key(seed, f"{name}\0{digest}") for name, digest in names], np.uint64)
    table = table.append_column("order", pa.array(order)).take(pa.array(np.argsort(order, kind="stable")))
    name = f"{key}/{uuid.uuid4().hex}.parquet"
    kept = table.select(list(_KEPT))
    storage = Storage(root)
    storage.filesystem.create_dir(storage.path(key), recursive=True)
    pq.write_table(
        kept,
        storage.path(name),
        filesystem=storage.filesystem,
        row_group_size=ROW_GROUP,
        compression="zstd",
        compression_level=1,
        write_statistics=False,
    )
    dropped = [name for name in ("text", "normalised") if name in table.column_names]
    table = table.drop(dropped).append_column("row", pa.array(np.arange(len(table), dtype=np.int32)))
    table = table.append_column("file", pa.array([name] * len(table), pa.string()))
    give_memory_back()
    return table


def give_memory_back() -> None:
    """Return what was freed to the system: a worker that waits for its next task else keeps its peak for itself."""
    pa.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # of the GNU C library
        trim(0)


def _copied(table: pa.Table) -> pa.Table:
    """A table in memory of its own: as it came, it holds its whole block in Ray's object store."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def _append(file: IO[bytes], table: pa.Table) -> None:
    for chunk in table["signature"].chunks:
        file.write(chunk.flatten().to_numpy().astype(np.uint32, copy=False).tobytes())


def _indexed(tables: Sequence[pa.Table]) -> tuple[pd.DataFrame, list[str]]:
    """One frame over all rows, in the corpus's order, names as categories."""
    if not tables:
        raise CorpusError("the sources hold no rows: expected texts with labels")
    table = pa.concat_tables(tables)
    frame: pd.DataFrame = table.to_pandas(categories=[*_CATEGORIES, "file"])
    frame["label"] = frame["label"].fillna(-1).astype(np.int8)
    frame["arrival"] = np.arange(len(frame))
    files = [str(name) for name in frame["file"].cat.categories]
    frame["file"] = frame["file"].cat.codes.astype(np.int32)
    return frame.sort_values(["order", "id"], kind="stable", ignore_index=True), files
