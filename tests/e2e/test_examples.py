"""`make demo`, next to another Ray cluster and with the default ports taken, and `make circle`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from detect_ai.core.local_cluster import LocalCluster
from tests.e2e.conftest import CHECKOUT

METRICS = ("auroc", "tpr_at_fpr_5", "trials", "human_probability", "ai_probability")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture
def usual_ports_taken() -> Iterator[None]:
    """Occupy the default ports of Ray Serve and of the dashboard."""
    with contextlib.ExitStack() as stack:
        for port in (8000, 8265):
            taken = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # in use already
                taken.bind(("127.0.0.1", port))
                taken.listen()
        yield


def run(name: str, root: Path, keep: bool = False) -> tuple[dict[str, Any], str]:
    """Run an example. Returns its last line, parsed, and all output."""
    environment = {**os.environ, "DETECT_AI_STORAGE_ROOT": str(root), "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py"],
        cwd=CHECKOUT,
        env={n: v for n, v in environment.items() if n != "RAY_ADDRESS"} | {"KEEP": "1" if keep else ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


def clusters() -> set[Path]:
    """Folders of local clusters on this machine."""
    return set(Path("/tmp").glob("dai-*"))


def test_demo_runs_twice_next_to_another_cluster(tmp_path: Path, usual_ports_taken: None) -> None:
    other = LocalCluster("--num-cpus=1")
    before = clusters()
    try:
        result, _ = run("demo", tmp_path)
        assert set(result) == {*METRICS, "best_lr", "seconds"}
        assert result["auroc"] >= 0.93
        assert result["human_probability"] < result["ai_probability"]
        assert result["trials"] >= 3
        assert clusters() == before
        again, lines = run("demo", tmp_path, keep=True)
        assert [again[name] for name in METRICS] == pytest.approx([result[name] for name in METRICS], abs=0.05)
        [url] = re.findall(r"the page is at (\S+)", lines)
        [stop] = re.findall(r"stop everything with: (kill \d+; rm -r \S+)", lines)
        assert httpx.get(f"{url}/readyz").status_code == 200
        subprocess.run(stop, shell=True, check=True)
        assert clusters() == before
        assert other.takes_jobs()  # the demo stopped only its own cluster
    finally:
        other.stop()


def test_circle(tmp_path: Path) -> None:
    result, _ = run("circle", tmp_path / "new")
    assert result["refused"] == ["no labels", "too few texts", "poisoned labels", "full disk", "worse challenger"]
    assert result["failed_requests"] == 0
    assert result["alarm_after_texts"] <= 500
    assert len(set(result["versions"])) == 3
    assert result["collected"]["hard_negatives"] == 100
    assert result["collected"]["mirrors"] >= 90
    assert max(result["fpr_after_recalibration"], result["fpr_after_retraining"]) <= 0.15  # of 200 texts; target: 5%
