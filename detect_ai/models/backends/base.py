"""The interface of an inference backend: token ids in, log-odds out."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from detect_ai.models.batch import Batch


class Backend(Protocol):
    """Runtime of the encoder of a detector."""

    # Whether several threads may run batches concurrently, each with the number of threads that it has set with
    # `torch.set_num_threads`.
    has_lanes: bool

    @classmethod
    def load(cls, folder: Path, device: str, precision: str) -> Self:
        """Load a bundle for `cpu` or `cuda`. Raises BundleError if it is damaged or does not run here."""
        ...

    @classmethod
    def unavailable_reason(cls, device: str) -> str | None:
        """Why the backend cannot run, or would not be faster, on this machine; None if it can."""
        ...

    def warm_up(self, tokens: int) -> None:
        """Prepare batches of up to this many tokens, for the number of threads of the calling thread."""
        ...

    def log_odds(self, batch: Batch) -> NDArray[np.float64]:
        """Log-odds of AI for each row, shape (rows,)."""
        ...
