"""Log of predictions: scores and features of the texts that the service has read, never the texts.

Parquet files `monitoring/predictions/day=<date>/<writer>-<number>.parquet` under the storage root, columns as
`PREDICTIONS`. Each writer, one per replica, replaces its last file every `FLUSH_S` seconds, whole: a process that is
killed loses at most that long. Texts are kept only where an operator asks for it, in `monitoring/texts/` with a
retention of their own.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector

from detect_ai.core.errors import InputError
from detect_ai.core.storage import Storage, parquet
from detect_ai.metrics import Floats

if TYPE_CHECKING:
    from detect_ai.core.config import MonitoringConfig
    from detect_ai.detector.detector import Document
    from detect_ai.schemas import Verdict

logger = logging.getLogger("ray.serve")
Record = Callable[..., None]  # counts a metric: its name, a number (default: 1), labels

FOLDER = "monitoring"
ERASED = f"{FOLDER}/erased"  # digests of the ids of erased requests
FLUSH_S = 2.0
ROWS_PER_FILE = 10_000
MAX_WAITING_ROWS = 20_000  # while storage cannot be written; further rows are dropped
SKETCH_BITS = 64
_VERSION = {b"detect_ai.schema": b"1"}

_ID = [("time", pa.timestamp("ms", "UTC")), ("request_id", pa.string()), ("index", pa.int32())]  # index in the request
PREDICTIONS = pa.schema(
    [
        *_ID,
        ("model_version", pa.string()),
        ("label", pa.string()),
        ("reasons", pa.list_(pa.string())),
        ("target_fpr", pa.float64()),
        ("score", pa.float64()),  # log-odds of AI
        ("num_tokens", pa.int32()),
        ("prose", pa.float32()),  # fraction of the visible characters that is prose in the language of the model
        ("other_language", pa.float32()),  # and in other languages
        ("nearest_domain", pa.string()),
        ("tampering", pa.int32()),  # characters removed or replaced
        ("sketch", pa.uint64()),  # signs of the style on secret random directions; null without a style
        ("audit_fraction", pa.float64()),  # probability with which a text was drawn for the audit
        ("audited", pa.bool_()),  # whether this one was
    ],
    _VERSION,
)
SCHEMAS = {"predictions": PREDICTIONS, "texts": pa.schema([*_ID, ("text", pa.string())], _VERSION)}


class RowLog:
    """One log and a writer in it. Any thread may `append`; one thread calls `flush`.

    Rows are kept for `days` and all files together to `max_bytes`; the oldest go first.
    """

    def __init__(self, storage: Storage, name: str, days: int, max_bytes: int) -> None:
        self.storage, self.name, self.days, self.max_bytes = storage, name, days, max_bytes
        self.num_dropped = 0
        self._writer, self._number, self._day = uuid.uuid4().hex[:12], 0, ""
        self._current = SCHEMAS[name].empty_table()  # content of the current file
        self._waiting: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows to be written, at once; those beyond `MAX_WAITING_ROWS` are dropped."""
        with self._lock:
            room = MAX_WAITING_ROWS - len(self._waiting)
            self._waiting += rows[:room]
            self.num_dropped += len(rows[room:])

    def waiting(self) -> list[dict[str, Any]]:
        """Rows that are not written yet."""
        with self._lock:
            return list(self._waiting)

    def flush(self) -> list[dict[str, Any]]:
        """Replace the current file by one that has the waiting rows too, and return them; none if storage fails."""
        rows, today = self.waiting(), datetime.now(UTC).date().isoformat()
        if not rows:
            return []
        try:
            if today != self._day or self._current.num_rows >= ROWS_PER_FILE:
                prune(self.storage, self.name, self.days, self.max_bytes)
                self._day, self._number, self._current = today, self._number + 1, self._current.slice(0, 0)
            table = pa.concat_tables([self._current, pa.Table.from_pylist(rows, SCHEMAS[self.name])])
            table = _without_erased(self.storage, table)
            key = f"{FOLDER}/{self.name}/day={today}/{self._writer}-{self._number:06d}.parquet"
            self.storage.write_bytes(key, parquet(table))
        except OSError as error:  # a full disk, a lost network: its message has no text
            logger.error("%s log: not written, will be tried again: %s", self.name, error)
            return []
        self._current = table
        with self._lock:
            del self._waiting[: len(rows)]
        return rows


class PredictionLog:
    """The logs of a replica, its draws for the audit, and a thread that writes every `FLUSH_S`.

    `observe` is called in that thread after every write, with the predictions that were written, if any.
    """

    observe: Callable[[Sequence[dict[str, Any]]], None] | None = None

    def __init__(self, storage: Storage, config: MonitoringConfig, record: Record) -> None:
        self.storage, self.config, self.record = storage, config, record
        self._secret, self._random = log_secret(storage), secrets.SystemRandom()
        size = config.log_megabytes * 1_000_000
        self.predictions = RowLog(storage, "predictions", config.log_days, size)
        self.texts = RowLog(storage, "texts", config.text_days, size) if config.text_days else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Write what is left and stop the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_S):
            self.flush()
        self.flush()

    def flush(self) -> None:
        """Write the rows that wait. Where storage fails they stay."""
        written = self.predictions.flush()
        if self.texts:
            self.texts.flush()
        for log in filter(None, (self.predictions, self.texts)):
            self.record("log_waiting", len(log.waiting()), log=log.name)
            self.record("log_dropped", log.num_dropped, log=log.name)
        if self.observe:
            self.observe(written)

    def add(
        self, request_id: str, documents: Sequence[Document], scores: Sequence[float], verdicts: Sequence[Verdict]
    ) -> None:
        """Log the texts of a request, in its order. Returns at once."""
        now, fraction = datetime.now(UTC), self.config.audit_fraction
        ids = [{"time": now, "request_id": request_id, "index": i} for i in range(len(documents))]
        rows = map(prediction_row, documents, scores, verdicts, repeat(self._secret))
        audits = [{"audit_fraction": fraction, "audited": self._random.random() < fraction} for _ in ids]
        self.predictions.append([id_ | row | audit for id_, row, audit in zip(ids, rows, audits, strict=True)])
        if self.texts:
            texts = [document.text.encode(errors="replace").decode() for document in documents]  # lone surrogates
            self.texts.append([id_ | {"text": text} for id_, text in zip(ids, texts, strict=True)])

    def find(self, request_id: str, index: int) -> list[dict[str, Any]]:
        """The rows of a text as `find`, also those that this replica has not written yet."""
        waiting = [r for r in self.predictions.waiting() if (r["request_id"], r["index"]) == (request_id, index)]
        return waiting + find(self.storage, request_id, index)


def prediction_row(document: Document, score: float, verdict: Verdict, secret: bytes) -> dict[str, Any]:
    """Columns of `PREDICTIONS` that are features of a text or parts of its verdict."""
    fractions, style = document.content.fractions, document.style
    return {
        "model_version": verdict.model_version,
        "label": verdict.label.value,
        "reasons": [reason.value for reason in verdict.reasons],
        "target_fpr": verdict.target_fpr,
        "score": score,
        "num_tokens": verdict.num_tokens,
        "prose": fractions.get("prose", 0.0),
        "other_language": fractions.get("other_language", 0.0) + fractions.get("other_script", 0.0),
        "nearest_domain": verdict.nearest_domain,
        "tampering": sum(verdict.tampering.values()),
        "sketch": int(sketches(style[None], secret)[0]) if style.size else None,
    }


def sketches(styles: Floats, secret: bytes) -> np.ndarray:
    """The signs of styles, shape (n, dimensions), on `SKETCH_BITS` directions, packed into uint64 of shape (n,)."""
    return np.packbits(styles @ _directions(secret, styles.shape[1]) > 0, axis=1).view(">u8")[:, 0].astype(np.uint64)


@lru_cache
def _directions(secret: bytes, dimensions: int) -> Floats:
    """Random directions: without the secret a sketch says little of a style."""
    seed = int.from_bytes(hashlib.sha256(secret).digest())
    return np.random.default_rng(seed).normal(size=(dimensions, SKETCH_BITS))


def sketch_bits(packed: np.ndarray) -> np.ndarray:
    """The signs as 0 and 1, shape (n, SKETCH_BITS)."""
    return np.unpackbits(packed.astype(">u8")[:, None].view(np.uint8), axis=1)


def log_secret(storage: Storage) -> bytes:
    """The secret of this deployment; made when it is first needed."""
    key = f"{FOLDER}/secret"
    if not storage.exists(key):
        storage.create(key, secrets.token_bytes(32), 0o600)
    return storage.read_bytes(key)


def read(
    storage: Storage,
    name: str = "predictions",
    columns: Sequence[str] | None = None,
    where: pc.Expression | None = None,
) -> pa.Table:
    """The rows for which `where` holds, oldest first, without erased ones.

    Raises InputError for a file of another schema version.
    """
    tables = [SCHEMAS[name].empty_table()]
    for key in _files(storage, name):
        with suppress(FileNotFoundError):  # a replica removes old files meanwhile
            tables.append(_read_file(storage, key, where))
    rows = _without_erased(storage, pa.concat_tables(tables)).sort_by("time")
    return rows.select(columns) if columns else rows


def find(storage: Storage, request_id: str, index: int) -> list[dict[str, Any]]:
    """The rows of one text, without an erased one; several where a client has sent its request id more than once."""
    rows: list[dict[str, Any]] = []
    if storage.exists(f"{ERASED}/{_digest(request_id)}"):
        return rows
    where = (pc.field("request_id") == request_id) & (pc.field("index") == index)
    for key in _files(storage, "predictions"):
        with suppress(FileNotFoundError):
            rows += _read_file(storage, key, where).to_pylist()
    return rows


def erase(storage: Storage, request_id: str) -> int:
    """Remove every row of a request, and return how many were found.

    Readers ignore the request from now on; writers that still hold rows of it drop them when they write next.
    """
    storage.write_bytes(f"{ERASED}/{_digest(request_id)}", b"")
    removed = 0
    for key in (key for name in SCHEMAS for key in _files(storage, name)):
        with suppress(FileNotFoundError):
            table = _read_file(storage, key)
            kept = table.filter(pc.not_equal(table["request_id"], request_id))
            if kept.num_rows < table.num_rows:
                removed += table.num_rows - kept.num_rows
                storage.write_bytes(key, parquet(kept))
    return removed


def prune(storage: Storage, name: str, days: int, max_bytes: int) -> None:
    """Delete earlier days than the last `days`, then the oldest files until all others fit into `max_bytes`."""
    first = f"day={datetime.now(UTC).date() - timedelta(days - 1)}"
    for day in storage.list(f"{FOLDER}/{name}"):
        if day < first:
            storage.delete(f"{FOLDER}/{name}/{day}")
    size = 0
    for key, own in reversed(_files(storage, name).items()):
        size += own
        if size > max_bytes:
            storage.delete(key)


def _files(storage: Storage, name: str) -> dict[str, int]:
    """The files of a log, oldest first: their keys with their sizes."""
    folder = storage.path(f"{FOLDER}/{name}")
    infos = storage.filesystem.get_file_info(FileSelector(folder, allow_not_found=True, recursive=True))
    infos = [info for info in infos if info.extension == "parquet"]
    infos.sort(key=lambda info: (info.path.rpartition("/")[0], info.mtime_ns or 0, info.path))
    return {f"{FOLDER}/{name}{info.path.removeprefix(folder)}": info.size for info in infos}


def _read_file(storage: Storage, key: str, where: pc.Expression | None = None) -> pa.Table:
    path = storage.path(key)
    table = pq.read_table(path, filesystem=storage.filesystem, partitioning=None, filters=where)
    if (found := table.schema.metadata) != _VERSION:
        advice = "remove the file, or use the release that wrote it"
        raise InputError(f"{path}: expected the metadata {_VERSION}, found {found}: {advice}")
    return table


def _without_erased(storage: Storage, table: pa.Table) -> pa.Table:
    """The rows whose requests are not erased."""
    erased = set(storage.list(ERASED))
    if not erased:
        return table
    return table.filter(pa.array([_digest(id_) not in erased for id_ in table["request_id"].to_pylist()], pa.bool_()))


def _digest(request_id: str) -> str:
    return hashlib.sha256(request_id.encode()).hexdigest()[:32]
