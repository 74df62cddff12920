"""Fixtures shared by all tests: tiny models, one Ray cluster and one service per session."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from detect_ai.core import ray_runtime
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
    """A new storage root in the bucket. It contains `=` and `&`: pass it as DETECT_AI_STORAGE_ROOT."""
    return gcs.under(gcs_bucket, uuid.uuid4().hex)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Path]:
    """A local Ray cluster, started as a job without RAY_ADDRESS starts it. Yields its session directory.

    Its temporary directory names a dead cluster as the machine's latest, as `ray start` would leave it: nothing may
    connect to that cluster.
    """
    import ray

    folder = Path(tempfile.mkdtemp(prefix="dai-", dir="/tmp"))  # socket paths must stay short
    (folder / "ray").mkdir()
    (folder / "ray/ray_current_cluster").write_text("127.0.0.1:1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        ray_runtime.connect(dashboard=True)
        yield Path(ray._private.worker._global_node.get_session_dir_path())
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    assert "RAY_ADDRESS" not in os.environ
