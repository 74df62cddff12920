"""The storage of a service, and the log of a replica."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from detect_ai.core.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def serve_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "propagate", False)  # as Ray sets it when Serve is imported
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
