"""cluster.yaml against Ray's own schema, validator and readers, and Google's description of its API."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import googleapiclient.discovery_cache
import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.docker import docker_start_cmds
from ray.autoscaler._private.gcp.config import GCPNodeType, get_node_type
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.sdk import get_docker_host_mount_location
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

ROOT = Path(__file__).parents[2]
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


@pytest.fixture
def raw() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def prepared(raw: dict[str, Any]) -> dict[str, Any]:
    """The configuration with Ray's defaults, as `ray up` makes it."""
    return prepare_config(copy.deepcopy(raw))


@pytest.fixture
def autoscaling(raw: dict[str, Any]) -> AutoscalingConfig:
    """The configuration as the autoscaler on the head reads it."""
    return AutoscalingConfig(copy.deepcopy(raw), skip_content_hash=True)


@pytest.fixture
def workers(prepared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    head = prepared["head_node_type"]
    found = {name: kind for name, kind in prepared["available_node_types"].items() if name != head}
    assert found
    return found


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.fixture(scope="module")
def compute_schemas() -> dict[str, Any]:
    """The Compute Engine API's types, as Google's client carries them."""
    folder = Path(googleapiclient.discovery_cache.__file__).parent / "documents"
    return json.loads((folder / "compute.v1.json").read_text(encoding="utf-8"))["schemas"]


def complaints(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str) -> list[str]:
    """What Google's API would not know in a value."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
    # Google describes 64-bit numbers as strings, and takes both.
    expected = int | str if schema.get("format") == "int64" else types[schema["type"]]
    if not isinstance(value, expected):
        return [f"{where}: expected {schema['type']}, found {value!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is none of {schema['enum']}"]
    if isinstance(value, list):
        pairs = [(f"{where}[{i}]", item, schema["items"]) for i, item in enumerate(value)]
    elif isinstance(value, dict):
        known = schema["properties"]
        unknown = [f"{where}.{key}: unknown field" for key in value if key not in known]
        if unknown:
            return unknown
        pairs = [(f"{where}.{key}", item, known[key]) for key, item in value.items()]
    else:
        pairs = []
    return [text for name, item, kind in pairs for text in complaints(item, kind, schemas, name)]


def test_ray_accepts_the_file(prepared: dict[str, Any]) -> None:
    validate_config(prepared)


def test_rays_schema_refuses_an_unknown_key(prepared: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout'"):
        validate_config(prepared | {"idle_timeout": 10})


def test_google_knows_every_field_of_a_node(raw: dict[str, Any], compute_schemas: dict[str, Any]) -> None:
    instance = {"$ref": "Instance"}
    for name, kind in raw["available_node_types"].items():
        assert complaints(kind["node_config"], instance, compute_schemas, name) == []
        assert get_node_type(kind["node_config"]) == GCPNodeType.COMPUTE


def test_every_node_can_reach_the_bucket(raw: dict[str, Any]) -> None:
    project = raw["provider"]["project_id"]
    for kind in raw["available_node_types"].values():
        (account,) = kind["node_config"]["serviceAccounts"]
        assert account["email"] == f"ray-autoscaler-sa-v1@{project}.iam.gserviceaccount.com"
        assert account["scopes"] == [SCOPE]


def test_one_substitution_names_the_project(raw: dict[str, Any]) -> None:
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    named = yaml.safe_load(re.sub("PROJECT_ID", "mine", text))
    assert raw["provider"]["project_id"] == "PROJECT_ID"
    assert named["provider"]["project_id"] == "mine"
    assert "PROJECT_ID" not in json.dumps(named)


def test_workers_are_spot_and_start_at_none(workers: dict[str, dict[str, Any]]) -> None:
    for kind in workers.values():
        assert kind["min_workers"] == 0
        assert kind["node_config"]["scheduling"] == {
            "provisioningModel": "SPOT",
            "instanceTerminationAction": "DELETE",
            "onHostMaintenance": "TERMINATE",
            "automaticRestart": False,
        }


def test_workers_offer_the_gpus_they_have(workers: dict[str, dict[str, Any]]) -> None:
    for kind in workers.values():
        (gpu,) = kind["node_config"]["guestAccelerators"]
        assert kind["resources"]["GPU"] == gpu["acceleratorCount"] == 1


def test_the_head_is_on_demand_and_has_no_gpu(prepared: dict[str, Any]) -> None:
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert head["resources"].keys() == {"CPU"}
    assert not {"scheduling", "guestAccelerators"} & head["node_config"].keys()
    assert head["max_workers"] == 0


def test_the_bill_has_a_ceiling(autoscaling: AutoscalingConfig) -> None:
    assert autoscaling.get_max_num_worker_nodes() == 4
    assert autoscaling.get_idle_timeout_s() == 600


@pytest.mark.parametrize("role", ["head", "worker"])
def test_ray_starts_with_the_token_on_every_node(prepared: dict[str, Any], role: str) -> None:
    starts = [command for command in prepared[f"{role}_start_ray_commands"] if "ray start" in command]
    assert len(starts) == 1
    assert "export RAY_AUTH_MODE=token;" in starts[0].partition("ray start")[0]


@pytest.mark.parametrize("role", ["head", "worker"])
def test_the_ingress_of_every_node_is_haproxy(prepared: dict[str, Any], role: str) -> None:
    (start,) = [command for command in prepared[f"{role}_start_ray_commands"] if "ray start" in command]
    assert "export RAY_SERVE_ENABLE_HA_PROXY=1;" in start.partition("ray start")[0]
    assert "-e RAY_SERVE_ENABLE_HA_PROXY=1" in prepared["docker"]["run_options"]


def test_the_dashboard_listens_on_loopback_only(prepared: dict[str, Any]) -> None:
    (start,) = [command for command in prepared["head_start_ray_commands"] if "ray start" in command]
    assert re.findall(r"--dashboard-host=(\S+)", start) == ["127.0.0.1"]


def test_containers_hold_the_token_and_ask_for_it(prepared: dict[str, Any]) -> None:
    docker, cluster = prepared["docker"], prepared["cluster_name"]
    command = docker_start_cmds(
        prepared["auth"]["ssh_user"],
        docker["image"],
        prepared["file_mounts"],
        docker["container_name"],
        docker["run_options"],
        cluster,
        "/home/ray",
        "docker",
    )
    on_host = f"{get_docker_host_mount_location(cluster)}/~/.ray/auth_token"
    assert f"-v {on_host}:/home/ray/.ray/auth_token " in command
    assert "-e RAY_AUTH_MODE=token " in command


def test_containers_can_read_the_token(raw: dict[str, Any], autoscaling: AutoscalingConfig) -> None:
    on_host = f"{get_docker_host_mount_location(raw['cluster_name'])}/~/.ray/auth_token"
    for name in raw["available_node_types"]:
        assert f'chmod a+r "{on_host}"' in autoscaling.get_initialization_commands(name)


def test_images_have_the_pinned_ray(raw: dict[str, Any], autoscaling: AutoscalingConfig, pins: dict[str, str]) -> None:
    images = {name: autoscaling.get_docker_config(name)["image"] for name in raw["available_node_types"]}
    assert images == {
        "head": f"rayproject/ray:{pins['ray']}-py311",
        "gpu_worker": f"rayproject/ray:{pins['ray']}-py311-gpu",
    }


def test_every_node_installs_the_pinned_versions(prepared: dict[str, Any], autoscaling: AutoscalingConfig) -> None:
    install = "pip install --no-input --disable-pip-version-check -r ~/constraints.txt"
    assert prepared["file_mounts"]["~/constraints.txt"] == "constraints.txt"
    assert autoscaling.get_head_setup_commands() == [install]
    assert autoscaling.get_worker_setup_commands("gpu_worker") == [install]


def test_the_pinned_versions_are_all_that_a_node_needs(pins: dict[str, str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = project["dependencies"] + project["optional-dependencies"]["sample"]
    names = {canonicalize_name(Requirement(need).name) for need in needs}
    # With this one the autoscaler on the head talks to Google.
    assert (names | {"google-api-python-client"}) - pins.keys() == set()


def test_local_files_are_there(raw: dict[str, Any]) -> None:
    local = [path for path in raw["file_mounts"].values() if not path.startswith("~")]
    assert [path for path in local if not (ROOT / path).is_file()] == []
