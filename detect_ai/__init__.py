"""detect_ai: train, evaluate and serve detectors of AI-generated text on Ray."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detect_ai.client import Client as Client
    from detect_ai.core.compose import load_config as load_config
    from detect_ai.detector.detector import Detector as Detector
    from detect_ai.schemas import Verdict as Verdict

__version__ = "0.1.0"
__all__ = ["Client", "Detector", "Verdict", "load_config"]

_MODULES = {
    "Client": "detect_ai.client",
    "Detector": "detect_ai.detector.detector",
    "Verdict": "detect_ai.schemas",
    "load_config": "detect_ai.core.compose",
}
_EXTRAS = {"Detector": "local"}


def __getattr__(name: str) -> Any:
    """Import an exported name on first use, so that importing the package loads neither ray nor torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'detect_ai' has no attribute {name!r}")
    if name not in _EXTRAS:
        return getattr(importlib.import_module(_MODULES[name]), name)
    from detect_ai.core.extras import required

    with required(_EXTRAS[name]):
        return getattr(importlib.import_module(_MODULES[name]), name)


if "transformers" in sys.modules and importlib.util.find_spec("torch"):
    # Register mean-pooled bundles with its Auto classes. Otherwise importing `detect_ai.models.pooling` does this.
    importlib.import_module("detect_ai.models.pooling")
