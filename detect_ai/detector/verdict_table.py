"""Verdict table: the files that scoring writes, and their columns read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.corpus.shards import parquet
from detect_ai.detector.dataset import SLICES

CALLS = {"human": 0, "ai": 1, "uncertain": -1}
VERDICT_SCHEMA = pa.schema(
    [
        ("row", pa.string()),  # number of the file and of its row
        ("id", pa.string()),
        ("digest", pa.string()),  # of the text
        ("label", pa.int8()),  # given with the text; null where none is
        *((name, pa.string()) for name in (*SLICES, "group")),
        ("verdict", pa.string()),
        ("probability", pa.float64()),
        ("prevalence", pa.float64()),
        ("score", pa.float64()),  # log-odds
        ("p_value", pa.float64()),
        ("target_fpr", pa.float64()),
        ("threshold", pa.float64()),
        ("reasons", pa.list_(pa.string())),
        ("compared_with", pa.string()),
        ("num_compared", pa.int32()),
        ("fpr_upper_bound", pa.float64()),  # null where none holds
        ("tampering", pa.string()),  # JSON
        ("num_tokens", pa.int32()),
        ("num_windows", pa.int32()),
        ("verdicts", pa.string()),  # JSON: by target FPR
        ("spans", pa.string()),  # JSON
        ("ai_fraction", pa.float64()),
        ("model_version", pa.string()),
    ]
)
UNFINISHED = "_unfinished"  # a file in the folder while more verdicts are written
_JSON = ("tampering", "verdicts", "spans")
_COLUMNS = (
    *("row", "id", "digest", "label", "score", "probability", "p_value", "num_tokens"),
    *("reasons", "verdicts", "compared_with", "spans"),
)


@dataclass(frozen=True)
class VerdictWriter:
    """Writes files of verdicts (`parquet`, `jsonl` or `csv`) into a folder."""

    storage: Storage
    key: str
    format: str

    def begin(self) -> None:
        """Mark the folder as unfinished. Raises ConfigError when it holds something."""
        where = self.storage.uri(self.key)
        if self.storage.filesystem.get_file_info(self.storage.path(self.key)).is_file:
            raise ConfigError(f"score.out={where}: expected a folder, found a file")
        if self.storage.list(self.key):
            raise ConfigError(f"score.out={where}: it holds files already: name another folder, or delete it")
        self.storage.write_bytes(f"{self.key}/{UNFINISHED}", b"")

    def write(self, name: str, rows: list[dict[str, Any]]) -> bool:
        """Write a file whole or not at all. False, and nothing written, where the folder was abandoned."""
        data = _encode(pa.Table.from_pylist(rows, schema=VERDICT_SCHEMA), self.format)
        if not self.storage.exists(f"{self.key}/{UNFINISHED}"):
            return False
        self.storage.write_bytes(f"{self.key}/{name}.{self.format}", data)
        return True

    def finish(self) -> None:
        """Mark the folder as complete."""
        self.storage.delete(f"{self.key}/{UNFINISHED}")


def _encode(table: pa.Table, kind: str) -> bytes:
    if kind == "parquet":
        return parquet(table, table.schema)
    if kind == "jsonl":  # without nulls, and with no JSON inside JSON
        rows = (
            {name: json.loads(v) if name in _JSON else v for name, v in row.items() if v is not None}
            for row in table.to_pylist()
        )
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    reasons = pa.array([";".join(values) for values in table["reasons"].to_pylist()], pa.string())
    table = table.set_column(table.column_names.index("reasons"), "reasons", reasons)
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink)
    return bytes(sink.getvalue())


@dataclass(frozen=True)
class Verdicts:
    """Verdicts as columns, one entry for each text.

    Attributes:
        rows: str, unique, shape (n,).
        ids: str, shape (n,); as the data has them, not always unique.
        digests: of the texts, str, shape (n,).
        labelled: whether a label is known, shape (n,).
        labels: 0 human, 1 ai, 0 where none is known; int64, shape (n,).
        scores: log-odds, float64, shape (n,).
        probabilities: calibrated P(AI), float64, shape (n,).
        p_values: float64, shape (n,).
        num_tokens: int64, shape (n,).
        reasons: why the verdict at the default target is uncertain; shape (n,) of tuples.
        by_target: target FPR to calls (0 human, 1 ai, -1 uncertain), int64, shape (n,).
        columns: metadata of the texts by column name: str, shape (n,), "" where missing.
        spans: scores of sentences where they were requested, else None; shape (n,).
    """

    rows: NDArray[Any]
    ids: NDArray[Any]
    digests: NDArray[Any]
    labelled: NDArray[np.bool_]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    p_values: NDArray[np.float64]
    num_tokens: NDArray[np.int64]
    reasons: NDArray[Any]
    by_target: dict[float, NDArray[np.int64]]
    columns: dict[str, NDArray[Any]]
    spans: NDArray[Any]

    @classmethod
    def read(cls, storage: Storage, key: str) -> Self:
        """Read a folder of Parquet files of verdicts, in the order of their names."""
        names = (*_COLUMNS, *SLICES, "group")
        paths = [storage.path(f"{key}/{name}") for name in storage.list(key)]
        table = pq.read_table(paths, columns=list(names), filesystem=storage.filesystem, partitioning=None)
        calls = [json.loads(by_target) for by_target in table["verdicts"].to_pylist()]
        targets = [float(target) for target in (calls[0] if calls else {})]
        labels = table["label"].to_pylist()
        columns = {name: np.asarray(table[name].to_pylist(), object) for name in (*SLICES, "group", "compared_with")}
        return cls(
            rows=np.asarray(table["row"].to_pylist(), object),
            digests=np.asarray(table["digest"].to_pylist(), object),
            ids=np.asarray(table["id"].to_pylist(), object),
            labelled=np.asarray([label is not None for label in labels], np.bool_),
            labels=np.asarray([label or 0 for label in labels], np.int64),
            scores=table["score"].to_numpy(),
            probabilities=table["probability"].to_numpy(),
            p_values=table["p_value"].to_numpy(),
            num_tokens=table["num_tokens"].to_numpy().astype(np.int64),
            reasons=_objects([tuple(values) for values in table["reasons"].to_pylist()]),
            by_target={t: np.asarray([CALLS[by_target[repr(t)]] for by_target in calls], np.int64) for t in targets},
            columns={name: np.where(values == None, "", values).astype(str) for name, values in columns.items()},  # noqa: E711
            spans=_objects([spans and json.loads(spans) for spans in table["spans"].to_pylist()]),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, selected: NDArray[Any]) -> Self:
        """The verdicts of a mask, or at positions."""
        parts: dict[str, Any] = {
            name: values[selected] for name, values in vars(self).items() if isinstance(values, np.ndarray)
        }
        parts["by_target"] = {target: calls[selected] for target, calls in self.by_target.items()}
        parts["columns"] = {name: values[selected] for name, values in self.columns.items()}
        return type(self)(**parts)

    def by_value(self, column: str, most: int, least: int) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """The values of a column by falling frequency, each with a mask of its texts; none for a column of one value.

        Args:
            column: its name.
            most: maximum number of values.
            least: minimum number of texts of a value.
        """
        values = self.columns[column]
        names, counts = np.unique(values[values != ""], return_counts=True)
        if len(names) < 2:
            return
        for i in np.argsort(-counts, kind="stable")[:most]:
            if counts[i] >= least:
                yield str(names[i]), values == names[i]

    def calls(self, target: float) -> NDArray[np.int64]:
        """0 human, 1 ai, -1 uncertain at a target FPR, shape (n,)."""
        return self.by_target[target]

    @property
    def fingerprint(self) -> str:
        """A hash of the texts and their labels, in any order."""
        rows = sorted(zip(self.digests.tolist(), self.labels.tolist(), strict=True))
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _objects(values: Sequence[Any]) -> NDArray[Any]:
    """An array of objects: numpy would turn tuples of equal length into a matrix."""
    array = np.empty(len(values), object)
    array[:] = values
    return array
