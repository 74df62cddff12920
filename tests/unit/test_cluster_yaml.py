"""cluster.yaml against Ray's own schema, validator and readers, and Google's description of its API."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import googleapiclient.discovery_cache
import jsonschema
import pytest
import yaml
from packaging.utils import canonicalize_name
from ray.autoscaler._private.docker import docker_start_cmds
from ray.autoscaler._private.gcp.config import GCPNodeType, get_node_type
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.sdk import get_docker_host_mount_location
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

ROOT = Path(__file__).parents[2]
VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "DETECT_AI_AUTOSCALES": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "75",
}


@pytest.fixture
def raw() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def prepared(raw: dict[str, Any]) -> dict[str, Any]:
    """The configuration with Ray's defaults, as `ray up` prepares it."""
    return prepare_config(copy.deepcopy(raw))


@pytest.fixture
def autoscaling(raw: dict[str, Any]) -> AutoscalingConfig:
    """The configuration as the autoscaler on the head reads it."""
    return AutoscalingConfig(copy.deepcopy(raw), skip_content_hash=True)


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "requirements" / "train.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split()[0].split("==") for line in lines if line[:1].isalnum()]
    return {canonicalize_name(name): version for name, version in pairs}


def complaints(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str) -> list[str]:
    """Parts of a value that Google's API does not know."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
    # Google describes 64-bit numbers as strings, and accepts both.
    expected = int | str if schema.get("format") == "int64" else types[schema["type"]]
    if not isinstance(value, expected):
        return [f"{where}: expected {schema['type']}, found {value!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is none of {schema['enum']}"]
    pairs: list[tuple[str, Any, dict[str, Any]]] = []
    if isinstance(value, list):
        pairs = [(f"{where}[{i}]", item, schema["items"]) for i, item in enumerate(value)]
    elif isinstance(value, dict):
        if unknown := [f"{where}.{key}: unknown field" for key in value if key not in schema["properties"]]:
            return unknown
        pairs = [(f"{where}.{key}", item, schema["properties"][key]) for key, item in value.items()]
    return [text for name, item, kind in pairs for text in complaints(item, kind, schemas, name)]


def test_ray_accepts_the_file_and_no_unknown_key(prepared: dict[str, Any]) -> None:
    validate_config(prepared)
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout'"):
        validate_config(prepared | {"idle_timeout": 10})


def test_google_knows_every_field_of_a_node(raw: dict[str, Any]) -> None:
    documents = Path(googleapiclient.discovery_cache.__file__).parent / "documents"
    schemas = json.loads((documents / "compute.v1.json").read_text(encoding="utf-8"))["schemas"]
    for name, kind in raw["available_node_types"].items():
        assert complaints(kind["node_config"], {"$ref": "Instance"}, schemas, name) == []
        assert get_node_type(kind["node_config"]) == GCPNodeType.COMPUTE


def test_workers_do_not_have_the_account_of_the_head(raw: dict[str, Any]) -> None:
    emails = {}
    for name, kind in raw["available_node_types"].items():
        (account,) = kind["node_config"]["serviceAccounts"]
        assert account["scopes"] == ["https://www.googleapis.com/auth/cloud-platform"]
        emails[name] = account["email"]
    head = emails.pop(raw["head_node_type"])
    assert head == "ray-autoscaler-sa-v1@PROJECT_ID.iam.gserviceaccount.com"  # the name that Ray creates
    assert set(emails.values()) == {"detect-ai-worker@PROJECT_ID.iam.gserviceaccount.com"}


def test_one_substitution_names_the_project(raw: dict[str, Any]) -> None:
    named = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8").replace("PROJECT_ID", "mine"))
    assert (raw["provider"]["project_id"], named["provider"]["project_id"]) == ("PROJECT_ID", "mine")
    assert "PROJECT_ID" not in json.dumps(named)


def test_workers_are_spot_machines_with_one_gpu(prepared: dict[str, Any]) -> None:
    workers = [kind for name, kind in prepared["available_node_types"].items() if name != prepared["head_node_type"]]
    assert workers
    for kind in workers:
        (gpu,) = kind["node_config"]["guestAccelerators"]
        assert kind["resources"]["GPU"] == gpu["acceleratorCount"] == 1
        assert kind["min_workers"] == 0
        assert kind["node_config"]["scheduling"] == {
            "provisioningModel": "SPOT",
            "instanceTerminationAction": "DELETE",
            "onHostMaintenance": "TERMINATE",
            "automaticRestart": False,
        }


def test_the_head_is_on_demand_and_has_no_gpu(prepared: dict[str, Any]) -> None:
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert (head["resources"].keys(), head["max_workers"]) == ({"CPU"}, 0)
    assert not {"scheduling", "guestAccelerators"} & head["node_config"].keys()


def test_the_number_of_workers_is_bounded(autoscaling: AutoscalingConfig) -> None:
    assert (autoscaling.get_max_num_worker_nodes(), autoscaling.get_idle_timeout_s()) == (4, 600)


@pytest.mark.parametrize("role", ["head", "worker"])
def test_ray_starts_with_token_and_proxy_settings(prepared: dict[str, Any], role: str) -> None:
    (start,) = [command for command in prepared[f"{role}_start_ray_commands"] if "ray start" in command]
    for name, value in VARIABLES.items():
        assert f"export {name}={value};" in start.partition("ray start")[0]
        assert f"-e {name}={value}" in prepared["docker"]["run_options"]
    assert ("--dashboard-host=127.0.0.1" in start) == (role == "head")


def test_containers_can_read_the_token(prepared: dict[str, Any], autoscaling: AutoscalingConfig) -> None:
    docker, cluster = prepared["docker"], prepared["cluster_name"]
    options = docker["run_options"]
    user, mounts, name = prepared["auth"]["ssh_user"], prepared["file_mounts"], docker["container_name"]
    command = docker_start_cmds(user, docker["image"], mounts, name, options, cluster, "/home/ray", "docker")
    on_host = f"{get_docker_host_mount_location(cluster)}/~/.ray/auth_token"
    assert f"-v {on_host}:/home/ray/.ray/auth_token " in command
    for kind in prepared["available_node_types"]:
        assert f'chmod a+r "{on_host}"' in autoscaling.get_initialization_commands(kind)


def test_nodes_run_the_pinned_versions(
    raw: dict[str, Any], autoscaling: AutoscalingConfig, pins: dict[str, str]
) -> None:
    images = {name: autoscaling.get_docker_config(name)["image"] for name in raw["available_node_types"]}
    image = f"rayproject/ray:{pins['ray']}-py311"
    assert images == {"head": image, "gpu_worker": f"{image}-gpu"}
    install = "pip install --no-input --disable-pip-version-check -r ~/constraints.txt"
    assert raw["file_mounts"]["~/constraints.txt"] == "constraints.txt"
    assert autoscaling.get_head_setup_commands() == [install] == autoscaling.get_worker_setup_commands("gpu_worker")
