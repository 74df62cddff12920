"""The stages as real Ray jobs: one JSON line last, exit codes, a small package, a cluster on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import dropwhile, islice, takewhile
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
from detect_ai.metrics import log_loss
from tests.e2e.conftest import CHECKOUT, listening
from tests.fixtures import tiny_models

PORT = free_port()
STAGES = {
    "prepare": [],
    "train": ["train.lr=5e-3", "train.batch_size=4"],
    "calibrate": [],
    "evaluate": [],
    "publish": [],
    "deploy": [f"serve.port={PORT}"],
}
FURTHER = {
    "inspect": [],
    "sweep": ["sweep=grid", "sweep.space.lr=[4e-3]", "+sweep.space.batch_size=[4]", "sweep.epochs=1"],
    "train": ["train.from_sweep=true"],
}
Done = subprocess.CompletedProcess[str]
Submit = Callable[..., Done]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A cluster of its own, as `make demo` starts it."""
    started = LocalCluster.start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def settings(root: Path, encoder: Path) -> list[str]:
    """The overrides that all jobs have."""
    source = tiny_models.write_jsonl(root / "texts.jsonl", tiny_models.rows(80))
    return [
        f"storage.root={root / 'store'}",
        *(f"model.path={encoder}", "model.sha256=", "model.window=64", "model.stride=48"),
        *("corpus=csv", "corpus.sources.0.kind=jsonl", f"corpus.sources.0.path={source}"),
        "corpus.sources.0.group=group",
        "corpus.split={train: 0.4, validation: 0.15, calibration: 0.3, test: 0.15}",
        *("train.epochs=1", "train.num_workers=1", "train.precision=fp32", "calibration.min_tokens=10"),
        *("tracking.mode=disabled", "gate.min_auroc=0"),
    ]


@pytest.fixture(scope="module")
def submit(cluster: LocalCluster, settings: list[str]) -> Submit:
    """Submits `python jobs/NAME.py OVERRIDES` from the checkout and waits for its end."""

    def run(name: str, *overrides: str) -> Done:
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", cluster.address]
        command += ["--working-dir", ".", "--", sys.executable, f"jobs/{name}.py", *settings, *overrides]
        return subprocess.run(
            command,
            cwd=CHECKOUT,
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def jobs(submit: Submit) -> dict[str, Done]:
    """Every stage, one job after the other."""
    return {name: submit(name, *overrides) for name, overrides in STAGES.items()}


def log_of(done: Done) -> list[str]:
    """The lines of the job itself, without those of Ray's command before and after it."""
    lines = iter(done.stdout.splitlines())
    behind = dropwhile(lambda line: "Tailing logs until the job exits" not in line, lines)
    return list(takewhile(lambda line: " cli.py:" not in line, islice(behind, 1, None)))


def last_line(done: Done) -> dict[str, Any]:
    lines = [line for line in log_of(done) if line]
    assert lines[-1].startswith("{"), "\n".join(lines[-20:])
    found: dict[str, Any] = json.loads(lines[-1])
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_as_a_job_and_prints_its_stored_result_last(stage: str, jobs: dict[str, Done], root: Path) -> None:
    assert jobs[stage].returncode == 0, jobs[stage].stdout[-3000:]
    assert last_line(jobs[stage]) == Storage(str(root / "store")).read_json(f"runs/default/{stage}.json")["result"]


def test_the_last_job_leaves_a_champion(jobs: dict[str, Done], root: Path) -> None:
    assert Registry(Storage(str(root / "store"))).champion() == last_line(jobs["publish"])["champion"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_takes_what_the_sweep_found(submit: Submit, jobs: dict[str, Done], root: Path) -> None:
    storage = Storage(str(root / "store"))
    for stage, overrides in FURTHER.items():
        done = submit(stage, *overrides)
        assert done.returncode == 0, done.stdout[-3000:]
        assert last_line(done) == storage.read_json(f"runs/default/{stage}.json")["result"]
    found, corpus = last_line(done), last_line(jobs["prepare"])["corpus"]
    assert found["lr"] == 4e-3
    assert found["history"][-1]["step"] == -(-Corpus.open(storage, corpus).num_rows("train") // 4)


def test_a_text_has_one_score_in_training_in_the_bundle_and_over_http(jobs: dict[str, Done], root: Path) -> None:
    storage = Storage(str(root / "store"))
    corpus = Corpus.open(storage, last_line(jobs["prepare"])["corpus"])
    with Registry(storage).folder(last_line(jobs["publish"])["champion"]) as folder:
        detector = Detector.load(folder)
    rows = corpus.read("validation", ["text", "label", "input_ids"]).to_pydict()
    scores = detector.score([np.asarray(ids, np.int32) for ids in rows["input_ids"]])
    # Training knows a figure over all of the texts, before any calibration.
    loss = log_loss(rows["label"], expit(scores))
    assert loss == pytest.approx(last_line(jobs["train"])["validation"]["val_loss"], abs=1e-4)
    answer = httpx.post(f"{last_line(jobs['deploy'])['url']}/v1/detect", json={"texts": rows["text"]}, timeout=60)
    said = np.asarray([verdict["probability"] for verdict in answer.json()["verdicts"]])
    calibration = detector.spec.calibration
    assert logit(said) * calibration.temperature + calibration.midpoint == pytest.approx(scores, abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_any_labelled_texts_are_evaluated_by_one_command(submit: Submit, jobs: dict[str, Done], root: Path) -> None:
    version = last_line(jobs["publish"])["champion"]
    data = tiny_models.write_jsonl(root / "mine.jsonl", tiny_models.rows(10, seed=5))
    done = submit("evaluate", f"bundle={version}", f"data={data}", "evaluation.bootstrap=10")
    found = last_line(done)
    assert {
        *("auroc", "tpr_at_fpr_1", "tpr_at_fpr_5", "fpr_at_target_1", "fpr_at_target_5", "tpr_at_target_1"),
        *("tpr_at_target_5", "ece", "abstained_fraction", "n_human", "n_ai"),
    } <= set(found)
    assert (found["version"], found["n_human"], found["n_ai"]) == (version, 10, 10)
    assert found == Storage(str(root / "store")).read_json("runs/default/evaluate-mine.json")["result"]


@pytest.mark.timeout(600)
def test_any_texts_are_scored_by_the_champion_and_none_of_them_is_logged(
    submit: Submit, jobs: dict[str, Done], root: Path
) -> None:
    texts = {f"t{i}": str(row["text"]) for i, row in enumerate(tiny_models.rows(5, seed=6))}
    data = tiny_models.write_jsonl(
        root / "texts_of_mine.jsonl", [{"id": name, "text": text} for name, text in texts.items()]
    )
    done = submit("score", f"data={data}", "score.format=jsonl", f"score.out={root / 'verdicts'}")
    assert last_line(done)["texts"] == len(texts)
    rows = [json.loads(line) for path in (root / "verdicts").iterdir() for line in path.read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == sorted(texts)
    assert {row["model_version"] for row in rows} == {last_line(jobs["publish"])["champion"]}
    assert not [text for text in texts.values() if text[:40] in done.stdout + done.stderr]


FAILING = {
    "a missing file": ("prepare", "corpus.sources.0.path=/nowhere.csv", 2, "source /nowhere.csv: no such file or fol"),
    "nothing before": ("rollback", "seed=0", 2, "no version before the champion "),
    "no corpus yet": ("sweep", "run=fresh", 2, "run=fresh: no result of 'prepare' under "),
    "an unknown bundle": ("evaluate", "bundle=nope", 2, "bundle=nope: expected a version of the registry ("),
    "no texts": ("score", "data=/nowhere.csv", 2, "data=/nowhere.csv: no such file or folder; expected Parquet, CSV"),
    "too many workers": ("train", "train.num_workers=50", 1, "(50 workers x 1 CPUs + 1 beside them) needs 51 CPUs"),
}


def fails_with(message: str, lines: list[str], store: Path, before: list[Path]) -> None:
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert message in errors[0]
    assert not [line for line in lines if "Traceback" in line]
    assert sorted(store.rglob("*")) == before, "something was left behind"


def test_a_job_that_cannot_run_says_why_in_one_line_and_fails(
    submit: Submit, jobs: dict[str, Done], root: Path
) -> None:
    before = sorted((root / "store").rglob("*"))
    done = submit("train", "train.rate=1")
    assert done.returncode == 1, "`ray job submit` fails with the job"
    assert "exit code 2" in done.stdout
    message = "config: train.rate=1: no key 'rate'; allowed here: lr, from_s"
    fails_with(message, log_of(done), root / "store", before)


@pytest.mark.parametrize("what", FAILING)
def test_a_stage_that_cannot_run_says_why_in_one_line(
    what: str, settings: list[str], cluster: LocalCluster, jobs: dict[str, Done], root: Path
) -> None:
    before = sorted((root / "store").rglob("*"))
    stage, override, code, said = FAILING[what]
    done = subprocess.run(
        [sys.executable, f"jobs/{stage}.py", *settings, override],
        cwd=CHECKOUT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code
    fails_with(said, (done.stdout + done.stderr).splitlines(), root / "store", before)


def test_a_job_gets_the_code_and_no_environment_data_or_history(jobs: dict[str, Done], cluster: LocalCluster) -> None:
    packages = list(cluster.folder.glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/"))
    assert packages, "no package was unpacked"
    for package in packages:
        names = {path.name for path in package.iterdir()}
        assert {"jobs", "detect_ai", "configs", "serve_app"} <= names
        assert not names & {".git", ".venv", ".demo", ".mypy_cache", ".pytest_cache", ".hypothesis", "wandb"}
        assert not list(package.rglob("__pycache__/*.pyc.*"))
        assert sum(path.stat().st_size for path in package.rglob("*") if path.suffix != ".pyc") < 3_000_000


def test_the_cluster_listens_on_loopback_only(jobs: dict[str, Done], cluster: LocalCluster) -> None:
    assert listening(cluster.pid) == {"127.0.0.1"}


def test_the_dashboard_refuses_who_has_no_token(submit: Submit, cluster: LocalCluster, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "list", "--address", cluster.address]
    (tmp_path / "token").write_text("0" * 64)
    stranger = cluster.environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    done = subprocess.run(command, env=stranger, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "401" in done.stdout + done.stderr or "nauth" in done.stdout + done.stderr


# The last one: it stops the cluster of this file.
def test_a_stopped_cluster_leaves_no_process_and_no_file(jobs: dict[str, Done], cluster: LocalCluster) -> None:
    processes = psutil.Process(cluster.pid).children(recursive=True)
    assert processes
    cluster.stop()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    assert not cluster.folder.exists()
