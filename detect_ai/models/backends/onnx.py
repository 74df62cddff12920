"""The encoder in ONNX Runtime, on CPU or GPU, in fp32 or with 8-bit weights: `pip install 'detect-ai[onnx]'`.

The session is created at the first batch with torch's number of threads: call `torch.set_num_threads` before it, in the
thread that runs the detector. Threads of the session sleep when idle.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from detect_ai.core.errors import BundleError
from detect_ai.models.batch import Batch, attention_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "model.onnx"
_INPUTS = ("input_ids", "attention_mask")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxBackend:
    """An encoder as the bytes of an ONNX file, with the provider of ONNX Runtime for the device."""

    has_lanes = False  # a session has threads of its own

    def __init__(self, file: bytes, provider: str) -> None:
        self._file, self._provider = file, provider
        self._session: Any = None

    @classmethod
    def load(cls, folder: Path, device: str, precision: str) -> Self:
        """Load an exported bundle. Raises BundleError when ONNX Runtime or its provider for the device is missing."""
        try:
            import onnxruntime
        except ImportError as error:
            raise BundleError(f"{folder}: it runs in ONNX Runtime: pip install 'detect-ai[onnx]'") from error
        provider = _PROVIDERS.get(device, device)
        if provider not in (available := onnxruntime.get_available_providers()):
            raise BundleError(
                f"{folder}: ONNX Runtime has no {provider} here, only {', '.join(available)}: install "
                f"onnxruntime-gpu, or set use_gpu=false"
            )
        return cls((folder / FILE).read_bytes(), provider)

    @classmethod
    def save(cls, network: PreTrainedModel, folder: Path) -> None:
        """Write a classifier as `model.onnx`, for any number of rows and any length. Needs onnx and onnxscript."""
        mask = torch.ones(2, 16, dtype=torch.int64)
        mask[1, 12:] = 0
        rows, length = torch.export.Dim("rows"), torch.export.Dim("length")
        shape = {0: rows, 1: length}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about its own parts
            torch.onnx.export(
                _Logits(network.cpu()).eval(),
                (torch.ones_like(mask), mask),
                folder / FILE,
                input_names=list(_INPUTS),
                output_names=["logits"],
                dynamic_shapes=(shape, shape),
                dynamo=True,
                external_data=False,
                verbose=False,
            )

    @classmethod
    def unavailable_reason(cls, device: str) -> str | None:
        """The packages that are not installed."""
        missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
        return f"no {', '.join(missing)}: pip install 'detect-ai[onnx]'" if missing else None

    def log_odds(self, batch: Batch) -> NDArray[np.float64]:
        """Log-odds of AI for each row, shape (rows,)."""
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self._session = onnxruntime.InferenceSession(self._file, options, providers=[self._provider])
            self._file = b""
        mask = attention_mask(batch.lengths, batch.input_ids.shape[1])
        given = dict(zip(_INPUTS, (batch.input_ids.astype(np.int64), mask), strict=True))
        logits: NDArray[np.float64] = self._session.run(None, given)[0].astype(np.float64)
        return logits[:, 1] - logits[:, 0]


class OnnxInt8Backend(OnnxBackend):
    """An ONNX file with weights in 8 bits and activations quantised at run time."""

    @classmethod
    def save(cls, network: PreTrainedModel, folder: Path) -> None:
        """Write `model.onnx` and quantise its weights with a scale per output channel."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        super().save(network, folder)
        exact = (folder / FILE).rename(folder / f"exact-{FILE}")
        # reduce_range: 7 of the 8 bits, for on a CPU without VNNI the sums of 8 bits could overflow.
        quantize_dynamic(exact, folder / FILE, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
        exact.unlink()


class _Logits(torch.nn.Module):
    """A classifier whose output is a plain tensor."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits
