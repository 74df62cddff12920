from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from detect_ai.core.config import MonitoringConfig
from detect_ai.core.storage import Storage
from detect_ai.detector.detector import Detector, Document
from detect_ai.monitoring import log_files, prediction_log
from detect_ai.monitoring.log_files import erase, prune, read
from detect_ai.monitoring.prediction_log import PredictionLog, sketch_bits, sketches
from detect_ai.schemas import Verdict
from tests.unit.monitoring.conftest import TEXT, row, rows, stored_bytes, texts_log, write_day

SPAN = TEXT[:20]


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
    """The last values of gauges by name, and by name with each label."""

    def __call__(self, metric: str, value: float = 1, **labels: str) -> None:
        self[metric] = value
        self.update({f"{metric} {label}": value for label in labels.values()})


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
    monkeypatch.setattr(prediction_log, "FILE_BYTES", 9000)
    log = texts_log(storage)
    for name in "abc":
        log.append([row(name, text="x" * 3000)])
        log.flush()
    assert sorted(pq.read_metadata(path).num_rows for path in Path(storage.root).rglob("*.parquet")) == [1, 2]
    assert read(storage, "texts")["request_id"].to_pylist() == ["a", "b", "c"]


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_rows_wait_while_storage_fails(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_log, "MAX_WAITING_BYTES", 3500)
    log = rows(storage)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", full_disk)
        for name in "abcde":
            log.append([row(name)])
            with suppress(OSError):
                log.flush()
    log.flush()
    assert read(storage)["request_id"].to_pylist() == ["a", "b", "c"]


def test_rows_beyond_the_queue_are_dropped_and_counted(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts()
    monkeypatch.setattr(prediction_log, "MAX_WAITING_BYTES", 2500)
    monkeypatch.setattr(prediction_log, "FLUSH_S", 0.01)
    log = prediction_log_of(storage, counts)
    log.predictions.append([row(name) for name in "abc"])
    log.start()
    wait_until(lambda: counts.get("log_dropped") == 1 and counts.get("log_waiting") == 0)
    log.close()
    assert read(storage)["request_id"].to_pylist() == ["a", "b"]


def test_waiting_texts_are_bounded_in_bytes(storage: Storage) -> None:
    log = texts_log(storage)
    log.append([row(str(i), text="é" * 1_000_000) for i in range(20)])
    assert (len(log.waiting()), log.num_dropped) == (9, 11)
    log.flush()
    log.append([row("a", text="é" * 2_000_000)])
    assert len(log.waiting()) == 1


def test_all_files_of_a_log_fit_into_its_size(storage: Storage) -> None:
    log, rng = texts_log(storage, max_bytes=1_000_000), np.random.default_rng(0)
    for i in range(100):
        log.append([row(str(i), text=rng.bytes(20_000).hex())])  # 20 kB compressed
        log.flush()
        assert len(stored_bytes(storage)) <= 1_000_000
    assert read(storage, "texts")["request_id"].to_pylist()[-1] == "99"
    assert len(stored_bytes(storage)) > 300_000


def test_a_full_file_is_not_written_again(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    log, written, write = texts_log(storage), list[int](), storage.write_bytes

    def counted(key: str, data: bytes, private: bool = False) -> None:
        written.append(len(data))
        write(key, data, private)

    monkeypatch.setattr(storage, "write_bytes", counted)
    rng = np.random.default_rng(0)
    for i in range(21):
        log.append([row(str(i), text=rng.bytes(250_000).hex())])
        log.flush()
    assert max(written) < 3_000_000
    assert len(list(Path(storage.root).rglob("*.parquet"))) == 3


def test_rows_that_do_not_fit_are_dropped_and_counted(storage: Storage, serve_log: pytest.LogCaptureFixture) -> None:
    counts = Counts()
    log = prediction_log_of(storage, counts)
    log.predictions.append([row("bad", num_tokens="a secret text")])
    log.flush()
    assert (counts["log_dropped predictions"], counts["log_errors predictions"]) == (1, 1)
    log.predictions.append([row("good")])
    log.flush()
    assert read(storage)["request_id"].to_pylist() == ["good"]
    assert "ArrowInvalid" in serve_log.text
    assert "secret" not in serve_log.text


def test_the_thread_survives_every_error(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, serve_log: pytest.LogCaptureFixture
) -> None:
    counts = Counts()
    monkeypatch.setattr(prediction_log, "FLUSH_S", 0.01)
    log = prediction_log_of(storage, counts)

    def fail(_: object) -> None:
        raise ValueError("a value of a row")

    log.observe = fail
    log.start()
    wait_until(lambda: counts.get("log_errors drift", 0) >= 2)
    log.predictions.append([row("a")])
    wait_until(lambda: read(storage).num_rows == 1)
    log.close()
    assert "ValueError" in serve_log.text
    assert "a value of a row" not in serve_log.text


def test_the_age_counts_from_the_last_pass_without_errors(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    log = prediction_log_of(storage)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 100)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", full_disk)
        log.flush()
    assert log.age_s > 99
    log.flush()
    assert log.age_s == 0


def test_a_log_starts_without_storage(
    storage: Storage, scored: Scored, monkeypatch: pytest.MonkeyPatch, serve_log: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", full_disk)
        log = prediction_log_of(storage)
        add(log, "r1", scored._replace(document=replace(scored.document, style=np.ones(4))))
        log.flush()
    assert "No space left" in serve_log.text
    log.flush()
    (written,) = read(storage).to_pylist()
    assert written["sketch"] == sketches(np.ones((1, 4)), prediction_log.log_secret(storage))[0]


def test_closing_writes_what_waits(storage: Storage) -> None:
    log = prediction_log_of(storage)
    log.start()
    log.predictions.append([row("a")])
    log.close()
    assert read(storage).num_rows == 1


@pytest.mark.parametrize(("settings", "kept"), [({"log": True, "text_days": 50}, 1), ({"log": True}, 0), ({}, 0)])
def test_a_start_deletes_old_texts_also_without_traffic(
    storage: Storage, settings: dict[str, Any], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_log, "FLUSH_S", 0.01)
    for age in (0, 40):
        write_day(storage, age, f"r{age}")
        write_day(storage, age, f"r{age}", "texts")
    log = PredictionLog(storage, MonitoringConfig(**settings), Counts())
    log.start()
    wait_until(lambda: storage.list("monitoring/predictions") == [f"day={datetime.now(UTC).date()}"])
    wait_until(lambda: len(storage.list("monitoring/texts")) == 2 * kept)
    log.close()
    assert storage.exists("monitoring/secret") == bool(settings)


def test_retention_is_applied_again_and_again(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    log = prediction_log_of(storage)
    log.flush()
    write_day(storage, 40, "r1")
    log.flush()
    assert read(storage).num_rows == 1
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + prediction_log.RETAIN_S)
    log.flush()
    assert read(storage).num_rows == 0


def test_a_writer_continues_when_another_replica_prunes_its_file(storage: Storage) -> None:
    ours, theirs = rows(storage), rows(storage)
    for log in (ours, theirs):
        log.append([row("a")])
        log.flush()
    prune(storage, "predictions", days=1, max_bytes=0)
    ours.append([row("b")])
    ours.flush()
    assert read(storage)["request_id"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize("more", [True, False])
def test_a_writer_drops_erased_rows_also_without_new_ones(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, more: bool
) -> None:
    log = rows(storage)
    log.append([row("r1"), row("r0")])
    log.flush()
    file, before = next(Path(storage.root).rglob("*.parquet")), stored_bytes(storage)
    erase(storage, "r1")
    file.write_bytes(before)  # the writer has put the row back
    log.append([row("r2")] * more)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + prediction_log.MARKERS_S)
    log.flush()
    assert b"r1" not in stored_bytes(storage)
    assert read(storage)["request_id"].to_pylist() == ["r0", "r2"][: 1 + more]


def test_rows_that_are_erased_while_they_wait_are_not_written(storage: Storage) -> None:
    log = rows(storage)
    log.append([row("r1"), row("r2")])
    erase(storage, "r1")
    log.flush()
    assert b"r1" not in stored_bytes(storage)


def test_no_erased_row_stays_in_a_file_that_its_writer_leaves(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = rows(storage)
    log.append([row("r1"), row("r0")])
    log.flush()
    before, file = stored_bytes(storage), next(Path(storage.root).rglob("*.parquet"))
    erase(storage, "r1")
    file.write_bytes(before)
    monkeypatch.setattr(prediction_log, "FILE_BYTES", 0)  # the next file
    log.append([row("r2")])
    log.flush()
    assert b"r1" not in stored_bytes(storage)
    assert len(list(Path(storage.root).rglob("*.parquet"))) == 2


def test_a_closed_log_has_no_erased_row(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    log = prediction_log_of(storage)
    log.predictions.append([row("r1"), row("r0")])
    log.observe = lambda written: log_files.erase(Storage(storage.root), "r1") if written else None
    write = storage.write_bytes
    monkeypatch.setattr(log_files, "erase", lambda storage, id_: write(log_files._marker(id_), b""))
    log.start()
    log.close()
    assert read(storage)["request_id"].to_pylist() == ["r0"]
    assert b"r1" not in stored_bytes(storage)


def test_markers_are_listed_twice_a_minute_at_most(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    log, listed, list_ = rows(storage), list[str](), storage.list
    now = time.monotonic()
    monkeypatch.setattr(storage, "list", lambda key: listed.append(key) or list_(key))
    for second in range(0, 60, 2):
        monkeypatch.setattr(time, "monotonic", lambda second=second: now + second)
        log.append([row("a")])
        log.flush()
    assert listed.count(log_files.ERASED) == 2


def test_a_pruned_file_does_not_come_back_for_an_erased_row(storage: Storage) -> None:
    log = rows(storage)
    log.append([row("r1"), row("r2")])
    log.flush()
    prune(storage, "predictions", days=1, max_bytes=0)
    erase(storage, "r1")
    log.drop_erased()
    assert list(Path(storage.root).rglob("*.parquet")) == []


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


def test_secret_and_texts_are_for_their_owner_only(storage: Storage) -> None:
    log = prediction_log_of(storage, text_days=1)
    log.predictions.append([row("a")])
    log.texts.append([row("a", text=TEXT), row("b", text=TEXT)]) if log.texts else None
    log.flush()

    def modes(pattern: str) -> set[int]:
        return {path.stat().st_mode & 0o777 for path in Path(storage.path("monitoring")).glob(pattern)}

    assert modes("secret") == modes("texts/*/*.parquet") == {0o600}
    assert modes("predictions/*/*.parquet") != {0o600}
    erase(storage, "a")
    assert modes("texts/*/*.parquet") == {0o600}
