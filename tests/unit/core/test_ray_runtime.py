"""Connecting to Ray and waiting for resources, without a cluster."""

import logging
import socket
import time
from contextlib import nullcontext

import pytest
import ray

from detect_ai.core import ray_runtime
from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, ResourceError
from detect_ai.core.storage import Storage
from serve_app.deploy import deploy_to_cluster


@pytest.fixture
def address(monkeypatch):
    """Sets RAY_ADDRESS."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    return lambda value: monkeypatch.setenv("RAY_ADDRESS", value)


def test_dashboard_address_is_refused(address):
    address("http://127.0.0.1:8265")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=http://127\.0\.0\.1:8265"):
        ray_runtime.connect()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_dead_address_is_refused_at_once(address, scheme):
    dead = f"{scheme}127.0.0.1:{ray_runtime.free_port()}"
    address(dead)
    started = time.monotonic()
    with pytest.raises(ResourceError, match=f"RAY_ADDRESS={dead}: no cluster answers"):
        ray_runtime.connect()
    assert time.monotonic() - started < 30


def test_answering_address_is_passed_to_ray(address, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(InterruptedError))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address(f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(InterruptedError):
            ray_runtime.connect()


@pytest.mark.parametrize(
    ("hosts", "root", "refused"),
    [
        (["a", "b"], "/folder", True),
        (["a", "a"], "/folder", False),  # simulated nodes
        (["a", "gone"], "/folder", False),
        (["a", "b"], "gs://anonymous@bucket/folder", False),
    ],
)
def test_local_folder_needs_one_machine(monkeypatch, hosts, root, refused):
    nodes = [{"NodeManagerHostname": host, "Alive": host != "gone"} for host in hosts]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(ConfigError, match=r"storage\.root=/folder: .* 2 machines") if refused else nullcontext():
        ray_runtime.connect(Storage(root))


def test_ray_data_does_not_log_errors_that_it_raises(monkeypatch, caplog):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    ray_runtime.connect()
    for module in ("exceptions", "_internal.execution.streaming_executor_state"):
        logger = logging.getLogger(f"ray.data.{module}")
        logger.addHandler(caplog.handler)
        logger.error("advice")
        logger.warning("no progress")
        logger.removeHandler(caplog.handler)
    assert {record.message for record in caplog.records} == {"no progress"}


def test_deploy_needs_a_permanent_cluster(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"deploy needs a permanent cluster: submit it .* detect-ai serve"):
        deploy_to_cluster(Config(), Storage(str(tmp_path)))


@pytest.fixture
def busy(monkeypatch):
    """A cluster of 8 CPUs, of which 2 are free."""
    monkeypatch.setattr(ray_runtime, "can_grow", lambda: False)
    monkeypatch.setattr(ray_runtime, "WAIT_SECONDS", 0.5)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 2.0})


@pytest.mark.parametrize("cpus", [0.5, 2])
def test_free_resources_are_taken_at_once(busy, cpus):
    ray_runtime.require_resources("it", cpus)


@pytest.mark.parametrize(
    ("cpus", "message"), [(3, "2 of the cluster's 8 are free"), (9.5, "has 8: 1.5 missing.*--num-cpus=9.5")]
)
def test_busy_or_missing_resources_are_refused(busy, cpus, message):
    with pytest.raises(ResourceError, match=f"it needs {cpus} CPUs.*{message}"):
        ray_runtime.require_resources("it", cpus)


def test_a_missing_custom_resource_is_refused(busy, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "serve": 4.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 2.0, "serve": 4.0})
    ray_runtime.require_resources("it", 0, serve=4)
    with pytest.raises(ResourceError, match=r'it needs 8 serves.*has 4.*--resources=\'{"serve": 8}\''):
        ray_runtime.require_resources("it", 0, serve=8)


def test_autoscaling_cluster_is_trusted(busy, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("DETECT_AI_AUTOSCALES", "1")
    ray_runtime.require_resources("it", 50)


@pytest.mark.parametrize(
    ("host", "advice"),
    [("127.0.0.1", "stop the process"), ("999.1.1.1", "an address of"), ("192.0.2.1", "an address of")],
)
def test_an_address_that_cannot_be_bound_is_refused(host, advice):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ResourceError, match=advice):
        ray_runtime.require_free_port(host, taken.getsockname()[1])
