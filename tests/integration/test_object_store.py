"""The whole loop on an object store: Google Cloud Storage's API, by an emulator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detect_ai.calibrating import calibrate_checkpoint
from detect_ai.corpus.manifest import Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.detector import Detector
from detect_ai.evaluation import evaluate
from detect_ai.publishing import publish
from detect_ai.registry import Registry
from detect_ai.stage import run_stage
from detect_ai.storage import Storage
from detect_ai.training import train
from tests import emulator, tiny
from tests.integration.runs import small_config

STAGES = {
    "prepare": prepare,
    "train": train,
    "calibrate": calibrate_checkpoint,
    "evaluate": evaluate,
    "publish": publish,
}


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory, encoder: Path, gcs_bucket: str) -> tuple[Storage, dict[str, Any]]:
    """The results of every stage, and where they lie. The source is read from the bucket, too."""
    root, folder = emulator.under(gcs_bucket, "loop"), tmp_path_factory.mktemp("gcs")
    storage = Storage(root)
    storage.write_bytes("in/texts.jsonl", tiny.write_jsonl(folder / "texts.jsonl", tiny.rows(80)).read_bytes())
    config = small_config(encoder, folder, folder / "texts.jsonl")
    config.storage.root = root
    config.corpus.sources[0].path = emulator.under(gcs_bucket, "loop/in/texts.jsonl")
    config.train = replace(config.train, epochs=2, keep_checkpoints=1)
    config.storage.keep = 1
    storage.write_bytes("runs/default/train-20200101T000000000/old", b"old")
    results = {name: run_stage(name, stage, config, storage) for name, stage in STAGES.items()}
    assert sorted(path.name for path in folder.iterdir()) == ["texts.jsonl"], "something was written beside the root"
    return storage, results


def test_the_corpus_in_the_bucket_passes_its_checksums(loop: tuple[Storage, dict[str, Any]]) -> None:
    corpus = Corpus.open(loop[0], loop[1]["prepare"]["corpus"])
    corpus.verify()
    assert sum(loop[1]["prepare"]["rows"].values()) == 160


def test_the_champion_in_the_bucket_can_be_loaded(loop: tuple[Storage, dict[str, Any]]) -> None:
    registry = Registry(loop[0])
    assert registry.champion() == loop[1]["publish"]["champion"]
    with registry.folder(registry.require_champion()) as folder:
        assert Detector.load(folder).detect(["The council met by the old bridge. " * 5])[0].num_windows == 1


def test_runs_in_the_bucket_are_pruned(loop: tuple[Storage, dict[str, Any]]) -> None:
    names = loop[0].list("runs/default")
    assert [name for name in names if name.startswith("train-")] == [loop[1]["train"]["checkpoint"].split("/")[2]]


def test_what_is_read_of_the_bucket_is_the_checkpoint_of_the_training(loop: tuple[Storage, dict[str, Any]]) -> None:
    assert loop[1]["calibrate"]["checkpoint"] == loop[1]["train"]["checkpoint"]
    assert loop[0].exists(f"{loop[1]['train']['checkpoint']}/model.safetensors")
