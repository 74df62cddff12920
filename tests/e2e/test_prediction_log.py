"""The prediction log, feedback and drift of a real service."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from detect_ai.core.ray_runtime import free_port
from detect_ai.core.storage import Storage
from detect_ai.detector.registry import Registry
from detect_ai.monitoring.log_files import read
from detect_ai.monitoring.prediction_log import FLUSH_S, MAX_WAITING_BYTES, ROW_BYTES
from serve_app.auth.api_keys import KeyStore, Scope, create_key
from tests.e2e.conftest import CHECKOUT, one_process
from tests.fixtures import tiny_models
from tests.fixtures.waiting import wait_for

MAX_LOST_S = 5
GRAM = 20  # characters


class Service(NamedTuple):
    process: subprocess.Popen[bytes]
    client: httpx.Client
    storage: Storage
    token: str

    def detect(self, *texts: str) -> str:
        response = self.client.post("/v1/detect", json={"texts": list(texts)})
        response.raise_for_status()
        return str(response.json()["request_id"])


@contextmanager
def logging_service(folder: Path, tiny_bundle: Path) -> Iterator[Service]:
    """A separate service that logs predictions and draws every text for the audit."""
    storage = Storage(str(folder / "store"))
    registry = Registry(storage)
    registry.set_champion(registry.add(tiny_bundle))
    token, key = create_key("all", list(Scope))
    KeyStore(storage).put(key)
    overrides = ("monitoring.log=true", "monitoring.audit_fraction=1", "monitoring.drift.window=40")
    with one_process(storage, folder / "log", *overrides) as (process, url):
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=url, timeout=60, headers=headers) as client:
            yield Service(process, client, storage, token)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[Service]:
    with logging_service(tmp_path_factory.mktemp("monitored"), tiny_bundle) as service:
        yield service


def gauge(port: int, series: str) -> float:
    """The value of a metric of a service; -1 if there is none."""
    found = re.findall(rf"^{series}.*}} (\S+)$", httpx.get(f"http://127.0.0.1:{port}/metrics").text, re.MULTILINE)
    return float(found[0]) if found else -1


def texts(number: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [tiny_models.text("human", rng, 60) for _ in range(number)]


def test_predictions_and_labels_are_kept_without_texts(service: Service) -> None:
    sent = texts(5)
    id_ = service.detect(*sent)
    wait_for(lambda: read(service.storage).num_rows >= 5, 2 * FLUSH_S + 3)
    assert set(read(service.storage)["request_id"].to_pylist()) == {id_}
    answer = service.client.post("/v1/feedback", json={"request_id": id_, "index": 4, "label": "human"})
    assert answer.json() == {"request_id": id_, "audited": True, "conflict": False}
    stored = b"".join(
        path.read_bytes() for path in Path(service.storage.path("monitoring")).rglob("*") if path.is_file()
    )
    values = str(read(service.storage).to_pylist()).encode()
    for text in sent:
        for start in range(0, len(text) - GRAM, GRAM // 2):
            gram = text[start : start + GRAM].encode()
            assert gram not in stored
            assert gram not in values
    assert service.token.encode() not in stored


def test_drift_is_reported(service: Service) -> None:
    service.detect(*texts(60))
    wait_for(lambda: bool(service.storage.list("monitoring/drift")), 60)


def test_reports_run_as_jobs(service: Service, tmp_path: Path) -> None:
    environment = {**os.environ, "DETECT_AI_STORAGE_ROOT": service.storage.root}
    for job in (["feedback"], ["drift", "monitoring.drift.window=40"]):
        command = [sys.executable, str(CHECKOUT / f"jobs/{job[0]}.py"), *job[1:]]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_killed_process_loses_seconds_at_most(tmp_path: Path, tiny_bundle: Path) -> None:
    with logging_service(tmp_path, tiny_bundle) as service:
        sent: list[float] = []
        started = time.monotonic()
        while time.monotonic() - started < 8:
            service.detect(*texts(1))
            sent.append(time.monotonic())
        killed = time.monotonic()
        service.process.kill()
        kept = read(service.storage).num_rows  # raises for a file that cannot be read
        assert kept >= sum(at < killed - MAX_LOST_S for at in sent) > 0


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_fails_no_request(tmp_path: Path, tiny_bundle: Path) -> None:
    port = free_port()
    storage = Storage(str(tmp_path / "store"))
    registry = Registry(storage)
    registry.set_champion(registry.add(tiny_bundle))
    folder = Path(storage.path("monitoring/predictions"))
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    try:
        (folder / "ballast").write_bytes(b"x" * (shutil.disk_usage(folder).free - 4096))
        with (
            one_process(storage, tmp_path / "log", f"--metrics-port={port}", "monitoring.log=true") as (_, url),
            httpx.Client(base_url=url) as client,
        ):
            answers = [
                client.post("/v1/detect", json={"texts": texts(256)}, timeout=60).status_code for _ in range(120)
            ]
            lost = 256 * len(answers) - MAX_WAITING_BYTES // ROW_BYTES - read(storage).num_rows
            assert lost > 0
            wait_for(lambda: gauge(port, 'detect_ai_log_dropped{.*log="predictions"') == lost, 60)
            assert gauge(port, 'detect_ai_log_errors{.*step="predictions"') > 0
            assert gauge(port, 'detect_ai_log_errors{.*step="retention"') == 0
        assert set(answers) == {200}
        assert "No space left" in (tmp_path / "log").read_text()
    finally:
        subprocess.run(["umount", str(folder)], check=True)
