"""A registry with a tiny champion, and the service over it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from detect_ai.cluster import free_port
from detect_ai.registry import Registry
from detect_ai.storage import Storage

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Storage:
    """A storage root whose champion is the tiny bundle."""
    storage = Storage(str(tmp_path_factory.mktemp("store")))
    registry = Registry(storage)
    registry.set_champion(registry.add(tiny_bundle))
    return storage


@contextlib.contextmanager
def foreground(store: Storage, log: Path, *overrides: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`python -m serve_app` on a Ray of its own, ready to answer: the process and its URL."""
    port = free_port()
    command = [sys.executable, "-m", "serve_app", f"storage.root={store.root}", f"serve.port={port}", *overrides]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=output, stderr=output)
    try:
        wait_until_ready(process, log)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_until_ready(process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    """Wait for the line that says where the service answers."""
    deadline = time.monotonic() + seconds
    while b"answers at" not in log.read_bytes():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def listening(pid: int) -> set[str]:
    """Addresses where a process and its children listen.

    The gRPC port of a Serve replica is left out: Ray 2.60 binds it to all interfaces and cannot be told otherwise.
    """
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    looked_at = [each for each in processes if "ServeReplica" not in " ".join(each.cmdline())]
    found = [connection for each in looked_at for connection in each.net_connections("inet")]
    return {each.laddr.ip.removeprefix("::ffff:") for each in found if each.status == psutil.CONN_LISTEN}
