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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo, FileSelector, FileType

from detect_ai.core.errors import InputError
from detect_ai.core.storage import Storage
from detect_ai.metrics import Floats

if TYPE_CHECKING:
    from detect_ai.core.config import MonitoringConfig
    from detect_ai.detector.detector import Document
    from detect_ai.schemas import Verdict

logger = logging.getLogger("ray.serve")
Record = Callable[..., None]  # counts a metric: its name, a number (default: 1), labels

FOLDER = "monitoring"
FLUSH_S = 2.0
ROWS_PER_FILE = 10_000
MAX_WAITING_ROWS = 20_000  # while storage cannot be written; further rows are dropped
SKETCH_BITS = 64
SCHEMA_VERSION = b"1"
_VERSION_KEY = b"detect_ai.schema"

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
    {_VERSION_KEY: SCHEMA_VERSION},
)
TEXTS = pa.schema([*_ID, ("text", pa.string())], {_VERSION_KEY: SCHEMA_VERSION})


class Scored(NamedTuple):
    """A text with its verdict, on its way into the log."""

    document: Document
    score: float
    verdict: Verdict


class RowLog:
    """One folder of the log and one writer in it. `append` never blocks and never fails; a thread writes.

    Rows are kept for `days` and all files together to `max_bytes`; the oldest go first. `observe` is called
    in that thread every `FLUSH_S`, with the rows that were written since.
    """

    observe: Callable[[Sequence[dict[str, Any]]], None] | None = None

    def __init__(self, storage: Storage, name: str, schema: pa.Schema, days: int, max_bytes: int, record: Record):
        self.storage, self.name, self.schema = storage, name, schema
        self.days, self.max_bytes, self.record = days, max_bytes, record
        self._writer, self._number, self._day = uuid.uuid4().hex[:12], 0, ""
        self._current = schema.empty_table()  # content of the current file
        self._pending: list[dict[str, Any]] = []
        self._num_dropped = 0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{name}-log", daemon=True)

    def start(self) -> None:
        """Start the thread that writes."""
        self._thread.start()

    def close(self) -> None:
        """Write what is left and stop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows, to be written within `FLUSH_S`."""
        with self._lock:
            self._pending += rows
            self._drop()

    def flush(self) -> None:
        """Write the rows that wait. Where storage fails they stay, up to `MAX_WAITING_ROWS`."""
        with self._lock:
            rows, self._pending = self._pending, []
        if rows and not self._write(rows):
            with self._lock:
                self._pending = [*rows, *self._pending]
                self._drop()
            rows = []
        if self.observe:
            self.observe(rows)

    def _write(self, rows: Sequence[dict[str, Any]]) -> bool:
        """Replace the current file by one with these rows too; returns whether storage took it."""
        try:
            today = datetime.now(UTC).date().isoformat()
            if today != self._day or self._current.num_rows >= ROWS_PER_FILE:
                prune(self.storage, self.name, self.days, self.max_bytes)
                self._day, self._number, self._current = today, self._number + 1, self.schema.empty_table()
            erased = set(self.storage.list(_erased(self.name)))
            table = pa.concat_tables([self._current, pa.Table.from_pylist(rows, self.schema)])
            table = _without(table, erased)
            key = f"{FOLDER}/{self.name}/day={self._day}/{self._writer}-{self._number:06d}.parquet"
            self.storage.write_bytes(key, _parquet(table))
            self._current = table
        except OSError as error:  # a full disk, a lost network: its message has no text
            logger.error("%s log: not written, will be tried again: %s", self.name, error)
            return False
        return True

    def waiting(self) -> list[dict[str, Any]]:
        """Rows that are not written yet."""
        with self._lock:
            return list(self._pending)

    def _drop(self) -> None:
        """Keep the oldest rows that may wait."""
        self._num_dropped += max(0, len(self._pending) - MAX_WAITING_ROWS)
        del self._pending[MAX_WAITING_ROWS:]

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_S):
            self.flush()
            self.record("log_waiting", len(self._pending), log=self.name)
            self.record("log_dropped", self._num_dropped, log=self.name)
        self.flush()


class PredictionLog:
    """The logs of a replica, with its draws for the audit."""

    def __init__(self, storage: Storage, config: MonitoringConfig, record: Record) -> None:
        self.config, self.storage = config, storage
        self._rows = PredictionRows(log_secret(storage))
        self._random = secrets.SystemRandom()
        size = config.log_megabytes * 1_000_000
        self.predictions = RowLog(storage, "predictions", PREDICTIONS, config.log_days, size, record)
        self.texts = RowLog(storage, "texts", TEXTS, config.text_days, size, record) if config.text_days else None

    def start(self) -> None:
        """Start writing."""
        for log in filter(None, (self.predictions, self.texts)):
            log.start()

    def close(self) -> None:
        """Write what is left."""
        for log in filter(None, (self.predictions, self.texts)):
            log.close()

    def add(self, request_id: str, scored: Sequence[Scored]) -> None:
        """Log the texts of a request. Returns at once."""
        now = datetime.now(UTC)
        ids = [{"time": now, "request_id": request_id, "index": i} for i in range(len(scored))]
        fraction = self.config.audit_fraction
        audits = [{"audit_fraction": fraction, "audited": self._random.random() < fraction} for _ in scored]
        rows = map(self._rows.row, scored)
        self.predictions.append([id_ | row | audit for id_, row, audit in zip(ids, rows, audits, strict=True)])
        if self.texts:
            texts = [one.document.text.encode(errors="replace").decode() for one in scored]  # lone surrogates
            self.texts.append([id_ | {"text": text} for id_, text in zip(ids, texts, strict=True)])

    def find(self, request_id: str, index: int) -> dict[str, Any] | None:
        """The row of a text, also one that this replica has not written yet; None if there is none."""
        for row in self.predictions.waiting():
            if (row["request_id"], row["index"]) == (request_id, index):
                return row
        return find(self.storage, request_id, index)


class PredictionRows:
    """Columns of `PREDICTIONS` that are features of a text or parts of its verdict."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._planes: Floats | None = None

    def row(self, scored: Scored) -> dict[str, Any]:
        """Those of one text."""
        document, score, verdict = scored
        fractions = document.content.fractions
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
            "sketch": self._sketch(document.style),
        }

    def _sketch(self, style: Floats) -> int | None:
        if not style.size:
            return None
        if self._planes is None or len(self._planes) != style.size:
            self._planes = sketch_planes(self._secret, style.size)
        return int(sketches(style[None], self._planes)[0])


def sketch_planes(secret: bytes, dimensions: int) -> Floats:
    """Secret random directions, shape (dimensions, SKETCH_BITS): without the secret a sketch says little of a style."""
    seed = int.from_bytes(hashlib.sha256(secret).digest())
    return np.random.default_rng(seed).normal(size=(dimensions, SKETCH_BITS))


def sketches(styles: Floats, planes: Floats) -> np.ndarray:
    """The signs of styles of shape (n, dimensions) on the directions, packed into uint64 of shape (n,)."""
    return np.packbits(styles @ planes > 0, axis=1).view(">u8")[:, 0].astype(np.uint64)


def sketch_bits(packed: np.ndarray) -> np.ndarray:
    """The signs as 0 and 1, shape (n, SKETCH_BITS)."""
    return np.unpackbits(packed.astype(">u8")[:, None].view(np.uint8), axis=1)


def log_secret(storage: Storage) -> bytes:
    """The secret of this deployment; made when it is first needed."""
    key = f"{FOLDER}/secret"
    if not storage.exists(key):
        storage.create(key, secrets.token_bytes(32))
    return storage.read_bytes(key)


def read(storage: Storage, name: str = "predictions", columns: Sequence[str] | None = None, days: int = 0) -> pa.Table:
    """All rows, or those of files of the last `days` days, oldest first, without erased ones.

    Raises InputError for a file of another schema version.
    """
    schema = TEXTS if name == "texts" else PREDICTIONS
    columns = list(columns or schema.names)
    first = f"day={datetime.now(UTC).date() - timedelta(days - 1)}" if days else ""
    erased = set(storage.list(_erased(name)))
    tables = []
    for info in _files(storage, name):
        if info.path.rsplit("/", 2)[1] < first:
            continue
        with suppress(FileNotFoundError):  # a replica removes old files meanwhile
            table = _read_file(storage, info)
            tables.append(_without(table, erased).select(columns))
    rows = pa.concat_tables(tables) if tables else schema.empty_table().select(columns)
    return rows.sort_by("time") if "time" in columns else rows


def find(storage: Storage, request_id: str, index: int) -> dict[str, Any] | None:
    """The row of one text, newest files first; None if there is none or it was erased."""
    if _digest(request_id) in storage.list(_erased("predictions")):
        return None
    for info in reversed(_files(storage, "predictions")):
        with suppress(FileNotFoundError):
            filters = [("request_id", "==", request_id), ("index", "==", index)]
            found = pq.read_table(info.path, filesystem=storage.filesystem, filters=filters, partitioning=None)
            if found.num_rows:
                row: dict[str, Any] = found.slice(0, 1).to_pylist()[0]
                return row
    return None


def erase(storage: Storage, request_id: str) -> int:
    """Remove every row of a request, and return how many were found.

    Readers ignore the request from now on; writers that still hold rows of it drop them when they write next.
    """
    removed = 0
    for name in ("predictions", "texts"):
        storage.write_bytes(f"{_erased(name)}/{_digest(request_id)}", b"")
        for info in _files(storage, name):
            with suppress(FileNotFoundError):
                table = _read_file(storage, info)
                kept = table.filter(pa.compute.not_equal(table["request_id"], request_id))
                if kept.num_rows < table.num_rows:
                    removed += table.num_rows - kept.num_rows
                    storage.write_bytes(_key(info, name), _parquet(kept))
    return removed


def prune(storage: Storage, name: str, days: int, max_bytes: int) -> None:
    """Delete files of earlier days than the last `days`, then the oldest until all others fit into `max_bytes`."""
    first = f"day={datetime.now(UTC).date() - timedelta(days - 1)}"
    files = _files(storage, name)
    size = sum(info.size for info in files)
    for info in files:
        if info.path.rsplit("/", 2)[1] < first or size > max_bytes:
            size -= info.size
            with suppress(FileNotFoundError):  # another replica was first
                storage.filesystem.delete_file(info.path)
    for day in storage.list(f"{FOLDER}/{name}"):
        if day.startswith("day=") and day < first:
            with suppress(FileNotFoundError):
                storage.delete(f"{FOLDER}/{name}/{day}")


def _files(storage: Storage, name: str) -> list[FileInfo]:
    """The files of a log, oldest first."""
    selector = FileSelector(storage.path(f"{FOLDER}/{name}"), allow_not_found=True, recursive=True)
    files = [info for info in storage.filesystem.get_file_info(selector) if info.type == FileType.File]
    files = [info for info in files if info.extension == "parquet"]
    return sorted(files, key=lambda info: (info.path.rsplit("/", 2)[1], info.mtime_ns or 0, info.path))


def _read_file(storage: Storage, info: FileInfo) -> pa.Table:
    table = pq.read_table(info.path, filesystem=storage.filesystem, partitioning=None)
    found: Mapping[bytes, bytes] = table.schema.metadata or {}
    if found.get(_VERSION_KEY) != SCHEMA_VERSION:
        raise InputError(
            f"{info.path}: expected schema version {SCHEMA_VERSION.decode()}, found "
            f"{found.get(_VERSION_KEY, b'none').decode()}: remove the file, or use the release that wrote it"
        )
    return table


def _key(info: FileInfo, name: str) -> str:
    return f"{FOLDER}/{name}/{info.path.split(f'/{FOLDER}/{name}/', 1)[1]}"


def _without(table: pa.Table, erased: set[str]) -> pa.Table:
    """The rows whose requests are not erased."""
    if not erased or not table.num_rows:
        return table
    return table.filter(pa.array([_digest(id_) not in erased for id_ in table["request_id"].to_pylist()]))


def _erased(name: str) -> str:
    return f"{FOLDER}/{name}/erased"


def _digest(request_id: str) -> str:
    return hashlib.sha256(request_id.encode()).hexdigest()[:32]


def _parquet(table: pa.Table) -> bytes:
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
