"""`make demo` as it is: the main job of the README, beside another Ray cluster and with the usual ports taken."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from detect_ai.local_cluster import LocalCluster
from tests.e2e.conftest import CHECKOUT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture
def usual_ports_taken() -> Iterator[None]:
    """Something of another user's listens on the ports of Ray Serve and of Ray's dashboard."""
    with contextlib.ExitStack() as stack:
        for port in (8000, 8265):
            taken = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # it is in use: all the better
                taken.bind(("127.0.0.1", port))
                taken.listen()
        yield


def demo(root: Path) -> dict[str, float]:
    """Run the demo, and read the line that it prints last."""
    environment = {**os.environ, "DETECT_AI_STORAGE_ROOT": str(root), "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "examples/demo.py"],
        cwd=CHECKOUT,
        env={name: value for name, value in environment.items() if name not in ("KEEP", "RAY_ADDRESS")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return last


def test_the_demo_learns_and_answers_twice_beside_another_cluster(tmp_path: Path, usual_ports_taken: None) -> None:
    other = LocalCluster.start(num_cpus=1)
    try:
        for _ in range(2):
            said = demo(tmp_path)
            assert said["auroc"] >= 0.93
            assert said["human_probability"] < said["ai_probability"]
            assert said["trials"] >= 3
        os.kill(other.pid, 0)  # the demo stopped what it started and nothing else
    finally:
        other.stop()
