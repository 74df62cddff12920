"""A finished run and two corpora, shared by all integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from detect_ai.core.config import Config
from detect_ai.core.job import read_result, run_stage
from detect_ai.core.storage import Storage
from detect_ai.corpus import shards
from detect_ai.corpus.manifest import Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from detect_ai.release.calibrate import calibrate_checkpoint
from detect_ai.training.train import train
from tests.fixtures import tiny_models
from tests.integration.runs import Steps, changed, own_copy, small_config, training_ranks


@pytest.fixture(scope="package", autouse=True)
def _cluster(ray_cluster: Path) -> None:
    """Every integration test runs on the session's cluster."""


@dataclass(frozen=True)
class Run:
    """A finished run: its configuration, storage, corpus and the results of its stages."""

    config: Config
    storage: Storage
    corpus: Corpus
    prepared: dict[str, Any]
    trained: dict[str, Any]


@pytest.fixture(scope="package")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 pairs and a single human text, so that the training split has an odd number of rows."""
    rows = [*tiny_models.rows(80), *tiny_models.rows(1, seed=1)[:1]]
    rows[-1]["group"] = "odd-4"
    return tiny_models.write_jsonl(tmp_path_factory.mktemp("source") / "texts.jsonl", rows)


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory, encoder: Path, source: Path) -> Run:
    """Prepared and trained with two workers."""
    config = small_config(encoder, tmp_path_factory.mktemp("store"), source)
    storage = Storage(config.storage.root)
    prepared = run_stage("prepare", prepare, config, storage)
    trained = run_stage("train", train, config, storage)
    return Run(config, storage, Corpus.open(storage, prepared["corpus"]), prepared, trained)


@pytest.fixture(scope="package")
def few(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> tuple[Config, Corpus]:
    """Two documents in each split: fewer documents than ranks."""
    folder = tmp_path_factory.mktemp("few")
    texts = tiny_models.write_jsonl(folder / "texts.jsonl", tiny_models.rows(4))
    config = small_config(encoder, folder / "store", texts)
    config.corpus.split = dict.fromkeys(config.corpus.split, 0.25)
    storage = Storage(config.storage.root)
    return config, Corpus.open(storage, prepare(config, storage)["corpus"])


@pytest.fixture(scope="package")
def many(tmp_path_factory: pytest.TempPathFactory, encoder: Path, source: Path) -> tuple[Config, Corpus]:
    """An odd number of documents in several shards."""
    config = small_config(encoder, tmp_path_factory.mktemp("many"), source)
    storage = Storage(config.storage.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_ROWS", 40)
        corpus = Corpus.open(storage, prepare(config, storage)["corpus"])
    assert corpus.num_rows("train") % 2 == 1
    assert len(corpus.shards("train")) == 2
    return config, corpus


@pytest.fixture(scope="package")
def streamed(many: tuple[Config, Corpus], few: tuple[Config, Corpus]) -> dict[tuple[str, int], list[Steps]]:
    """The steps of each rank, by corpus and number of ranks."""
    steps = {("many", workers): training_ranks(many[1], many[0], workers) for workers in (1, 2, 3)}
    return steps | {("few", 3): training_ranks(few[1], few[0], 3)}


@pytest.fixture(scope="package")
def candidate(run: Run) -> Config:
    """A separate run name with a calibrated candidate."""
    config = own_copy(run.config, run.storage, "candidate", ("prepare", "train"))
    config = changed(config, evaluation={"baseline": False, "include_texts": False})
    run_stage("calibrate", calibrate_checkpoint, config, run.storage)
    return config


@pytest.fixture(scope="module")
def version(run: Run, candidate: Config) -> Iterator[str]:
    """The candidate as a version of the registry, for the tests of one module."""
    with run.storage.local_folder(read_result(run.storage, candidate.run, "calibrate")["bundle"]) as folder:
        added = Registry(run.storage).add(folder)
    yield added
    run.storage.delete(f"registry/versions/{added}")


@pytest.fixture(scope="module")
def detector(run: Run, version: str) -> Detector:
    with Registry(run.storage).folder(version) as folder:
        return Detector.load(folder)
