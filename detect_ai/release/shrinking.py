"""Smaller models out of a fine-tuned one, without training: fewer layers, fewer neurons between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from detect_ai.core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SIZES = ("intermediate_size", "hidden_dim")  # what encoders call the width between the two feed-forward layers


def keep_layers(network: PreTrainedModel, count: int) -> None:
    """Drop all but the first layers of an encoder, and the state of the last of them goes to the head.

    Raises:
        InputError: it has not as many, or no list of layers that we know.
    """
    layers = _layers(network)
    if not 0 < count < len(layers):
        raise InputError(f"{count} layers: expected 1 to {len(layers) - 1}, fewer than the encoder has")
    last, kind = layers[count - 1], type(layers[-1])
    if type(last) is not kind and issubclass(kind, type(last)):
        last.__class__ = kind  # of a last layer that works out the first token alone
    del layers[count:]
    network.config.num_hidden_layers = count


def keep_neurons(network: PreTrainedModel, percent: int) -> None:
    """Drop the weakest neurons of each feed-forward block: those with the least product of weights in and out.

    Raises:
        InputError: not a percentage that leaves and drops some, or blocks of a kind that we do not know.
    """
    size, width = next(
        ((name, getattr(network.config, name)) for name in _SIZES if hasattr(network.config, name)), ("", 0)
    )
    kept = round(width * percent / 100)
    if not 0 < kept < width:
        raise InputError(f"{percent}% of {width} neurons: expected 1 to 99%")
    for layer in _layers(network):
        into, out = _feed_forward(layer, width)
        strength = into.weight.norm(dim=1) * out.weight.norm(dim=0)
        chosen = strength.topk(kept).indices.sort().values
        _keep(into, chosen, dim=0)
        _keep(out, chosen, dim=1)
    setattr(network.config, size, kept)


def _layers(network: PreTrainedModel) -> Any:
    layers = encoder_layers(network)
    if not layers:
        raise InputError(f"no list of layers that we know in {type(network.base_model).__name__}")
    return layers


def _feed_forward(layer: nn.Module, width: int) -> tuple[nn.Linear, nn.Linear]:
    linear = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    into = [module for module in linear if module.out_features == width != module.in_features]
    out = [module for module in linear if module.in_features == width != module.out_features]
    if len(into) != 1 or len(out) != 1:
        raise InputError(f"no feed-forward block that we know in {type(layer).__name__}")
    return into[0], out[0]


def _keep(linear: nn.Linear, chosen: torch.Tensor, dim: int) -> None:
    linear.weight = nn.Parameter(linear.weight.detach().index_select(dim, chosen))
    if dim == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[chosen])
    linear.out_features, linear.in_features = linear.weight.shape


def encoder_layers(model: PreTrainedModel) -> Any:
    """The list of layers of an encoder, or None where it has none that we know."""
    encoder: Any = model.base_model
    return getattr(getattr(encoder, "encoder", None) or getattr(encoder, "transformer", None), "layer", None)
