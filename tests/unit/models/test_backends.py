from __future__ import annotations

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.models.bert.modeling_bert import BertLayer

from detect_ai.core.errors import BundleError
from detect_ai.detector.detector import Scorer
from detect_ai.models import backends
from detect_ai.models import encoder as model
from detect_ai.models.backends import layers, onnx
from detect_ai.models.backends import torch as torch_backends
from detect_ai.models.batch import Batch
from tests.unit.conftest import config_of

# Largest deviation of log-odds with a range of four units from PyTorch in fp32. The 8-bit value is for an untrained
# encoder with enlarged weights; the stage `export` measures the loss of a trained one (docs/EXPORT.md).
TOLERANCES = {
    **{"torch": 1e-5, "torch-compile": 1e-4, "onnx": 1e-4},
    **{"torch-bf16": 0.1, "torch-int8": 1, "onnx-int8": 1},
}
COMPILED = pytest.param("torch-compile", marks=pytest.mark.slow)  # compiling the C++ code takes a minute
CPU = torch.device("cpu")
PACKS = pytest.mark.skipif(not layers.can_pack(torch.float32), reason="PyTorch has no oneDNN or no MKL")
BF16 = ["torch-bf16"] if model.has_bf16(CPU) else []
INT8 = ["torch-int8"] if torch_backends.Int8Backend.unavailable_reason("cpu") is None else []
FAST = [name for name in TOLERANCES if name not in ("torch-compile", "torch-int8")] + INT8


@pytest.fixture(scope="module", params=["encoder", "mean"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """A classifier with a head that separates the classes, saved for every backend."""
    folder = tmp_path_factory.mktemp("backends")
    network = model.build(config_of(encoder, pooling=request.param), 0)
    for weights in network.parameters():
        if weights.ndim >= 2:
            weights.data *= 8
    network.classifier.weight.data *= 20
    assert set(TOLERANCES) == set(backends.BACKENDS)
    for name in TOLERANCES:
        (folder / name).mkdir()
        backends.get(name).save(network, folder / name)
    return folder


@pytest.fixture(scope="module")
def texts() -> list[NDArray[np.int32]]:
    """Token ids of documents of many lengths, some longer than a window."""
    rng = np.random.default_rng(0)
    return [rng.integers(5, 200, length).astype(np.int32) for length in (1, 7, 8, 30, 31, 62, 63, 200)]


def load(saved: Path, name: str, device: str = "cpu") -> Any:
    return backends.get(name).load(saved / name, device, backend_precision(name))


def backend_precision(name: str) -> str:
    return "bf16" if name == "torch-bf16" else "fp32"


def scorer(saved: Path, name: str, encoder: Path) -> Scorer:
    return Scorer(model.load_tokenizer(config_of(encoder)), load(saved, name), 64, 48, batch_tokens=256)


@pytest.mark.parametrize("name", [*FAST, COMPILED])
def test_scores_match_torch_in_fp32(saved: Path, encoder: Path, texts: list[Any], name: str) -> None:
    plain = torch_backends.TorchBackend(model.load(saved / "torch"), CPU)
    expected = Scorer(model.load_tokenizer(config_of(encoder)), plain, 64, 48, batch_tokens=256).score(texts)
    assert np.ptp(expected) > 4
    scores = scorer(saved, name, encoder).score(texts)
    np.testing.assert_allclose(scores, expected, atol=TOLERANCES[name] * max(1, np.ptp(expected) / 4))
    assert np.corrcoef(scores, expected)[0, 1] > 0.98


@pytest.mark.parametrize("name", ["torch", "onnx", "onnx-int8", *INT8, COMPILED])
def test_scores_do_not_depend_on_the_batch(saved: Path, encoder: Path, texts: list[Any], name: str) -> None:
    backend = scorer(saved, name, encoder)
    np.testing.assert_allclose([backend.score([text])[0] for text in texts], backend.score(texts), atol=1e-4)


@PACKS
@pytest.mark.parametrize("name", ["torch", *BF16, *INT8])
def test_layers_are_replaced(saved: Path, name: str) -> None:
    kinds = [type(module) for module in load(saved, name).model.modules()]
    assert kinds.count(layers.FusedLayer) == 2
    assert kinds.count(layers.Int8Linear if name == "torch-int8" else layers.PackedLinear) >= 8
    assert BertLayer not in kinds


def test_bf16_is_not_packed_where_a_cpu_emulates_it(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "has_bf16", lambda _: False)
    kinds = [type(module) for module in load(saved, "torch-bf16").model.modules()]
    assert BertLayer in kinds
    assert not {layers.FusedLayer, layers.PackedLinear} & set(kinds)


def test_8_bit_backend_refuses_other_hardware(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="for CPUs only: serve the parent"):
        load(saved, "torch-int8", "cuda")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(BundleError, match="no VNNI in this CPU: serve the parent"):
        load(saved, "torch-int8")


def test_8_bit_backend_refuses_other_encoders(tmp_path: Path) -> None:
    network = RobertaForSequenceClassification(RobertaConfig(**BERT))
    with pytest.raises(BundleError, match="expected BERT or DistilBERT with GELU, found RobertaModel"):
        backends.get("torch-int8").save(network, tmp_path)
    assert list(tmp_path.iterdir()) == []


SIZES = {"vocab_size": 64, "num_labels": 2}
BERT = SIZES | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DISTILBERT = SIZES | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}


@PACKS
@pytest.mark.parametrize(
    ("network", "fused"),
    [
        (lambda: BertForSequenceClassification(BertConfig(**BERT)), 2),
        (lambda: BertForSequenceClassification(BertConfig(hidden_act="relu", **BERT)), 0),
        (lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT)), 2),
        (lambda: DistilBertForSequenceClassification(DistilBertConfig(activation="relu", **DISTILBERT)), 0),
        (lambda: RobertaForSequenceClassification(RobertaConfig(**BERT)), 0),
    ],
)
def test_replaced_layers_compute_the_same(network: Any, fused: int) -> None:
    torch.manual_seed(0)
    plain = network().eval()
    for weights in plain.parameters():
        weights.data += 0.2 * torch.randn_like(weights)
    packed = copy.deepcopy(plain)
    layers.pack(packed, torch.float32)
    kinds = [type(module) for module in packed.modules()]
    assert kinds.count(layers.FusedLayer) == fused
    assert torch.nn.Linear not in kinds
    ids, mask = torch.randint(5, 64, (3, 9)), torch.tensor([[1] * 9, [1] * 4 + [0] * 5, [1] * 8 + [0]])
    with torch.inference_mode():
        for given in (None, mask):
            expected = plain(input_ids=ids, attention_mask=given).logits
            assert expected.std() > 0.1
            actual = packed(input_ids=ids, attention_mask=given).logits
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def in_process(code: str) -> list[str]:
    """The words that a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


@PACKS
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_packing_starts_no_threads() -> None:
    """In a process of its own: threads that have once started remain."""
    code = (
        "import os, torch\n"
        "from detect_ai.models.backends.layers import pack\n"
        "torch.set_num_threads(2)\n"
        "network = torch.nn.Sequential(torch.nn.Linear(384, 1536))\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "pack(network, torch.float32)\n"
        "print(len(os.listdir('/proc/self/task')) - before, torch.get_num_threads())"
    )
    assert in_process(code) == ["0", "2"]


@PACKS
def test_other_layers_are_not_packed() -> None:
    class Scaled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    network = torch.nn.Sequential(Scaled(3, 3), torch.nn.Linear(3, 5, bias=False)).eval()
    with torch.inference_mode():
        expected = network(torch.eye(3))
        layers.pack(network, torch.float32)
        assert [type(layer) for layer in network] == [Scaled, layers.PackedLinear]
        torch.testing.assert_close(network(torch.eye(3)), expected)


@pytest.mark.parametrize("name", FAST)
def test_saved_weights_are_no_pickle(saved: Path, name: str) -> None:
    files = {path.name for path in (saved / name).iterdir()}
    assert files == ({"model.onnx"} if "onnx" in name else {"config.json", "model.safetensors"})
    for path in (saved / name).iterdir():
        assert not path.read_bytes().startswith((b"PK\x03\x04", b"\x80")), path.name


def test_8_bit_weights_are_smaller(saved: Path) -> None:
    """Bytes of the layers: a tiny encoder has little else, but ONNX stores its graph as well."""
    sizes = {name: (saved / name / onnx.FILE).stat().st_size for name in ("onnx", "onnx-int8")}
    assert sizes["onnx-int8"] < 0.85 * sizes["onnx"]


@pytest.mark.slow
def test_compiled_programs_exist_before_the_second_text(saved: Path, encoder: Path, texts: list[Any]) -> None:
    compiled = scorer(saved, "torch-compile", encoder)
    compiled.score(texts[:1])
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert np.isfinite(compiled.score(texts)).all()
        assert np.isfinite(compiled.score(texts[3:4])).all()


def test_missing_onnx_provider_or_runtime_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match=r"no CUDAExecutionProvider here, only .*CPUExecutionProvider"):
        load(saved, "onnx", "cuda")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BundleError, match=r"pip install 'detect-ai\[onnx\]'"):
        load(saved, "onnx")


def test_onnx_session_uses_the_threads_of_torch(saved: Path) -> None:
    backend, batch = load(saved, "onnx"), Batch(np.full((2, 8), 5, np.int32), np.full(2, 8, np.int32))
    before = torch.get_num_threads()
    try:
        for threads in (2, 1, 2):
            torch.set_num_threads(threads)
            backend.log_odds(batch)
    finally:
        torch.set_num_threads(before)
    sessions = {n: session.get_session_options().intra_op_num_threads for n, session in backend._sessions.items()}
    assert sessions == {2: 2, 1: 1}


def test_threads_share_a_session(saved: Path) -> None:
    backend, rng = load(saved, "onnx"), np.random.default_rng(0)
    batches = [Batch(rng.integers(5, 50, (3, 16), np.int32), np.full(3, 16, np.int32)) for _ in range(16)]
    expected = [backend.log_odds(batch) for batch in batches]
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        np.testing.assert_allclose(list(pool.map(backend.log_odds, batches)), expected, atol=1e-5)
    assert set(backend._sessions) <= {1, torch.get_num_threads()}


@pytest.mark.parametrize(
    ("name", "device", "missing"),
    [
        ("torch", "cpu", None),
        ("torch-compile", "cuda", None),
        ("torch-compile", "cpu", "C++ compiler"),
        ("torch-bf16", "cpu", "bf16"),
        ("torch-int8", "cpu", "VNNI"),
        ("onnx", "cpu", "onnxscript"),
        ("onnx-int8", "cpu", "onnxscript"),
    ],
)
def test_unavailable_backends_name_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, name: str, device: str, missing: str | None
) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda package: None if package == "onnxscript" else package)
    monkeypatch.setattr(torch_backends.shutil, "which", lambda _: None)
    monkeypatch.setattr(model, "has_bf16", lambda _: False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    reason = backends.get(name).unavailable_reason(device)
    assert reason is None if missing is None else missing in str(reason)
