from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from detect_ai.core.config import MonitoringConfig
from detect_ai.core.errors import InputError
from detect_ai.core.storage import Storage, parquet
from detect_ai.monitoring import log_files
from detect_ai.monitoring.log_files import PREDICTIONS, erase, find, prune, read, retain
from detect_ai.monitoring.prediction_log import PredictionLog
from serve_app.engine.metrics import discard
from tests.unit.monitoring.conftest import TEXT, row, rows, stored_bytes, texts_log, write_day


def test_wanted_rows_are_read(storage: Storage) -> None:
    for age in (0, 1, 2):
        write_day(storage, age, f"r{age}")
    recent = pc.field("time") > datetime.now(UTC) - timedelta(1.5)
    found = read(storage, columns=["score", "request_id"], where=recent)
    assert found.column_names == ["score", "request_id"]
    assert found["request_id"].to_pylist() == ["r1", "r0"]
    assert read(storage, columns=["index"], where=recent & (pc.field("request_id") == "r1")).num_rows == 1


def test_only_wanted_columns_are_read(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    write_day(storage, 0, "r1", "texts")
    asked, read_table = list[list[str]](), pq.read_table
    monkeypatch.setattr(
        pq,
        "read_table",
        lambda *given, columns, **more: asked.append(columns) or read_table(*given, columns=columns, **more),
    )
    assert read(storage, "texts", columns=["index"]).column_names == ["index"]
    assert asked == [["index", "time", "request_id"]]


def test_another_schema_version_is_refused(storage: Storage) -> None:
    table = PREDICTIONS.empty_table().replace_schema_metadata({b"detect_ai.schema": b"9"})
    storage.write_bytes("monitoring/predictions/day=2026-01-01/w-000001.parquet", parquet(table))
    with pytest.raises(InputError, match=r"found .*9"):
        read(storage)


def test_the_search_for_a_row_is_bounded(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for age in (0, 1, 2):
        write_day(storage, age, f"r{age}")
    start = time.monotonic()
    seconds = iter([0.0, 0.0, 9.0, 11.0])
    monkeypatch.setattr(time, "monotonic", lambda: start + next(seconds))
    assert find(storage, "r2", 0) == []
    seconds = iter([0.0, 0.0, 9.0, 10.0])
    assert len(find(storage, "r2", 0)) == 1


def test_erased_requests_are_gone_from_the_files(storage: Storage) -> None:
    for log in (rows(storage), texts_log(storage)):
        log.append([row(name, text=TEXT) for name in ("r1", "r2")])
        log.flush()
    assert erase(storage, "r1") == 2
    assert b"r1" not in stored_bytes(storage)
    assert read(storage)["request_id"].to_pylist() == ["r2"]
    assert (len(find(storage, "r1", 0)), len(find(storage, "r2", 0))) == (0, 1)


def test_erasing_does_not_undo_what_a_writer_writes_meanwhile(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, read_file = rows(storage), log_files._read_file
    log.append([row("r1"), row("r0")])
    log.flush()
    log.append([row("r2")])

    def slow(*given: Any) -> pa.Table:
        table = read_file(*given)
        if len(given) == 2:  # `erase` reads the whole file to rewrite it without the row
            log.flush()
        return table

    monkeypatch.setattr(log_files, "_read_file", slow)
    erase(storage, "r1")
    monkeypatch.undo()
    assert read(storage)["request_id"].to_pylist() == ["r0", "r2"]
    assert b"r1" not in stored_bytes(storage)


def test_erasing_and_retention_in_an_object_store(gcs_root: str) -> None:
    store = Storage(gcs_root)
    log = PredictionLog(store, MonitoringConfig(log=True, text_days=1), discard)
    log.predictions.append([row("r1"), row("r2")])
    log.flush()
    assert erase(store, "r1") == 1
    assert read(store)["request_id"].to_pylist() == ["r2"]
    retain(store, MonitoringConfig(log=True))
    assert (read(store).num_rows, store.list(log_files.ERASED)) == (1, [log_files._digest("r1")])
    marker, then = log_files._marker("r1"), time.time_ns() - 86400 * 10**9
    assert log_files._files(store, "erased", "")[marker].mtime_ns > then
    prune(store, "predictions", days=0, max_bytes=10**9)
    assert read(store).num_rows == 0


def test_markers_are_deleted_when_no_row_can_be_left(storage: Storage) -> None:
    for name, days in (("old", 32), ("new", 30)):
        erase(storage, name)
        then = time.time() - 86400 * days
        os.utime(storage.path(log_files._marker(name)), (then, then))
    retain(storage, MonitoringConfig(log=True, log_days=30))
    assert storage.list(log_files.ERASED) == [log_files._digest("new")]


def test_old_days_are_deleted(storage: Storage) -> None:
    for age in (0, 1, 2):
        write_day(storage, age, f"r{age}")
    prune(storage, "predictions", days=2, max_bytes=10**9)
    assert read(storage, columns=["request_id"])["request_id"].to_pylist() == ["r1", "r0"]
    assert len(storage.list("monitoring/predictions")) == 2


def test_the_oldest_files_are_deleted_beyond_the_size(storage: Storage) -> None:
    for age in (0, 1, 2):
        write_day(storage, age, f"r{age}")
    size = next(Path(storage.root).rglob("*.parquet")).stat().st_size
    prune(storage, "predictions", days=9, max_bytes=2 * size + 50)
    assert read(storage, columns=["request_id"])["request_id"].to_pylist() == ["r1", "r0"]
