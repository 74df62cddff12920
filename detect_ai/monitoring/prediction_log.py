"""Writer of the prediction log, one per replica; `log_files` defines its columns and files.

A writer replaces its last file as a whole every `FLUSH_S` seconds, so a killed process loses at most that time. It
applies the markers of erased requests within `MARKERS_S`; until then it may write an erased row again to its current
file.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from detect_ai.core.storage import Storage
from detect_ai.metrics import Floats
from detect_ai.monitoring.log_files import ERASED, FOLDER, SCHEMAS, Row, find, prune, retain, without, write_file

if TYPE_CHECKING:
    from detect_ai.core.config import MonitoringConfig
    from detect_ai.detector.detector import Document
    from detect_ai.schemas import Verdict

logger = logging.getLogger("ray.serve")
Record = Callable[..., None]  # counts a metric: its name, a number (default: 1), labels

FLUSH_S = 4.0
MARKERS_S = 30.0  # between checks for new markers of erased requests
RETAIN_S = 3600.0  # between deletions of old data
FILE_BYTES = 4_000_000  # size in memory above which a writer begins the next file; on disk it is smaller
ROW_BYTES = 1000  # estimated size of a row in memory, without its text
MAX_WAITING_BYTES = 20_000_000  # buffered while storage is not writable; further rows are dropped
SKETCH_BITS = 64


class RowLog:
    """A log and its writer. Any thread may call `append`; a single thread calls the other methods.

    `prune` keeps rows for `days` days and all files together within `max_bytes`.
    """

    def __init__(self, storage: Storage, name: str, days: int, max_bytes: int) -> None:
        self.storage, self.name, self.days, self.max_bytes = storage, name, days, max_bytes
        self.num_dropped = 0
        self._room = min(MAX_WAITING_BYTES, max_bytes // 2)  # for waiting rows, so also for a file
        self._writer, self._number, self._day, self._key = uuid.uuid4().hex[:12], 0, "", ""
        self._current = SCHEMAS[name].empty_table()  # content of the current file
        self._erased, self._next_look = set[str](), 0.0  # markers already applied to the current file
        self._waiting, self._waiting_bytes = list[Row](), 0
        self._lock = threading.Lock()

    def append(self, rows: Sequence[Row]) -> None:
        """Queue rows without blocking; rows beyond `MAX_WAITING_BYTES` are dropped."""
        with self._lock:
            for row in rows:
                if self._waiting_bytes + (size := _row_bytes(row)) > self._room:
                    self.num_dropped += 1
                else:
                    self._waiting.append(row)
                    self._waiting_bytes += size

    def waiting(self) -> list[Row]:
        """Rows that are not written yet."""
        with self._lock:
            return list(self._waiting)

    def flush(self, finish: Callable[[Row], Row] = dict) -> list[Row]:
        """Add the waiting rows, converted by `finish`, to the current file (replacing it), and return them.

        A storage error leaves them waiting. Rows that do not match the columns of the log are dropped, and it raises.
        """
        today, size = datetime.now(UTC).date().isoformat(), self._current.nbytes + self._waiting_bytes
        is_full = today != self._day or size > min(FILE_BYTES, self._room)
        if is_full or time.monotonic() >= self._next_look:
            self.drop_erased()  # before the next file: a later erasure sees the final content of this one
        if is_full:
            prune(self.storage, self.name, self.days, self.max_bytes - self._room)
            self._day, self._number, self._current = today, self._number + 1, self._current.slice(0, 0)
            self._key = f"{FOLDER}/{self.name}/day={today}/{self._writer}-{self._number:06d}.parquet"
        if not (waiting := self.waiting()):
            return []
        try:
            rows = [finish(row) for row in waiting]
            table = pa.Table.from_pylist(rows, SCHEMAS[self.name])
        except Exception:
            self._remove(waiting)
            self.num_dropped += len(waiting)
            raise
        table = pa.concat_tables([self._current, without(table, self._erased)]).combine_chunks()
        write_file(self.storage, self._key, table)
        self._current = table
        self._remove(waiting)
        return rows

    def drop_erased(self) -> None:
        """Remove rows of requests erased since the last check from the current file."""
        erased = set(self.storage.list(ERASED))
        kept = without(self._current, erased - self._erased)
        if kept.num_rows < self._current.num_rows and self.storage.exists(self._key):  # else it was pruned
            write_file(self.storage, self._key, kept)
        self._current, self._erased, self._next_look = kept, erased, time.monotonic() + MARKERS_S

    def _remove(self, rows: Sequence[Row]) -> None:
        with self._lock:
            del self._waiting[: len(rows)]
            self._waiting_bytes -= sum(map(_row_bytes, rows))


class PredictionLog:
    """The logs of a replica, its random draws for the audit, and a thread that runs a pass every `FLUSH_S`.

    A pass deletes old data (once per `RETAIN_S`), writes the logs, and calls `observe` with the written predictions,
    if any. Failures are counted and retried in the next pass. Without `monitoring.log` it only deletes old data.
    """

    observe: Callable[[Sequence[Row]], None] | None = None

    def __init__(self, storage: Storage, config: MonitoringConfig, record: Record) -> None:
        self.storage, self.config, self.record = storage, config, record
        self.errors = Counter[str]()  # by step of a pass
        self._secret, self._random = b"", secrets.SystemRandom()
        size = config.log_megabytes * 1_000_000
        self.predictions = RowLog(storage, "predictions", config.log_days, size)
        self.texts = RowLog(storage, "texts", config.text_days, size) if config.text_days else None
        self._logs = [log for log in (self.predictions, self.texts) if log and config.log]
        self._next_retain, self._last_success = 0.0, time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)

    @property
    def age_s(self) -> float:
        """Seconds since the last pass without a failure."""
        return time.monotonic() - self._last_success

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Write the remaining rows and stop the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        self.flush()
        while not self._stop.wait(FLUSH_S):
            self.flush()
        self.flush()
        for log in self._logs:
            with self._counted(log.name):
                log.drop_erased()

    def flush(self) -> None:
        """Run one pass."""
        errors, written = self.errors.total(), list[Row]()
        with self._counted("retention"):
            if time.monotonic() >= self._next_retain:
                retain(self.storage, self.config)
                self._next_retain = time.monotonic() + RETAIN_S
        for log in self._logs:
            with self._counted(log.name):
                if log is self.predictions:
                    self._secret = self._secret or log_secret(self.storage)
                    written = log.flush(partial(sketched, secret=self._secret))
                else:
                    log.flush()
            self.record("log_waiting", len(log.waiting()), log=log.name)
            self.record("log_dropped", log.num_dropped, log=log.name)
        with self._counted("drift"):
            if self.observe:
                self.observe(written)
        if self.errors.total() == errors:
            self._last_success = time.monotonic()

    @contextmanager
    def _counted(self, step: str) -> Iterator[None]:
        """Log and count an error, without its message unless it is a storage error: others may contain row values."""
        try:
            yield
        except Exception as error:
            cause = error if isinstance(error, OSError) else type(error).__name__
            logger.error("Prediction log: %s failed, will be tried again: %s", step, cause)
            self.errors[step] += 1
        self.record("log_errors", self.errors[step], step=step)

    def add(
        self, request_id: str, documents: Sequence[Document], scores: Sequence[float], verdicts: Sequence[Verdict]
    ) -> None:
        """Log the texts of a request, in request order. Does not block."""
        now, fraction = datetime.now(UTC), self.config.audit_fraction
        ids = [{"time": now, "request_id": request_id, "index": i} for i in range(len(documents))]
        rows = map(prediction_row, documents, scores, verdicts)
        audits = [{"audit_fraction": fraction, "audited": self._random.random() < fraction} for _ in ids]
        self.predictions.append([id_ | row | audit for id_, row, audit in zip(ids, rows, audits, strict=True)])
        if self.texts:
            texts = [document.text.encode(errors="replace").decode() for document in documents]  # lone surrogates
            self.texts.append([id_ | {"text": text} for id_, text in zip(ids, texts, strict=True)])

    def find(self, request_id: str, index: int) -> list[Row]:
        """The rows of a text, as `find`, including rows that this replica has not written yet."""
        waiting = [r for r in self.predictions.waiting() if (r["request_id"], r["index"]) == (request_id, index)]
        return waiting + find(self.storage, request_id, index)


def prediction_row(document: Document, score: float, verdict: Verdict) -> Row:
    """Columns of `PREDICTIONS` from a text and its verdict, with the style instead of the sketch."""
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
        "style": document.style,
    }


def sketched(row: Row, secret: bytes) -> Row:
    """A row with the sketch of its style added."""
    style = row["style"]
    return row | {"sketch": int(sketches(style[None], secret)[0]) if style.size else None}


def sketches(styles: Floats, secret: bytes) -> np.ndarray:
    """Signs of the projections of styles, shape (n, dimensions), on `SKETCH_BITS` directions: uint64 of shape (n,)."""
    return np.packbits(styles @ _directions(secret, styles.shape[1]) > 0, axis=1).view(">u8")[:, 0].astype(np.uint64)


@lru_cache
def _directions(secret: bytes, dimensions: int) -> Floats:
    """Random directions, from a secret: without it a sketch reveals little about a style."""
    seed = int.from_bytes(hashlib.sha256(secret).digest())
    return np.random.default_rng(seed).normal(size=(dimensions, SKETCH_BITS))


def sketch_bits(packed: np.ndarray) -> np.ndarray:
    """The signs as 0 and 1, shape (n, SKETCH_BITS)."""
    return np.unpackbits(packed.astype(">u8")[:, None].view(np.uint8), axis=1)


def log_secret(storage: Storage) -> bytes:
    """The secret of this deployment, created on first use."""
    key = f"{FOLDER}/secret"
    if not storage.exists(key):
        storage.create(key, secrets.token_bytes(32), private=True)
    return storage.read_bytes(key)


def _row_bytes(row: Row) -> int:
    return ROW_BYTES + len(row.get("text", "").encode(errors="replace"))
