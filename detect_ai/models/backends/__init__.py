"""Ways to run an encoder: token ids in, log-odds out. A bundle names its own; importing this loads none of them."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from detect_ai.detector.detector import Backend

DEFAULT = "torch"
BACKENDS = {
    "torch": "PyTorch at the precision that the service or job asks for",
    "torch-bf16": "PyTorch in bf16",
    "torch-compile": "PyTorch in fp32, compiled",
    "torch-int8": "PyTorch, the weights of its linear layers in 8 bits",
    "onnx": "ONNX Runtime in fp32",
    "onnx-int8": "ONNX Runtime, its weights in 8 bits",
}


def load(folder: Path, name: str, device: str = "cpu", precision: str = "fp32") -> Backend:
    """The backend of a bundle, ready to run.

    Args:
        folder: of the bundle.
        name: one of `BACKENDS`; it says which files hold the weights.
        device: where to run it.
        precision: of `torch`; the others have their own.

    Raises:
        BundleError: the weights are damaged, what runs them is not installed, or it does not run on this device.
    """
    if name.startswith("onnx"):
        from detect_ai.models.backends.onnx import OnnxBackend

        return OnnxBackend.load(folder, device)
    if name == "torch-int8":
        from detect_ai.models.backends import int8

        return int8.load_backend(folder, device)
    import torch

    from detect_ai.models import encoder
    from detect_ai.models.backends.torch import TorchBackend

    asked = {"torch": precision, "torch-bf16": "bf16", "torch-compile": "fp32"}[name]
    return TorchBackend(encoder.load(folder), torch.device(device), asked, compile=name == "torch-compile")


def save(network: PreTrainedModel, folder: Path, name: str) -> None:
    """Write the weights of a classifier into a folder, in the form that a backend reads."""
    if name.startswith("onnx"):
        from detect_ai.models.backends import onnx

        onnx.export(network, folder)
        if name == "onnx-int8":
            onnx.quantise(folder)
    elif name == "torch-int8":
        from detect_ai.models.backends import int8

        int8.save(network, folder)
    else:
        from detect_ai.models import encoder

        encoder.save(network, folder)


def lacking(name: str, device: str) -> str | None:
    """Why a backend cannot be made, or would not pay, on this machine; None where nothing speaks against it."""
    if name.startswith("onnx"):
        missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
        return f"no {', '.join(missing)}: pip install 'detect-ai[onnx]'" if missing else None
    if name == "torch-int8" and device != "cpu":
        return "it runs on a CPU only"
    if name == "torch-bf16":
        import torch

        from detect_ai.models.encoder import has_bf16

        return None if has_bf16(torch.device(device)) else "no bf16 in this hardware"
    if name == "torch-compile" and device == "cpu":
        compilers = (os.environ.get("CXX", "g++"), "clang++")
        return None if any(map(shutil.which, compilers)) else "no C++ compiler: install g++"
    return None
