"""The encoder in PyTorch, on CPU or GPU: in fp32, in bf16, or compiled."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from detect_ai.core.errors import BundleError
from detect_ai.models import encoder
from detect_ai.models.backends import layers
from detect_ai.models.batch import Batch, attention_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TorchBackend:
    """A model on a device, at a precision: `fp32`, `bf16`, or `auto` (bf16 if the hardware supports it).

    The score of a text depends on its batch: in bf16 by up to 0.05 in log-odds for MiniLM, in fp32 by 1e-5.
    """

    packs = True  # whether `load` packs the layers on a CPU

    def __init__(self, model: PreTrainedModel, device: torch.device, precision: str = "fp32") -> None:
        self.model: Any = model.to(device).eval()  # type: ignore[arg-type]
        self.device = device
        self.has_lanes = device.type == "cpu"
        self.dtype = encoder.autocast_dtype(precision, device)

    @classmethod
    def load(cls, folder: Path, device: str, precision: str) -> Self:
        """Load a bundle. Raises BundleError if its weights are damaged."""
        backend = cls(encoder.load(folder), torch.device(device), precision)
        dtype = backend.dtype or torch.float32
        if cls.packs and device == "cpu" and layers.can_pack(dtype):
            layers.pack(backend.model, dtype)
        return backend

    @classmethod
    def save(cls, network: PreTrainedModel, folder: Path) -> None:
        """Write the weights of a classifier into a folder."""
        encoder.save(network, folder)

    @classmethod
    def unavailable_reason(cls, device: str) -> str | None:
        """PyTorch in fp32 runs everywhere."""
        return None

    def log_odds(self, batch: Batch) -> NDArray[np.float64]:
        """Log-odds of AI for each row, shape (rows,)."""
        with torch.inference_mode(), autocast(self.device, self.dtype):
            logits = self.model(**model_inputs(batch, self.device)).logits
        return log_odds(logits).cpu().numpy()


class Bf16Backend(TorchBackend):
    """PyTorch in bf16, for an export whose bundle has that precision."""

    @classmethod
    def unavailable_reason(cls, device: str) -> str | None:
        """Hardware without bf16 emulates it, which is slower than fp32."""
        return None if encoder.has_bf16(torch.device(device)) else "no bf16 in this hardware"


class Int8Backend(TorchBackend):
    """PyTorch with 8-bit matrix products, for BERT and DistilBERT on a CPU. The bundle has the weights in fp32."""

    @classmethod
    def load(cls, folder: Path, device: str, precision: str) -> Self:
        """Load and quantise a bundle. Raises BundleError if its weights are damaged, or scores would be wrong here."""
        if reason := cls.unavailable_reason(device):
            raise BundleError(f"{folder}: backend torch-int8: {reason}: serve the parent of this bundle here")
        backend = cls(encoder.load(folder), torch.device(device), precision)
        layers.quantise(backend.model)
        return backend

    @classmethod
    def save(cls, network: PreTrainedModel, folder: Path) -> None:
        """Write the weights of a classifier into a folder. Raises BundleError for another encoder."""
        if not any(map(layers.FusedLayer.replaces, network.modules())):
            raise BundleError(f"expected BERT or DistilBERT with GELU, found {type(network.base_model).__name__}")
        super().save(network, folder)

    @classmethod
    def unavailable_reason(cls, device: str) -> str | None:
        """Without VNNI, sums of 8-bit products overflow."""
        if device != "cpu":
            return "for CPUs only"
        runs = torch.cpu._is_vnni_supported() and torch.backends.mkldnn.is_available()
        return None if runs else "no VNNI in this CPU"


class CompiledBackend(TorchBackend):
    """PyTorch, compiled at the first batch for any shape and the current number of threads; this takes a minute."""

    packs = False  # the compiler packs

    def __init__(self, model: PreTrainedModel, device: torch.device, precision: str = "fp32") -> None:
        super().__init__(model, device, precision)
        self.model = torch.compile(self.model, dynamic=True)
        self.has_lanes = False  # the number of threads is compiled in
        self._is_compiled = False

    @classmethod
    def unavailable_reason(cls, device: str) -> str | None:
        """Compiling for a CPU needs a C++ compiler."""
        has_compiler = any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
        return None if device != "cpu" or has_compiler else "no C++ compiler: install g++"

    def log_odds(self, batch: Batch) -> NDArray[np.float64]:
        """Log-odds of AI for each row, shape (rows,)."""
        if not self._is_compiled:
            self._is_compiled = True
            # Compile all variants now, so that no text waits for one: single or several rows, with or without a mask.
            for rows, padding in product((1, 2), (0, 1)):
                self.log_odds(Batch(np.zeros((rows, 16), np.int32), np.full(rows, 16 - padding, np.int32)))
        return super().log_odds(batch)


def model_inputs(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch as the arguments of the model, each of shape (rows, length).

    A mask without padding is omitted, because attention is fastest without a mask.
    """
    arrays = {"input_ids": batch.input_ids.astype(np.int64)}
    if (batch.lengths < batch.input_ids.shape[1]).any():
        arrays["attention_mask"] = attention_mask(batch.lengths, batch.input_ids.shape[1])
    return {name: upload(array, device) for name, array in arrays.items()}


def upload(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array on a device. A copy to a GPU uses pinned memory, so it does not block."""
    tensor = torch.tensor(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Logits of the classes (human, ai), shape (rows, 2), as log-odds of AI in float64, shape (rows,)."""
    logits = logits.double()
    return logits[:, 1] - logits[:, 0]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to a dtype; None leaves the precision unchanged."""
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else nullcontext()
