"""The stages as real Ray jobs: one JSON line last, exit codes, a small working directory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from detect_ai.local_cluster import LocalCluster
from tests import tiny
from tests.e2e.conftest import CHECKOUT

Submit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def submit(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Iterator[Submit]:
    """Submits `python jobs/NAME.py OVERRIDES` to a cluster of its own and waits."""
    root = tmp_path_factory.mktemp("jobs")
    source = tiny.write_jsonl(root / "texts.jsonl", tiny.rows(80))
    ours = [
        f"storage.root={root / 'store'}",
        *(f"model.path={encoder}", "model.sha256=", "model.window=64", "model.stride=48"),
        *("corpus=csv", "corpus.sources.0.kind=jsonl", f"corpus.sources.0.path={source}"),
        "corpus.sources.0.group=group",
        "corpus.split={train: 0.4, validation: 0.15, calibration: 0.3, test: 0.15}",
        *("train.epochs=2", "train.lr=1e-2", "calibration.min_tokens=10", "tracking.mode=disabled"),
    ]
    cluster = LocalCluster.start()

    def run(name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", cluster.address]
        command += ["--working-dir", str(CHECKOUT), "--", sys.executable, f"jobs/{name}.py", *ours, *overrides]
        return subprocess.run(
            command, env=cluster.environment, capture_output=True, text=True, timeout=240, check=False
        )

    yield run
    cluster.stop()


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The last line that is JSON; what Ray's command says of the job's end comes after it."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stdout[-3000:] + done.stderr[-1000:]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


@pytest.mark.timeout(600)
def test_every_stage_runs_as_a_job_and_prints_its_result(submit: Submit) -> None:
    for name in ("prepare", "train", "calibrate", "evaluate", "publish"):
        done = submit(name)
        assert done.returncode == 0, (name, done.stdout[-3000:])
        result = last_json(done)
    assert set(result) == {"champion", "before", "auroc"}


@pytest.mark.parametrize(
    ("job", "override", "said"),
    [
        ("train", "train.rate=1", "error: config: train.rate=1: Key 'rate' not in 'TrainConfig'; allowed here: lr, "),
        ("prepare", "corpus.sources.0.path=/nowhere.csv", "error: source /nowhere.csv: no such file or folder"),
        ("sweep", "run=fresh", "error: run=fresh: no result of 'prepare' under"),
    ],
)
def test_a_job_that_cannot_run_says_why_in_one_line_and_fails(
    submit: Submit, job: str, override: str, said: str
) -> None:
    done = submit(job, override)
    assert done.returncode != 0
    errors = {line for line in done.stdout.splitlines() if line.startswith("error: ")}
    assert len(errors) == 1, done.stdout[-3000:]  # Ray's command repeats the end of a failed job's log
    assert errors.pop().startswith(said)
    assert "Traceback" not in done.stdout
