"""The encoder in PyTorch, on CPU or GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from detect_ai.models.batch import Batch, attention_mask
from detect_ai.models.compiling import compiled
from detect_ai.models.encoder import autocast_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TorchBackend:
    """A model on a device, at a precision.

    Args:
        model: encoder with a head of two classes.
        device: where to run it.
        precision: `fp32`, `bf16`, or `auto` (bf16 where the hardware has it). In bf16 the score of a text moves
            with the batch it is in: by up to 0.05 in log-odds for MiniLM; in fp32 by 1e-5.
        compile: compile it for batches of any shape when it is first used, for the threads that torch has then: a
            minute's work. Needs a C++ compiler, or a GPU.
    """

    def __init__(
        self, model: PreTrainedModel, device: torch.device, precision: str = "fp32", compile: bool = False
    ) -> None:
        self.model = model.to(device).eval()  # type: ignore[arg-type]
        self._network = compiled(self.model, lengths=0) if compile else self.model
        self.device = device
        self.has_lanes = device.type == "cpu" and not compile  # what is compiled has its threads built in
        self.dtype = autocast_dtype(precision, device)
        self._to_compile = compile

    def log_odds(self, batch: Batch) -> NDArray[np.float64]:
        """Log-odds of AI for each row, shape (rows,)."""
        if self._to_compile:
            self._to_compile = False
            self._compile()
        with torch.inference_mode(), autocast(self.device, self.dtype):
            logits = self._network(**model_inputs(batch, self.device)).logits
        return log_odds(logits).cpu().numpy()

    def _compile(self) -> None:
        """Make every program there will be, for no text should wait for one: of a single row, and without a mask."""
        for rows, hidden in product((1, 2), (0, 1)):
            self.log_odds(Batch(np.zeros((rows, 16), np.int32), np.full(rows, 16 - hidden, np.int32)))


def model_inputs(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch as the arguments of the model, each of shape (rows, length).

    A mask that would hide nothing is left out: attention has its fastest path without one.
    """
    arrays = {"input_ids": batch.input_ids.astype(np.int64)}
    if (batch.lengths < batch.input_ids.shape[1]).any():
        arrays["attention_mask"] = attention_mask(batch.lengths, batch.input_ids.shape[1])
    return {name: upload(array, device) for name, array in arrays.items()}


def upload(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array on a device. A GPU gets it from pinned memory, so that nobody waits for the copy."""
    tensor = torch.tensor(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Logits of the classes (human, ai), shape (rows, 2), as log-odds of AI in float64, shape (rows,)."""
    logits = logits.double()
    return logits[:, 1] - logits[:, 0]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Run what is inside in a lower precision, or as it is."""
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else nullcontext()
