"""cluster.yaml, simulated: training on GPU nodes that are added, lost and removed. It prints what it measures."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from detect_ai.core.storage import Storage
from ops.gcp.config import ROOT
from tests.fixtures import tiny_models
from tests.fixtures.programs import require
from tests.fixtures.simulated_cluster import IDLE_S, SimulatedCluster, simulated_cluster
from tests.integration.runs import attempts, hard_rows, last_start, registered

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
GPU_NODES = ("gpu_spot", "gpu_on_demand")


def until(condition: Callable[[], object], seconds: float) -> float:
    """Wait until a condition holds; returns how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + seconds, f"not reached within {seconds} s"
        time.sleep(0.2)
    return time.monotonic() - started


@pytest.fixture(scope="module")
def cluster(store: Storage) -> Iterator[SimulatedCluster]:
    require("redis-server")
    with simulated_cluster(store.root, SERVING_NODES="5", ON_DEMAND_GPU_WORKERS="1") as cluster:
        yield cluster


def test_training_survives_a_lost_node_and_leaves_none(
    cluster: SimulatedCluster, store: Storage, encoder: Path, tmp_path: Path
) -> None:
    source = tiny_models.write_jsonl(tmp_path / "texts.jsonl", hard_rows(60))
    settings = [
        *(f"model.path={encoder}", "model.sha256=", "model.window=64", "model.stride=48", "tracking.mode=disabled"),
        *("corpus=csv", "corpus.sources.0.kind=jsonl", f"corpus.sources.0.path={source}"),
        *("corpus.sources.0.group=group", "corpus.split={train: 0.4, validation: 0.15, calibration: 0.3, test: 0.15}"),
        *("train=gpu", "train.num_workers=4", "train.batch_size=16", "train.microbatch_size=4", "train.epochs=12"),
        *("train.lr=5e-3", "train.precision=fp32", "train.threads_per_worker=1", "train.checkpoint_every=2"),
    ]
    cluster.run("jobs/prepare.py", *settings)
    assert cluster.machines(*GPU_NODES) == {}
    command = [sys.executable, "-m", "tests.e2e.train_without_cuda", *settings]
    log = tmp_path / "train.log"
    with log.open("wb") as output:
        training = subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=output, stderr=output)
    started = time.monotonic()

    def checkpoints() -> int:
        assert training.poll() is None, log.read_text()[-3000:]
        names = attempts(store, "default", "train")
        return registered(store, f"runs/default/{names[0]}") if names else 0

    try:
        until(lambda: checkpoints() >= 3, 240)
        print(f"4 nodes, 3 checkpoints: {time.monotonic() - started:.0f} s after the start")
        machines = cluster.machines(*GPU_NODES)
        assert len(machines) == 4
        lost, killed = next(iter(machines)), time.monotonic()
        cluster.kill_machine(lost)
        (name,) = attempts(store, "default", "train")
        until(lambda: checkpoints() and last_start(store, f"runs/default/{name}")["step"] > 0, 240)
        print(f"training resumed {time.monotonic() - killed:.0f} s after the loss of a node")
        assert lost not in cluster.machines()
        assert training.wait(240) == 0, log.read_text()[-3000:]
    finally:
        training.kill()
    result = store.read_json("runs/default/train.json")["result"]
    assert [epoch["epoch"] for epoch in result["history"]] == list(range(1, 13))
    start = last_start(store, f"runs/default/{name}")
    assert start["workers"] == 4
    took = until(lambda: not cluster.machines(), 60)
    print(f"no node is left {took:.0f} s after the training, with an idle timeout of {IDLE_S} s")
