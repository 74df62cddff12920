"""ops/kubernetes: Kubernetes' schemas, Ray Serve's schema, and what all pods have in common."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from detect_ai.core.compose import load_config
from serve_app.deploy import APP, KEEP_ALIVE_S
from serve_app.deployment import DEPLOYMENT

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = sorted((CHECKOUT / "ops/kubernetes").glob("*.yaml"))
OBJECTS = [document for path in FILES for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
NAMES = [f"{item['kind']}-{item['metadata']['name']}" for item in OBJECTS]
CORE = {name: item for name, item in zip(NAMES, OBJECTS, strict=True) if "ray.io" not in item["apiVersion"]}
PAGE = (CHECKOUT / "docs/KUBERNETES.md").read_text(encoding="utf-8")


def parts(value: Any, key: str) -> Iterator[Any]:
    """Everything under a key, anywhere in an object."""
    for name, item in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else []):
        if name == key:
            yield item
        yield from parts(item, key)


def one(kind: str, name: str) -> Any:
    (found,) = (item for item in OBJECTS if (item["kind"], item["metadata"]["name"]) == (kind, name))
    return found


TEMPLATES = [item for item in parts(OBJECTS, "template") if "containers" in item["spec"]]
PODS = [item["spec"] for item in TEMPLATES]
CONTAINERS = [container for pod in PODS for container in pod["containers"]]
SERVICE = one("RayService", "detect-ai")["spec"]
(REPLICAS,) = SERVICE["rayClusterConfig"]["workerGroupSpecs"]


@pytest.fixture(scope="module")
def application() -> Any:
    (found,) = ServeDeploySchema.model_validate(yaml.safe_load(SERVICE["serveConfigV2"])).applications
    return found


@pytest.fixture(scope="module")
def settings(application: Any) -> Any:
    return load_config(application.args["overrides"]).serve


def test_the_files_are_read() -> None:
    assert (len(FILES), len(OBJECTS), len(PODS)) == (6, 15, 6)


# Objects of KubeRay: `make kube-check`.
@pytest.mark.parametrize("item", CORE.values(), ids=CORE.keys())
def test_kubernetes_knows_every_field(item: dict[str, Any]) -> None:
    kubernetes_validate.validate(item, "1.33.0", strict=True)


@pytest.mark.parametrize("item", OBJECTS, ids=NAMES)
def test_objects_are_in_the_namespace(item: dict[str, Any]) -> None:
    assert item["metadata"].get("namespace") == (None if item["kind"] == "Namespace" else "detect-ai")


def test_images_are_variables_for_digests() -> None:
    assert set(parts(OBJECTS, "image")) == {"${IMAGE}", "${GPU_IMAGE}", "${REDIS_IMAGE}"}


@pytest.mark.parametrize("pod", PODS, ids=[pod["containers"][0]["name"] for pod in PODS])
def test_pods_pass_the_restricted_profile(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


def test_only_heads_with_an_autoscaler_mount_a_token() -> None:
    mounted = [pod["containers"][0]["name"] for pod in PODS if pod["automountServiceAccountToken"] is not False]
    assert mounted == ["ray-head", "ray-head"]
    assert all(item["automountServiceAccountToken"] is False for item in OBJECTS if item["kind"] == "ServiceAccount")


def test_secrets_come_by_name_and_are_documented() -> None:
    names = {item["name"] for key in ("secretKeyRef", "secretRef", "configMapRef") for item in parts(OBJECTS, key)}
    names |= set(parts(OBJECTS, "secretName"))
    assert names == {"detect-ai", "ray-auth-serving", "ray-auth-training", "redis", "serving", "training"}
    assert names == set(re.findall(r"create (?:secret generic|configmap) ([\w-]+)", PAGE))
    assert [item["kind"] for item in OBJECTS if item["kind"] == "Secret"] == []


def test_clusters_require_a_token() -> None:
    clusters = [SERVICE["rayClusterConfig"], one("RayCluster", "training")["spec"]]
    assert [cluster["authOptions"]["mode"] for cluster in clusters] == ["token", "token"]
    pinned = re.search(r"^ray==([\d.]+)", (CHECKOUT / "requirements/train.txt").read_text(), re.MULTILINE)
    assert pinned
    assert {cluster["rayVersion"] for cluster in clusters} == {pinned[1]}


def test_serve_imports_the_application(application: Any) -> None:
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert application.name == APP
    assert [item.name for item in application.deployments] == [DEPLOYMENT]


def test_serve_config_has_no_unknown_key(application: Any) -> None:
    config = yaml.safe_load(SERVICE["serveConfigV2"])
    known = ServeDeploySchema.model_fields.keys()
    assert config.keys() <= known
    assert config["applications"][0].keys() <= type(application).model_fields.keys()


def test_the_proxy_waits_as_long_as_the_service(settings: Any) -> None:
    options = yaml.safe_load(SERVICE["serveConfigV2"])["http_options"]
    expected = {"host": settings.host, "port": settings.port, "request_timeout_s": 2 * settings.request_timeout_s}
    assert options == expected | {"keep_alive_timeout_s": KEEP_ALIVE_S}
    assert not settings.is_local


def test_a_pod_has_room_for_one_replica(settings: Any) -> None:
    (container,) = REPLICAS["template"]["spec"]["containers"]
    assert float(container["resources"]["limits"]["cpu"]) == settings.cpus_per_replica
    assert (REPLICAS["minReplicas"], REPLICAS["maxReplicas"]) == (settings.min_replicas, settings.max_replicas)
    assert SERVICE["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_traffic_goes_to_pods_whose_proxy_answers(settings: Any) -> None:
    (container,) = REPLICAS["template"]["spec"]["containers"]
    probe = container["readinessProbe"]["httpGet"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (probe["path"], ports[probe["port"]]) == ("/-/healthz", settings.port)
    assert SERVICE["excludeHeadPodFromServeSvc"] is True


def test_evictions_leave_a_replica() -> None:
    budget = one("PodDisruptionBudget", "detect-ai")["spec"]
    labels = REPLICAS["template"]["metadata"]["labels"] | {"ray.io/node-type": "worker"}  # KubeRay's
    assert budget["selector"]["matchLabels"] == labels
    assert budget["minAvailable"] == 1


def test_every_pod_has_a_network_policy() -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in OBJECTS if item["kind"] == "NetworkPolicy"}
    assert policies.pop("deny")["podSelector"] == {}
    label = "app.kubernetes.io/component"
    assert {name: spec["podSelector"]["matchLabels"] for name, spec in policies.items()} == {
        name: {label: name} for name in policies
    }
    assert {template["metadata"]["labels"][label] for template in TEMPLATES} == policies.keys()
    assert policies["redis"]["ingress"] == [
        {"from": [{"podSelector": {"matchLabels": {label: "serving"}}}], "ports": [{"port": 6379}]}
    ]


def test_jobs_leave_serving_to_the_ray_service() -> None:
    commands = [one("RayJob", "pipeline")["spec"]["entrypoint"], *next(parts(one("CronJob", "retrain"), "args"))]
    assert all("serve.deploy=false" in command for command in commands)
