"""Floating point operations (FLOPs) of a training step, and peak FLOPs of GPUs: their ratio is MFU.

Per token, 6 FLOPs for each weight that is not an embedding (2 forward, 4 backward) and 12 · layers · width · length for
attention, as in PaLM's appendix B. Padding and recomputation are not counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Dense peak in FLOPs a second, from the makers' data sheets, without sparsity: (16 bit floats, 32 bit floats).
PEAKS = {
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "A10G": (70e12, 35e12),
    "A10": (125e12, 31.2e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
}


class Counter:
    """Counts the FLOPs of training a model on texts of given lengths."""

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.base_model.config
        layers: int = getattr(config, "num_hidden_layers", None) or getattr(config, "n_layers", None) or 0
        width: int = getattr(config, "hidden_size", None) or getattr(config, "dim", None) or 0
        weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim >= 2 and "embeddings" not in name)
        self._per_token, self._per_token_pair = 6.0 * weights, 12.0 * layers * width

    def of_training(self, lengths: NDArray[np.int32]) -> float:
        """FLOPs of one forward and backward pass over texts of these lengths."""
        tokens = lengths.astype(np.float64)
        return float(self._per_token * tokens.sum() + self._per_token_pair * (tokens**2).sum())


def peak(device: torch.device, dtype: torch.dtype | None) -> float | None:
    """Peak FLOPs a second of a device; None where it is not known (a CPU, a GPU that is not listed)."""
    import torch

    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peaks = next((peaks for card, peaks in PEAKS.items() if card in name.replace("-", " ").split()), None)
    return None if peaks is None else peaks[0 if dtype is not None else 1]
