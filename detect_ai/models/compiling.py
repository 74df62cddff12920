"""torch.compile over batches of many shapes: one program for all of them, or one for each of a few padded lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_VARIANTS = 8  # of a length: a single row, no mask, another precision, and the like


def compiled(network: torch.nn.Module, lengths: int) -> Callable[..., Any]:
    """A network that is compiled when it is first called, with tensors of shape (rows, length) by name.

    Args:
        network: what to compile.
        lengths: padded lengths that there are at most, each with a program of its own for any number of rows; 0: one
            program for every length.
    """
    if not lengths:
        return torch.compile(network, dynamic=True)
    # torch gives up, and runs what it could not compile as it is, after eight programs.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, lengths * _VARIANTS)
    program = torch.compile(network, dynamic=False)

    def call(**inputs: torch.Tensor) -> Any:
        for tensor in inputs.values():
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return program(**inputs)

    return call
