"""Fixtures shared by all tests. What is slow to make is made once."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fixtures import gcs, tiny_models

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder in the hub's format."""
    return tiny_models.make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """A sealed bundle around the tiny encoder. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    tiny_models.make_bundle(folder, encoder)
    return folder


@pytest.fixture(scope="session")
def gcs_bucket() -> Iterator[str]:
    """The URI of a bucket in an emulator of Google Cloud Storage."""
    with gcs.gcs_emulator() as uri:
        yield uri


@pytest.fixture
def gcs_root(gcs_bucket: str) -> str:
    """A storage root of its own in the bucket. It holds `=` and `&`: give it by DETECT_AI_STORAGE_ROOT."""
    return gcs.under(gcs_bucket, uuid.uuid4().hex)
