"""One Ray cluster and one finished run, shared by all integration tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from detect_ai import cluster
from detect_ai.config import Config
from detect_ai.corpus.manifest import Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.stage import run_stage
from detect_ai.storage import Storage
from detect_ai.training import train
from tests import tiny
from tests.integration.runs import small_config


@pytest.fixture(scope="package", autouse=True)
def ray_cluster() -> Iterator[None]:
    """A local cluster as a job without RAY_ADDRESS starts it.

    Its temporary directory says, as `ray start` would have left it there, that the machine's latest cluster is another
    one, at an address where nothing answers: no part of a run may ask there.
    """
    import ray

    folder = Path(tempfile.mkdtemp(prefix="dai-", dir="/tmp"))  # socket paths must stay short
    (folder / "ray").mkdir()
    (folder / "ray/ray_current_cluster").write_text("127.0.0.1:1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster.connect()
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    assert "RAY_ADDRESS" not in os.environ


@dataclass(frozen=True)
class Run:
    """A finished run: its configuration, where it lies, its corpus and the results of its stages."""

    config: Config
    storage: Storage
    corpus: Corpus
    prepared: dict[str, Any]
    trained: dict[str, Any]


@pytest.fixture(scope="package")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 pairs and one human text alone, so that the training split has an odd number of rows."""
    rows = [*tiny.rows(80), *tiny.rows(1, seed=1)[:1]]
    rows[-1]["group"] = "odd-4"
    return tiny.write_jsonl(tmp_path_factory.mktemp("source") / "texts.jsonl", rows)


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory, encoder: Path, source: Path) -> Run:
    """Prepared and trained with two workers."""
    config = small_config(encoder, tmp_path_factory.mktemp("store"), source)
    storage = Storage(config.storage.root)
    prepared = run_stage("prepare", prepare, config, storage)
    trained = run_stage("train", train, config, storage)
    return Run(config, storage, Corpus.open(storage, prepared["corpus"]), prepared, trained)
