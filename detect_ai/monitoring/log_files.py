"""Files of the prediction log: scores and features of served texts, never the texts.

The files are `monitoring/predictions/day=<date>/<writer>-<number>.parquet` under the storage root, with the columns of
`PREDICTIONS`. Texts are kept only if an operator enables it, in `monitoring/texts/` with a separate retention.

Erasing a request leaves a marker, which readers apply at once and writers within `prediction_log.MARKERS_S`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FileInfo

from detect_ai.core.errors import InputError
from detect_ai.core.storage import Storage, parquet

if TYPE_CHECKING:
    from detect_ai.core.config import MonitoringConfig

Row = dict[str, Any]

FOLDER = "monitoring"
ERASED = f"{FOLDER}/erased"  # digests of the ids of erased requests
FIND_S = 10.0  # time limit for the search for a row
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
        ("prose", pa.float32()),  # fraction of the visible characters in prose of the model's language
        ("other_language", pa.float32()),  # and in other languages
        ("nearest_domain", pa.string()),
        ("tampering", pa.int32()),  # characters removed or replaced
        ("sketch", pa.uint64()),  # signs of the style's projections on secret random directions; null without a style
        ("audit_fraction", pa.float64()),  # probability that the text was drawn for the audit
        ("audited", pa.bool_()),  # whether it was drawn
    ],
    _VERSION,
)
SCHEMAS = {"predictions": PREDICTIONS, "texts": pa.schema([*_ID, ("text", pa.string())], _VERSION)}


def read(
    storage: Storage,
    name: str = "predictions",
    columns: Sequence[str] | None = None,
    where: pc.Expression | None = None,
) -> pa.Table:
    """The rows that match `where`, oldest first, without erased rows.

    Raises InputError for a file of another schema version.
    """
    wanted = list(columns or SCHEMAS[name].names)
    needed = list(dict.fromkeys((*wanted, "time", "request_id")))
    tables = [SCHEMAS[name].empty_table().select(needed)]
    for key in _files(storage, name):
        with suppress(FileNotFoundError):  # a replica removes old files meanwhile
            tables.append(_read_file(storage, key, needed, where))
    rows = without(pa.concat_tables(tables), set(storage.list(ERASED)))
    return rows.sort_by("time").select(wanted)


def find(storage: Storage, request_id: str, index: int) -> list[Row]:
    """The rows of one text, none if it was erased; several if a client has sent its request id more than once.

    Searches the newest files first, for at most `FIND_S`: a request id contains no date, as clients may choose it.
    """
    rows: list[Row] = []
    if storage.exists(_marker(request_id)):
        return rows
    until, where = time.monotonic() + FIND_S, (pc.field("request_id") == request_id) & (pc.field("index") == index)
    for key in reversed(_files(storage, "predictions")):
        if time.monotonic() > until:
            break
        with suppress(FileNotFoundError):
            rows += _read_file(storage, key, where=where).to_pylist()
    return rows


def erase(storage: Storage, request_id: str) -> int:
    """Remove every row of a request, and return the number of rows found.

    Readers ignore the request from now on; writers that still hold rows of it drop them within
    `prediction_log.MARKERS_S`.
    """
    storage.write_bytes(_marker(request_id), b"")
    removed, where = 0, pc.field("request_id") == request_id
    for key in (key for name in SCHEMAS for key in _files(storage, name)):
        with suppress(FileNotFoundError):
            while found := _read_file(storage, key, ["index"], where).num_rows:
                before = _state(storage, key)
                kept = without(_read_file(storage, key), {_digest(request_id)})
                if _state(storage, key) == before:  # else its writer has replaced it
                    write_file(storage, key, kept)
                    removed += found
                    break
    return removed


def retain(storage: Storage, config: MonitoringConfig) -> None:
    """Apply the retention limits of `monitoring`, also to logs that are now disabled, and delete old markers."""
    prune(storage, "predictions", config.log_days, config.log_megabytes * 1_000_000)
    prune(storage, "texts", config.text_days, config.log_megabytes * 1_000_000)
    oldest = time.time_ns() - 86400 * 10**9 * (max(config.log_days, config.text_days) + 1)
    for key, info in _files(storage, "erased", "").items():
        if (info.mtime_ns or oldest) < oldest:
            storage.delete(key)


def prune(storage: Storage, name: str, days: int, max_bytes: int) -> None:
    """Delete files older than `days` days, then the oldest files until the rest fits into `max_bytes`.

    A deleted file that another replica is still writing reappears at its next write.
    """
    first = f"day={datetime.now(UTC).date() - timedelta(days - 1)}"
    for day in storage.list(f"{FOLDER}/{name}"):
        if "day=" <= day < first:
            storage.delete(f"{FOLDER}/{name}/{day}")
    size = 0
    for key, info in reversed(_files(storage, name).items()):
        size += info.size
        if size > max_bytes:
            storage.delete(key)


def _files(storage: Storage, name: str, extension: str = "parquet") -> dict[str, FileInfo]:
    """The files of a log, or the marker files, by key; oldest first."""
    folder = storage.path(f"{FOLDER}/{name}")
    infos = storage.infos(f"{FOLDER}/{name}")
    infos = [info for info in infos if info.is_file and info.extension == extension]
    infos.sort(key=lambda info: (info.path.rpartition("/")[0], info.mtime_ns or 0, info.path))
    return {f"{FOLDER}/{name}{info.path.removeprefix(folder)}": info for info in infos}


def _state(storage: Storage, key: str) -> tuple[int | None, int | None]:
    """Modification time and size, which change when a file is replaced."""
    info = storage.filesystem.get_file_info(storage.path(key))
    return info.mtime_ns, info.size


def _read_file(
    storage: Storage, key: str, columns: list[str] | None = None, where: pc.Expression | None = None
) -> pa.Table:
    table = storage.read_table(key, columns, where)
    if (found := table.schema.metadata) != _VERSION:
        advice = "remove the file, or use the release that wrote it"
        raise InputError(f"{storage.path(key)}: expected the metadata {_VERSION}, found {found}: {advice}")
    return table


def write_file(storage: Storage, key: str, table: pa.Table) -> None:
    """Write a file of a log; only the owner can read a file with texts."""
    storage.write_bytes(key, parquet(table), private="text" in table.column_names)


def without(table: pa.Table, erased: set[str]) -> pa.Table:
    """The rows without those of erased requests; `erased` has the digests of their ids."""
    if not erased:
        return table
    gone = [id_ for id_ in table["request_id"].unique().to_pylist() if _digest(id_) in erased]
    return table.filter(pc.invert(pc.is_in(table["request_id"], pa.array(gone, pa.string()))))


def _marker(request_id: str) -> str:
    return f"{ERASED}/{_digest(request_id)}"


def _digest(request_id: str) -> str:
    return hashlib.sha256(request_id.encode()).hexdigest()[:32]
