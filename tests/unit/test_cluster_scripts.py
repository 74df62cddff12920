"""Scripts of the cluster on Google Cloud, with fakes of gcloud, sudo, docker and ray that log their calls."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from ops.gcp.config import ROOT
from tests.fixtures.cluster import example_variables
from tests.fixtures.programs import require

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the scripts run on the machines of the cluster")
TOKEN = "0123456789abcdef"
# A resource exists if an earlier call has created it. Reads all of its input, as a program in a loop might.
GCLOUD = """input=$(cat)
case " $* " in
  *' describe '*)
    created=$(echo "$*" | sed 's/ describe / create /; s/ --.*//; s/@.*//')
    grep -qF -- "$created" "$LOG.created" 2> /dev/null ;;
  *' create '*) echo "$*" >> "$LOG.created" ;;
  *' list '*) echo left-1 europe-west4-a ;;
esac
"""
SUDO = """case $1 in tee) cat >> "$LOG" ;; esac
case "$*" in *'image inspect'*) echo sha256:1 ;; esac
"""


class Machine(NamedTuple):
    """A folder with programs that log how they are called, and the environment that finds them first."""

    folder: Path
    environment: dict[str, str]

    def program(self, name: str, body: str = "") -> None:
        """Add a program: its calls are logged, then a shell script runs."""
        path = self.folder / "bin" / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> "$LOG"\n{body}')
        path.chmod(0o755)

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a script of ops/gcp."""
        command = ["bash", str(ROOT / "ops/gcp" / script), *arguments]
        environment = self.environment | variables
        return subprocess.run(
            command, cwd=self.folder, env=environment, input="", capture_output=True, text=True, timeout=60, check=False
        )

    def run_node(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run node/run.sh as its unit does."""
        folders = dict.fromkeys(("LAUNCHER_HOME", "RUNTIME_DIRECTORY", "STATE_DIRECTORY"), str(self.folder))
        return self.run("node/run.sh", **folders, **variables)

    def calls(self) -> str:
        """Return the log and empty it."""
        log = Path(self.environment["LOG"])
        text = log.read_text() if log.exists() else ""
        log.unlink(missing_ok=True)
        return text


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "bin").mkdir()
    path = f"{tmp_path}/bin{os.pathsep}/usr/bin{os.pathsep}/bin"
    made = Machine(tmp_path, {"PATH": path, "HOME": str(tmp_path), "LOG": str(tmp_path / "log")})
    (tmp_path / "app").symlink_to(ROOT)
    made.program("gcloud", GCLOUD)
    made.program("openssl", f"echo {TOKEN}")
    made.program("sudo", SUDO)
    for name in ("docker", "redis-cli", "install"):
        made.program(name)
    (tmp_path / "ray").mkdir()  # `install` makes it
    return made


def test_scripts_have_no_findings_of_shellcheck() -> None:
    scripts = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "ops").rglob("*.sh"))]
    assert len(scripts) >= 6
    command = [require("shellcheck"), "-x", *scripts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize("script", ["setup.sh", "teardown.sh"])
def test_missing_variables_are_named_before_any_call(machine: Machine, script: str) -> None:
    done = machine.run(script)
    assert (done.returncode, machine.calls()) == (1, "")
    assert done.stderr.startswith("./gcp.env: no such file: run `cp ops/gcp/variables.env gcp.env`")


def test_setup_creates_everything_once(machine: Machine) -> None:
    variables = str(example_variables(machine.folder))
    assert machine.run("setup.sh", variables).returncode == 0
    first = machine.calls()
    created = re.findall(r"^gcloud (.+?) create (\S+)", first, re.MULTILINE)
    assert created == [
        ("compute networks", "detect-ai"),
        ("compute networks subnets", "detect-ai"),
        ("compute routers", "detect-ai"),
        ("compute routers nats", "detect-ai"),
        ("compute firewall-rules", "detect-ai-iap"),
        ("compute firewall-rules", "detect-ai-balancer"),
        ("compute firewall-rules", "detect-ai-nodes"),
        ("iam service-accounts", "detect-ai-head"),
        ("iam service-accounts", "detect-ai-worker"),
        ("iam service-accounts", "ray-autoscaler-sa-v1"),
        ("storage buckets", "gs://my-bucket"),
        ("secrets", "detect-ai-ray-token"),
    ]
    assert "iam service-accounts disable ray-autoscaler-sa-v1@my-project.iam.gserviceaccount.com" in first
    assert "storage buckets update gs://my-bucket --versioning" in first
    assert TOKEN not in first
    assert machine.run("setup.sh", variables).returncode == 0
    assert " create " not in machine.calls()


def test_setup_stops_at_the_first_error(machine: Machine) -> None:
    variables = str(example_variables(machine.folder))
    machine.program("gcloud", "case \"$*\" in *' subnets create '*) exit 1 ;; *describe*) exit 1 ;; esac\n")
    assert machine.run("setup.sh", variables).returncode != 0
    assert "routers" not in machine.calls()
    assert "PROJECT" in machine.run("setup.sh", str(example_variables(machine.folder, PROJECT=""))).stderr


def test_each_account_gets_its_own_secrets_alone(machine: Machine) -> None:
    for name in ("ray-token", "wandb", "hub", "api-keys"):
        with (machine.folder / "log.created").open("a") as file:
            file.write(f"secrets create detect-ai-{name}\n")
    assert machine.run("setup.sh", str(example_variables(machine.folder))).returncode == 0
    found = re.findall(r"secrets add-iam-policy-binding (\S+) .*serviceAccount:detect-ai-(\w+)@", machine.calls())
    assert {name for name, account in found if account == "head"} - {
        name for name, account in found if account == "worker"
    } == {"detect-ai-api-keys"}
    assert len(found) == 7


def test_teardown_removes_what_setup_creates_but_the_bucket(machine: Machine) -> None:
    variables = str(example_variables(machine.folder))
    assert machine.run("setup.sh", variables).returncode == 0
    created = set(re.findall(r"^gcloud (.+?) create (\S+)", machine.calls(), re.MULTILINE))
    assert machine.run("teardown.sh", variables).returncode == 0
    calls = machine.calls()
    deleted = set(re.findall(r"^gcloud (.+?) delete ([\w-]+)", calls, re.MULTILINE))
    assert created - deleted == {("storage buckets", "gs://my-bucket"), ("compute routers nats", "detect-ai")}
    assert ("compute instances", "left-1") in deleted


@pytest.mark.parametrize(
    ("node_type", "optional"),
    [
        ("head", {"WANDB_API_KEY", "HF_TOKEN", "DETECT_AI_API_KEYS"}),
        ("gpu_spot", {"WANDB_API_KEY", "HF_TOKEN"}),
        ("serving", set()),
    ],
)
def test_nodes_get_the_secrets_that_they_need(machine: Machine, node_type: str, optional: set[str]) -> None:
    variables = {
        "PROJECT": "p",
        "STORAGE_ROOT": "gs://b/c",
        "RAY_HEAD_IP": "10.0.0.1",
        "RAY_OVERRIDE_RESOURCES": '{"CPU":0}',
    }
    assert machine.run("node/start.sh", RAY_NODE_TYPE_NAME=node_type, **variables).returncode == 0
    calls = machine.calls()
    (secrets,) = re.findall(r'^SECRETS="(.*)"$', calls, re.MULTILINE)
    assert {name.partition("=")[0] for name in secrets.split() if name.endswith("?")} == optional
    assert [name for name in secrets.split() if not name.endswith("?")] == ["RAY_AUTH_TOKEN=detect-ai-ray-token"]
    assert '\nRAY_OVERRIDE_RESOURCES={"CPU":0}\n' in calls  # the environment file of the container, as docker reads it
    assert f"\nRAY_NODE_TYPE_NAME={node_type}\n" in calls
    assert "\nSTORAGE_ROOT=gs://b/c\n" in calls
    assert ("systemctl enable detect-ai-ray" in calls, "Restart=no" in calls) == (
        node_type == "head",
        node_type != "head",
    )
    assert ("redis-cli -p 6380 flushall" in calls) == (node_type == "head")


def test_a_node_that_does_not_start_is_reported(machine: Machine) -> None:
    machine.program("sudo", SUDO + 'case "$*" in *health-check*) exit 1 ;; esac\n')
    machine.program("sleep")
    done = machine.run("node/start.sh", PROJECT="p", STORAGE_ROOT="gs://b/c", RAY_NODE_TYPE_NAME="serving")
    assert done.returncode == 1
    assert "journalctl --unit detect-ai-ray" in machine.calls()


@pytest.mark.parametrize("node_type", ["head", "serving"])
def test_the_container_gets_settings_and_secrets(machine: Machine, node_type: str) -> None:
    machine.program("python3", "echo RAY_AUTH_TOKEN=secret\n")
    variables = {"PROJECT": "p", "STORAGE_ROOT": "gs://b/c", "NODE_TYPE": node_type, "SECRETS": "A=a B=b?"}
    done = machine.run_node(**variables)
    assert (done.returncode, done.stderr) == (0, "")
    calls = machine.calls()
    assert re.search(r"^python3 \S+/fetch_secrets\.py p A=a B=b\?$", calls, re.MULTILINE)
    (command,) = re.findall(r"^docker run (.*)$", calls, re.MULTILINE)
    assert "secret" not in command.replace("secrets.env", "")
    assert (machine.folder / "secrets.env").read_text() == "RAY_AUTH_TOKEN=secret\n"
    assert (machine.folder / "secrets.env").stat().st_mode & 0o077 == 0
    given = set(re.findall(r"--env (\S+)", command))
    assert {
        "RAY_AUTH_MODE=token",
        "DETECT_AI_AUTOSCALES=1",
        "DETECT_AI_STORAGE_ROOT=gs://b/c",
        "RAY_SERVE_ENABLE_HA_PROXY=1",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S=75",
    } <= given
    assert ("RAY_REDIS_ADDRESS=127.0.0.1:6380" in given) == (node_type == "head")
    assert ("ray_bootstrap_key.pem" in command) == (node_type == "head")
    assert f" --volume {machine.folder}/ray:/tmp/ray " in command


def test_only_logs_of_a_week_stay_of_earlier_runs(machine: Machine) -> None:
    machine.program("python3")
    ray = machine.folder / "ray"
    kept = {"prom_metrics_service_discovery.json", "session_1/logs/raylet.out"}
    ages = dict.fromkeys([*kept, "session_1/sockets/raylet", "session_1/ray_spilled_objects/1"], 1)
    for name, days in (ages | {"session_0/logs/raylet.out": 8}).items():
        (ray / name).parent.mkdir(parents=True, exist_ok=True)
        (ray / name).touch()
        os.utime(ray / name, (time.time() - days * 86400,) * 2)
    (ray / "session_latest").symlink_to("session_1")
    assert machine.run_node(PROJECT="p", STORAGE_ROOT="gs://b/c", NODE_TYPE="head", SECRETS="A=a").returncode == 0
    assert {str(path.relative_to(ray)) for path in ray.rglob("*") if path.is_file() and not path.is_symlink()} == kept


def test_without_secrets_no_container_starts(machine: Machine) -> None:
    machine.program("python3", "exit 1\n")
    variables = {"PROJECT": "p", "STORAGE_ROOT": "gs://b/c", "NODE_TYPE": "head", "SECRETS": "A=a"}
    done = machine.run_node(**variables)
    assert done.returncode != 0
    assert "docker run" not in machine.calls()


# `ray start` runs for a second, then ends as if a Ray process had ended.
RAY = "case $1 in start) /bin/sleep 1; exit 3 ;; esac\n"


@pytest.mark.parametrize(("code", "attempts"), [(0, 1), (2, 1), (1, 2)])
def test_the_head_restores_the_service_and_ends_with_ray(machine: Machine, code: int, attempts: int) -> None:
    machine.program("ray", RAY)
    machine.program("sleep")
    # The second attempt succeeds.
    second = 'if [ -e "$LOG.tried" ]; then exit 0; fi; touch "$LOG.tried"; '
    machine.program("python", f'echo "address $RAY_ADDRESS path $PYTHONPATH" >> "$LOG"\n{second}exit {code}\n')
    done = machine.run("node/ray.sh", RAY_NODE_TYPE_NAME="head", OMP_NUM_THREADS="1")
    assert done.returncode == 3
    calls = machine.calls()
    assert calls.count(f"python jobs/restore.py\naddress 127.0.0.1:6379 path {ROOT}\n") == attempts
    (start,) = re.findall(r"^ray start (.*)$", calls, re.MULTILINE)
    assert {"--head", "--block", "--port=6379", "--dashboard-host=127.0.0.1"} <= set(start.split())


@pytest.mark.parametrize("launched", [True, False])
def test_the_head_has_an_autoscaler_where_the_launcher_left_its_file(machine: Machine, launched: bool) -> None:
    for name in ("sleep", "python"):
        machine.program(name)
    machine.program("ray", RAY)
    file = machine.folder / "ray_bootstrap_config.yaml"
    if launched:
        file.touch()
    machine.run("node/ray.sh", RAY_NODE_TYPE_NAME="head")
    assert (f"--autoscaling-config={file}" in machine.calls()) == launched


def test_a_worker_joins_the_head_and_restores_nothing(machine: Machine) -> None:
    machine.program("ray", RAY)
    machine.program("python")
    assert machine.run("node/ray.sh", RAY_NODE_TYPE_NAME="serving", RAY_HEAD_IP="10.0.0.1").returncode == 3
    calls = machine.calls()
    assert "--address=10.0.0.1:6379 " in calls
    assert "--head" not in calls
    assert "python" not in calls


Fetch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def fetch() -> Iterator[Fetch]:
    """Fetches the secrets of a node from a server in place of Google's."""
    secrets = {"ray": TOKEN, "two": "a\nb"}

    class Google(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/secrets/")[2].partition("/versions/latest:access")[0]
            allowed = self.headers["Authorization"] == "Bearer access" and "/projects/p/" in self.path
            if self.path == "/computeMetadata/v1/instance/service-accounts/default/token":
                status, body = 200, {"access_token": "access"}
            elif allowed and name in secrets:
                status, body = 200, {"payload": {"data": base64.b64encode(secrets[name].encode()).decode()}}
            else:
                status, body = 403 if name == "forbidden" else 404, {}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Google)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    endpoint = {"CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": f"http://{address}/", "GCE_METADATA_HOST": address}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "ops/gcp/node/fetch_secrets.py"), *arguments]
        environment = {"PATH": os.environ["PATH"], **endpoint}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    yield run
    server.shutdown()
    server.server_close()


def test_secrets_are_read_and_optional_ones_may_be_missing(fetch: Fetch) -> None:
    done = fetch("p", "RAY_AUTH_TOKEN=ray", "HF_TOKEN=none?", "WANDB_API_KEY=forbidden?")
    assert (done.stdout, done.returncode) == (f"RAY_AUTH_TOKEN={TOKEN}\n", 0)
    assert TOKEN not in done.stderr
    assert "HF_TOKEN is not set" in done.stderr


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [("A=none", "does not exist"), ("A=forbidden", "may not read it"), ("A=two", "expected one line")],
)
def test_a_secret_that_is_needed_must_be_readable(fetch: Fetch, wanted: str, problem: str) -> None:
    done = fetch("p", "RAY_AUTH_TOKEN=ray", wanted)
    assert (done.stdout, done.returncode) == ("", 1)
    assert problem in done.stderr
