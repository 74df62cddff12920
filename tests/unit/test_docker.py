"""`docker/`: Dockerfiles, their context, and the versions that they install."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.image import instructions
from tests.fixtures.programs import require

CHECKOUT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((CHECKOUT / "docker").glob("*.Dockerfile"))
SERVE = CHECKOUT / "docker/serve.Dockerfile"


@pytest.mark.parametrize("dockerfile", [*DOCKERFILES, CHECKOUT / "ops/gcp/node/Dockerfile"], ids=lambda path: path.stem)
def test_hadolint_is_clean(dockerfile: Path) -> None:
    done = subprocess.run([require("hadolint"), "--no-color", dockerfile], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_base_image_has_a_digest() -> None:
    arguments = [value for name, value in instructions(SERVE) if name == "ARG"]
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}", arguments[0])


def test_the_service_runs_as_a_number_that_is_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", dict(instructions(SERVE))["USER"])


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_every_download_but_torch_is_hashed(dockerfile: Path) -> None:
    steps = [step for name, value in instructions(dockerfile) if name == "RUN" for step in value.split("&&")]
    installs = [step.split() for step in steps if re.search(r"\bpip\b.*\b(install|wheel)\b", step)]
    installs = [install for install in installs if "/locks/torch.txt" not in install]
    assert installs
    assert all({"--require-hashes", "--no-index", "--no-build-isolation"} & set(install) for install in installs)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_copied_files_are_in_the_context(dockerfile: Path) -> None:
    names = {line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [value.split()[:-1] for name, value in instructions(dockerfile) if name == "COPY"]
    sources = [source for copy in copies if not copy[0].startswith("--from") for source in copy if source != "."]
    assert all((CHECKOUT / name).exists() for name in names)
    assert sources
    assert {source.split("/")[0] for source in sources} <= names
    assert all((CHECKOUT / source).exists() for source in sources)


def test_torch_is_the_version_of_the_lock() -> None:
    versions = [
        re.search(r"^torch==([\d.]+)", (CHECKOUT / name).read_text(), re.MULTILINE)
        for name in ("requirements/torch.txt", "requirements/train.txt")
    ]
    assert len({version and version[1] for version in versions}) == 1


def test_the_ray_image_is_the_version_of_the_lock() -> None:
    arguments = dict(instructions(CHECKOUT / "docker/train.Dockerfile"))
    image = arguments["ARG"].removeprefix("RAY_IMAGE=rayproject/ray:").partition("-")[0]
    assert f"\nray=={image} " in (CHECKOUT / "requirements/train.txt").read_text()
    assert f"CPU_IMAGE=rayproject/ray:{image}-" in (CHECKOUT / "ops/gcp/variables.env").read_text()
