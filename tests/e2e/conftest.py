"""A registry with a tiny champion and one deployed service for all end-to-end tests."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from detect_ai.core.config import Config
from detect_ai.core.local_cluster import LocalCluster
from detect_ai.core.ray_runtime import free_port
from detect_ai.core.storage import Storage
from detect_ai.detector.registry import Registry
from serve_app import deployment
from serve_app.deploy import deploy, stop
from tests.fixtures import tiny_models

CHECKOUT = Path(__file__).resolve().parents[2]
BATCH_TOKENS = 65_536  # large, because the tiny model is fast: requests wait long enough for a test to act


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Storage:
    """A storage root whose champion is the tiny bundle."""
    storage = Storage(str(tmp_path_factory.mktemp("store")))
    registry = Registry(storage)
    registry.set_champion(registry.add(tiny_bundle))
    return storage


@pytest.fixture(scope="session")
def cluster(ray_cluster: Path) -> Path:
    """The session directory of the shared cluster, where all logs are."""
    return ray_cluster


@pytest.fixture(scope="session")
def config(encoder: Path, store: Storage) -> Config:
    config = tiny_models.config(encoder, Path(store.root))
    config.serve.port = free_port()
    config.serve.max_replicas = 1
    config.serve.batch_tokens, config.serve.max_wait_s = BATCH_TOKENS, 600
    config.monitoring.log, config.monitoring.drift.window = True, 10
    return config


@pytest.fixture(scope="session")
def url(cluster: Path, config: Config, store: Storage) -> Iterator[str]:
    """The URL of the service, deployed with short queues."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployment, "MAX_ONGOING_REQUESTS", 20)
        patch.setattr(deployment, "MAX_QUEUED_REQUESTS", 40)
        yield str(deploy(config, store)["url"])
    stop(app=True, serve_too=True)


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@contextlib.contextmanager
def one_process(store: Storage, log: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`detect-ai serve` of the champion, ready to answer: the process and its URL."""
    port = free_port()
    command = [sys.executable, "-m", "detect_ai.cli.__main__", "serve", "--root", store.root, f"serve.port={port}"]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, *arguments], cwd=CHECKOUT, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while b"Serving version" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextlib.contextmanager
def deployed(store: Storage, *overrides: str) -> Iterator[tuple[LocalCluster, str]]:
    """The champion, deployed by `jobs/deploy.py` on a Ray cluster of its own: the cluster and the URL."""
    cluster, port = LocalCluster(), free_port()
    try:
        command = [sys.executable, "jobs/deploy.py", f"storage.root={store.root}", f"serve.port={port}", *overrides]
        done = subprocess.run(
            command, cwd=CHECKOUT, env=cluster.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        yield cluster, f"http://127.0.0.1:{port}"
    finally:
        # Otherwise HAProxy outlives the cluster and keeps its ports.
        shutdown = "import ray; from ray import serve; ray.init(logging_level='ERROR'); serve.shutdown()"
        subprocess.run([sys.executable, "-c", shutdown], env=cluster.environment, capture_output=True, check=False)
        cluster.stop()


def listening(pid: int) -> set[str]:
    """Addresses where a process and its children listen.

    Omits the gRPC port of a Serve replica: Ray 2.60 binds it to all interfaces, without an option to change that.
    """
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    processes = [process for process in family if "ServeReplica" not in " ".join(process.cmdline())]
    sockets = [socket for process in processes for socket in process.net_connections("inet")]
    return {socket.laddr.ip.removeprefix("::ffff:") for socket in sockets if socket.status == psutil.CONN_LISTEN}
