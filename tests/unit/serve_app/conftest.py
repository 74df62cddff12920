"""The log of a replica."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def serve_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("ray.serve")  # it does not propagate to the root
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
