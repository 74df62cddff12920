"""The stages under the real DVC: run once, skipped when nothing changed, carried to another machine and back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector.registry import Registry
from tests.e2e.conftest import CHECKOUT
from tests.fixtures import tiny_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROJECT = ("detect_ai", "jobs", "configs", "serve_app", "dvc.yaml", ".dvc", ".dvcignore")


def run(folder: Path, *command: str) -> str:
    """Run a command in a folder and return what it printed."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "DVC_NO_ANALYTICS": "1", "DVC_STUDIO_OFFLINE": "1"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def copy_of_the_project(folder: Path) -> Path:
    """A copy of the files of a checkout, in a git repository."""
    folder.mkdir()
    for name in PROJECT:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache"))
        else:
            shutil.copy(source, folder / name)
    run(folder, "git", "init", "--quiet")
    return folder


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("remote")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, encoder: Path, remote: Path) -> Path:
    """A checkout where `dvc repro` ran on a tiny encoder and corpus."""
    folder = copy_of_the_project(tmp_path_factory.mktemp("dvc") / "here")
    texts = tiny_models.write_jsonl(folder.parent / "texts.jsonl", tiny_models.rows(80))
    overrides = [
        *("corpus=csv", "corpus.sources.0.kind=jsonl", f"corpus.sources.0.path={texts}"),
        "corpus.sources.0.group=group",
        *(f"model.path={encoder}", "model.sha256=", "model.window=64", "model.stride=48", "tracking.mode=disabled"),
        *("sweep=grid", "sweep.space.lr=[5e-3]", "sweep.epochs=1", "train.epochs=1", "train.num_workers=1"),
        *("calibration.target_fprs=[0.1]", "calibration.default_target_fpr=0.1", "gate.min_auroc=0"),
        "calibration.guarantee=expectation",
    ]
    content = f"common: run=dvc storage.root=artifacts\noverrides: {json.dumps(' '.join(overrides))}\n"
    (folder / "configs/repro.yaml").write_text(content)
    run(folder, "dvc", "repro", "--quiet")
    run(folder, "dvc", "remote", "add", "--default", "store", str(remote))
    return folder


def test_every_stage_leaves_its_result(here: Path) -> None:
    stages = {path.stem for path in (here / "artifacts/runs/dvc").glob("*.json")}
    assert stages == {"prepare", "audit", "sweep", "train", "calibrate", "evaluate", "publish"}


def test_a_second_run_runs_nothing(here: Path) -> None:
    assert "Data and pipelines are up to date" in run(here, "dvc", "repro")


def test_metrics_are_shown(here: Path) -> None:
    assert "auroc" in run(here, "dvc", "metrics", "show", "--json")


def test_a_corpus_is_not_deleted_when_its_stage_runs_again(here: Path) -> None:
    storage = Storage(str(here / "artifacts"))
    before = storage.list("corpora")
    run(here, "dvc", "repro", "--quiet", "--force", "--single-item", "prepare")
    assert storage.list("corpora") == before
    assert json.loads((here / "artifacts/runs/dvc/prepare.json").read_text())["result"]["fresh"] is False


def test_another_machine_pulls_the_corpus_and_the_detector(here: Path, remote: Path, tmp_path: Path) -> None:
    run(here, "dvc", "push", "--quiet")
    there = copy_of_the_project(tmp_path / "there")
    shutil.copy(here / "dvc.lock", there)
    run(there, "dvc", "remote", "add", "--default", "store", str(remote))
    run(there, "dvc", "pull", "--quiet")
    storage = Storage(str(there / "artifacts"))
    Corpus.open(storage, f"corpora/{storage.list('corpora')[0]}").verify()
    with Registry(storage).folder(Registry(storage).require_champion()) as bundle:
        assert (bundle / "model.safetensors").is_file()
