"""Training on a real cluster that loses workers, drivers and nodes: disturbed runs end like undisturbed ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ray.train.v2.api.exceptions import TrainingFailedError
from safetensors.numpy import load_file

from detect_ai.core import ray_runtime
from detect_ai.core.config import Config
from detect_ai.core.errors import ResourceError, TrainingError
from detect_ai.core.job import run_stage
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.training.telemetry import read_metrics
from detect_ai.training.train import TrainingResult, run_training, train
from detect_ai.training.trainer import lr_factor
from tests.fixtures import tiny_models
from tests.fixtures.wandb_reader import finished, history
from tests.integration.conftest import Run
from tests.integration.runs import (
    PATIENCE,
    a_worker_killed,
    attempts,
    changed,
    hard_rows,
    kill_driver,
    last_start,
    own_copy,
    registered,
    small_config,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Run:
    """An undisturbed run with dropout and a checkpoint at every second step."""
    folder = tmp_path_factory.mktemp("long")
    source = tiny_models.write_jsonl(folder / "texts.jsonl", hard_rows(60))
    config = small_config(encoder, folder / "store", source)
    config.model.dropout = 0.1
    config.train.epochs, config.train.checkpoint_every, config.train.shortest_span = 3, 2, 8
    storage = Storage(config.storage.root)
    prepared = run_stage("prepare", prepare, config, storage)
    return Run(
        config, storage, Corpus.open(storage, prepared["corpus"]), prepared, run_stage("train", train, config, storage)
    )


def parameters(storage: Storage, checkpoint: str) -> dict[str, NDArray[np.float32]]:
    with storage.local_folder(checkpoint) as folder:
        return load_file(folder / "model.safetensors")


def assert_same_end(run: Run, result: dict[str, Any] | TrainingResult) -> None:
    """Metrics and parameters equal those of the undisturbed run."""
    history = result.history if isinstance(result, TrainingResult) else result["history"]
    checkpoint = result.checkpoint if isinstance(result, TrainingResult) else result["checkpoint"]
    names = ("epoch", "step", "train_loss", "val_loss", "auroc")
    curves = [[[epoch[name] for name in names] for epoch in curve] for curve in (history, run.trained["history"])]
    np.testing.assert_allclose(*curves, atol=1e-6)
    expected = parameters(run.storage, run.trained["checkpoint"])
    for name, value in parameters(run.storage, checkpoint).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)


def assert_near(result: dict[str, Any], expected: dict[str, Any]) -> None:
    """Losses are close: the runs have other numbers of workers, and dropout differs between ranks."""
    for name in ("train_loss", "val_loss"):
        losses = [[epoch[name] for epoch in run["history"]] for run in (result, expected)]
        np.testing.assert_allclose(*losses, atol=0.01)


def test_killed_worker_changes_neither_curve_nor_parameters(long: Run) -> None:
    steps = long.trained["history"][0]["step"]
    assert steps % 2 == 1 or steps > 4, "no checkpoint is within an epoch"
    folder = f"runs/{long.config.run}/killed-worker"
    with a_worker_killed(long.storage, folder, after=5):
        result = run_training(long.config, long.corpus, "killed-worker")
    assert last_start(long.storage, folder)["step"] >= 8, "no worker was killed: this shows nothing"
    assert_same_end(long, result)


def test_run_ends_when_workers_fail_too_often(long: Run) -> None:
    config = changed(long.config, train={"max_failures": 0})
    with (
        a_worker_killed(long.storage, f"runs/{config.run}/given-up", after=2),
        pytest.raises(TrainingFailedError, match=r"(?i)worker"),
    ):
        run_training(config, long.corpus, "given-up")


@pytest.fixture(scope="module")
def interrupted(long: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, str]:
    """A training whose driver was killed while a checkpoint was being written."""
    config = own_copy(long.config, long.storage, "interrupted")

    def has_checkpoints() -> bool:
        names = attempts(long.storage, "interrupted", "train")
        return any(registered(long.storage, f"runs/interrupted/{name}") >= 5 for name in names)

    kill_driver("detect_ai.training.train:train", config, tmp_path_factory.mktemp("driver"), has_checkpoints)
    (name,) = attempts(long.storage, "interrupted", "train")
    half = Path(long.storage.path(f"runs/interrupted/{name}")) / "checkpoint_2999-01-01_00-00-00.000000"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half of it")
    shutil.copytree(long.storage.path("runs/interrupted"), long.storage.path("runs/interrupted-too"))
    return config, name


@pytest.fixture(scope="module")
def resumed(long: Run, interrupted: tuple[Config, str]) -> dict[str, Any]:
    """The stage, run again under the same run name."""
    return run_stage("train", train, interrupted[0], long.storage)


def test_killed_job_resumes_when_submitted_again(
    long: Run, interrupted: tuple[Config, str], resumed: dict[str, Any]
) -> None:
    assert attempts(long.storage, "interrupted", "train") == [interrupted[1]]
    folder = f"runs/interrupted/{interrupted[1]}"
    assert last_start(long.storage, folder)["step"] >= 8
    assert_same_end(long, resumed)
    lines = read_metrics(long.storage, folder)
    assert [line["epoch"] for line in lines if line["kind"] == "evaluation"] == [1, 2, 3]
    assert [line["step"] for line in lines if line["kind"] == "training"] == [10], "a line from before the kill is lost"


def test_run_resumes_with_another_number_of_workers(long: Run, interrupted: tuple[Config, str]) -> None:
    config, name = interrupted
    alone = changed(config.model_copy(update={"run": "interrupted-too"}), train={"num_workers": 1})
    result = run_stage("train", train, alone, long.storage)
    assert attempts(long.storage, "interrupted-too", "train") == [name]
    assert last_start(long.storage, f"runs/interrupted-too/{name}")["step"] >= 8
    assert_near(result, long.trained)


def on_a_spot_node(
    run: Run, folder: Path, name: str, num_workers: Any, then: str, **changes: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result of training on two nodes, one of which is removed, and the start of its last workers."""
    config = changed(run.config, train={"num_workers": num_workers, "cpus_per_worker": 2, **changes})
    (folder / "config.json").write_text(json.dumps(config.model_dump()))
    inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", *ray_runtime.ONE_MACHINE)}
    program = [sys.executable, "-m", "tests.integration.spot_cluster"]
    with tempfile.TemporaryDirectory(prefix="dai-", dir="/tmp", ignore_cleanup_errors=True) as short:  # for sockets
        done = subprocess.run(
            [*program, folder / "config.json", run.corpus.key, name, then],
            cwd=Path(__file__).parents[2],
            env=inherited | {"RAY_TMPDIR": short},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    start = last_start(run.storage, f"runs/{config.run}/{name}")
    assert start["step"] >= 8, "the node was not missed"
    return json.loads(done.stdout.strip().splitlines()[-1]), start


@pytest.mark.timeout(400)
def test_preempted_node_that_is_replaced_changes_nothing(long: Run, tmp_path: Path) -> None:
    result, start = on_a_spot_node(long, tmp_path, "replaced", 2, "replaced")
    assert start["workers"] == 2
    assert_same_end(long, TrainingResult(result["checkpoint"], {}, result["history"]))


@pytest.mark.timeout(400)
def test_run_continues_with_the_workers_that_are_left(long: Run, tmp_path: Path) -> None:
    result, start = on_a_spot_node(long, tmp_path, "fewer", [1, 2], "gone")
    assert start["workers"] == 1
    assert_near(result, long.trained)


@pytest.mark.timeout(400)
def test_run_grows_onto_a_new_node_with_the_same_schedule(long: Run, tmp_path: Path) -> None:
    """From two workers to one and back to two. Long enough for Ray Train to see the new node during the run."""
    result, start = on_a_spot_node(long, tmp_path, "more", [1, 2], "later", epochs=12)
    assert start["workers"] == 2, "the new node was not taken"
    steps, history = long.trained["history"][0]["step"], result["history"]
    assert start["step"] < 12 * steps
    assert [(line["epoch"], line["step"]) for line in history] == [(n, n * steps) for n in range(1, 13)]
    lr, warmup = long.config.train.lr, long.config.train.warmup
    expected = [lr * lr_factor(line["step"], 12 * steps, warmup) for line in history]
    np.testing.assert_allclose([line["lr"] for line in history], expected)
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_second_job_on_a_run_is_refused(long: Run) -> None:
    config = own_copy(long.config, long.storage, "twice")
    with (
        ray_runtime.claimed(f"{long.storage.root}/twice/train", "the test"),
        pytest.raises(ResourceError, match="run=twice: another train job"),
    ):
        train(config, long.storage)
    assert attempts(long.storage, "twice", "train") == []
    for _ in range(2):  # the claim ends with its holder
        with ray_runtime.claimed(f"{long.storage.root}/twice/train", "the test"):
            pass


def test_non_finite_loss_is_not_retried(long: Run) -> None:
    config = changed(long.config, train={"lr": 1e30, "max_failures": 3})
    with pytest.raises(TrainingError, match=r"at step \d+ \(learning rate"):
        run_training(config, long.corpus, "not-finite")
    lines = read_metrics(long.storage, f"runs/{config.run}/not-finite")
    assert [line["kind"] for line in lines if line["kind"] != "training"] == ["start"]


def test_best_epoch_is_kept(long: Run) -> None:
    """The learning rate makes the epochs differ; the store has earlier runs."""
    config = changed(own_copy(long.config, long.storage, "best"), train={"epochs": 6, "lr": 2e-2})
    config.storage.keep = 2
    for day in (1, 2, 3):
        long.storage.write_bytes(f"runs/best/train-2020010{day}T000000000/checkpoint", b"old")
    result = run_stage("train", train, config, long.storage)
    aurocs = [epoch["auroc"] for epoch in result["history"]]
    assert len(aurocs) == 6
    assert long.storage.read_json(f"{result['checkpoint']}/state.json")["history"][-1] == result["validation"]
    assert result["validation"]["auroc"] == max(aurocs)
    folder = result["checkpoint"].rpartition("/")[0]
    kept = [name for name in long.storage.list(folder) if name.startswith("checkpoint_2")]
    assert len(kept) <= 2 + 1  # the best two and the last
    assert attempts(long.storage, "best", "train") == ["train-20200103T000000000", folder.rpartition("/")[2]]


def test_max_steps_profile_and_wandb(long: Run) -> None:
    """Two steps longer than an epoch, under the profiler, reported to W&B."""
    epoch = long.trained["history"][0]["step"]
    steps = epoch + 2
    changes = {"profile": True, "max_steps": steps, "checkpoint_every": 0, "log_every": 1}
    config = changed(long.config, train=changes).model_copy(deep=True)
    config.tracking.mode = "offline"
    result = run_training(config, long.corpus, "bounded")
    assert [(line["epoch"], line["step"]) for line in result.history] == [(1, epoch), (2, steps)]
    assert result.history[-1]["lr"] == 0, "the schedule is not that of the bounded steps"
    logged = history(finished(Path(long.storage.root)))
    assert logged["validation/auroc"] == result.history[-1]["auroc"]
    assert logged["train/lr"] == 0
    assert {f"train/{name}" for name in ("train_loss", "grad_norm", "tokens_per_second", "padding")} <= logged.keys()
    folder = f"runs/{long.config.run}/bounded/profile"
    assert long.storage.list(folder) == ["operations.txt", "trace.json.gz"]
    assert b"aten::" in long.storage.read_bytes(f"{folder}/operations.txt")
