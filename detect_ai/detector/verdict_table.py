"""Verdict table: writes and reads the files of verdicts that scoring produces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage, parquet
from detect_ai.detector.dataset import SLICES

PREDICTIONS = {"human": 0, "ai": 1, "uncertain": -1}
VERDICT_SCHEMA = pa.schema(
    [
        ("row", pa.string()),  # numbers of its file and row
        ("id", pa.string()),
        ("digest", pa.string()),  # of the text
        ("label", pa.int8()),  # given with the text; null if there is none
        *((name, pa.string()) for name in (*SLICES, "group")),
        ("verdict", pa.string()),
        ("probability", pa.float64()),
        ("prevalence", pa.float64()),
        ("ppv", pa.float64()),  # at that prevalence
        ("score", pa.float64()),  # log-odds
        ("p_value", pa.float64()),
        ("target_fpr", pa.float64()),
        ("threshold", pa.float64()),
        ("reasons", pa.list_(pa.string())),
        ("compared_with", pa.string()),
        ("nearest_domain", pa.string()),  # of calibration; null with too few domains
        ("num_compared", pa.int32()),
        ("fpr_upper_bound", pa.float64()),
        ("confidence", pa.float64()),  # of `fpr_upper_bound`
        ("tampering", pa.string()),  # JSON
        ("content", pa.string()),  # JSON
        ("num_tokens", pa.int32()),
        ("num_windows", pa.int32()),
        ("verdicts", pa.string()),  # JSON: by target FPR
        ("spans", pa.string()),  # JSON
        ("ai_fraction", pa.float64()),
        ("model_version", pa.string()),
    ]
)
UNFINISHED = "_unfinished"  # file that exists in the folder while verdicts are being written
_JSON = ("tampering", "content", "verdicts", "spans")
_STRINGS = (*SLICES, "group", "compared_with")
_COLUMNS = (
    *("row", "id", "digest", "label", "score", "probability", "p_value", "fpr_upper_bound", "num_tokens"),
    *("reasons", "verdicts", "spans", *_STRINGS),
)


@contextmanager
def verdict_folder(storage: Storage, key: str) -> Iterator[None]:
    """A new folder for verdicts; removed if the block fails. Raises ConfigError if it is not empty."""
    if storage.filesystem.get_file_info(storage.path(key)).is_file:
        raise ConfigError(f"score.out={storage.uri(key)}: expected a folder, found a file")
    if storage.list(key):
        raise ConfigError(f"score.out={storage.uri(key)}: the folder is not empty: name another folder, or delete it")
    with storage.whole(key):
        storage.write_bytes(f"{key}/{UNFINISHED}", b"")
        yield
        storage.delete(f"{key}/{UNFINISHED}")


def write_verdicts(storage: Storage, key: str, rows: list[dict[str, Any]], kind: str) -> bool:
    """Write verdicts atomically as a `parquet` or `jsonl` file of `VERDICT_SCHEMA`; `key` has no suffix.

    Returns False and writes nothing if the folder was removed because the scoring failed.
    """
    table = pa.Table.from_pylist(rows, schema=VERDICT_SCHEMA)
    if kind == "parquet":
        data = parquet(table)
    else:  # omit nulls, and do not nest JSON strings in JSON
        lines = (
            {name: json.loads(v) if name in _JSON else v for name, v in row.items() if v is not None}
            for row in table.to_pylist()
        )
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    if not storage.exists(f"{key.rpartition('/')[0]}/{UNFINISHED}"):
        return False
    storage.write_bytes(f"{key}.{kind}", data)
    return True


@dataclass(frozen=True)
class Verdicts:
    """Verdicts as columns of shape (n,), one entry per text."""

    rows: NDArray[Any]  # str, unique
    ids: NDArray[Any]  # str; as in the data, not always unique
    digests: NDArray[Any]  # str, of the texts
    labelled: NDArray[np.bool_]  # whether a label is known
    labels: NDArray[np.int64]  # 0 human, 1 ai, 0 if unknown
    scores: NDArray[np.float64]  # log-odds
    probabilities: NDArray[np.float64]  # calibrated P(AI)
    p_values: NDArray[np.float64]
    fpr_bounds: NDArray[np.float64]  # FPR bounds in the verdicts at the default target; NaN for none
    num_tokens: NDArray[np.int64]
    reasons: NDArray[Any]  # tuples: why the verdict at the default target is uncertain
    predictions: dict[float, NDArray[np.int64]]  # by target FPR: 0 human, 1 ai, -1 uncertain
    columns: dict[str, NDArray[Any]]  # metadata of the texts by column name: str, "" where missing
    spans: NDArray[Any]  # scores of sentences if requested, else None

    @classmethod
    def read(cls, storage: Storage, key: str) -> Self:
        """Read a folder of Parquet files of verdicts, in the order of their names."""
        table = storage.read_table([f"{key}/{name}" for name in storage.list(key)], _COLUMNS)
        verdicts = [json.loads(by_target) for by_target in table["verdicts"].to_pylist()]
        targets = list(verdicts[0]) if verdicts else []
        return cls(
            rows=_objects(table["row"].to_pylist()),
            ids=_objects(table["id"].to_pylist()),
            digests=_objects(table["digest"].to_pylist()),
            labelled=table["label"].is_valid().to_numpy(),
            labels=table["label"].fill_null(0).to_numpy().astype(np.int64),
            scores=table["score"].to_numpy(),
            probabilities=table["probability"].to_numpy(),
            p_values=table["p_value"].to_numpy(),
            fpr_bounds=table["fpr_upper_bound"].to_numpy(),
            num_tokens=table["num_tokens"].to_numpy().astype(np.int64),
            reasons=_objects([tuple(values) for values in table["reasons"].to_pylist()]),
            predictions={float(t): np.asarray([PREDICTIONS[row[t]] for row in verdicts], np.int64) for t in targets},
            columns={name: np.asarray(table[name].fill_null("").to_pylist(), str) for name in _STRINGS},
            spans=_objects([spans and json.loads(spans) for spans in table["spans"].to_pylist()]),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, selected: NDArray[Any]) -> Self:
        """The verdicts selected by a mask or by positions."""
        arrays = {name: values[selected] for name, values in vars(self).items() if isinstance(values, np.ndarray)}
        predictions = {target: values[selected] for target, values in self.predictions.items()}
        columns = {name: values[selected] for name, values in self.columns.items()}
        return replace(self, **arrays, predictions=predictions, columns=columns)

    def by_value(self, column: str, most: int, least: int) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Up to `most` values with at least `least` texts, and their masks, largest first; none if only one exists."""
        values = self.columns[column]
        names, counts = np.unique(values[values != ""], return_counts=True)
        if len(names) < 2:
            return
        for i in np.argsort(-counts, kind="stable")[:most]:
            if counts[i] >= least:
                yield str(names[i]), values == names[i]

    @property
    def fingerprint(self) -> str:
        """A hash of the texts and their labels, independent of their order."""
        rows = sorted(zip(self.digests.tolist(), self.labels.tolist(), strict=True))
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _objects(values: Sequence[Any]) -> NDArray[Any]:
    """An array of objects: numpy would turn tuples of equal length into a matrix."""
    array = np.empty(len(values), object)
    array[:] = values
    return array
