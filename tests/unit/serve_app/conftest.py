"""The storage of a service."""

from __future__ import annotations

from pathlib import Path

import pytest

from detect_ai.core.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))
