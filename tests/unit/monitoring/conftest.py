"""A storage root, rows and logs in it."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detect_ai.core.storage import Storage, parquet
from detect_ai.monitoring.log_files import SCHEMAS
from detect_ai.monitoring.prediction_log import RowLog

TEXT = "The council met on Tuesday to vote on the old bridge near the market, said the farmer in the rain."


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def rows(storage: Storage) -> RowLog:
    return RowLog(storage, "predictions", days=2, max_bytes=10**9)


def row(request_id: str, **columns: Any) -> dict[str, Any]:
    fixed = {"time": datetime.now(UTC), "index": 0, "audited": False, "style": np.ones(4)}
    return {**fixed, "request_id": request_id, **columns}


def texts_log(storage: Storage, max_bytes: int = 10**9) -> RowLog:
    return RowLog(storage, "texts", days=2, max_bytes=max_bytes)


def write_day(storage: Storage, age: int, request_id: str, name: str = "predictions") -> None:
    time = datetime.now(UTC) - timedelta(age)
    table = pa.Table.from_pylist([row(request_id, time=time, text=TEXT, model_version=str(age))], SCHEMAS[name])
    key = f"monitoring/{name}/day={time.date()}/w-000001.parquet"
    storage.write_bytes(key, parquet(table))
    os.utime(storage.path(key), (1e9 - age, 1e9 - age))


def stored_bytes(storage: Storage) -> bytes:
    return b"".join(path.read_bytes() for path in Path(storage.root).rglob("*") if path.is_file())
