"""The encoder in PyTorch, on CPU or GPU: in fp32, in bf16, or on a CPU with 8-bit products."""

from __future__ import annotations

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

    On a CPU, BERT and DistilBERT give a text the same score in every batch (`layers.FusedEncoder`); only with AMX in
    bf16, whose products depend on the number of rows, log-odds of MiniLM change by up to 0.01. Elsewhere they change by
    up to 0.09 in bf16, and by 1e-5 in fp32.
    """

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
        if device == "cpu" and layers.can_pack(dtype):
            layers.pack(backend.model, dtype)
        return backend

    @classmethod
    def unavailable_reason(cls, device: str) -> str | None:
        """PyTorch in fp32 runs everywhere."""
        return None

    def warm_up(self, tokens: int) -> None:
        """Let oneDNN generate code for up to this many tokens: otherwise the first batch of a size takes 5 ms more."""
        fused = [module for module in self.model.modules() if isinstance(module, layers.FusedLayer)][:1]
        sizes = sorted({layers.padded_tokens(size) for size in range(1, tokens + 1)})
        with torch.inference_mode(), autocast(self.device, self.dtype):
            for layer, size in product(fused, sizes):
                layer(torch.zeros(size, layer.norm.normalized_shape[0]), [(1, size)])

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
        """Load and quantise a bundle.

        Raises BundleError if its weights are damaged or of another encoder, or its scores would be wrong on this CPU.
        """
        if reason := cls.unavailable_reason(device):
            raise BundleError(f"{folder}: backend torch-int8: {reason}: serve the parent of this bundle here")
        network = encoder.load(folder)
        if not any(map(layers.FusedEncoder.replaces, network.modules())):
            found = type(network.base_model).__name__
            raise BundleError(f"{folder}: backend torch-int8: expected BERT or DistilBERT with GELU, found {found}")
        layers.quantise(network)
        return cls(network, torch.device(device), precision)

    @classmethod
    def unavailable_reason(cls, device: str) -> str | None:
        """Without VNNI, sums of 8-bit products overflow."""
        if device != "cpu":
            return "for CPUs only"
        if not torch.backends.mkldnn.is_available():
            return "no oneDNN in this PyTorch"
        return None if torch.cpu._is_vnni_supported() and layers.multiplies_bytes() else "no AVX512-VNNI in this CPU"


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
