"""Extras of the package: one error for imports that need an extra that is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from detect_ai.core.errors import MissingExtraError

_OURS = ("detect_ai", "serve_app")


@contextmanager
def required(extra: str) -> Iterator[None]:
    """Context manager for code that needs an extra. Raises MissingExtraError if a package is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _OURS:
            raise
        raise MissingExtraError(
            f"expected the Python package {package}, which is not installed: pip install 'detect-ai[{extra}]'"
        ) from error
