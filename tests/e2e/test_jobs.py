"""The pipeline as one submitted Ray job: results, errors, package contents, and a cluster that stays on loopback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from scipy.special import expit, logit

from detect_ai.core.local_cluster import LocalCluster
from detect_ai.core.ray_runtime import free_port
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from detect_ai.metrics import log_losses
from tests.e2e.conftest import CHECKOUT, listening
from tests.fixtures import tiny_models

pytestmark = pytest.mark.timeout(600)
RAY = [sys.executable, "-m", "ray.scripts.scripts", "job"]
Submit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A separate cluster, started as `make demo` does."""
    started = LocalCluster()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(str(tmp_path_factory.mktemp("jobs") / "store"))


@pytest.fixture(scope="module")
def settings(storage: Storage, encoder: Path) -> list[str]:
    """Overrides for all jobs."""
    source = tiny_models.write_jsonl(Path(storage.root).parent / "texts.jsonl", tiny_models.rows(80))
    return [
        f"storage.root={storage.root}",
        *(f"model.path={encoder}", "model.sha256=", "model.window=64", "model.stride=48"),
        *("corpus=csv", "corpus.sources.0.kind=jsonl", f"corpus.sources.0.path={source}"),
        "corpus.sources.0.group=group",
        "corpus.split={train: 0.4, validation: 0.15, calibration: 0.3, test: 0.15}",
        *("sweep=grid", "sweep.space.lr=[4e-3,1e30]", "+sweep.space.batch_size=[4]", "sweep.epochs=1"),
        *("train.epochs=1", "train.num_workers=1", "train.precision=fp32"),
        *("tracking.mode=disabled", "gate.min_auroc=0"),
        *("calibration.min_tokens=10", "calibration.target_fprs=[0.05]", "calibration.default_target_fpr=0.05"),
        "calibration.guarantee=expectation",
    ]


@pytest.fixture(scope="module")
def submit(cluster: LocalCluster, settings: list[str]) -> Submit:
    """Submits `python jobs/NAME.py OVERRIDES` from the checkout and waits until it ends."""

    def run(name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        command = [*RAY, "submit", "--address", cluster.address, "--working-dir", ".", "--", sys.executable]
        command += [f"jobs/{name}.py", *settings, *overrides]
        return subprocess.run(
            command, cwd=CHECKOUT, env=cluster.environment, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture(scope="module")
def results(submit: Submit) -> dict[str, Any]:
    """The last output line of the pipeline: results by stage."""
    done = submit("pipeline", f"serve.port={free_port()}")
    assert done.returncode == 0, done.stdout[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"prepare"')]
    results: dict[str, Any] = json.loads(line)
    return results


def test_every_stage_stores_its_result(results: dict[str, Any], storage: Storage) -> None:
    assert list(results) == ["prepare", "sweep", "train", "calibrate", "evaluate", "publish", "deploy"]
    for stage, result in results.items():
        assert storage.read_json(f"runs/default/{stage}.json")["result"] == result
    assert Registry(storage).champion() == results["publish"]["champion"] == results["deploy"]["model_version"]
    assert results["train"]["lr"] == 4e-3  # from the sweep


def test_diverged_trial_is_recorded_with_its_reason(results: dict[str, Any], storage: Storage) -> None:
    best, failed = results["sweep"]["trials"]
    assert (best["values"]["lr"], best["status"], best["epoch"]) == (4e-3, "finished", 1)
    assert storage.exists(f"{best['checkpoint']}/model.safetensors")
    assert (failed["status"], failed["checkpoint"], failed["auroc"]) == ("failed", None, None)
    assert "learning rate 1.00e+30" in failed["error"]


def test_training_bundle_and_service_agree_on_scores(results: dict[str, Any], storage: Storage) -> None:
    with Registry(storage).folder(results["publish"]["champion"]) as folder:
        detector = Detector.load(folder)
    corpus = Corpus.open(storage, results["prepare"]["corpus"])
    rows = corpus.read("validation", ["text", "label", "input_ids"]).to_pydict()
    scores = detector.score([np.asarray(ids, np.int32) for ids in rows["input_ids"]])
    loss = log_losses(np.asarray(rows["label"]), expit(scores)).mean()  # training reports it before any calibration
    assert loss == pytest.approx(results["train"]["validation"]["val_loss"], abs=1e-4)
    answer = httpx.post(f"{results['deploy']['url']}/v1/detect", json={"texts": rows["text"]}, timeout=60)
    served = logit([verdict["probability"] for verdict in answer.json()["verdicts"]])
    calibration = detector.spec.calibration
    assert served * calibration.temperature + calibration.midpoint == pytest.approx(scores, abs=1e-4)


def test_a_failing_job_prints_one_line(submit: Submit) -> None:
    done = submit("train", "train.rate=1")
    assert done.returncode == 1
    assert "exit code 2" in done.stdout
    assert "error: config: train.rate" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_package_of_a_job_is_code_only(results: dict[str, Any], cluster: LocalCluster) -> None:
    (package, *_) = cluster.folder.glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    names = {path.name for path in package.iterdir()}
    assert {"jobs", "detect_ai", "configs", "serve_app"} <= names
    assert not names & {".git", ".venv", ".demo", ".mypy_cache", ".pytest_cache", ".hypothesis", "wandb"}
    assert sum(path.stat().st_size for path in package.rglob("*") if path.suffix != ".pyc") < 6_000_000


def test_the_cluster_is_private(results: dict[str, Any], cluster: LocalCluster, tmp_path: Path) -> None:
    assert listening(cluster.pid) == {"127.0.0.1"}
    (tmp_path / "token").write_text("0" * 64)
    stranger = cluster.environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    command = [*RAY, "list", "--address", cluster.address]
    done = subprocess.run(command, env=stranger, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "401" in done.stdout + done.stderr or "nauth" in done.stdout + done.stderr


def test_the_body_for_a_scheduler_starts_a_job(cluster: LocalCluster) -> None:
    page = (CHECKOUT / "docs/MONITORING.md").read_text(encoding="utf-8")
    (body,) = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    assert body["runtime_env"].pop("working_dir").startswith("gs://")
    script, month = body["entrypoint"].partition("python jobs/retrain.py")[1:]
    body["entrypoint"] = f"echo {script.split()[1]} {month} root=$DETECT_AI_STORAGE_ROOT"
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    with httpx.Client(base_url=cluster.address, headers={"Authorization": f"Bearer {token}"}) as client:
        job = client.post("/api/jobs/", json=body).raise_for_status().json()["submission_id"]
        deadline = time.monotonic() + 60
        while (status := client.get(f"/api/jobs/{job}").json()["status"]) in ("PENDING", "RUNNING"):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        printed = client.get(f"/api/jobs/{job}/logs").json()["logs"]
    assert status == "SUCCEEDED"
    assert re.search(
        r"jobs/retrain\.py run=\d{4}-\d\d corpus=\S+ .*root=gs://my-bucket/detect-ai$", printed, re.MULTILINE
    )


# The last test, because it stops the cluster.
def test_a_stopped_cluster_leaves_nothing(cluster: LocalCluster) -> None:
    processes = psutil.Process(cluster.pid).children(recursive=True)
    assert processes
    cluster.stop()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    assert not cluster.folder.exists()
