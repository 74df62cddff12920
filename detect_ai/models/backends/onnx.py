"""The encoder in ONNX Runtime, on CPU or GPU, in fp32 or with 8-bit matrices: `pip install 'detect-ai[onnx]'`.

A batch runs with torch's number of threads in the calling thread (`torch.set_num_threads`). Each number has a session,
created at its first batch, which several callers may use concurrently. Idle threads sleep.
"""

from __future__ import annotations

import threading
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
    """An encoder as the bytes of an ONNX file, with the ONNX Runtime provider for the device."""

    def __init__(self, file: bytes, provider: str) -> None:
        self._file, self._provider = file, provider
        self.has_lanes = provider == _PROVIDERS["cpu"]
        self._sessions: dict[int, Any] = {}  # by number of threads
        self._opening = threading.Lock()

    @classmethod
    def load(cls, folder: Path, device: str, precision: str) -> Self:
        """Load an exported bundle. Raises BundleError if ONNX Runtime or its provider for the device is missing."""
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
            warnings.simplefilter("ignore")  # from the exporter about its own code
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
        """The missing packages."""
        missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
        return f"no {', '.join(missing)}: pip install 'detect-ai[onnx]'" if missing else None

    def log_odds(self, batch: Batch) -> NDArray[np.float64]:
        """Log-odds of AI for each row, shape (rows,)."""
        mask = attention_mask(batch.lengths, batch.input_ids.shape[1])
        given = dict(zip(_INPUTS, (batch.input_ids.astype(np.int64), mask), strict=True))
        session = self._session(torch.get_num_threads())
        logits: NDArray[np.float64] = session.run(None, given)[0].astype(np.float64)
        return logits[:, 1] - logits[:, 0]

    def _session(self, threads: int) -> Any:
        with self._opening:
            if threads not in self._sessions:
                import onnxruntime

                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = threads
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")
                session = onnxruntime.InferenceSession(self._file, options, providers=[self._provider])
                self._sessions[threads] = session
            return self._sessions[threads]


class OnnxInt8Backend(OnnxBackend):
    """An ONNX file with 8-bit integer products with weights; activations are quantised at run time."""

    @classmethod
    def save(cls, network: PreTrainedModel, folder: Path) -> None:
        """Write `model.onnx` and quantise its products with weights."""
        import onnx

        super().save(network, folder)
        model = onnx.load(folder / FILE)
        _quantise(model.graph)
        onnx.save(model, folder / FILE)


def _quantise(graph: Any) -> None:
    """Replace every `x @ weights` with an integer product: 7-bit weights with a scale per column, 8-bit x.

    Each row of x, the vector of a token, has its own scale, so that a score does not depend on the rest of its batch.
    Weights use 7 bits, because on a CPU without VNNI the sum of two 8-bit products overflows.
    """
    from onnx import TensorProto, helper, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    constants: dict[str, Any] = {
        "int8/axis": np.asarray([-1]),
        "int8/levels": np.float32(127),
        "int8/tiny": np.float32(1e-9),
        "int8/middle": np.float32(128),
        "int8/zero": np.uint8(128),
    }
    nodes: list[Any] = []
    quantised: set[str] = set()  # activations and weights

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    for node in list(graph.node):
        if node.op_type != "MatMul" or node.input[1] not in weights:
            nodes.append(node)
            continue
        x, name = node.input
        bytes_of_x, scale_of_x = f"{x}/bytes", f"{x}/scale"
        if x not in quantised:  # queries, keys and values share x
            quantised.add(x)
            largest = add("ReduceMax", [add("Abs", [x], f"{x}/abs"), "int8/axis"], f"{x}/largest", keepdims=1)
            add("Div", [add("Max", [largest, "int8/tiny"], f"{x}/top"), "int8/levels"], scale_of_x)
            rounded = add("Round", [add("Div", [x, scale_of_x], f"{x}/units")], f"{x}/rounded")
            add("Cast", [add("Add", [rounded, "int8/middle"], f"{x}/shifted")], bytes_of_x, to=TensorProto.UINT8)
        if name not in quantised:
            quantised.add(name)
            values = numpy_helper.to_array(weights[name])
            scale = np.maximum(np.abs(values).max(axis=0), 1e-9) / 63
            constants |= {f"{name}/bytes": np.round(values / scale).astype(np.int8), f"{name}/scale": scale}
        out = node.output[0]
        product = add("MatMulInteger", [bytes_of_x, f"{name}/bytes", "int8/zero"], f"{out}/integers")
        product = add("Cast", [product], f"{out}/floats", to=TensorProto.FLOAT)
        add("Mul", [add("Mul", [product, scale_of_x], f"{out}/rows"), f"{name}/scale"], out)
    kept = [tensor for name, tensor in weights.items() if name not in quantised]
    made = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    for field, content in ((graph.node, nodes), (graph.initializer, kept + made)):
        del field[:]
        field.extend(content)


class _Logits(torch.nn.Module):
    """A classifier whose output is a plain tensor."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits
