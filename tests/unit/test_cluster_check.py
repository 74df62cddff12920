"""`make cluster-check` and `make cluster-config`: what they accept, and one line per mistake."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.auth.exceptions import DefaultCredentialsError, RefreshError
from googleapiclient import discovery
from googleapiclient.http import HttpMockSequence

from detect_ai.core.errors import ConfigError
from ops.gcp import check, config
from ops.gcp.check import Cluster, SkippedError
from ops.gcp.config import ROOT, read_variables, render
from tests.fixtures.cluster import example_variables
from tests.fixtures.gcs import gcs_emulator

QUOTAS = {"PREEMPTIBLE_NVIDIA_L4_GPUS": 4, "NVIDIA_L4_GPUS": 4, "N2_CPUS": 40}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster.read(example_variables(tmp_path))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give Google's clients these answers: a status and a body for each request."""

    def prepare(*given: tuple[int, Any]) -> None:
        http = HttpMockSequence([({"status": status}, json.dumps(body)) for status, body in given])
        monkeypatch.setattr(check, "service", lambda name: discovery.build(name, "v1", http=http))

    return prepare


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PROJECT": ""}, "PROJECT=: expected the id of a project"),
        ({"PROJECT": "My Project"}, "PROJECT: expected lines NAME=value"),
        ({"BUCKET": ""}, "BUCKET=: expected the name of a bucket"),
        ({"BUCKET": "gs://b/folder"}, "without gs:// and folder"),
        ({"ZONE": "us-central1-a"}, "expected a zone of REGION=europe-west4"),
        ({"STORAGE_ROOT": "gs://other/detect-ai"}, "expected a folder gs://my-bucket/"),
        ({"STORAGE_ROOT": "gs://${BUCKET}"}, "expected a folder gs://my-bucket/"),
        ({"STORAGE_ROOT": "gs://${ZONE}/a"}, "STORAGE_ROOT: expected lines NAME=value"),
        ({"SPOT_GPU_WORKERS": "many"}, "expected a number of machines"),
        ({"MIN_SERVING_NODES": "9"}, "MIN_SERVING_NODES=9: expected at most SERVING_NODES=8"),
        ({"MAX_WORKERS": "7"}, "SERVING_NODES=8: expected at most MAX_WORKERS=7"),
        ({"MAX_WORKERS": "3", "SERVING_NODES": "3"}, "SPOT_GPU_WORKERS=4: expected at most MAX_WORKERS=3"),
        ({"ZONES": "a"}, "ZONES is unknown"),
        ({"REQUIREMENTS": "no.txt"}, "REQUIREMENTS=no.txt: no such file"),
    ],
)
def test_wrong_variables_are_refused_by_name(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cluster.read(example_variables(tmp_path, **changes))


def test_variables_must_exist_and_be_complete(tmp_path: Path) -> None:
    path = tmp_path / "gcp.env"
    with pytest.raises(ConfigError, match=r"cp ops/gcp/variables\.env"):
        read_variables(path)
    path.write_text("PROJECT=my-project\n")
    with pytest.raises(ConfigError, match="BUCKET is missing"):
        read_variables(path)


@pytest.mark.parametrize(("given", "root"), [("gs://${BUCKET}/a/b", "gs://my-bucket/a/b"), ("gs://my-bucket/c",) * 2])
def test_the_storage_root_is_a_folder_of_the_bucket(tmp_path: Path, given: str, root: str) -> None:
    assert read_variables(example_variables(tmp_path, STORAGE_ROOT=given))["STORAGE_ROOT"] == root


def test_a_variable_without_a_value_is_refused() -> None:
    assert render("a ${B} $C ${d}", {"B": "x"}) == "a x $C ${d}"
    with pytest.raises(ConfigError, match=r"\$\{C\}: expected one of B"):
        render("${C}", {"B": "x"})


def test_the_configuration_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.main(str(example_variables(tmp_path))) == 0
    text = (tmp_path / "my-cluster.yaml").read_text()
    assert "project_id: my-project\n" in text
    assert "${" not in text
    assert config.main("other.env") == 2


def test_the_next_cluster_has_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.main(str(example_variables(tmp_path))) == 0
    assert config.main(str(example_variables(tmp_path, CLUSTER="detect-ai-next"))) == 0
    names = {path.name: yaml.safe_load(path.read_text())["cluster_name"] for path in tmp_path.glob("*.yaml")}
    assert names == {"my-cluster.yaml": "detect-ai", "my-cluster-detect-ai-next.yaml": "detect-ai-next"}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("rayproject/ray:2.60.0-py311", "imagetools inspect rayproject/ray:2.60.0-py311`"),
        ("rayproject/ray@sha256:" + "a" * 64, "expected name:tag@sha256"),
        ("rayproject/ray:2.9.0-py311@sha256:" + "a" * 64, "expected the Ray of .* found 2.9.0"),
        ("rayproject/ray:{ray}-py39@sha256:" + "a" * 64, "found py39"),
    ],
)
@pytest.mark.parametrize("name", ["CPU_IMAGE", "GPU_IMAGE"])
def test_images_need_a_digest_and_the_pinned_ray(cluster: Cluster, name: str, image: str, message: str) -> None:
    assert cluster.pins["ray"] in check.check_images(cluster)
    cluster.variables[name] = image.format(ray=cluster.pins["ray"])
    with pytest.raises(ConfigError, match=f"{name}=.*{message}"):
        check.check_images(cluster)


@pytest.mark.parametrize(("name", "variant"), [("CPU_IMAGE", "-gpu"), ("CPU_IMAGE", "-cu129"), ("GPU_IMAGE", "")])
def test_swapped_images_are_refused(cluster: Cluster, name: str, variant: str) -> None:
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    cluster.variables[name] = f"rayproject/ray:{cluster.pins['ray']}-{python}{variant}@sha256:" + "a" * 64
    with pytest.raises(ConfigError, match=f"{name}=.*expected a tag"):
        check.check_images(cluster)


def test_own_images_are_accepted_by_digest(cluster: Cluster) -> None:
    cluster.variables["GPU_IMAGE"] = "europe-docker.pkg.dev/p/r/train:v1@sha256:" + "b" * 64
    found = check.check_images(cluster)
    assert "GPU_IMAGE: version not checked: an image of your own" in found
    assert "CPU_IMAGE" not in found


@pytest.mark.parametrize("package", ["ray", "torch", "google-api-python-client"])
def test_packages_of_nodes_are_pinned(cluster: Cluster, package: str) -> None:
    assert str(len(cluster.pins)) in check.check_packages(cluster)
    del cluster.pins[package]
    with pytest.raises(ConfigError, match=rf"with a pin of {package}: requirements/train\.txt"):
        check.check_packages(cluster)


def test_what_ray_refuses_is_refused(cluster: Cluster) -> None:
    assert check.check_schema(cluster) == "4 node types"
    cluster.config["idle_timeout"] = 10
    with pytest.raises(ConfigError, match=r"Ray refuses it: .*idle_timeout"):
        check.check_schema(cluster)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels_": {}}, "serving.labels_: unknown field"),
        ({"scheduling": {"onHostMaintenance": "STOP"}}, "'STOP' is none of"),
        ({"networkInterfaces": [{"accessConfigs": [{"type": "ONE_TO_ONE_NAT"}]}]}, "expected no external address"),
        ({"serviceAccounts": [{"email": "default"}]}, "expected the account detect-ai-worker@my-project"),
    ],
)
def test_machines_that_google_or_we_do_not_want_are_refused(
    cluster: Cluster, change: dict[str, Any], message: str
) -> None:
    assert "gpu_spot g2-standard-8" in check.check_machines(cluster)
    cluster.node_types["serving"]["node_config"] |= change
    with pytest.raises(ConfigError, match=message):
        check.check_machines(cluster)


@pytest.mark.parametrize(
    ("file", "old", "new", "function", "message"),
    [
        ("ops/gcp/setup.sh", "tcp:9101", "tcp:9102", check.check_ports, "setup.sh opens port 9102"),
        ("ops/gcp/setup.sh", "tcp:8076-8081", "tcp:8076-8082", check.check_ports, "setup.sh opens port 8082"),
        ("ops/gcp/node/ray.sh", "port=8077", "port=7077", check.check_ports, "ray.sh gives Ray port 7077"),
        ("SECURITY.md", "| 8404 |", "| (8404) |", check.check_ports, "port 8404"),
        ("ops/gcp/setup.sh", "roles/storage.objectUser", "roles/storage.admin", check.check_roles, "storage.admin"),
        ("ops/gcp/setup.sh", "detect-ai-worker roles/l", "detect-ai-head roles/l", check.check_roles, "in the project"),
    ],
)
def test_undocumented_ports_and_roles_are_refused(
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    old: str,
    new: str,
    function: Callable[[Cluster], str],
    message: str,
) -> None:
    assert function(cluster)
    for name in ("SECURITY.md", "ops/gcp/setup.sh", "ops/gcp/node/ray.sh"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new))
    monkeypatch.setattr(check, "ROOT", tmp_path)
    with pytest.raises(ConfigError, match=message):
        function(cluster)


def test_the_bucket_must_exist_and_keep_versions(cluster: Cluster, answers: Callable[..., None]) -> None:
    answers((200, {"versioning": {"enabled": True}}), (200, {}), (404, {}), (403, {}))
    assert check.check_bucket(cluster) == "gs://my-bucket, versioned"
    for message in ("expected object versioning", "BUCKET=my-bucket: it does not exist", "BUCKET=my-bucket: no access"):
        with pytest.raises(ConfigError, match=message):
            check.check_bucket(cluster)


def test_the_bucket_is_asked_for_over_http(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with gcs_emulator("my-bucket") as uri:
        monkeypatch.setenv(
            "STORAGE_EMULATOR_HOST", "http://" + uri.partition("endpoint_override=")[2].partition("&")[0]
        )
        with pytest.raises(ConfigError, match="expected object versioning"):  # the emulator has none
            check.check_bucket(cluster)
        cluster.variables["BUCKET"] = "other"
        with pytest.raises(ConfigError, match="BUCKET=other: it does not exist"):
            check.check_bucket(cluster)


def test_the_quota_must_allow_all_nodes(cluster: Cluster, answers: Callable[..., None]) -> None:
    quotas = [{"metric": name, "limit": limit, "usage": 0} for name, limit in QUOTAS.items()]
    answers((200, {}), (200, {"quotas": quotas}))
    assert check.check_quota(cluster) == "my-project, europe-west4"
    for i, name in enumerate(QUOTAS):
        used = [quota | {"usage": int(i == j)} for j, quota in enumerate(quotas)]
        answers((200, {}), (200, {"quotas": used}))
        with pytest.raises(ConfigError, match=f"quota {name} in europe-west4: {QUOTAS[name]} needed"):
            check.check_quota(cluster)


@pytest.mark.parametrize(("status", "problem"), [(404, "it does not exist"), (403, "no access"), (401, "not valid")])
def test_a_missing_project_is_named(cluster: Cluster, answers: Callable[..., None], status: int, problem: str) -> None:
    answers((status, {}))
    with pytest.raises(ConfigError, match=f"PROJECT=my-project: .*{problem}"):
        check.check_quota(cluster)


def test_an_expired_token_is_refused_with_the_login(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    class Expired:
        def execute(self, num_retries: int) -> None:
            raise RefreshError("invalid_grant")

    with pytest.raises(ConfigError, match=r"expired token: run `gcloud auth application-default login`"):
        check.call(Expired(), "BUCKET=b")


def test_without_credentials_google_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: object) -> None:
        raise DefaultCredentialsError("none")

    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(check.google.auth, "default", none)
    for name in ("storage", "compute"):
        with pytest.raises(SkippedError, match="application-default login"):
            check.service(name)


def test_the_budget_is_of_an_idle_and_a_full_hour(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = "{n2-standard-4: {on_demand: 1}, n2-standard-8: {on_demand: 2}, g2-standard-8: {on_demand: 10, spot: 5}}"
    prices = tmp_path / "ops/gcp/prices.yaml"
    prices.parent.mkdir(parents=True)
    rest = "disk_gb_month: {pd-balanced: 0}\nnat_machine_hour: 0.5\nsource: s\nchecked: 2026-01-31\n"
    prices.write_text(f"machine_hour: {machines}\n{rest}")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    cluster.config["max_workers"] = 6
    # The most expensive six are 4 on demand and 2 spot.
    assert check.check_budget(cluster).startswith("idle 2.50 USD an hour (60.00 a day), full at most 55.50")
    cluster.node_types["serving"]["min_workers"] = 2
    assert check.check_budget(cluster).startswith("idle 5.50")
    prices.write_text(f"machine_hour: {machines}\n{rest}".replace("2026-01-31", "never"))
    assert check.check_budget(cluster).startswith("EXAMPLE PRICES")
    prices.write_text("machine_hour: {}\n" + rest)
    with pytest.raises(ConfigError, match="no price 'n2-standard-8' for head"):
        check.check_budget(cluster)


def test_one_failed_check_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def skipped(_: str) -> None:
        raise SkippedError("no credentials")

    monkeypatch.setattr(check, "service", skipped)
    assert check.main(str(example_variables(tmp_path))) == 0
    *lines, closing = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 6 + ["skipped"] * 2 + ["ok"]
    assert closing == "Nothing failed, but not checked: bucket, quota."
    assert check.main(str(example_variables(tmp_path, CPU_IMAGE="rayproject/ray:latest"))) == 1
    *lines, closing = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["FAILED"] + ["ok"] * 5 + ["skipped"] * 2 + ["ok"]
    assert closing == "Correct what failed before `ray up`."
    assert check.main(str(tmp_path / "none")) == 1
    assert capsys.readouterr().out.startswith("FAILED  variables: ")
