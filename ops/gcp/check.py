"""Check the cluster on Google Cloud before it costs money: python -m ops.gcp.check reads gcp.env and cluster.yaml.

Ray's own code makes Ray's decisions, and the requests that it would send are checked against Google's API description.
Only the checks of project, bucket and quota call Google, and only if there are credentials.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import google.auth
import googleapiclient.discovery_cache
import httplib2
import jsonschema
import yaml
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, RefreshError
from googleapiclient import discovery
from googleapiclient.errors import HttpError
from packaging.utils import canonicalize_name
from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

from detect_ai.core.errors import ConfigError, DetectAIError
from ops.gcp.config import ROOT, read_variables, render

# repository:tag@digest; the tag says which version the digest should be.
IMAGE = re.compile(r"(?P<name>[\w./-]+):(?P<tag>[\w.-]+)@sha256:[0-9a-f]{64}")
HOURS_PER_MONTH = 730
Body = dict[str, Any]


@dataclass
class Cluster:
    """Variables, the configuration as `ray up` reads it, and the packages that nodes install."""

    variables: dict[str, str]
    config: dict[str, Any]
    pins: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Cluster:
        """Read the files. Raises ConfigError for wrong variables or a missing requirements file."""
        variables = read_variables(path)
        requirements = ROOT / variables["REQUIREMENTS"]
        if not requirements.is_file():
            raise ConfigError(f"{path}: REQUIREMENTS={variables['REQUIREMENTS']}: no such file in this folder")
        pins = re.findall(r"^([\w.-]+)(?:\[.*\])?==([\w.]+)", requirements.read_text(encoding="utf-8"), re.MULTILINE)
        text = render((ROOT / "cluster.yaml").read_text(encoding="utf-8"), variables)
        return cls(variables, yaml.safe_load(text), {canonicalize_name(name): version for name, version in pins})

    @property
    def node_types(self) -> dict[str, dict[str, Any]]:
        """Node types by name, the head among them."""
        return dict(self.config["available_node_types"])

    def prepared(self) -> dict[str, Any]:
        """A copy of the configuration with Ray's defaults, as `ray up` prepares it, without Ray's output."""
        logging.getLogger("ray.autoscaler").setLevel(logging.WARNING)
        with contextlib.redirect_stdout(io.StringIO()):
            config: dict[str, Any] = prepare_config(copy.deepcopy(self.config))
        return config

    def account(self, name: str) -> str:
        """The address of one of our accounts."""
        return f"detect-ai-{name}@{self.variables['PROJECT']}.iam.gserviceaccount.com"


class SkippedError(Exception):
    """A check that cannot run here, and why."""


def check_images(cluster: Cluster) -> str:
    """Images are pinned by digest, and have this Python version and the Ray version of the lock file."""
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    unknown = []
    for name in ("CPU_IMAGE", "GPU_IMAGE"):
        image = cluster.variables[name]
        if not (parts := IMAGE.fullmatch(image)):
            raise ConfigError(
                f"{name}={image}: expected name:tag@sha256: and 64 digits, as a tag can change: add the digest that "
                f"`docker buildx imagetools inspect {image.partition('@')[0]}` prints"
            )
        if parts["name"] != "rayproject/ray":
            unknown.append(f"{name}: version not checked: an image of your own")
        else:
            version, _, rest = str(parts["tag"]).partition("-")
            built_for, _, variant = rest.partition("-")
            if version != (pinned := cluster.pins.get("ray")):
                raise ConfigError(
                    f"{name}={image}: expected the Ray of {cluster.variables['REQUIREMENTS']}, {pinned}, found "
                    f"{version}: all nodes and the machine that submits must agree"
                )
            if built_for != python:
                raise ConfigError(f"{name}={image}: expected {python}, the Python of this machine, found {built_for}")
            if variant.startswith(("gpu", "cu")) != (name == "GPU_IMAGE"):
                expected = "with -gpu or -cu…" if name == "GPU_IMAGE" else "without -gpu or -cu…"
                raise ConfigError(f"{name}={image}: expected a tag {expected}")
    checked = [f"Ray {cluster.pins['ray']}, {python}"] if len(unknown) < 2 else []
    return "; ".join(["pinned by digest", *checked, *unknown])


def check_packages(cluster: Cluster) -> str:
    """Nodes install what they need, from a file with hashes."""
    name = cluster.variables["REQUIREMENTS"]
    for package in ("ray", "torch", "google-api-python-client"):  # the last one: the autoscaler, on the head
        if package not in cluster.pins:
            raise ConfigError(
                f"REQUIREMENTS={name}: expected the packages of training, with a pin of {package}: "
                "requirements/train.txt, which `make lock` writes"
            )
    hashes = "--hash=" in (ROOT / name).read_text(encoding="utf-8")
    return f"{len(cluster.pins)} packages of {name}, " + ("with hashes" if hashes else "by version, WITHOUT hashes")


def check_schema(cluster: Cluster) -> str:
    """Ray's launcher accepts the file."""
    try:
        validate_config(cluster.prepared())
    except (jsonschema.ValidationError, ValueError) as error:
        raise ConfigError(f"cluster.yaml: Ray refuses it: {str(error).splitlines()[0]}") from error
    return f"{len(cluster.node_types)} node types"


class FakeGoogle:
    """Fake of the Google APIs that Ray's launcher and autoscaler call; records what they would create and grant."""

    def __init__(self, project: str) -> None:
        self.project = project
        self.instances: list[Body] = []
        self.members: set[str] = set()

    def close(self) -> None:
        """Called when a client closes its connections."""

    def request(
        self, uri: str, method: str = "GET", body: str | None = None, **_: Any
    ) -> tuple[httplib2.Response, bytes]:
        """Answer one request; status 404 for requests that Ray is not known to send."""
        status, answer = 200, {"name": "operation", "status": "DONE"}
        path = uri.partition("?")[0].partition(".com/")[2]
        sent = json.loads(body or "{}")
        if method == "POST" and path.endswith("/instances"):
            self.instances.append(sent)
        elif path == f"v1/projects/{self.project}":
            answer = {"projectId": self.project, "name": self.project, "lifecycleState": "ACTIVE"}
        elif path.endswith(":getIamPolicy"):
            answer = {"bindings": []}  # type: ignore[dict-item]
        elif path.endswith(":setIamPolicy"):
            self.members |= {member for binding in sent["policy"]["bindings"] for member in binding["members"]}
        elif "/serviceAccounts/" in path:
            answer = {"email": path.rpartition("/")[2], "projectId": self.project}
        elif "/operations/" not in path:
            status = 404
        return httplib2.Response({"status": status}), json.dumps(answer).encode()


def launched(cluster: Cluster) -> tuple[dict[str, Body], set[str]]:
    """The request of Ray's provider to start a node of each type, and the accounts to which `ray up` grants roles."""
    fake = FakeGoogle(cluster.variables["PROJECT"])
    config = cluster.prepared()
    config["provider"]["gcp_credentials"] = {"type": "credentials_token", "credentials": "none"}
    config["auth"]["ssh_private_key"] = "none"  # else Ray creates a key in ~/.ssh
    bodies = {}
    with mock.patch.object(httplib2, "Http", return_value=fake):
        config = GCPNodeProvider.bootstrap_config(config)
        provider = GCPNodeProvider(config["provider"], config["cluster_name"])
        for name, kind in config["available_node_types"].items():
            tags = {"ray-node-name": f"ray-{config['cluster_name']}-worker", "ray-user-node-type": name}
            provider.create_node(kind["node_config"], tags, 1)
            bodies[name] = fake.instances[-1]
    return bodies, fake.members


def complaints(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str) -> list[str]:
    """Parts of a value that do not match the schema of Google's API."""
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
    elif isinstance(value, dict) and "properties" in schema:
        if unknown := [f"{where}.{key}: unknown field" for key in value if key not in schema["properties"]]:
            return unknown
        pairs = [(f"{where}.{key}", item, schema["properties"][key]) for key, item in value.items()]
    return [text for name, item, kind in pairs for text in complaints(item, kind, schemas, name)]


def check_machines(cluster: Cluster) -> str:
    """Google knows every field of the machines; none has an external address or an account that is not ours."""
    documents = Path(googleapiclient.discovery_cache.__file__).parent / "documents"
    schemas = json.loads((documents / "compute.v1.json").read_text(encoding="utf-8"))["schemas"]
    bodies, members = launched(cluster)
    for name, body in bodies.items():
        if problems := complaints(body, {"$ref": "Instance"}, schemas, name):
            raise ConfigError(f"cluster.yaml: {problems[0]}")
        if any("accessConfigs" in interface for interface in body["networkInterfaces"]):
            raise ConfigError(f"cluster.yaml: {name}: expected no external address: remove accessConfigs")
        expected = cluster.account("head" if name == cluster.config["head_node_type"] else "worker")
        if [account["email"] for account in body["serviceAccounts"]] != [expected]:
            raise ConfigError(f"cluster.yaml: {name}: expected the account {expected}")
    rays = f"serviceAccount:ray-autoscaler-sa-v1@{cluster.variables['PROJECT']}.iam.gserviceaccount.com"
    if members - {rays}:
        raise ConfigError(f"`ray up` would give roles to {sorted(members - {rays})}: expected {rays} alone, disabled")
    return ", ".join(f"{name} {body['machineType'].rpartition('/')[2]}" for name, body in bodies.items())


def rows(columns: int) -> Iterator[tuple[str, ...]]:
    """Rows of the tables in SECURITY.md with this many columns."""
    for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines():
        cells = tuple(cell.strip().strip("`") for cell in line.strip("|").split("|"))
        if line.startswith("|") and len(cells) == columns:
            yield cells


def ports(pattern: str, text: str) -> set[int]:
    """The ports that follow each occurrence of a pattern in a text: `6379` or `8076-8081`."""
    found = re.findall(pattern + r"(\d+)(?:-(\d+))?\b", text)
    return {port for first, last in found for port in range(int(first), int(last or first) + 1)}


def documented_ports() -> set[int]:
    """Ports of the table in SECURITY.md: `port | process | nodes | protection`."""
    return set().union(*(ports("^", cells[0]) for cells in rows(4)))


def check_ports(_: Cluster) -> str:
    """Every port of the firewall and of Ray's options is in the table of SECURITY.md."""
    opened = ports("tcp:", (ROOT / "ops/gcp/setup.sh").read_text(encoding="utf-8"))
    used = ports("port=", (ROOT / "ops/gcp/node/ray.sh").read_text(encoding="utf-8"))
    for place, found in (("setup.sh opens", opened), ("node/ray.sh gives Ray", used)):
        if unknown := sorted(found - documented_ports()):
            raise ConfigError(f"ops/gcp/{place} port {unknown[0]}: expected one of the table in SECURITY.md")
    return f"{len(used)} of Ray and those of the firewall are in SECURITY.md"


def check_roles(_: Cluster) -> str:
    """setup.sh grants the roles of the table in SECURITY.md: `account | role | on`, and no others."""
    text = (ROOT / "ops/gcp/setup.sh").read_text(encoding="utf-8")
    granted = set(re.findall(r"roles/[\w.]+", text))
    documented = {role for _, role, _ in rows(3) if role.startswith("roles/")}
    if granted != documented:
        raise ConfigError(f"roles of ops/gcp/setup.sh and SECURITY.md differ in {sorted(granted ^ documented)}")
    project = set(re.findall(r"^(detect-ai-\w+) (roles/\S+)$", text, re.MULTILINE))
    if project != (listed := {(account, role) for account, role, on in rows(3) if on == "project"}):
        raise ConfigError(f"roles in the project: setup.sh and SECURITY.md differ in {sorted(project ^ listed)}")
    return f"{len(granted)} roles, all in SECURITY.md"


def call(request: Any, what: str) -> Any:
    """Send a request to Google. Raises ConfigError with the fix if something is missing or not allowed."""
    try:
        return request.execute(num_retries=2)
    except RefreshError as error:
        login = "gcloud auth application-default login"
        raise ConfigError(f"credentials: Google refuses them, such as an expired token: run `{login}`") from error
    except HttpError as error:
        reasons = {401: "the credentials are not valid", 403: "no access, or its API is off", 404: "it does not exist"}
        problem = reasons.get(error.status_code, f"status {error.status_code}")
        raise ConfigError(f"{what}: {problem}: see docs/CLUSTER.md, Troubleshooting") from error


def service(name: str) -> Any:
    """A client of one of Google's APIs. Raises SkippedError without credentials."""
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST") if name == "storage" else None:
        options = {"api_endpoint": f"{emulator}/storage/v1/"}
        return discovery.build(name, "v1", credentials=AnonymousCredentials(), client_options=options)
    try:
        credentials, _ = google.auth.default(["https://www.googleapis.com/auth/cloud-platform"])
    except DefaultCredentialsError as error:
        raise SkippedError("no credentials: run `gcloud auth application-default login`") from error
    return discovery.build(name, "v1", credentials=credentials)


def check_bucket(cluster: Cluster) -> str:
    """The bucket exists and keeps deleted and replaced objects."""
    bucket = cluster.variables["BUCKET"]
    found = call(service("storage").buckets().get(bucket=bucket), f"BUCKET={bucket}")
    if not found.get("versioning", {}).get("enabled"):
        raise ConfigError(f"gs://{bucket}: expected object versioning: run ops/gcp/setup.sh")
    return f"gs://{bucket}, versioned"


def check_quota(cluster: Cluster) -> str:
    """The project exists, and its quota in the region allows the nodes."""
    project, region = cluster.variables["PROJECT"], cluster.variables["REGION"]
    compute = service("compute")
    call(compute.projects().get(project=project), f"PROJECT={project}")
    found = call(compute.regions().get(project=project, region=region), f"REGION={region}")
    number = {name: int(value) for name, value in cluster.variables.items() if value.isdigit()}
    needed = {
        "PREEMPTIBLE_NVIDIA_L4_GPUS": number["SPOT_GPU_WORKERS"],
        "NVIDIA_L4_GPUS": number["ON_DEMAND_GPU_WORKERS"],
        "N2_CPUS": 8 + 4 * number["SERVING_NODES"],
    }
    for quota in found.get("quotas", []):
        free = quota["limit"] - quota["usage"]
        if free < needed.get(quota["metric"], 0):
            raise ConfigError(
                f"quota {quota['metric']} in {region}: {needed[quota['metric']]} needed, {free:g} free: ask for more "
                "under IAM, Quotas, or lower the numbers of gcp.env"
            )
    return f"{project}, {region}"


def check_budget(cluster: Cluster) -> str:
    """The cost per hour without load and with all nodes, at the prices in ops/gcp/prices.yaml."""
    prices = yaml.safe_load((ROOT / "ops/gcp/prices.yaml").read_text(encoding="utf-8"))
    hourly = {}
    for name, kind in cluster.node_types.items():
        node = kind["node_config"]
        how = "spot" if node.get("scheduling", {}).get("provisioningModel") == "SPOT" else "on_demand"
        (disk,) = (disk["initializeParams"] for disk in node["disks"])
        try:
            gb_month = prices["disk_gb_month"][disk["diskType"].rpartition("/")[2]]
            hourly[name] = prices["machine_hour"][node["machineType"]][how] + prices["nat_machine_hour"]
        except KeyError as error:
            raise ConfigError(f"ops/gcp/prices.yaml: no price {error} for {name}: look it up and add it") from error
        hourly[name] += disk["diskSizeGb"] * gb_month / HOURS_PER_MONTH
    head = hourly.pop(cluster.config["head_node_type"])
    idle = head + sum(price * cluster.node_types[name]["min_workers"] for name, price in hourly.items())
    dearest = [hourly[name] for name in hourly for _ in range(cluster.node_types[name]["max_workers"])]
    full = head + sum(sorted(dearest, reverse=True)[: cluster.config["max_workers"]])
    source = f"{prices['source']}; checked: {prices['checked']}"
    example = "EXAMPLE PRICES, replace them in ops/gcp/prices.yaml: " if prices["checked"] == "never" else ""
    return f"{example}idle {idle:.2f} USD an hour ({idle * 24:.2f} a day), full at most {full:.2f} ({source})"


CHECKS: dict[str, Callable[[Cluster], str]] = {
    "images": check_images,
    "packages": check_packages,
    "schema": check_schema,
    "machines": check_machines,
    "ports": check_ports,
    "roles": check_roles,
    "bucket": check_bucket,
    "quota": check_quota,
    "budget": check_budget,
}


def main(path: str = "gcp.env") -> int:
    """Print one line for each check. Returns 0 when none has failed."""
    try:
        cluster = Cluster.read(Path(path))
    except DetectAIError as error:
        print(f"FAILED  variables: {error}")
        return 1
    failed, skipped = False, []
    for name, check in CHECKS.items():
        try:
            line = f"ok      {name}: {check(cluster)}"
        except SkippedError as reason:
            skipped.append(name)
            line = f"skipped {name}: {reason}"
        except DetectAIError as error:
            failed, line = True, f"FAILED  {name}: {error}"
        print(line, flush=True)
    if failed:
        print("Correct what failed before `ray up`.")
    elif skipped:
        print(f"Nothing failed, but not checked: {', '.join(skipped)}.")
    else:
        print("All checks passed. Next: ray up with the file that `make cluster-config` wrote.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
