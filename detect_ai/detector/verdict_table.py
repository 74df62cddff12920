"""Verdicts as scoring wrote them, read back as columns. Pure of Ray and torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detect_ai.core.storage import Storage
from detect_ai.detector.dataset import SLICES

CALLS = {"human": 0, "ai": 1, "uncertain": -1}
_COLUMNS = (
    *("row", "id", "digest", "label", "score", "probability", "p_value", "num_tokens"),
    *("reasons", "verdicts", "compared_with", "spans"),
)


@dataclass(frozen=True)
class Verdicts:
    """What a detector made of some texts.

    Attributes:
        rows: str, each one once, shape (n,).
        ids: str, shape (n,); as the data has them, perhaps one of two texts.
        digests: of the texts, str, shape (n,).
        labelled: whether a label is known, shape (n,).
        labels: 0 human, 1 ai, 0 where none is known; int64, shape (n,).
        scores: log-odds, float64, shape (n,).
        probabilities: calibrated P(AI), float64, shape (n,).
        p_values: float64, shape (n,).
        num_tokens: int64, shape (n,).
        reasons: of the verdict at the default target, why it is open; shape (n,) of tuples.
        by_target: target FPR to calls (0 human, 1 ai, -1 uncertain), int64, shape (n,).
        columns: what the data says of each text: str, shape (n,), "" where nothing.
        spans: of sentences, where they were asked for; else None; shape (n,).
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
        calls = [json.loads(found) for found in table["verdicts"].to_pylist()]
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
            reasons=_objects([tuple(found) for found in table["reasons"].to_pylist()]),
            by_target={t: np.asarray([CALLS[found[repr(t)]] for found in calls], np.int64) for t in targets},
            columns={name: np.where(values == None, "", values).astype(str) for name, values in columns.items()},  # noqa: E711
            spans=_objects([found and json.loads(found) for found in table["spans"].to_pylist()]),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, chosen: NDArray[Any]) -> Self:
        """Those of a mask, or at positions."""
        parts: dict[str, Any] = {
            name: values[chosen] for name, values in vars(self).items() if isinstance(values, np.ndarray)
        }
        parts["by_target"] = {target: calls[chosen] for target, calls in self.by_target.items()}
        parts["columns"] = {name: values[chosen] for name, values in self.columns.items()}
        return type(self)(**parts)

    def by_value(self, column: str, most: int, least: int) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """The values of a column, largest first, each with a mask of its texts; nothing for a column of one value.

        Args:
            column: its name.
            most: values at most.
            least: texts of a value at least.
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
        """Names the texts by their content and labels, in whatever order."""
        rows = sorted(zip(self.digests.tolist(), self.labels.tolist(), strict=True))
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _objects(values: Sequence[Any]) -> NDArray[Any]:
    """An array of objects of any kind: numpy would make a table of tuples of one length."""
    array = np.empty(len(values), object)
    array[:] = values
    return array
