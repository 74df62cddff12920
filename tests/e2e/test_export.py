"""The service with an exported bundle as champion, without further settings."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray

from detect_ai.core.ray_runtime import free_port
from detect_ai.core.storage import Storage
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from detect_ai.release.export import make
from serve_app.deploy import deploy, stop
from tests.fixtures import tiny_models

TEXTS = [tiny_models.text(kind, random.Random(i), 20 + 60 * i) for i, kind in enumerate(["human", "ai"] * 4)]


@pytest.fixture(scope="module")
def exported(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    make("onnx", tiny_bundle, folder)
    return folder


@pytest.fixture(scope="module")
def client(exported: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The service on a Ray of this process."""
    storage = Storage(str(tmp_path_factory.mktemp("store")))
    registry = Registry(storage)
    registry.set_champion(registry.add(exported))
    config = tiny_models.config(encoder, Path(storage.root))
    config.serve.port, config.serve.max_replicas = free_port(), 1
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with httpx.Client(base_url=str(deploy(config, storage)["url"]), timeout=60) as made:
            yield made
        stop(app=True, serve_too=True)
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_http_gives_the_verdicts_of_the_export(client: httpx.Client, exported: Path) -> None:
    answer = client.post("/v1/detect", json={"texts": TEXTS, "return_spans": True}).json()
    expected = Detector.load(exported).detect(TEXTS, return_spans=True)
    assert {verdict.model_version for verdict in expected} == {answer["model_version"]}
    for found, verdict in zip(answer["verdicts"], expected, strict=True):
        assert found["probability"] == pytest.approx(verdict.probability, abs=1e-5)
        assert (found["label"], len(found["spans"])) == (verdict.label, len(verdict.spans or []))
