from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detect_ai.core.config import MonitoringConfig
from detect_ai.core.errors import InputError
from detect_ai.core.storage import Storage, parquet
from detect_ai.detector.detector import Detector, Document
from detect_ai.monitoring import prediction_log
from detect_ai.monitoring.prediction_log import PREDICTIONS, PredictionLog, RowLog, read, sketch_bits, sketches
from detect_ai.schemas import Verdict

TEXT = "The council met on Tuesday to vote on the old bridge near the market, said the farmer in the rain."
SPAN = TEXT[:20]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


class Scored(NamedTuple):
    """A text with its verdict."""

    document: Document
    score: float
    verdict: Verdict


@pytest.fixture(scope="module")
def scored(tiny_bundle: Path) -> Scored:
    detector = Detector.load(tiny_bundle)
    (document,) = detector.read([TEXT])
    return Scored(document, 0.25, detector.detect([TEXT])[0])


class Counts(dict[str, float]):
    """The last values of gauges by name."""

    def __call__(self, metric: str, value: float = 1, **labels: str) -> None:
        self[metric] = value


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def prediction_log_of(storage: Storage, counts: Counts | None = None, **settings: Any) -> PredictionLog:
    config = MonitoringConfig(log=True, **settings)
    return PredictionLog(storage, config, Counts() if counts is None else counts)


def add(log: PredictionLog, request_id: str, *scored: Scored) -> None:
    log.add(request_id, *zip(*scored, strict=True))


def stored_bytes(storage: Storage) -> bytes:
    return b"".join(path.read_bytes() for path in Path(storage.root).rglob("*") if path.is_file())


def test_rows_hold_the_prediction(storage: Storage, scored: Scored) -> None:
    log = prediction_log_of(storage)
    add(log, "r1", scored, scored)
    log.predictions.flush()
    first, second = read(storage).to_pylist()
    assert (first["request_id"], first["index"], second["index"]) == ("r1", 0, 1)
    assert (first["score"], first["num_tokens"]) == (0.25, scored.verdict.num_tokens)
    assert (first["label"], first["model_version"]) == (scored.verdict.label, scored.verdict.model_version)
    assert first["reasons"] == [reason.value for reason in scored.verdict.reasons]


def test_no_text_is_stored_unless_asked_for(storage: Storage, scored: Scored) -> None:
    log = prediction_log_of(storage)
    add(log, "r1", scored)
    log.flush()
    assert SPAN.encode() not in stored_bytes(storage)
    assert log.texts is None


def test_texts_are_stored_apart(storage: Storage, scored: Scored) -> None:
    log = prediction_log_of(storage, text_days=1)
    with_surrogate = replace(scored.document, text=f"{TEXT}\ud800")
    add(log, "r1", scored._replace(document=with_surrogate))
    log.flush()
    assert read(storage, "texts")["text"].to_pylist() == [f"{TEXT}?"]
    assert "text" not in read(storage).column_names


def test_one_file_grows_until_it_is_full(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_log, "ROWS_PER_FILE", 2)
    log = rows(storage)
    for name in "abc":
        log.append([row(name)])
        log.flush()
    assert sorted(pq.read_metadata(path).num_rows for path in Path(storage.root).rglob("*.parquet")) == [1, 2]
    assert read(storage)["request_id"].to_pylist() == ["a", "b", "c"]


def rows(storage: Storage) -> RowLog:
    return RowLog(storage, "predictions", days=2, max_bytes=10**9)


def row(request_id: str) -> dict[str, Any]:
    return {"time": datetime.now(UTC), "request_id": request_id, "index": 0, "audited": False}


def write_day(storage: Storage, age: int, request_id: str) -> None:
    time = datetime.now(UTC) - timedelta(age)
    table = pa.Table.from_pylist([{**row(request_id), "time": time}], PREDICTIONS)
    key = f"monitoring/predictions/day={time.date()}/w-000001.parquet"
    storage.write_bytes(key, parquet(table))
    os.utime(storage.path(key), (1e9 - age, 1e9 - age))


def test_rows_wait_while_storage_fails(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    log = rows(storage)
    monkeypatch.setattr(prediction_log, "MAX_WAITING_ROWS", 3)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", full)
        for name in "abcde":
            log.append([row(name)])
            log.flush()
    log.flush()
    assert read(storage)["request_id"].to_pylist() == ["a", "b", "c"]


def test_rows_beyond_the_queue_are_dropped_and_counted(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts()
    monkeypatch.setattr(prediction_log, "MAX_WAITING_ROWS", 2)
    monkeypatch.setattr(prediction_log, "FLUSH_S", 0.01)
    log = prediction_log_of(storage, counts)
    log.predictions.append([row(name) for name in "abc"])
    log.start()
    wait_until(lambda: counts.get("log_dropped") == 1 and counts.get("log_waiting") == 0)
    log.close()
    assert read(storage)["request_id"].to_pylist() == ["a", "b"]


def test_closing_writes_what_waits(storage: Storage) -> None:
    log = prediction_log_of(storage)
    log.start()
    log.predictions.append([row("a")])
    log.close()
    assert read(storage).num_rows == 1


def test_old_days_are_deleted(storage: Storage) -> None:
    for age in (0, 1, 2):
        write_day(storage, age, f"r{age}")
    prediction_log.prune(storage, "predictions", days=2, max_bytes=10**9)
    assert read(storage, columns=["request_id"])["request_id"].to_pylist() == ["r1", "r0"]
    assert len(storage.list("monitoring/predictions")) == 2


def test_the_oldest_files_are_deleted_beyond_the_size(storage: Storage) -> None:
    for age in (0, 1, 2):
        write_day(storage, age, f"r{age}")
    size = next(Path(storage.root).rglob("*.parquet")).stat().st_size
    prediction_log.prune(storage, "predictions", days=9, max_bytes=2 * size + 50)
    assert read(storage, columns=["request_id"])["request_id"].to_pylist() == ["r1", "r0"]


def test_erased_requests_are_gone_from_the_files(storage: Storage, scored: Scored) -> None:
    log = prediction_log_of(storage, text_days=1)
    for name in ("r1", "r2"):
        add(log, name, scored)
    log.flush()
    assert prediction_log.erase(storage, "r1") == 2
    assert b"r1" not in stored_bytes(storage)
    assert read(storage)["request_id"].to_pylist() == ["r2"]
    assert (len(log.find("r1", 0)), len(log.find("r2", 0))) == (0, 1)


def test_a_writer_does_not_bring_erased_rows_back(storage: Storage) -> None:
    log = rows(storage)
    log.append([row("r1")])
    log.flush()
    prediction_log.erase(storage, "r1")
    log.append([row("r2")])
    log.flush()
    assert b"r1" not in stored_bytes(storage)
    assert read(storage)["request_id"].to_pylist() == ["r2"]


def test_texts_are_found_by_request_and_index(storage: Storage, scored: Scored) -> None:
    log = prediction_log_of(storage)
    add(log, "r1", scored, scored._replace(score=0.5))
    waiting = log.find("r1", 1)
    log.predictions.flush()
    assert [row["score"] for row in waiting + log.find("r1", 1)] == [0.5, 0.5]
    assert (log.find("r1", 2), log.find("r3", 0)) == ([], [])


def test_all_texts_of_a_repeated_request_id_are_found(storage: Storage, scored: Scored) -> None:
    one, other = prediction_log_of(storage), prediction_log_of(storage)
    for log, score in ((one, 1.0), (other, 2.0)):
        add(log, "r1", scored._replace(score=score))
        log.flush()
    add(one, "r1", scored._replace(score=3.0))
    assert sorted(row["score"] for row in one.find("r1", 0)) == [1, 2, 3]


def test_another_schema_version_is_refused(storage: Storage) -> None:
    table = PREDICTIONS.empty_table().replace_schema_metadata({b"detect_ai.schema": b"9"})
    storage.write_bytes("monitoring/predictions/day=2026-01-01/w-000001.parquet", parquet(table))
    with pytest.raises(InputError, match=r"found .*9"):
        read(storage)


def test_the_audit_draws_its_fraction(storage: Storage, scored: Scored) -> None:
    log = prediction_log_of(storage, audit_fraction=0.25)
    for _ in range(4):
        add(log, "r", *[scored] * 1000)
    drawn = [row["audited"] for row in log.predictions.waiting()]
    assert 0.2 < np.mean(drawn) < 0.3
    assert {row["audit_fraction"] for row in log.predictions.waiting()} == {0.25}


def test_sketches_keep_angles_and_need_the_secret() -> None:
    rng = np.random.default_rng(0)
    styles = rng.normal(size=(2000, 16))
    near = styles + 0.1 * rng.normal(size=styles.shape)
    bits, others, elsewhere = (
        sketch_bits(sketches(*given)) for given in ((styles, b"secret"), (near, b"secret"), (styles, b"other"))
    )
    assert (bits == (styles @ prediction_log._directions(b"secret", 16) > 0)).all()
    assert np.mean(bits != others) < 0.05
    assert 0.4 < np.mean(bits != elsewhere) < 0.6


def test_the_secret_is_made_once(storage: Storage) -> None:
    assert len(prediction_log.log_secret(storage)) == 32
    assert prediction_log.log_secret(storage) == prediction_log.log_secret(storage)


def test_only_the_owner_reads_the_secret(storage: Storage) -> None:
    prediction_log.log_secret(storage)
    assert Path(storage.path("monitoring/secret")).stat().st_mode & 0o777 == 0o600
