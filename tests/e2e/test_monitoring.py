"""Metrics, logs and traces of a real service, and a real Prometheus that raises an alert when it is gone."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray

from detect_ai.core.local_cluster import LocalCluster
from detect_ai.core.ray_runtime import free_port
from detect_ai.core.storage import Storage
from tests.e2e.conftest import deployed
from tests.fixtures import tiny_models
from tests.fixtures.monitoring import OPS, OTHERS, OURS, RAYS, dashboards, rules, series
from tests.fixtures.programs import require
from tests.fixtures.waiting import wait_for

CANARY = "canary5b2e"
TEXT = f"{CANARY}\u200b " + tiny_models.text("human", random.Random(1), 200)
EXPORTER = "ray.serve._private.tracing_utils:default_tracing_exporter"
QUERIES = [query for queries in dashboards().values() for query in queries] + [rule["expr"] for rule in rules()]
READ = {name for query in QUERIES for name in series(query) if not name.startswith("detect_ai:")} - OTHERS


def test_every_series_of_dashboards_and_rules_is_scraped(client: httpx.Client) -> None:
    port, exposition = ray.nodes()[0]["MetricsExportPort"], ""

    def missing() -> set[str]:
        nonlocal exposition
        client.post("/v1/detect", json={"texts": [TEXT, "short"]}).raise_for_status()
        client.post("/v1/detect", json={"text": 5})
        client.post("/v1/detect/file", files={"files": (f"{CANARY}.txt", TEXT.encode())}).raise_for_status()
        exposition = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        return {name for name in READ | OURS if f"\n{name}{{" not in exposition}

    wait_for(lambda: not missing(), 60)
    assert READ >= RAYS
    assert CANARY not in exposition
    assert "127.0.0.1:" not in "".join(line for line in exposition.splitlines() if "detect_ai_key" in line)
    for part in ('le="1.0"', 'size="short"', 'role="main"', 'key="anybody"', 'route="/v1/detect/file"'):
        assert part in exposition


def test_a_request_has_a_json_line_in_the_log(cluster: Path, client: httpx.Client) -> None:
    client.post(f"/v1/detect?{CANARY}", json={"text": TEXT}, headers={"X-Request-ID": "a-line-of-the-log"})

    def line() -> dict[str, Any]:
        logs = (cluster / "logs/serve").glob("replica_*.log")
        lines = [line for log in logs for line in log.read_text().splitlines() if "a-line-of-the-log" in line]
        return json.loads(lines[0]) if lines else {}

    wait_for(line, 10)
    assert {"key": "anybody", "route": "/v1/detect", "levelname": "INFO"}.items() <= line().items()
    assert line()["message"].startswith("POST /v1/detect 200 ")
    assert line()["tokens"] > 100


@pytest.fixture(scope="module")
def traced(store: Storage) -> Iterator[tuple[LocalCluster, str]]:
    """A service with traces on a separate cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_SERVE_TRACING_SAMPLING_RATIO", "1")
        with deployed(store, f"serve.tracing={EXPORTER}") as service:
            yield service


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_traces_name_the_request_and_have_no_text(traced: tuple[LocalCluster, str]) -> None:
    headers = {"X-Request-ID": "a-traced-request"}
    httpx.post(f"{traced[1]}/v1/detect?{CANARY}", json={"text": TEXT}, headers=headers).raise_for_status()
    httpx.post(f"{traced[1]}/v1/detect", json={"texts": [CANARY, 5]})

    def spans() -> str:
        return "".join(path.read_text() for path in traced[0].folder.rglob("*_tracing.json"))

    wait_for(lambda: "a-traced-request" in spans(), 30)
    assert CANARY not in spans()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_alert_fires_when_all_replicas_are_killed(traced: tuple[LocalCluster, str], tmp_path: Path) -> None:
    config = (OPS / "prometheus.yml").read_text().replace("/tmp/ray/", f"{traced[0].folder}/ray/")
    (tmp_path / "prometheus.yml").write_text(config)
    shutil.copy(OPS / "rules.yml", tmp_path)
    address = f"127.0.0.1:{free_port()}"
    options = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]

    def ask(path: str) -> Any:
        with suppress(httpx.TransportError):
            response = httpx.get(f"http://{address}/api/v1/{path}")
            return response.json()["data"] if response.status_code == 200 else None

    def firing() -> set[str]:
        alerts = (ask("alerts") or {"alerts": []})["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def kill() -> None:
        for process in psutil.Process(traced[0].pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "ServeReplica" in " ".join(process.cmdline()):
                    process.kill()

    def fires_while_replicas_are_killed() -> bool:
        kill()  # Serve starts new ones
        return "DetectAINoReplica" in firing()

    with (tmp_path / "log").open("wb") as log:
        prometheus = subprocess.Popen([require("prometheus"), *options], cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_for(lambda: (ask("query?query=ray_detect_ai_loaded") or {}).get("result"), 90)
        time.sleep(40)  # longer than the delay of the alert
        assert firing() <= {"DetectAINoTraffic"}
        seconds = wait_for(fires_while_replicas_are_killed, 90)
        print(f"DetectAINoReplica fired {seconds:.0f} s after the first kill")
        assert "DetectAINoScrape" not in firing()
        wait_for(lambda: "DetectAINoReplica" not in firing(), 120)  # a new replica answers
    finally:
        prometheus.terminate()
        prometheus.wait(30)
