"""The second pass: read the rows of each shard from the scratch files, tokenise them, write the shard."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detect_ai.core.config import SPLITS, Config
from detect_ai.core.storage import Storage
from detect_ai.corpus import augment
from detect_ai.corpus.decide import OVER_LIMIT, Rows
from detect_ai.corpus.manifest import QUARANTINE, Shard
from detect_ai.corpus.scan import ROW_GROUP, give_memory_back, plainly
from detect_ai.corpus.tokenise import QUARANTINE_SCHEMA, SCHEMA, tokenise
from detect_ai.models.tokenizer import Tokenizer

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """One shard before it is written. Every array has one entry a row, in the shard's order.

    Attributes:
        split: one of `SPLITS`, or the quarantine.
        number: counted from 0 within the split.
        file: position of each row's scratch file.
        row: its place in that file.
        columns: what was decided of it: `weight` and `copy` (the attack on it, or ""), else `reason` and `twin`.
    """

    split: str
    number: int
    file: NDArray[np.int32]
    row: NDArray[np.int32]
    columns: dict[str, list[Any]]


def plans(rows: Rows, config: Config) -> list[Plan]:
    """The shards of all splits and of the quarantine."""
    made = []
    for position, name in enumerate(SPLITS):
        members = np.flatnonzero(rows.stays & (rows.split == position))
        for number, part in enumerate(_cut(members, config.corpus.shard_rows)):
            attacks = [""] * len(part)
            if name == "train":
                part, attacks = augment.with_copies(part, rows.index, config.corpus, config.seed)
            columns: dict[str, list[Any]] = {"weight": rows.weight[part].tolist(), "copy": attacks}
            made.append(_plan(rows, name, number, part, columns))
    bad = np.flatnonzero(~rows.stays & ~rows.against & (rows.reason != OVER_LIMIT))
    ids = rows.index["id"].to_numpy()
    for number, part in enumerate(_cut(bad, config.corpus.shard_rows)):
        twins = [str(ids[twin]) if twin >= 0 else "" for twin in rows.twin[part]]
        made.append(_plan(rows, QUARANTINE, number, part, {"reason": rows.reason[part].tolist(), "twin": twins}))
    return made


def _cut(members: Ints, size: int) -> list[Ints]:
    return [members[start : start + size] for start in range(0, len(members), size)]


def _plan(rows: Rows, split: str, number: int, part: Ints, columns: dict[str, list[Any]]) -> Plan:
    file, row = (rows.index[name].to_numpy()[part].astype(np.int32) for name in ("file", "row"))
    return Plan(split, number, file, row, columns)


def write_shards(
    made: Sequence[Plan], files: Sequence[str], tokenizer: Tokenizer, workers: int, root: str, key: str
) -> list[Shard]:
    """Write every shard, several at a time, and say what was written.

    Args:
        made: the shards.
        files: keys of the scratch files.
        tokenizer: of the model.
        workers: actors, at most.
        root: of the storage.
        key: of the corpus.
    """
    import ray

    with plainly():
        written = (
            ray.data.from_items([pickle.dumps(plan) for plan in made], override_num_blocks=len(made))
            .map_batches(
                ShardWriter,
                batch_size=1,
                num_cpus=1,
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(made))),
                fn_constructor_args=(tokenizer, list(files), root, key),
            )
            .take_all()
        )
    shards = [Shard(**row) for row in written]
    return sorted(shards, key=lambda shard: (shard.split, shard.name))


class ShardWriter:
    """An actor that holds the tokenizer and writes shards.

    Args:
        tokenizer: of the model. It comes ready made: to load it would take torch, and seconds, in every actor.
        files: keys of the scratch files.
        root: of the storage.
        key: of the corpus.
    """

    def __init__(self, tokenizer: Tokenizer, files: list[str], root: str, key: str) -> None:
        self._tokenizer, self._files, self._key = tokenizer, files, key
        self._storage = Storage(root)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write the shard of a plan."""
        plan: Plan = pickle.loads(batch["item"][0])  # noqa: S301 - our own
        table = read_rows(self._storage, self._files, plan)
        for name, values in plan.columns.items():
            table = table.append_column(name, pa.array(values))
        if plan.split == QUARANTINE:
            data = parquet(table, QUARANTINE_SCHEMA)
        else:
            data = parquet(tokenise(augment.apply(table), self._tokenizer), SCHEMA)
        name = f"{plan.number:05d}.parquet"
        self._storage.write_bytes(f"{self._key}/{plan.split}/{name}", data)
        digest = hashlib.sha256(data).hexdigest()
        give_memory_back()
        return {"split": [plan.split], "name": [name], "rows": [len(table)], "sha256": [digest]}


def read_rows(storage: Storage, files: Sequence[str], plan: Plan) -> pa.Table:
    """The rows of a plan, in its order."""
    tables, places = [], []
    for file in np.unique(plan.file):
        wanted = np.flatnonzero(plan.file == file)
        tables.append(_pick(storage, files[file], plan.row[wanted]))
        places.append(wanted)
    back = np.argsort(np.concatenate(places), kind="stable")
    return pa.concat_tables(tables).take(pa.array(back))


def _pick(storage: Storage, name: str, rows: NDArray[np.int32]) -> pa.Table:
    """Rows of one scratch file by their numbers; only the row groups that hold them are read."""
    groups = np.unique(rows // ROW_GROUP)
    with storage.filesystem.open_input_file(storage.path(name)) as opened:
        table = pq.ParquetFile(opened).read_row_groups(groups.tolist())
    place = np.searchsorted(groups, rows // ROW_GROUP) * ROW_GROUP + rows % ROW_GROUP
    return table.take(pa.array(place))


def parquet(table: pa.Table, schema: pa.Schema) -> bytes:
    """A table as a Parquet file with exactly these columns."""
    sink = io.BytesIO()
    pq.write_table(table.select(schema.names).cast(schema), sink, compression="zstd")
    return sink.getvalue()
