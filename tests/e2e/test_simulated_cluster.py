"""cluster.yaml, simulated: training on GPU nodes, a service on serving nodes, the loss of nodes and of the head.

The tests share one cluster and run in file order. They print what they measure.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from detect_ai.core.storage import Storage
from detect_ai.detector.detector import Detector
from ops.gcp.check import documented_ports
from ops.gcp.config import ROOT
from serve_app.auth.api_keys import KeyStore, create_key
from tests.e2e.load_generator import Load
from tests.fixtures import tiny_models
from tests.fixtures.simulated_cluster import (
    DASHBOARD,
    HEAD,
    IDLE_S,
    REDIS_PORT,
    SimulatedCluster,
    address,
    simulated_cluster,
)
from tests.integration.runs import attempts, hard_rows, last_start, registered

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
GPU_NODES = ("gpu_spot", "gpu_on_demand")
ON_HEAD = {6379, 8500, 10001}  # the cluster's state, the fallback of HAProxy, Ray Client
URL = "http://127.0.0.1:8000"
CLIENTS = 8
# Fraction of a core for each replica: this machine cannot provide 3 times the capacity of a full one.
SPEED = 0.1


def until(condition: Callable[[], object], seconds: float) -> float:
    """Wait until a condition holds; returns how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + seconds, f"not reached within {seconds} s"
        time.sleep(0.2)
    return time.monotonic() - started


async def reached(condition: Callable[[], object], seconds: float) -> float:
    """`until` while clients run: the condition may call the cluster."""
    return await asyncio.to_thread(until, condition, seconds)


@pytest.fixture(scope="module")
def cluster(store: Storage) -> Iterator[SimulatedCluster]:
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


@pytest.fixture(scope="module")
def load(cluster: SimulatedCluster, store: Storage, tiny_bundle: Path) -> Callable[..., Load]:
    """Deploys the service with two replicas; creates clients with a key each and one retry."""
    tokens, keys = zip(*(create_key("test") for _ in range(CLIENTS)), strict=True)
    for key in keys:
        KeyStore(store).put(key)
    settings = ["min_replicas=2", "max_replicas=4", "downscale_delay_s=5", "threads_per_replica=1", "max_wait_s=1"]
    settings += ["batch_tokens=2048"]
    started = time.monotonic()
    with a_busy_gpu_node(cluster):
        cluster.run("jobs/deploy.py", "serve=cluster", *(f"serve.{setting}" for setting in settings))
        print(f"two replicas on new nodes: {time.monotonic() - started:.0f} s after the start of the deployment")
    detector = Detector.load(tiny_bundle)
    return lambda url=URL, **options: Load(url, detector, retries=1, tokens=tokens, **options)


@contextlib.contextmanager
def a_busy_gpu_node(cluster: SimulatedCluster) -> Iterator[None]:
    """A node with a GPU whose CPUs are free."""
    code = "import ray, time; ray.init(); ray.get(ray.remote(num_cpus=0, num_gpus=1)(lambda: time.sleep(600)).remote())"
    job = subprocess.Popen([sys.executable, "-c", code], env=cluster.environment, stderr=subprocess.DEVNULL)
    try:
        until(lambda: cluster.machines(*GPU_NODES), 60)
        yield
    finally:
        job.send_signal(signal.SIGTERM)
        job.wait(30)


def places(cluster: SimulatedCluster) -> list[str]:
    """The node type of each running replica."""
    machines = cluster.machines()
    return [machines.get(replica["node_instance_id"], HEAD) for replica in cluster.replicas().values()]


def succeeded(load: Load) -> float:
    """The fraction of requests that were answered after at most one retry."""
    assert load.seen.wrong == []
    return load.seen.statuses.count(200) / len(load.seen.statuses)


def test_replicas_run_on_serving_nodes_alone(cluster: SimulatedCluster, load: Callable[..., Load]) -> None:
    nodes = [replica["node_instance_id"] for replica in cluster.replicas().values()]
    assert len(set(nodes)) == len(nodes) == 2
    assert set(places(cluster)) == {"serving"}


def test_a_lost_serving_node_costs_one_retry(cluster: SimulatedCluster, load: Callable[..., Load]) -> None:
    clients = load()

    async def scenario() -> None:
        async with clients.during(clients=CLIENTS) as seen:
            await reached(lambda: len(seen.statuses) >= 1500, 120)
            lost = next(iter(cluster.replicas().values()))["node_instance_id"]
            killed = time.monotonic()
            cluster.kill_machine(lost)
            await reached(lambda: sum(r["node_instance_id"] != lost for r in cluster.replicas().values()) >= 2, 120)
            print(f"a replica on a new node: {time.monotonic() - killed:.0f} s after the loss of a node")
            await reached(lambda: len(seen.statuses) >= 6000, 240)

    asyncio.run(scenario())
    print(f"a serving node killed: {len(clients.seen.statuses)} requests, {succeeded(clients):.3%} answered")
    assert set(places(cluster)) == {"serving"}
    assert succeeded(clients) >= 0.999


def head_serves(cluster: SimulatedCluster) -> bool:
    """Whether the head's own proxy answers and the controller sees two replicas."""
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{URL}/readyz").status_code == 200 and len(cluster.replicas()) >= 2
    return False


@pytest.mark.parametrize("program", ["gcs_server", "raylet"])
def test_the_service_answers_while_the_head_restarts(
    cluster: SimulatedCluster, load: Callable[..., Load], program: str
) -> None:
    """A serving node answers the clients, as behind a load balancer that has detected the loss of the head."""
    until(lambda: len(cluster.replicas()) == 2, 120)
    restarts, restored, replicas = len(cluster.ended), cluster.restored(), cluster.replicas()
    kept, gone = (replicas[name] for name in sorted(replicas))
    clients = load(f"http://{address(kept['node_instance_id'])}:8000")

    async def scenario() -> None:
        async with clients.during(clients=CLIENTS) as seen:
            await reached(lambda: len(seen.statuses) >= 200, 60)
            killed = time.monotonic()
            cluster.kill_on_head(program)
            await reached(lambda: len(cluster.ended) > restarts, 30)
            down, before = time.monotonic(), len(seen.versions)
            await reached(lambda: len(seen.versions) >= before + 100, 30)
            print(f"{program}: 100 answers within {time.monotonic() - down:.1f} s after Ray on the head ended")
            await reached(lambda: head_serves(cluster) and cluster.restored() > restored, 120)
            back = time.monotonic()
            print(f"{program}: the head is back {back - killed:.0f} s after its loss")
            assert set(cluster.replicas()) >= set(replicas), "replicas did not survive"
            psutil.Process(gone["pid"]).kill()
            await reached(lambda: len(set(cluster.replicas()) - {gone["replica_id"]}) >= 2, 60)
            print(f"{program}: a new replica {time.monotonic() - back:.0f} s later")

    asyncio.run(scenario())
    print(f"{program}: {len(clients.seen.statuses)} requests, {succeeded(clients):.3%} answered")
    assert succeeded(clients) >= 0.99
    assert set(places(cluster)) == {"serving"}


@contextlib.asynccontextmanager
async def slow_replicas(cluster: SimulatedCluster) -> AsyncIterator[None]:
    """Give every running replica a fraction of a core."""
    ending, pids = threading.Event(), set()

    def find() -> None:
        while not ending.wait(1):
            pids.update(replica["pid"] for replica in cluster.replicas().values())

    def throttle() -> None:
        while not ending.is_set():
            for sent, seconds in ((signal.SIGCONT, SPEED), (signal.SIGSTOP, 1 - SPEED)):
                for pid in list(pids):
                    with contextlib.suppress(psutil.Error):
                        psutil.Process(pid).send_signal(sent)
                time.sleep(seconds * 0.04)
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).send_signal(signal.SIGCONT)

    threads = [threading.Thread(target=target) for target in (find, throttle)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def test_overload_adds_nodes_and_idle_ones_go(cluster: SimulatedCluster, load: Callable[..., Load]) -> None:
    until(lambda: len(cluster.machines()) == 2 == len(cluster.replicas()), 120)

    async def scenario() -> list[int]:
        async with slow_replicas(cluster):
            capacity, ends = load(words=(800, 1200)), time.monotonic() + 15
            await capacity.run(4, lambda: time.monotonic() > ends)
            rate = len(capacity.seen.seconds) / 15
            over = load(words=(800, 1200))
            over.retries, started = 0, time.monotonic()
            offering = asyncio.create_task(over.offer(1.5 * rate, 120))  # for two replicas: 3 times the rate of one
            await reached(lambda: len(cluster.replicas()) >= 3, 60)
            print(f"a third replica {time.monotonic() - started:.0f} s after 1.5 x {rate:.0f} requests a second began")
            await offering
            return over.seen.statuses

    statuses = asyncio.run(scenario())
    last = statuses[-len(statuses) // 4 :]
    print(f"refused: {statuses.count(503) / len(statuses):.1%}, of the last quarter {last.count(503) / len(last):.1%}")
    assert set(places(cluster)) == {"serving"}
    ended = time.monotonic()
    assert last.count(503) / len(last) < 0.05
    until(lambda: len(cluster.machines()) == 2, 120)
    print(f"two nodes are left {time.monotonic() - ended:.0f} s after the load")


def test_only_documented_ports_are_open(cluster: SimulatedCluster, load: Callable[..., Load]) -> None:
    def machines(*ports: int) -> set[str]:
        return {machine for machine, _, port, _ in cluster.ports if port in ports}

    serving = set(cluster.machines("serving"))
    assert len(serving) >= 2
    assert machines(8076) & machines(8077) & machines(8000) >= {HEAD, *serving}
    assert machines(*ON_HEAD) == {HEAD}
    loopback = {(HEAD, "127.0.0.1", REDIS_PORT), (HEAD, "127.0.0.1", int(DASHBOARD.rpartition(":")[2]))}
    assert {s for s in cluster.ports if s[2] not in documented_ports() and s[:3] not in loopback} == set()
    assert {s[:3] for s in cluster.ports} >= loopback
