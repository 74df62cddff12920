"""The serving image, built and run without a container engine: every step, closure, health, a verdict, a stop."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.auth.api_keys import create_key
from tests.fixtures import tiny_models
from tests.fixtures.image import Container, Image, base_image, build, container, context_of, instructions
from tests.fixtures.programs import cannot_run, require

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
CHECKOUT = Path(__file__).resolve().parents[2]
DOCKERFILE = CHECKOUT / "docker/serve.Dockerfile"
UNWANTED = {"celery", "dvc", "hatchling", "pip", "playwright", "pytest", "ray", "wandb"}
LIST = "from importlib.metadata import distributions; print(*sorted({d.name.lower() for d in distributions()}))"
DETECT = """
import json, sys
from urllib.request import Request, urlopen
headers = {"Authorization": f"Bearer {sys.argv[1]}", "Content-Type": "application/json"}
with urlopen(Request("http://127.0.0.1:8000/v1/detect", sys.argv[2].encode(), headers)) as response:
    print(response.read().decode())
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    require("debootstrap")
    if os.geteuid():
        cannot_run("debootstrap", "only root may mount")
    folder = tmp_path_factory.mktemp("image")
    folder.chmod(0o755)
    [suite] = {match[1] for name, value in instructions(DOCKERFILE) if (match := re.search(r"-slim-(\w+)@", value))}
    context = folder / "context"
    context.mkdir()
    yield build(DOCKERFILE, context_of(CHECKOUT, context), base_image(folder, suite), folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def key() -> tuple[str, str]:
    """An API key, and the value of the environment variable with its hash."""
    token, key = create_key("me")
    return token, json.dumps({"keys": [key.model_dump(mode="json", exclude_none=True)]})


@pytest.fixture(scope="module")
def running(
    image: Image, key: tuple[str, str], tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """The entry point with a read-only root, a bundle and no storage."""
    log = tmp_path_factory.mktemp("container") / "log"
    bundle = image.root.parent / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    for path in [bundle, *bundle.rglob("*")]:  # readable for the user of the container
        path.chmod(0o755 if path.is_dir() else 0o644)
    with container(image, {"/bundle": bundle}, log, DETECT_AI_API_KEYS=key[1]) as running:
        deadline = time.monotonic() + 120
        while running.run(image.healthcheck).returncode:
            assert running.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield running


def test_the_closure_is_the_lock(image: Image, running: Container) -> None:
    names = {re.sub(r"[-_.]+", "-", name) for name in running.run(["python", "-c", LIST]).stdout.split()}
    assert names & UNWANTED == set()
    locks = "".join((CHECKOUT / name).read_text() for name in ("requirements/torch.txt", "requirements/serve.txt"))
    locked = {re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r"^([\w.-]+)==", locks, re.MULTILINE)}
    assert {"detect-ai", "torch", "uvicorn"} < names <= locked | {"detect-ai"}


def test_a_key_gets_a_verdict(running: Container, key: tuple[str, str]) -> None:
    done = running.run(["python", "-c", DETECT, key[0], json.dumps({"text": str(tiny_models.rows(1)[0]["text"])})])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdicts"][0]["label"] in {"ai", "human", "uncertain"}
    assert "401" in running.run(["python", "-c", DETECT, "dai_wrong", "{}"]).stderr


def test_only_tmp_is_writable(running: Container) -> None:
    places = ["/", "/opt/detect_ai", "/var/lib/detect_ai", "/bundle", "/tmp"]
    assert [place for place in places if not running.run(["touch", f"{place}/x"]).returncode] == ["/tmp"]
    assert running.run(["id", "-u"]).stdout == "65532\n"


def test_it_stops_on_sigterm(running: Container) -> None:
    """Runs last: the other tests need the container."""
    assert running.stop() == 0
