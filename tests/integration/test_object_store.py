"""The whole pipeline on an object store: an emulator of Google Cloud Storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detect_ai.core.config import Config
from detect_ai.core.job import run_stage
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from detect_ai.training.train import run_training, train
from tests.fixtures import gcs
from tests.integration.runs import (
    LOOP,
    a_worker_killed,
    attempts,
    kill_driver,
    last_start,
    object_store_config,
    own_copy,
    registered,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, encoder: Path, gcs_bucket: str) -> Iterator[Config]:
    """The source is read from the bucket, too."""
    folder = tmp_path_factory.mktemp("gcs")
    config = object_store_config(encoder, folder, gcs.under(gcs_bucket, "loop"))
    yield config
    assert [path.name for path in folder.iterdir()] == ["texts.jsonl"], "files outside of the storage root"


@pytest.fixture(scope="module")
def loop(settings: Config) -> tuple[Storage, dict[str, Any]]:
    """The storage and the results of every stage."""
    storage = Storage(settings.storage.root)
    storage.write_bytes("runs/default/train-20200101T000000000/old", b"old")
    return storage, {name: run_stage(name, stage, settings, storage) for name, stage in LOOP.items()}


def test_corpus_passes_its_checksums(loop: tuple[Storage, dict[str, Any]]) -> None:
    corpus = Corpus.open(loop[0], loop[1]["prepare"]["corpus"])
    corpus.verify()
    assert sum(loop[1]["prepare"]["rows"].values()) == 160


def test_champion_can_be_loaded(loop: tuple[Storage, dict[str, Any]]) -> None:
    registry = Registry(loop[0])
    assert registry.champion() == loop[1]["publish"]["champion"]
    with registry.folder(registry.require_champion()) as folder:
        assert Detector.load(folder).detect(["The council met by the old bridge. " * 5])[0].num_windows == 1


def test_older_runs_are_pruned(loop: tuple[Storage, dict[str, Any]]) -> None:
    assert attempts(loop[0], "default", "train") == [loop[1]["train"]["checkpoint"].split("/")[2]]


def test_calibration_reads_the_training_checkpoint(loop: tuple[Storage, dict[str, Any]]) -> None:
    assert loop[1]["calibrate"]["checkpoint"] == loop[1]["train"]["checkpoint"]
    assert loop[0].exists(f"{loop[1]['train']['checkpoint']}/model.safetensors")


def test_run_resumes_after_a_killed_worker(loop: tuple[Storage, dict[str, Any]], settings: Config) -> None:
    storage, results = loop
    with a_worker_killed(storage, "runs/default/killed", after=3):
        training = run_training(settings, Corpus.open(storage, results["prepare"]["corpus"]), "killed")
    assert last_start(storage, "runs/default/killed")["step"] > 0, "no worker was killed"
    same_losses(training.history, results["train"]["history"])


def same_losses(history: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for epoch, undisturbed in zip(history, expected, strict=True):
        for metric in ("train_loss", "val_loss"):
            assert epoch[metric] == pytest.approx(undisturbed[metric], abs=1e-6)


def test_killed_job_resumes_when_submitted_again(
    loop: tuple[Storage, dict[str, Any]], settings: Config, tmp_path: Path
) -> None:
    storage, results = loop
    config = own_copy(settings, storage, "interrupted")

    def has_checkpoints() -> bool:
        names = attempts(storage, "interrupted", "train")
        return any(registered(storage, f"runs/interrupted/{name}") >= 3 for name in names)

    kill_driver("detect_ai.training.train:train", config, tmp_path, has_checkpoints)
    (name,) = attempts(storage, "interrupted", "train")
    result = run_stage("train", train, config, storage)
    assert attempts(storage, "interrupted", "train") == [name]
    assert last_start(storage, f"runs/interrupted/{name}")["step"] > 0
    same_losses(result["history"], results["train"]["history"])
