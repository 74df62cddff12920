"""The wheel in a clean environment: what `pip install detect-ai` brings, and `detect-ai check --url` from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import detect_ai
from tests.fixtures.programs import cannot_run

CHECKOUT = Path(__file__).parents[2]
ESSAY = "The council met on Tuesday to vote on the bridge, and the old market stayed open until the river rose. " * 8

pytestmark = pytest.mark.slow


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command outside the checkout and its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DETECT_AI"))}
    return subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as for a release; skips without a package index."""
    folder = tmp_path_factory.mktemp("wheel")
    done = run(folder, sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder, CHECKOUT)
    if done.returncode:
        cannot_run("index", f"no package index: {done.stderr[-500:]}")
    (path,) = folder.glob("detect_ai-*.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the wheel, without extras."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=True)
    done = run(folder, folder / "bin" / "pip", "install", "-q", wheel)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def test_the_wheel_has_page_configuration_and_sample(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"serve_app/web/index.html", "detect_ai/configs/config.yaml", "detect_ai/py.typed"} < names
    assert "detect_ai/corpus/sample/ai_mirrors.jsonl" in names
    assert {name.partition("/")[0] for name in names} == {
        *("detect_ai", "serve_app"),
        f"detect_ai-{detect_ai.__version__}.dist-info",
    }


def test_at_most_15_packages_are_installed(programs: Path) -> None:
    listed = json.loads(run(programs, programs / "pip", "list", "--format", "json").stdout)
    names = {package["name"] for package in listed} - {"pip", "setuptools"}  # those of an empty environment
    print(sorted(names))
    assert "detect-ai" in names
    assert len(names) <= 15


def test_help_of_the_command(programs: Path) -> None:
    done = run(programs, programs / "detect-ai", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "check" in done.stdout


def test_check_with_a_service(programs: Path, url: str, tmp_path: Path) -> None:
    (tmp_path / "essay.txt").write_text(ESSAY, encoding="utf-8")
    done = run(tmp_path, programs / "detect-ai", "check", "essay.txt", "--url", url, "--json", "--uncertain-ok")
    assert done.stderr == ""
    with detect_ai.Client(url) as client:
        expected = client.detect(ESSAY)
    assert json.loads(done.stdout)["verdict"] == expected.model_dump(mode="json")
    assert done.returncode == (3 if expected.label == "ai" else 0)


def test_check_with_a_bundle_names_the_extra(programs: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "essay.txt").write_text(ESSAY, encoding="utf-8")
    done = run(tmp_path, programs / "detect-ai", "check", "essay.txt", "--bundle", tiny_bundle)
    assert done.returncode == 2
    assert "pip install 'detect-ai[local]'" in done.stderr
