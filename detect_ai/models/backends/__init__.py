"""Inference backends: ways to run an encoder. A bundle names its own. Importing this package loads none of them.

To add one, write a class with the interface of `base.BundleBackend` and add it to `BACKENDS`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from detect_ai.models.backends.base import BundleBackend

DEFAULT = "torch"
BACKENDS = {
    "torch": "torch:TorchBackend",
    "torch-bf16": "torch:Bf16Backend",
    "torch-compile": "torch:CompiledBackend",
    "onnx": "onnx:OnnxBackend",
    "onnx-int8": "onnx:OnnxInt8Backend",
}


def get(name: str) -> type[BundleBackend]:
    """The class of a backend, one of `BACKENDS`."""
    module, _, cls = BACKENDS[name].partition(":")
    backend: type[BundleBackend] = getattr(import_module(f"{__name__}.{module}"), cls)
    return backend


def load(folder: Path, name: str, device: str = "cpu", precision: str = "fp32") -> BundleBackend:
    """The backend of a bundle, ready to run; arguments and errors as `base.BundleBackend.load`."""
    return get(name).load(folder, device, precision)


def save(network: PreTrainedModel, folder: Path, name: str) -> None:
    """Write the weights of a classifier into a folder, in the format that a backend reads."""
    get(name).save(network, folder)
