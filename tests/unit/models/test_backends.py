import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from detect_ai.core.errors import BundleError
from detect_ai.detector import bundle
from detect_ai.detector.bundle import SPEC_FILE, read_spec
from detect_ai.detector.detector import Detector
from detect_ai.models import backends
from detect_ai.models import encoder as model
from detect_ai.models.backends import int8
from detect_ai.models.backends.onnx import OnnxBackend
from detect_ai.models.backends.torch import TorchBackend
from detect_ai.models.batch import Batch
from detect_ai.release.export import make
from tests.fixtures import tiny_models
from tests.unit.conftest import config_of

# How far log-odds that spread over four units may lie from those of PyTorch at fp32. In 8 bits that is of an untrained
# encoder with enlarged weights; what a trained one loses is measured by the stage (docs/EXPORT.md).
TOLERANCES = {
    "torch": 1e-5,
    "torch-compile": 1e-4,
    "onnx": 1e-4,
    "torch-bf16": 0.1,
    "torch-int8": 1,
    "onnx-int8": 1,
}
COMPILED = pytest.param("torch-compile", marks=pytest.mark.slow)  # C++ is compiled for a minute
FILES = {"torch-int8": {"config.json", int8.WEIGHTS}, "onnx": {"model.onnx"}, "onnx-int8": {"model.onnx"}}


@pytest.fixture(scope="module")
def parent(tiny_bundle, tmp_path_factory):
    """The tiny bundle with a head that tells texts apart."""
    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("parent") / "bundle")
    network = model.load(folder)
    network.classifier.weight.data *= 20
    model.save(network, folder)
    bundle.seal(folder, read_spec(tiny_bundle))
    return folder


@pytest.fixture(scope="module")
def exported(parent, tmp_path_factory):
    """A bundle of every backend."""
    folder = tmp_path_factory.mktemp("exported")
    for name in backends.BACKENDS:
        make(name, parent, folder / name)
    return folder


@pytest.fixture(scope="module")
def texts():
    """Token ids of documents of many lengths, some of more than a window."""
    rng = np.random.default_rng(0)
    return [rng.integers(5, 200, length).astype(np.int32) for length in (1, 7, 8, 30, 31, 62, 63, 200)]


def test_every_backend_has_a_tolerance():
    assert set(TOLERANCES) == set(backends.BACKENDS)


@pytest.mark.parametrize("name", [*(name for name in TOLERANCES if name != "torch-compile"), COMPILED])
def test_a_backend_scores_as_torch_at_fp32_does(exported, parent, texts, name):
    expected = Detector.load(parent).score(texts)
    assert np.ptp(expected) > 4
    found = Detector.load(exported / name).score(texts)
    np.testing.assert_allclose(found, expected, atol=TOLERANCES[name])
    assert np.corrcoef(found, expected)[0, 1] > 0.98


@pytest.mark.parametrize("name", ["torch", "onnx", COMPILED])
def test_without_rounding_a_text_has_the_same_score_alone_and_in_a_batch(exported, texts, name):
    detector = Detector.load(exported / name)
    alone = [detector.score([text])[0] for text in texts]
    np.testing.assert_allclose(alone, detector.score(texts), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"), [("torch-int8", TorchBackend), ("onnx", OnnxBackend), ("torch-compile", TorchBackend)]
)
def test_a_bundle_says_what_runs_it(exported, name, kind):
    backend = Detector.load(exported / name).backend
    assert isinstance(backend, kind)
    assert read_spec(exported / name).backend == name


def test_the_precision_that_a_service_asks_for_is_that_of_torch_alone(exported):
    assert Detector.load(exported / "torch", precision="bf16").backend.dtype is torch.bfloat16
    assert Detector.load(exported / "torch-bf16").backend.dtype is torch.bfloat16
    assert Detector.load(exported / "torch-int8", precision="bf16").backend.dtype is None


@pytest.mark.parametrize("name", backends.BACKENDS)
def test_an_exported_bundle_names_its_parent_and_holds_weights_in_one_form(exported, parent, name):
    spec = read_spec(exported / name)
    assert spec.parent == read_spec(parent).version != spec.version
    assert spec.provenance["export"] == name
    assert set(spec.files) == {"tokenizer.json"} | FILES.get(name, {"config.json", "model.safetensors"})


@pytest.mark.parametrize("name", ["torch-int8", "onnx", "onnx-int8"])
def test_no_weights_are_a_pickle(exported, name):
    for path in (exported / name).iterdir():
        assert not path.read_bytes().startswith((b"PK\x03\x04", b"\x80")), path.name


@pytest.mark.parametrize("name", ["torch-int8", "onnx-int8"])
def test_weights_in_8_bits_take_less_room(exported, name):
    """Those of the layers; a tiny encoder has little else, but ONNX keeps its graph beside them."""
    sizes = {each: max(p.stat().st_size for p in (exported / each).iterdir()) for each in ("onnx", "torch", name)}
    assert sizes[name] < 0.85 * sizes["onnx" if "onnx" in name else "torch"]


# Bundles from before there were backends


def test_a_bundle_for_torch_says_nothing_of_a_backend_as_those_of_old(tiny_bundle):
    assert "backend" not in (tiny_bundle / SPEC_FILE).read_text()
    assert read_spec(tiny_bundle).backend == "torch"


def test_a_backend_of_a_later_version_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported / "onnx", tmp_path / "later")
    spec = bundle.seal(folder, replace(read_spec(folder), backend="abacus"))
    with pytest.raises(BundleError) as refused:
        Detector.load(folder)
    assert str(refused.value) == (
        f"bundle {folder}: backend 'abacus', this version knows torch, torch-bf16, torch-compile, torch-int8, onnx, "
        f"onnx-int8: update detect_ai, or take the bundle that it was exported from, {spec.parent}"
    )


# Compiled


@pytest.mark.slow
def test_what_is_compiled_is_compiled_before_the_first_text_for_all_that_follow(exported, texts):
    detector = Detector.load(exported / "torch-compile", batch_tokens=256)
    detector.score(texts[:1])
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert np.isfinite(detector.score(texts)).all()
        assert np.isfinite(detector.score(texts[3:4])).all()


# Eight bits in PyTorch


def test_rounded_weights_are_within_half_a_step_of_the_exact_ones():
    exact = torch.randn(7, 33) * torch.logspace(-3, 3, 7)[:, None]
    exact[3] = 0
    weight, scale = int8.rounded(exact)
    assert weight.dtype is torch.int8
    assert ((weight * scale[:, None] - exact).abs() <= scale[:, None] / 2 + 1e-6).all()


@pytest.mark.parametrize("pooling", ["encoder", "mean"])
def test_the_head_and_the_embeddings_keep_all_their_bits(encoder, tmp_path, pooling):
    network = model.build(config_of(encoder, pooling=pooling), 0)
    int8.save(network, tmp_path)
    loaded = int8.load(tmp_path).state_dict()
    assert not any("layer.0" in name and name.endswith("dense.weight") for name in loaded)
    exact = network.state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, exact[name]), name
    assert "classifier.weight" in loaded


def test_weights_that_do_not_fit_are_refused(exported, tmp_path, encoder):
    folder = shutil.copytree(exported / "torch-int8", tmp_path / "torn")
    (folder / int8.WEIGHTS).write_bytes((folder / int8.WEIGHTS).read_bytes()[:-8])
    with pytest.raises(BundleError, match=r"the weights of model\.int8\.safetensors do not fit the architecture"):
        int8.load(folder)
    model.save(model.build(config_of(encoder, layers=1), 0), folder)  # an architecture of fewer layers
    shutil.copy(exported / "torch-int8" / int8.WEIGHTS, folder)
    with pytest.raises(BundleError, match="do not fit the architecture"):
        int8.load(folder)


# What does not run


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch-int8", "its backend torch-int8 runs on a CPU only, not on cuda: set use_gpu=false, or take the bundle"),
        (
            "onnx",
            "ONNX Runtime has no CUDAExecutionProvider here, only .*CPUExecutionProvider: install onnxruntime-gpu",
        ),
    ],
)
def test_a_device_that_a_backend_has_not_is_refused(exported, name, message):
    with pytest.raises(BundleError, match=message):
        Detector.load(exported / name, device="cuda")


def test_without_onnx_runtime_the_command_is_named(exported, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(BundleError, match=r"it runs in ONNX Runtime: pip install 'detect-ai\[onnx\]'"):
        Detector.load(exported / "onnx")


def test_onnx_runtime_takes_the_threads_that_torch_has_when_it_is_first_asked(exported):
    backend = Detector.load(exported / "onnx").backend
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        backend.log_odds(Batch(np.full((2, 8), 5, np.int32), np.full(2, 8, np.int32)))
    finally:
        torch.set_num_threads(before)
    assert backend._session.get_session_options().intra_op_num_threads == 2


def test_what_this_machine_lacks_is_said(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "onnxscript" else name)
    monkeypatch.setattr(backends.shutil, "which", lambda _: None)
    monkeypatch.setattr(model, "has_bf16", lambda _: False)
    assert backends.lacking("onnx-int8", "cpu") == "no onnxscript: pip install 'detect-ai[onnx]'"
    assert backends.lacking("torch-compile", "cpu") == "no C++ compiler: install g++"
    assert backends.lacking("torch-compile", "cuda") is None
    assert backends.lacking("torch-bf16", "cpu") == "no bf16 in this hardware"
    assert backends.lacking("torch-int8", "cuda") == "it runs on a CPU only"
    assert backends.lacking("torch-int8", "cpu") is None
    assert backends.lacking("torch", "cpu") is None


def test_the_service_loads_an_exported_bundle_as_any_other(exported):
    verdict = Detector.load(exported / "onnx-int8").detect([tiny_models.text("ai", __import__("random").Random(0))])[0]
    assert verdict.model_version == read_spec(exported / "onnx-int8").version
