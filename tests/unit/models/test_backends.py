from __future__ import annotations

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
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
from detect_ai.models.backends import layers
from detect_ai.models.backends import torch as torch_backends
from detect_ai.models.batch import Batch
from tests.unit.conftest import config_of

# Largest deviation of log-odds with a range of four units from PyTorch in fp32. The 8-bit value is for an untrained
# encoder with enlarged weights; the stage `export` measures the loss of a trained one (docs/EXPORT.md).
TOLERANCES = {"torch": 1e-5, "torch-bf16": 0.1, "torch-int8": 1}
CPU = torch.device("cpu")
PACKS = pytest.mark.skipif(not layers.can_pack(torch.float32), reason="PyTorch has no oneDNN or no MKL")
BF16 = ["torch-bf16"] if model.has_bf16(CPU) else []
INT8 = ["torch-int8"] if torch_backends.Int8Backend.unavailable_reason("cpu") is None else []


@pytest.fixture(scope="module", params=["encoder", "mean"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """A classifier with a head that separates the classes."""
    folder = tmp_path_factory.mktemp("backends")
    network = model.build(config_of(encoder, pooling=request.param), 0)
    for weights in network.parameters():
        if weights.ndim >= 2:
            weights.data *= 8
    network.classifier.weight.data *= 20
    assert set(TOLERANCES) == set(backends.BACKENDS)
    model.save(network, folder)
    return folder


@pytest.fixture(scope="module")
def texts() -> list[NDArray[np.int32]]:
    """Token ids of documents of many lengths, some longer than a window."""
    rng = np.random.default_rng(0)
    return [rng.integers(5, 200, length).astype(np.int32) for length in (1, 7, 8, 30, 31, 62, 63, 200)]


def load(saved: Path, name: str, device: str = "cpu") -> Any:
    return backends.get(name).load(saved, device, backend_precision(name))


def backend_precision(name: str) -> str:
    return "bf16" if name == "torch-bf16" else "fp32"


def scorer(saved: Path, name: str, encoder: Path) -> Scorer:
    return Scorer(model.load_tokenizer(config_of(encoder)), load(saved, name), 64, 48, batch_tokens=256)


@pytest.mark.parametrize("name", ["torch", "torch-bf16", *INT8])
def test_scores_match_torch_in_fp32(saved: Path, encoder: Path, texts: list[Any], name: str) -> None:
    plain = torch_backends.TorchBackend(model.load(saved), CPU)
    expected = Scorer(model.load_tokenizer(config_of(encoder)), plain, 64, 48, batch_tokens=256).score(texts)
    assert np.ptp(expected) > 4
    scores = scorer(saved, name, encoder).score(texts)
    np.testing.assert_allclose(scores, expected, atol=TOLERANCES[name] * max(1, np.ptp(expected) / 4))
    assert np.corrcoef(scores, expected)[0, 1] > 0.98


@PACKS
@pytest.mark.parametrize("name", ["torch", *BF16, *INT8])
def test_scores_do_not_depend_on_the_batch(name: str) -> None:
    """In a wide network: with padding, a difference of 1e-7 in attention would round bytes otherwise, and become 0.01.

    With AMX, the product of oneDNN in bf16 depends on the number of rows.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 1536}
    network = BertForSequenceClassification(BertConfig(**SIZES | sizes)).eval()
    for weights in network.parameters():
        weights.data *= 2
    if name == "torch-int8":
        layers.quantise(network)
    else:
        layers.pack(network, torch.bfloat16 if name == "torch-bf16" else torch.float32)
    backend, rng = torch_backends.TorchBackend(network, CPU, backend_precision(name)), np.random.default_rng(0)
    lengths = np.sort(rng.integers(8, 120, 24).astype(np.int32))[::-1]
    ids = rng.integers(5, 64, (24, 120), np.int32)
    alone = [backend.log_odds(Batch(ids[i : i + 1, :n], lengths[i : i + 1])) for i, n in enumerate(lengths)]
    together = backend.log_odds(Batch(ids, lengths))
    tolerance = 0.03 if name == "torch-bf16" and torch.cpu._is_amx_tile_supported() else 1e-5
    np.testing.assert_allclose(together, np.concatenate(alone), atol=tolerance * np.ptp(together), rtol=0)


@PACKS
@pytest.mark.parametrize("dtype", [torch.float32, *([torch.bfloat16] if BF16 else [])])
def test_products_have_few_numbers_of_rows(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also outside the fused layers: oneDNN generates code for each number, which it keeps."""
    torch.manual_seed(0)
    layer, sizes = torch.nn.Linear(32, 16), []
    packed = layers.PackedLinear(layer, dtype)
    multiply = torch.ops.mkldnn._linear_pointwise
    fake = SimpleNamespace(
        mkldnn=SimpleNamespace(_linear_pointwise=lambda x, *a: sizes.append(len(x)) or multiply(x, *a))
    )
    monkeypatch.setattr(layers.torch, "ops", fake)
    for count in range(300):
        x = torch.randn(1, count, 32)
        y, expected = packed(x).float(), layer(x)
        assert y.shape == expected.shape
        torch.testing.assert_close(y, expected, atol=0.05 if dtype is torch.bfloat16 else 1e-5, rtol=0)
    assert len(set(sizes)) == 1 + 16 + 6  # none, up to 128, up to 320


@PACKS
def test_a_window_without_tokens_has_a_score(saved: Path) -> None:
    ids = np.full((2, 8), 7, np.int32)
    scores = load(saved, "torch").log_odds(Batch(ids, np.asarray([8, 0], np.int32)))
    assert np.isfinite(scores[0])


@PACKS
def test_warm_up_computes_all_lengths_of_a_window(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, forward = [], layers.FusedLayer.forward
    monkeypatch.setattr(
        layers.FusedLayer, "forward", lambda s, x, groups: sizes.append(len(x)) or forward(s, x, groups)
    )
    load(saved, "torch").warm_up(200)
    assert set(sizes) == {layers.padded_tokens(tokens) for tokens in range(1, 201)}


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
    with pytest.raises(BundleError, match="no AVX512-VNNI in this CPU: serve the parent"):
        load(saved, "torch-int8")


def test_8_bit_backend_refuses_other_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backends.Int8Backend, "unavailable_reason", lambda _: None)
    model.save(RobertaForSequenceClassification(RobertaConfig(**BERT)), tmp_path)
    with pytest.raises(BundleError, match="expected BERT or DistilBERT with GELU, found RobertaModel"):
        load(tmp_path, "torch-int8")


SIZES = {"vocab_size": 64, "num_labels": 2}
BERT = SIZES | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DISTILBERT = SIZES | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}


NETWORKS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**BERT)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT)),
    "bert with relu": lambda: BertForSequenceClassification(BertConfig(hidden_act="relu", **BERT)),
    "distilbert with relu": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(activation="relu", **DISTILBERT)
    ),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**BERT)),
}


@PACKS
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["fp32", *(["bf16"] if BF16 else []), *(["int8"] if INT8 else [])])
def test_replaced_layers_compute_the_same(name: str, kind: str) -> None:
    torch.manual_seed(0)
    plain = NETWORKS[name]().eval()
    for weights in plain.parameters():
        weights.data += 0.2 * torch.randn_like(weights)
    fast, dtype = copy.deepcopy(plain), torch.bfloat16 if kind == "bf16" else torch.float32
    layers.quantise(fast) if kind == "int8" else layers.pack(fast, dtype)
    kinds = [type(module) for module in fast.modules()]
    assert kinds.count(layers.FusedLayer) == (2 if name in ("bert", "distilbert") else 0)
    assert torch.nn.Linear not in kinds
    ids, mask = torch.randint(5, 64, (3, 9)), torch.tensor([[1] * 9, [1] * 4 + [0] * 5, [1] * 8 + [0]])
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=kind == "bf16"):
        for given in (None, mask):
            expected = plain(input_ids=ids, attention_mask=given).logits.float()
            assert expected.std() > 0.1
            actual = fast(input_ids=ids, attention_mask=given).logits.float()
            tolerance = 1e-4 if kind == "fp32" else 0.15 * float(expected.std())
            torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@pytest.mark.skipif(not INT8, reason="needs a CPU with VNNI")
@pytest.mark.parametrize("gelu", [False, True])
def test_8_bit_products_are_close_to_those_in_fp32(gelu: bool) -> None:
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(384, 64), torch.randn(3, 5, 384) * torch.logspace(-3, 3, 5)[:, None]
    with torch.inference_mode():
        expected = torch.nn.functional.gelu(linear(x)) if gelu else linear(x)
        error = layers.Int8Linear(linear)(x, gelu=gelu) - expected
        assert (error.norm(dim=-1) / linear(x).norm(dim=-1)).max() < 0.02  # of each row, whatever its size


@pytest.mark.skipif(not INT8, reason="needs a CPU with VNNI")
@pytest.mark.parametrize(("instructions", "exact"), [("DEFAULT", "True"), ("AVX512_CORE", "False")])
def test_wrong_sums_of_bytes_are_noticed(monkeypatch: pytest.MonkeyPatch, instructions: str, exact: str) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", instructions)
    code = "from detect_ai.models.backends.layers import multiplies_bytes; print(multiplies_bytes())"
    assert in_process(code) == [exact]


def test_a_failed_replacement_keeps_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError), layers._one_thread():
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["torch", *INT8])
def test_threads_share_a_backend(saved: Path, name: str) -> None:
    backend, rng = load(saved, name), np.random.default_rng(0)
    batches = [Batch(rng.integers(5, 50, (3, 16), np.int32), np.full(3, 16, np.int32)) for _ in range(16)]
    expected = [backend.log_odds(batch) for batch in batches]
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        np.testing.assert_allclose(list(pool.map(backend.log_odds, batches)), expected, atol=1e-3)


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


@pytest.mark.parametrize(
    ("name", "device", "missing"),
    [
        ("torch", "cpu", None),
        ("torch-bf16", "cpu", "bf16"),
        ("torch-int8", "cpu", "VNNI"),
        ("torch-int8", "cuda", "CPUs"),
    ],
)
def test_unavailable_backends_name_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, name: str, device: str, missing: str | None
) -> None:
    monkeypatch.setattr(model, "has_bf16", lambda _: False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    reason = backends.get(name).unavailable_reason(device)
    assert reason is None if missing is None else missing in str(reason)
