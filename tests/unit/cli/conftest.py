"""Removes service and storage root from the environment."""

import pytest


@pytest.fixture(autouse=True)
def _no_default_service(monkeypatch):
    for name in ("DETECT_AI_URL", "DETECT_AI_API_KEY", "DETECT_AI_STORAGE_ROOT"):
        monkeypatch.delenv(name, raising=False)
