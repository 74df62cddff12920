"""A sharpness-aware (SAM-like) perturbation of the word-embedding matrix, for `train.embedding_perturbation`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


@contextmanager
def perturbed_embeddings(model: PreTrainedModel, length: float) -> Iterator[None]:
    """Move the word-embedding matrix by `length` along its gradient, and restore it afterwards.

    The ascent step of sharpness-aware minimisation (Foret et al., 2021) restricted to one matrix: scores then depend
    less on single words. Its gradient is that of all ranks. One that overflowed moves nothing.
    """
    words = model.base_model.get_input_embeddings().weight  # type: ignore[operator]
    kept, gradient = words.detach().clone(), words.grad
    norm = torch.linalg.vector_norm(gradient)
    direction = torch.where(norm.isfinite() & (norm > 0), gradient / norm, 0.0)
    with torch.no_grad():
        words.add_(direction, alpha=length)
    try:
        yield
    finally:
        with torch.no_grad():
            words.copy_(kept)
