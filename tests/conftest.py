"""Fixtures shared by all tests. What is slow to make is made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import tiny

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder in the hub's format."""
    return tiny.make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """A sealed bundle around the tiny encoder. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    tiny.make_bundle(folder, encoder)
    return folder
