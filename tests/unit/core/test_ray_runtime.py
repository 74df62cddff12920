"""What is refused before Ray is asked for anything, and what is waited for."""

import pytest
import ray

from detect_ai.core import ray_runtime
from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, ResourceError
from detect_ai.core.storage import Storage
from serve_app.deploy import deploy_to_cluster


def test_the_address_of_a_dashboard_is_none_of_a_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConfigError) as refused:
        ray_runtime.connect()
    assert str(refused.value) == (
        "RAY_ADDRESS=http://127.0.0.1:8265: that is a dashboard, which `ray job submit` wants. A job run by itself "
        "wants host:port of the cluster, or no RAY_ADDRESS for a Ray of its own"
    )


def test_a_service_that_would_end_with_its_job_is_not_deployed(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"deploy needs a cluster that stays: submit it .* make serve"):
        deploy_to_cluster(Config(), Storage(str(tmp_path)))


@pytest.fixture
def busy(monkeypatch):
    """A cluster of 8 CPUs of which 2 are free, for ever."""
    monkeypatch.setattr(ray_runtime, "can_grow", lambda: False)
    monkeypatch.setattr(ray_runtime, "WAIT_SECONDS", 0.5)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 2.0})


@pytest.mark.parametrize("cpus", [0.5, 2])
def test_what_is_free_is_taken_at_once(busy, cpus):
    ray_runtime.require_resources("it", cpus)


def test_what_others_hold_is_waited_for_and_not_for_ever(busy):
    with pytest.raises(ResourceError) as refused:
        ray_runtime.require_resources("it", 3)
    assert str(refused.value) == (
        "it needs 3 CPUs, 2 of the cluster's 8 are free: end what holds them (`ray status` shows it), or lower the "
        "number of workers"
    )


def test_what_there_is_not_is_refused_with_how_much_is_missing(busy):
    with pytest.raises(ResourceError) as refused:
        ray_runtime.require_resources("it", 9.5)
    assert str(refused.value) == (
        "it needs 9.5 CPUs, the cluster has 8: 1.5 missing. Lower the number of workers, or start Ray with "
        "--num-cpus=9.5"
    )


def test_a_cluster_that_can_grow_is_trusted(busy, monkeypatch):
    monkeypatch.setattr(ray_runtime, "can_grow", lambda: True)
    ray_runtime.require_resources("it", 50)
