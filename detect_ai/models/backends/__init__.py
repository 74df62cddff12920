"""Inference backends: ways to run an encoder. A bundle names its backend. Importing this package loads none of them.

To add one, write a class with the interface of `base.Backend` and add it to `BACKENDS`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detect_ai.models.backends.base import Backend

DEFAULT = "torch"
BACKENDS = {
    "torch": "torch:TorchBackend",
    "torch-bf16": "torch:Bf16Backend",
    "torch-int8": "torch:Int8Backend",
}
CPU_ONLY = {"torch-int8"}  # known without importing torch or looking at the hardware of the worker


def get(name: str) -> type[Backend]:
    """The class of a backend, one of `BACKENDS`."""
    module, _, cls = BACKENDS[name].partition(":")
    backend: type[Backend] = getattr(import_module(f"{__name__}.{module}"), cls)
    return backend
