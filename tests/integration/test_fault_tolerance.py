"""Nothing is lost when machines die: a run that was disturbed ends as one that was not, so one seed gives one model."""

from __future__ import annotations

import json
import os
import shutil
import signal
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
    driver,
    hard_rows,
    last_start,
    own_copy,
    registered,
    small_config,
    train_workers,
    until,
)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Run:
    """A run with dropout that writes a checkpoint at every second step, trained without disturbance."""
    folder = tmp_path_factory.mktemp("long")
    source = tiny_models.write_jsonl(folder / "texts.jsonl", hard_rows(60))
    config = small_config(encoder, folder / "store", source)
    config.model.dropout = 0.1
    config.train = config.train.model_copy(update={"epochs": 3, "checkpoint_every": 2, "shortest_span": 8})
    storage = Storage(config.storage.root)
    prepared = run_stage("prepare", prepare, config, storage)
    return Run(
        config, storage, Corpus.open(storage, prepared["corpus"]), prepared, run_stage("train", train, config, storage)
    )


def parameters(storage: Storage, checkpoint: str) -> dict[str, NDArray[np.float32]]:
    with storage.local_folder(checkpoint) as folder:
        return load_file(folder / "model.safetensors")


def last_losses(history: list[dict[str, Any]]) -> list[float]:
    return [history[-1]["train_loss"], history[-1]["val_loss"]]


def same_end(run: Run, found: dict[str, Any] | TrainingResult, atol: float = 1e-6) -> None:
    """The figures and the parameters of the undisturbed run."""
    history = found.history if isinstance(found, TrainingResult) else found["history"]
    checkpoint = found.checkpoint if isinstance(found, TrainingResult) else found["checkpoint"]
    print(f"last losses undisturbed {last_losses(run.trained['history'])}, disturbed {last_losses(history)}")
    curves = [[epoch[name] for name in ("epoch", "step", "train_loss", "val_loss", "auroc")] for epoch in history]
    expected = [
        [epoch[name] for name in ("epoch", "step", "train_loss", "val_loss", "auroc")]
        for epoch in run.trained["history"]
    ]
    np.testing.assert_allclose(curves, expected, atol=atol)
    first = parameters(run.storage, run.trained["checkpoint"])
    for name, value in parameters(run.storage, checkpoint).items():
        np.testing.assert_allclose(value, first[name], atol=atol, err_msg=name)


def near(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Losses of runs of other numbers of workers, with dropout."""
    for figure in ("train_loss", "val_loss"):
        losses = [[epoch[figure] for epoch in each["history"]] for each in (found, expected)]
        np.testing.assert_allclose(losses[0], losses[1], atol=0.01)


def test_a_run_whose_worker_is_killed_ends_as_one_that_was_left_alone(long: Run) -> None:
    folder = f"runs/{long.config.run}/killed-worker"
    with a_worker_killed(long.storage, folder, after=5):
        found = run_training(long.config, long.corpus, "killed-worker")
    assert last_start(long.storage, folder)["step"] >= 8, "no worker was killed: this shows nothing"
    same_end(long, found)


def test_a_run_goes_on_where_the_checkpoint_is_not_where_the_epoch_began(long: Run) -> None:
    steps = long.trained["history"][0]["step"]
    assert steps % 2 == 1 or steps > 4, "no checkpoint lies within an epoch"


@pytest.mark.slow
def test_a_worker_that_is_lost_too_often_ends_the_run(long: Run) -> None:
    config = long.config.model_copy(update={"train": long.config.train.model_copy(update={"max_failures": 0})})
    with (
        a_worker_killed(long.storage, f"runs/{config.run}/given-up", after=2),
        pytest.raises(TrainingFailedError, match=r"(?i)worker"),
    ):
        run_training(config, long.corpus, "given-up")


def attempts(run: Run, name: str) -> list[str]:
    return [each for each in run.storage.list(f"runs/{name}") if each.startswith("train-")]


@pytest.fixture(scope="module")
def cut_off(long: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, str]:
    """A training whose driver was killed, beside a checkpoint and a list of them that were being written then."""
    config = own_copy(long.config, long.storage, "cut-off")
    process = driver("detect_ai.training.train:train", config, tmp_path_factory.mktemp("driver"))
    name = until(lambda: attempts(long, "cut-off"))[0]
    folder = Path(long.storage.path(f"runs/cut-off/{name}"))
    until(lambda: registered(long.storage, f"runs/cut-off/{name}") >= 5 or process.poll() is not None)
    assert process.poll() is None, "the driver ended by itself"
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not train_workers())  # nobody writes any more
    half = folder / "checkpoint_2999-01-01_00-00-00.000000"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half of it")
    listed = folder / "checkpoint_manager_snapshot.json"
    listed.write_text(listed.read_text()[:200])
    shutil.copytree(long.storage.path("runs/cut-off"), long.storage.path("runs/cut-off-too"))
    return config, name


@pytest.fixture(scope="module")
def gone_on(long: Run, cut_off: tuple[Config, str]) -> dict[str, Any]:
    """The stage again, under the same run name."""
    until(lambda: not train_workers())
    return run_stage("train", train, cut_off[0], long.storage)


@pytest.mark.slow
def test_a_killed_job_that_is_submitted_again_goes_on(
    long: Run, cut_off: tuple[Config, str], gone_on: dict[str, Any]
) -> None:
    assert attempts(long, "cut-off") == [cut_off[1]]
    start = last_start(long.storage, f"runs/cut-off/{cut_off[1]}")
    assert start["step"] >= 8


@pytest.mark.slow
def test_it_ends_as_one_that_was_left_alone(long: Run, gone_on: dict[str, Any]) -> None:
    same_end(long, gone_on)


@pytest.mark.slow
def test_it_goes_on_with_another_number_of_workers(long: Run, cut_off: tuple[Config, str]) -> None:
    """Dropout draws by rank: the losses are near, not the same."""
    config, name = cut_off
    alone = config.model_copy(
        update={"run": "cut-off-too", "train": config.train.model_copy(update={"num_workers": 1})}
    )
    found = run_stage("train", train, alone, long.storage)
    assert attempts(long, "cut-off-too") == [name]
    assert last_start(long.storage, f"runs/cut-off-too/{name}")["step"] >= 8
    near(found, long.trained)


@pytest.mark.slow
def test_its_log_holds_every_step_once(long: Run, cut_off: tuple[Config, str], gone_on: dict[str, Any]) -> None:
    lines = read_metrics(long.storage, f"runs/cut-off/{cut_off[1]}")
    assert [line["epoch"] for line in lines if line["kind"] == "evaluation"] == [1, 2, 3]
    steps = [line["step"] for line in lines if line["kind"] == "training"]
    assert steps == [10], "the line from before the kill was lost"


def on_a_spot_node(
    run: Run, folder: Path, name: str, num_workers: Any, then: str, **changes: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a training on two nodes came to, one of which was taken away, and where its last workers began."""
    config = run.config.model_copy(
        update={
            "train": run.config.train.model_copy(update={"num_workers": num_workers, "cpus_per_worker": 2, **changes})
        }
    )
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    inherited = {
        key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", *ray_runtime.ONE_MACHINE)
    }
    with tempfile.TemporaryDirectory(prefix="dai-", dir="/tmp", ignore_cleanup_errors=True) as short:  # for sockets
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.integration.spot_cluster",
                folder / "config.json",
                run.corpus.key,
                name,
                then,
            ],
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


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_on_a_preempted_node_goes_on_when_another_comes(long: Run, tmp_path: Path) -> None:
    found, start = on_a_spot_node(long, tmp_path, "replaced", 2, "replaced")
    assert start["workers"] == 2
    same_end(long, found)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_on_a_preempted_node_goes_on_with_the_workers_that_are_left(long: Run, tmp_path: Path) -> None:
    """Dropout draws by rank: the losses are near, not the same."""
    found, start = on_a_spot_node(long, tmp_path, "fewer", [1, 2], "gone")
    assert start["workers"] == 1
    near(found, long.trained)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_takes_a_node_that_comes_later_and_its_steps_and_schedule_stay(long: Run, tmp_path: Path) -> None:
    """From two workers to one and back to two. Long enough for Ray Train to see the node while the run is at work."""
    found, start = on_a_spot_node(long, tmp_path, "more", [1, 2], "later", epochs=12, resize_every_s=2)
    assert start["workers"] == 2, "the node that came was not taken"
    steps, history = long.trained["history"][0]["step"], found["history"]
    assert start["step"] < 12 * steps
    assert [(line["epoch"], line["step"]) for line in history] == [(n, n * steps) for n in range(1, 13)]
    total, train = 12 * steps, long.config.train
    expected = [train.lr * lr_factor(line["step"], total, train.warmup) for line in history]
    np.testing.assert_allclose([line["lr"] for line in history], expected)
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_two_jobs_do_not_train_one_run_at_once(long: Run) -> None:
    config = own_copy(long.config, long.storage, "twice")
    with (
        ray_runtime.claimed(f"{long.storage.root}/twice/train", "the test"),
        pytest.raises(
            ResourceError, match=r"^run=twice: another train job is at work on it: wait for its end, or stop it"
        ),
    ):
        train(config, long.storage)
    assert attempts(long, "twice") == []


def test_a_name_is_free_again_when_its_holder_ends() -> None:
    for _ in range(2):
        with ray_runtime.claimed("a name", "nobody else holds it"):
            pass


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_not_tried_again(long: Run) -> None:
    config = long.config.model_copy(
        update={"train": long.config.train.model_copy(update={"lr": 1e30, "max_failures": 3})}
    )
    with pytest.raises(TrainingError, match=r"at step \d+ \(learning rate .*documents [\d, ]+ of the split train\): "):
        run_training(config, long.corpus, "not-finite")
    lines = read_metrics(long.storage, f"runs/{config.run}/not-finite")
    assert [line["kind"] for line in lines if line["kind"] != "training"][-1] == "error"


@pytest.fixture(scope="module")
def stopped(long: Run) -> tuple[Config, dict[str, Any]]:
    """A run that stops early, at a learning rate at which its epochs differ; earlier runs lie there already."""
    config = own_copy(long.config, long.storage, "stopped")
    changed = {"epochs": 12, "lr": 2e-2, "patience": 1, "stop_on": "val_loss", "keep_checkpoints": 1}
    config.train = config.train.model_copy(update=changed)
    config.storage = config.storage.model_copy(update={"keep": 2})
    for day in (1, 2, 3):
        long.storage.write_bytes(f"runs/stopped/train-2020010{day}T000000000/checkpoint", b"old")
    return config, run_stage("train", train, config, long.storage)


@pytest.mark.slow
def test_a_run_stops_when_it_no_longer_becomes_better(stopped: tuple[Config, dict[str, Any]]) -> None:
    losses = [epoch["val_loss"] for epoch in stopped[1]["history"]]
    assert 1 < len(losses) < 12
    assert losses[-1] >= min(losses[:-1])
    assert losses[:-1] == sorted(losses[:-1], reverse=True)


@pytest.mark.slow
def test_the_checkpoint_is_that_of_the_epoch_with_the_best_auroc(
    long: Run, stopped: tuple[Config, dict[str, Any]]
) -> None:
    found = stopped[1]
    best = max(found["history"], key=lambda epoch: epoch["auroc"])
    assert best["epoch"] < len(found["history"]), "the last epoch is the best: this shows nothing"
    assert long.storage.read_json(f"{found['checkpoint']}/figures.json") == found["validation"]
    assert found["validation"]["epoch"] == best["epoch"]


@pytest.mark.slow
def test_beside_the_kept_checkpoints_only_the_last_one_stays(long: Run, stopped: tuple[Config, dict[str, Any]]) -> None:
    folder = stopped[1]["checkpoint"].rpartition("/")[0]
    kept = [name for name in long.storage.list(folder) if name.startswith("checkpoint_2")]
    assert len(kept) == 1 + 1


@pytest.mark.slow
def test_training_prunes_the_oldest_runs(long: Run, stopped: tuple[Config, dict[str, Any]]) -> None:
    assert attempts(long, "stopped") == ["train-20200103T000000000", stopped[1]["checkpoint"].split("/")[2]]


@pytest.fixture(scope="module")
def bounded(long: Run) -> TrainingResult:
    """Two steps longer than an epoch, under the profiler, told to W&B, with frozen embeddings and little memory."""
    steps = long.trained["history"][0]["step"] + 2
    train = long.config.train.model_copy(
        update={"profile": True, "max_steps": steps, "checkpoint_every": 0, "log_every": 1}
    )
    train = train.model_copy(update={"frozen": "embeddings", "gradient_checkpointing": True})
    return run_training(
        long.config.model_copy(
            update={"train": train, "tracking": long.config.tracking.model_copy(update={"mode": "offline"})}
        ),
        long.corpus,
        "bounded",
    )


@pytest.mark.slow
def test_steps_that_are_bounded_end_with_an_evaluation(long: Run, bounded: TrainingResult) -> None:
    epoch = long.trained["history"][0]["step"]
    assert [(line["epoch"], line["step"]) for line in bounded.history] == [(1, epoch), (2, epoch + 2)]
    assert bounded.history[-1]["lr"] == 0, "the schedule is not that of the bounded steps"


@pytest.mark.slow
def test_what_is_frozen_keeps_its_pretrained_weights_and_the_rest_learns(long: Run, bounded: TrainingResult) -> None:
    pretrained = load_file(Path(long.config.model.path) / "model.safetensors")
    learnt = parameters(long.storage, bounded.checkpoint)

    def moved(name: str) -> bool:
        (before,) = (value for key, value in pretrained.items() if key.endswith(name))
        (after,) = (value for key, value in learnt.items() if key.endswith(name))
        return not np.array_equal(before, after)

    assert not moved("embeddings.word_embeddings.weight")
    assert moved("layer.0.intermediate.dense.weight")


@pytest.mark.slow
def test_a_training_tells_wandb_its_steps_and_evaluations(long: Run, bounded: TrainingResult) -> None:
    told = history(finished(Path(long.storage.root)))
    assert told["validation/auroc"] == bounded.history[-1]["auroc"]
    assert told["train/lr"] == 0
    assert {f"train/{name}" for name in ("train_loss", "grad_norm", "tokens_per_second", "padding")} <= told.keys()


@pytest.mark.slow
def test_a_profile_tells_what_takes_the_time(long: Run, bounded: TrainingResult) -> None:
    folder = f"runs/{long.config.run}/bounded/profile"
    assert {"trace.json.gz", "operations.txt", "data.json", "data.txt"} <= set(long.storage.list(folder))
    assert b"MapBatches(expand)" in long.storage.read_bytes(f"{folder}/data.txt")
    assert b"aten::" in long.storage.read_bytes(f"{folder}/operations.txt")
    found = long.storage.read_json(f"{folder}/data.json")
    assert 0 < found["waiting_for_data"] < 1
    assert found["steps"] == bounded.history[-1]["step"]
