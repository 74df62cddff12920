"""The last layer of an encoder, worked out for the first token alone, where the head reads nothing else.

BERT's and DistilBERT's heads read the last state of the first token. In the last layer the other tokens are then needed
as keys and values only: one layer of six becomes about a sixth of itself, forwards and backwards, and the logits stay
the same to rounding. On a GPU the layer stays whole: attention with a single query was slower there than with all
(docs/TRAINING.md has the figures).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.distilbert.modeling_distilbert import TransformerBlock


class FirstTokenBertLayer(BertLayer):
    """BERT's layer, its output of shape (rows, 1, width)."""

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *_: Any, **__: Any
    ) -> Any:
        """The first token's states, of all states, shape (rows, length, width), and a mask, (rows, 1, …, length)."""
        if _on_gpu(hidden_states):
            return super().forward(hidden_states, attention_mask)[:, :1]
        first, own = hidden_states[:, :1], self.attention.self
        projections = own.query, own.key, own.value
        attended = _attend(first, hidden_states, attention_mask, projections, own.num_attention_heads, own.dropout)
        return self.feed_forward_chunk(self.attention.output(attended, first))


class FirstTokenDistilBertLayer(TransformerBlock):
    """DistilBERT's layer, its output of shape (rows, 1, width)."""

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
        """The first token's states, of all states, shape (rows, length, width), and a mask, (rows, 1, …, length)."""
        if _on_gpu(hidden_states):
            return super().forward(hidden_states, attention_mask)[:, :1]
        first, own = hidden_states[:, :1], self.attention
        projections = own.q_lin, own.k_lin, own.v_lin
        attended = _attend(first, hidden_states, attention_mask, projections, own.n_heads, own.dropout)
        states = self.sa_layer_norm(own.out_lin(attended) + first)
        return self.output_layer_norm(self.ffn(states) + states)


_LAYERS = {BertLayer: FirstTokenBertLayer, TransformerBlock: FirstTokenDistilBertLayer}
_OTHER_TOKENS = ("attention.self.key", "attention.self.value", "attention.k_lin", "attention.v_lin")


def read_first_token(model: PreTrainedModel) -> None:
    """Let the last layer of a model work out what its head reads; models of other kinds stay as they are.

    Args:
        model: a classifier whose head reads the first token.
    """
    layer = last_layer(model)
    kind = _LAYERS.get(type(layer))
    if kind is not None and model.config._attn_implementation == "sdpa":
        layer.__class__ = kind


def encoder_layers(model: PreTrainedModel) -> Any:
    """The list of layers of an encoder, or None where it has none that we know."""
    encoder: Any = model.base_model
    return getattr(getattr(encoder, "encoder", None) or getattr(encoder, "transformer", None), "layer", None)


def last_layer(model: PreTrainedModel) -> Any:
    """The last layer of an encoder, or None where it has no list of layers that we know."""
    layers = encoder_layers(model)
    return layers[-1] if layers else None


def used_once_a_row(model: PreTrainedModel) -> list[nn.Parameter]:
    """The weights that are applied to the first token only; none in a model whose last layer is whole."""
    layer = last_layer(model)
    if type(layer) not in _LAYERS.values() or _on_gpu(next(layer.parameters())):
        return []
    return [p for name, p in layer.named_parameters() if not name.startswith(_OTHER_TOKENS)]


def _on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda


def _attend(
    first: torch.Tensor, states: torch.Tensor, mask: torch.Tensor | None, projections: Any, heads: int, dropout: Any
) -> torch.Tensor:
    """Attention of the first token to all, shape (rows, 1, width)."""
    query, key, value = (
        projection(of).unflatten(-1, (heads, -1)).transpose(1, 2)
        for projection, of in zip(projections, (first, states, states), strict=True)
    )
    mask = None if mask is None else mask[:, :, :1]
    attended = scaled_dot_product_attention(query, key, value, mask, dropout.p if dropout.training else 0.0)
    return attended.transpose(1, 2).flatten(2)
