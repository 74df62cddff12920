"""cluster.yaml as Ray reads it: its own schema, validator, provider and autoscaler."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.gcp.config import GCPNodeType, get_node_type
from ray.autoscaler._private.util import validate_config
from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from detect_ai.core.compose import load_config
from ops.gcp.check import Cluster, launched
from tests.fixtures.cluster import DIGEST, example_variables

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return Cluster.read(example_variables(tmp_path_factory.mktemp("variables")))


@pytest.fixture
def autoscaling(cluster: Cluster) -> AutoscalingConfig:
    """The configuration as the autoscaler on the head reads it."""
    return AutoscalingConfig(copy.deepcopy(cluster.config), skip_content_hash=True)


def wanted(autoscaling: AutoscalingConfig, demand: dict[str, float], count: int, **failed: float) -> Counter[str]:
    """The nodes that Ray's autoscaler adds to an empty cluster for tasks; `failed` node types have a low score."""
    requests = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand) for _ in range(count)])
    request = SchedulingRequest(
        disable_launch_config_check=False,
        node_type_configs=autoscaling.get_node_type_configs(),
        max_num_nodes=autoscaling.get_max_num_nodes(),
        resource_requests=requests,
        recoverable_resource_availabilities=failed,
    )
    reply = ResourceDemandScheduler(AutoscalerEventLogger.__new__(AutoscalerEventLogger)).schedule(request)
    return Counter({launch.instance_type: launch.count for launch in reply.to_launch})


def test_ray_accepts_the_file_and_no_unknown_key(cluster: Cluster) -> None:
    validate_config(cluster.prepared())
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout'"):
        validate_config(cluster.prepared() | {"idle_timeout": 10})


def test_gpu_workers_are_spot_first_and_on_demand_when_spot_has_failed(autoscaling: AutoscalingConfig) -> None:
    demand = {"CPU": 2.0, "GPU": 1.0}
    assert wanted(autoscaling, demand, 2) == {"gpu_spot": 2}
    assert wanted(autoscaling, demand, 6) == {"gpu_spot": 4, "gpu_on_demand": 2}
    assert wanted(autoscaling, demand, 2, gpu_spot=0.0) == {"gpu_on_demand": 2}


def test_each_replica_gets_a_serving_node_of_its_own(autoscaling: AutoscalingConfig) -> None:
    demand = load_config(["serve=cluster"]).serve.replica_resources
    assert wanted(autoscaling, demand, 2) == {"serving": 2}


@pytest.mark.parametrize("demand", [{"CPU": 1.0}, {"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}])
def test_no_other_task_gets_a_serving_node(autoscaling: AutoscalingConfig, demand: dict[str, float]) -> None:
    nodes = wanted(autoscaling, demand, 20)
    assert nodes.total() > 0
    assert "serving" not in nodes


def test_a_rollout_has_room_for_all_new_replicas(cluster: Cluster) -> None:
    assert cluster.node_types["serving"]["max_workers"] >= 2 * load_config(["serve=cluster"]).serve.max_replicas


def test_spot_and_on_demand_workers_differ_in_price_alone(cluster: Cluster) -> None:
    spot, other = (copy.deepcopy(cluster.node_types[name]) for name in ("gpu_spot", "gpu_on_demand"))
    (gpu,) = spot["node_config"]["guestAccelerators"]
    assert spot["resources"]["GPU"] == gpu["acceleratorCount"] == 1
    assert spot["node_config"].pop("scheduling") == {
        "provisioningModel": "SPOT",
        "instanceTerminationAction": "DELETE",
        "onHostMaintenance": "TERMINATE",
        "automaticRestart": False,
    }
    assert other["node_config"].pop("scheduling") == {"onHostMaintenance": "TERMINATE", "automaticRestart": False}
    for kind in (spot, other):
        del kind["priority"], kind["max_workers"]
    assert spot == other


@pytest.mark.parametrize("name", ["head", "serving"])
def test_head_and_serving_nodes_are_on_demand_and_have_no_gpu(cluster: Cluster, name: str) -> None:
    kind = cluster.node_types[name]
    assert "GPU" not in kind["resources"]
    assert not {"scheduling", "guestAccelerators"} & kind["node_config"].keys()
    assert get_node_type(kind["node_config"]) == GCPNodeType.COMPUTE


def test_the_number_of_workers_is_bounded(autoscaling: AutoscalingConfig) -> None:
    assert (autoscaling.get_max_num_worker_nodes(), autoscaling.get_idle_timeout_s()) == (12, 600)
    assert {kind.min_worker_nodes for kind in autoscaling.get_node_type_configs().values()} == {0}


def test_machines_are_in_the_zone_and_network_of_the_variables(cluster: Cluster) -> None:
    bodies, members = launched(cluster)
    assert members == {"serviceAccount:ray-autoscaler-sa-v1@my-project.iam.gserviceaccount.com"}
    assert bodies.keys() == cluster.node_types.keys()
    for body in bodies.values():
        assert body["machineType"].startswith("zones/europe-west4-a/machineTypes/")
        assert body["networkInterfaces"] == [
            {"subnetwork": "projects/my-project/regions/europe-west4/subnetworks/detect-ai"}
        ]
        assert body["tags"] == {"items": ["detect-ai"]}
        (account,) = body["serviceAccounts"]
        assert account["scopes"] == ["https://www.googleapis.com/auth/cloud-platform"]


def test_the_launcher_reaches_machines_without_external_addresses(cluster: Cluster) -> None:
    assert cluster.config["provider"]["use_internal_ips"] is True
    assert cluster.config["auth"]["ssh_proxy_use_node_id"] is True
    assert (
        "start-iap-tunnel %h %p --listen-on-stdin --project=my-project" in cluster.config["auth"]["ssh_proxy_command"]
    )


def test_the_file_holds_no_secret_and_mounts_none(cluster: Cluster) -> None:
    assert not any("token" in path or ".ssh" in path for path in cluster.config["file_mounts"].values())
    assert all((ROOT / path).exists() for path in cluster.config["file_mounts"].values())


def test_every_variable_is_used_and_filled_in(cluster: Cluster) -> None:
    # STORAGE_ROOT is made from BUCKET.
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("cluster.yaml", "ops/gcp/variables.env"))
    assert [name for name in cluster.variables if f"${{{name}}}" not in text] == []
    assert "${" not in yaml.safe_dump(cluster.config)


def test_nodes_install_the_pinned_versions(cluster: Cluster, autoscaling: AutoscalingConfig) -> None:
    image = f"rayproject/ray:{cluster.pins['ray']}-py311"
    setup = "bash ~/app/ops/gcp/node/setup.sh"
    assert autoscaling.get_head_setup_commands() == [
        f"{setup} {image}@{DIGEST}",
        "bash ~/app/ops/gcp/node/redis.sh",
    ]
    assert autoscaling.get_worker_setup_commands("serving") == [f"{setup} {image}@{DIGEST}"]
    for name in ("gpu_spot", "gpu_on_demand"):
        assert autoscaling.get_worker_setup_commands(name) == [f"{setup} {image}-gpu@{DIGEST}"]
