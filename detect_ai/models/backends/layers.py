"""Layers for inference on a CPU, computed with oneDNN; a network that has them can neither be saved nor trained.

The layers of BERT and DistilBERT are replaced as a whole, and compute no padding. In other encoders each linear layer
is replaced on its own. The operators of oneDNN are those that torch.compile inserts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch.nn import functional
from transformers.activations import GELUActivation
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bert.modeling_bert import BertEncoder, BertLayer
from transformers.models.distilbert.modeling_distilbert import Transformer, TransformerBlock

from detect_ai.models import encoder
from detect_ai.models.batch import padded_length

Replacement = Callable[[torch.nn.Linear], torch.nn.Module]  # its `forward` has the argument `gelu` too
Group = tuple[int, int]  # neighbouring rows of equal length: their number, and their length


class PackedLinear(torch.nn.Module):
    """A linear layer: weights in the dtype and memory layout in which oneDNN uses them.

    PyTorch itself multiplies in fp32 with MKL, and in bf16 converts the weights at every call (docs/SERVING.md).
    """

    def __init__(self, linear: torch.nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        # Not a parameter: a packed weight cannot be saved, moved or trained.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype))
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.dtype = dtype

    def forward(self, x: torch.Tensor, gelu: bool = False) -> torch.Tensor:
        """The product of x, shape (…, inputs), with the weights, plus the bias, after GELU if set: (…, outputs)."""
        rows, activation = x.reshape(-1, x.shape[-1]).to(self.dtype), "gelu" if gelu else "none"
        y = torch.ops.mkldnn._linear_pointwise(filled(rows), self.weight, self.bias, activation, [], "none")
        return y[: len(rows)].view(*x.shape[:-1], y.shape[-1])  # type: ignore[no-any-return]


class Int8Linear(torch.nn.Module):
    """A linear layer whose products are those of 8-bit integers: fast on CPUs with VNNI, and wrong on others.

    Weights have a scale per output, and are rounded once. Each row of x, the vector of a token, is rounded with a scale
    of its own, so that its product does not depend on the rest of the batch.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.scale = weight.abs().amax(1).clamp_min(1e-9) / 127
        self.weight = torch.ops.onednn.qlinear_prepack((weight / self.scale[:, None]).round().to(torch.int8), None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = linear.bias.detach()

    def forward(self, x: torch.Tensor, gelu: bool = False) -> torch.Tensor:
        """The product of x, shape (…, inputs), with the weights, plus the bias, after GELU if set: (…, outputs)."""
        rows = x.reshape(-1, x.shape[-1])
        # These kernels of PyTorch are vectorised; `vector_norm` and `.to(torch.uint8)` are not, and 8 times as slow.
        buffer = rows.abs()
        largest = buffer.amax(1, keepdim=True).clamp_min_(1e-9)
        signed = torch.mul(rows, 127 / largest, out=buffer).round_().to(torch.int8)
        unsigned = signed.view(torch.uint8).bitwise_xor_(128)  # plus 128: oneDNN is fast for unsigned x only
        product = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1 / 127, 128, self.weight, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y: torch.Tensor = product.mul_(largest).add_(self.bias)
        return (torch.ops.aten.gelu_(y) if gelu else y).view(*x.shape[:-1], -1)


class FusedEncoder(torch.nn.Module):
    """The layers of BERT or DistilBERT on the tokens of all rows in sequence, without padding.

    So padding costs nothing, and does not change a score: only attention reads several tokens, and it is computed for
    rows of one length at a time.
    """

    def __init__(self, layers: Iterable[torch.nn.Module], linear: Replacement) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(FusedLayer(layer, linear) for layer in layers)

    @staticmethod
    def replaces(module: torch.nn.Module) -> bool:
        """Whether a module is the encoder of a BERT or DistilBERT that this class can replace."""
        if type(module) not in (BertEncoder, Transformer):  # a subclass may compute otherwise
            return False
        return all(map(FusedLayer.replaces, module.layer))  # type: ignore[arg-type]

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *_: Any, **__: Any
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Hidden states of shape (rows, length, width), zero for padding.

        The mask is None, which means no padding, or of shape (rows, 1, …, length) with the tokens before the padding.
        """
        rows, length, width = hidden_states.shape
        x, kept, lengths = hidden_states.reshape(rows * length, width), None, [length] * rows
        if attention_mask is not None:
            mask = attention_mask.view(rows, -1, length)[:, 0].bool()
            kept, lengths = mask.flatten().nonzero()[:, 0], mask.sum(1).tolist()
            x = x[kept]
        tokens, x = len(x), filled(x)
        groups = [(len(list(same)), each) for each, same in groupby(lengths)]
        for layer in self.layers:
            x = layer(x, groups)
        x = x[:tokens]
        if kept is not None:
            x = x.new_zeros(rows * length, width).index_copy_(0, kept, x)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=x.view(rows, length, width))


class FusedLayer(torch.nn.Module):
    """A layer of BERT or DistilBERT: queries, keys and values in one product, GELU at the end of another.

    The sums of residuals and the layer norms are in fp32.
    """

    def __init__(self, layer: Any, linear: Replacement) -> None:
        super().__init__()
        if isinstance(layer, BertLayer):
            attention, output = layer.attention.self, layer.attention.output
            parts = attention.query, attention.key, attention.value
            self.heads = attention.num_attention_heads
            self.out, self.attention_norm = linear(output.dense), output.LayerNorm
            self.up, self.down = linear(layer.intermediate.dense), linear(layer.output.dense)
            self.norm = layer.output.LayerNorm
        else:
            attention = layer.attention
            parts = attention.q_lin, attention.k_lin, attention.v_lin
            self.heads = attention.n_heads
            self.out, self.attention_norm = linear(attention.out_lin), layer.sa_layer_norm
            self.up, self.down = linear(layer.ffn.lin1), linear(layer.ffn.lin2)
            self.norm = layer.output_layer_norm
        self.head_width = parts[0].out_features // self.heads
        self.queries_keys_values = linear(_concatenated(parts))

    @staticmethod
    def replaces(module: torch.nn.Module) -> bool:
        """Whether a module is a layer that this class can replace."""
        if type(module) is BertLayer:
            return isinstance(module.intermediate.intermediate_act_fn, GELUActivation) and not module.is_decoder
        return type(module) is TransformerBlock and isinstance(module.ffn.activation, GELUActivation)

    def forward(self, x: torch.Tensor, groups: Sequence[Group]) -> torch.Tensor:
        """Hidden states of shape (tokens, width): the rows of the groups, then padding that attention ignores."""
        qkv = self.queries_keys_values(x)
        attended = torch.zeros_like(x, dtype=qkv.dtype)
        sizes, shape = [rows * length for rows, length in groups], (self.heads, self.head_width)
        sizes.append(len(x) - sum(sizes))
        for (rows, length), own, out in zip(groups, qkv.split(sizes), attended.split(sizes), strict=False):
            q, k, v = own.view(rows, length, 3, *shape).permute(2, 0, 3, 1, 4)
            heads = functional.scaled_dot_product_attention(q, k, v)  # shape (rows, heads, length, …)
            out.view(rows, length, *shape).copy_(heads.transpose(1, 2))
        x = self.attention_norm(x + self.out(attended))
        y: torch.Tensor = self.norm(x + self.down(self.up(x, gelu=True)))
        return y


def padded_tokens(tokens: int) -> int:
    """The number of rows that a product is padded to: few numbers, because oneDNN generates code for each."""
    return int(padded_length(tokens, 8 if tokens <= 128 else 32))


def filled(rows: torch.Tensor) -> torch.Tensor:
    """Rows, shape (tokens, width), followed by zeros up to `padded_tokens`."""
    missing = padded_tokens(len(rows)) - len(rows)
    return functional.pad(rows, (0, 0, 0, missing)) if missing else rows  # padding by 0 would copy


def _concatenated(layers: tuple[torch.nn.Linear, ...]) -> torch.nn.Linear:
    """Several linear layers with the same input as one, whose output has theirs in order."""
    one = torch.nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), device="meta")
    one.weight = torch.nn.Parameter(torch.cat([layer.weight for layer in layers]))
    one.bias = torch.nn.Parameter(torch.cat([layer.bias for layer in layers]))
    return one


def can_pack(dtype: torch.dtype) -> bool:
    """Whether packed layers run on this CPU and are faster: they were compared with MKL only.

    For bf16, oneDNN refuses a CPU that would have to emulate it.
    """
    has_libraries = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    return bool(has_libraries and (dtype is torch.float32 or encoder.has_bf16(torch.device("cpu"))))


def pack(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Replace the layers, and all other linear ones, by layers that compute in a dtype."""
    linear = partial(PackedLinear, dtype=dtype)
    with _one_thread():
        _replace(network, FusedEncoder.replaces, lambda encoder: FusedEncoder(encoder.layer, linear))
        _replace(network, lambda module: type(module) is torch.nn.Linear, linear)


def multiplies_bytes() -> bool:
    """Whether sums of products of bytes are exact on this CPU, as with VNNI. Others limit them to 16 bits."""
    layer = torch.nn.Linear(64, 16, device="meta")
    layer.weight, layer.bias = torch.nn.Parameter(torch.ones(16, 64)), torch.nn.Parameter(torch.zeros(16))
    with _one_thread(), torch.inference_mode():
        y = Int8Linear(layer)(torch.ones(8, 64))  # products of the bytes 127 and 255
    return torch.allclose(y, torch.full_like(y, 64))


def quantise(network: torch.nn.Module) -> None:
    """Replace the layers of BERT or DistilBERT by layers with 8-bit products, and the head by one in fp32."""
    with _one_thread():
        _replace(network, FusedEncoder.replaces, lambda encoder: FusedEncoder(encoder.layer, Int8Linear))
    pack(network, torch.float32)


def _replace(
    network: torch.nn.Module, chosen: Callable[[torch.nn.Module], bool], new: Callable[[Any], torch.nn.Module]
) -> None:
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if chosen(child):
                setattr(module, name, new(child))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread inside the block.

    Several threads would become an OpenMP team of the calling thread. If all teams together have more threads than
    there are cores, threads that wait for each other sleep instead of spinning: 5 ms in a forward pass of 45 ms.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
