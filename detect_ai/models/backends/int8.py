"""The encoder in PyTorch on a CPU, the weights of its linear layers in 8 bits.

Weights have a scale for each row and are rounded once, when a bundle is exported. Activations are rounded as they
come, by one scale for all of a batch, so a score moves with the batch that a text is in; to 7 bits, for on a CPU
without VNNI the sums of 8 bits could overflow and scores would be others. The head stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from detect_ai.core.errors import BundleError
from detect_ai.models import encoder
from detect_ai.models.backends.torch import TorchBackend

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "model.int8.safetensors"
_LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer with weights in 8 bits.

    Args:
        weight: int8, shape (out, in).
        scale: of each row, shape (out,).
        bias: shape (out,).
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        rows = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
        self._packed = torch.ops.quantized.linear_prepack(rows, bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """The layer's output, shape (…, out), for states of shape (…, in)."""
        product: torch.Tensor = torch.ops.quantized.linear_dynamic(states, self._packed, reduce_range=True)
        return product


def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of shape (out, in) as int8 and the scale of each row, shape (out,)."""
    scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
    return torch.round(weight / scale[:, None]).clamp(-_LARGEST, _LARGEST).to(torch.int8), scale


def save(network: PreTrainedModel, folder: Path) -> None:
    """Write `config.json` and the rounded weights of a model into a folder."""
    tensors = dict(network.state_dict())
    for name in linear_layers(network):
        tensors[f"{name}.weight"], tensors[f"{name}.scale"] = rounded(tensors[f"{name}.weight"])
    network.config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def load(folder: Path) -> PreTrainedModel:
    """What `save` wrote, in evaluation mode. Raises BundleError."""
    network = encoder.empty(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
        for name in linear_layers(network):
            layer = Int8Linear(*(tensors.pop(f"{name}.{part}") for part in ("weight", "scale", "bias")))
            network.set_submodule(name, layer)
        network.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BundleError(f"{folder}: the weights of {WEIGHTS} do not fit the architecture: {reason}") from error
    return network


def load_backend(folder: Path, device: str) -> TorchBackend:
    """The backend of a bundle that `save` wrote. Raises BundleError."""
    if device != "cpu":
        raise BundleError(
            f"{folder}: its backend torch-int8 runs on a CPU only, not on {device}: set use_gpu=false, or take the "
            f"bundle that it was exported from"
        )
    return TorchBackend(load(folder), torch.device(device))


def linear_layers(network: PreTrainedModel) -> list[str]:
    """Names of the linear layers of the encoder; a head's are not among them."""
    inside = network.base_model.named_modules(prefix=network.base_model_prefix)
    return [name for name, module in inside if type(module) is nn.Linear]
