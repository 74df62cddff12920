"""Floating point operations of an encoder, and what hardware can do: model FLOPs utilisation (MFU) is their share.

Operations are those of the matrix products, as in PaLM's appendix B: 2 for each weight and token forwards and 4
backwards, and the two products of attention. Embeddings are looked up and not counted; of frozen weights only the way
forwards is; of a last layer that reads the first token only, what it does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

# Dense peak in operations a second, from the makers' data sheets, without sparsity: (16 bit floats, 32 bit floats).
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
    """Counts the operations of texts of given lengths."""

    def __init__(self, module: PreTrainedModel) -> None:
        from detect_ai.models.first_token import used_once_a_row

        named = {name: p for name, p in module.named_parameters() if p.ndim >= 2 and "embeddings" not in name}
        last = {id(p) for p in used_once_a_row(module)}
        # What is none of the numbered layers is the head, or the pooler before it: one vector of each row goes through.
        once = {name for name, p in named.items() if id(p) in last or not re.search(r"\.\d+\.", name)}
        self._by_row = _operations([p for name, p in named.items() if name in once])
        self._by_token = _operations([p for name, p in named.items() if name not in once])
        config = module.config
        layers: int = getattr(config, "num_hidden_layers", None) or getattr(config, "n_layers", None) or 0
        width: int = getattr(config, "hidden_size", None) or getattr(config, "dim", None) or 0
        trained = any(p.requires_grad for name, p in named.items() if name not in once or id(p) in last)
        each = (3 if trained else 1) * 4 * width  # of one layer, for each pair of tokens that attend
        first = bool(last)
        self._by_token += each * first
        self._by_token_squared = each * (layers - first)

    def of_training(self, lengths: NDArray[np.int32]) -> float:
        """Operations of one step forwards and backwards over texts of these lengths, padding not counted."""
        tokens = lengths.astype(np.float64)
        return float(
            self._by_row * len(tokens) + self._by_token * tokens.sum() + self._by_token_squared * (tokens**2).sum()
        )


def _operations(weights: list[nn.Parameter]) -> float:
    return float(sum((6 if p.requires_grad else 2) * p.numel() for p in weights))


def peak(device: torch.device, dtype: torch.dtype | None) -> float | None:
    """Operations a second that a device can do at best, or None where it is not known (a CPU, a card not listed)."""
    import torch

    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = next((figures for card, figures in PEAKS.items() if card in name.replace("-", " ").split()), None)
    return None if found is None else found[0 if dtype is not None else 1]
