"""The step of docker/train.Dockerfile, in a new environment instead of Ray's image.

torch and its CUDA packages are installed by version here: the hashes of a CPU build differ from the lock file.
"""

from __future__ import annotations

import os
import re
import subprocess
import venv
from pathlib import Path

import pytest

from tests.fixtures.image import instructions
from tests.fixtures.programs import cannot_run

CHECKOUT = Path(__file__).resolve().parents[2]
BY_VERSION = re.compile(r"(torch|triton|nvidia|cuda)[a-z0-9-]*==\S+")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_locked_packages_install_and_import(tmp_path: Path) -> None:
    steps = instructions(CHECKOUT / "docker/train.Dockerfile")
    (command,) = (value for name, value in steps if name == "RUN")
    source, target = next(value.split() for name, value in steps if name == "COPY")
    entries = re.split(r"\n(?=\w)", (CHECKOUT / source).read_text(encoding="utf-8"))
    lock = tmp_path / "lock.txt"
    lock.write_text("\n".join(entry for entry in entries if not BY_VERSION.match(entry)), encoding="utf-8")
    (torch,) = (entry.split()[0] for entry in entries if entry.startswith("torch=="))
    venv.create(tmp_path / "venv", with_pip=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PATH"] = f"{tmp_path}/venv/bin:{environment['PATH']}"

    def run(line: str, folder: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)

    done = run(f"pip install -q {torch}")
    if done.returncode:
        cannot_run("index", f"no package index: {done.stderr[-500:]}")
    done = run(command.replace(target, str(lock)))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
    done = run("python -c 'import detect_ai.training.worker, serve_app.deployment, ray.tune, wandb'", CHECKOUT)
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0].lower() for line in run("pip list").stdout.splitlines()}
    assert "torch" in listed
    assert listed & {"celery", "dvc", "playwright", "pytest"} == set()
