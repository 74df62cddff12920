"""The network: built on an encoder, saved and loaded."""

import json
import shutil

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

from detect_ai.core.errors import BundleError, ConfigError
from detect_ai.models import encoder as model
from detect_ai.models.backends.torch import TorchBackend
from detect_ai.models.batch import collate
from tests.fixtures import tiny_models
from tests.unit.conftest import config_of

SIZES = {"vocab_size": 300, "max_position_embeddings": 66}
NARROW = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, **SIZES}
ALL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


@pytest.fixture(scope="module")
def distilbert(tmp_path_factory, encoder):
    """A directory in the hub's format."""
    folder = tmp_path_factory.mktemp("distilbert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(encoder / name, folder)
    vocabulary = len(json.loads((encoder / "tokenizer.json").read_text())["model"]["vocab"])
    torch.manual_seed(1)
    sizes = SIZES | {"vocab_size": vocabulary}
    DistilBertModel(DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """Another one: byte-level BPE, padding with 1, positions that count from after the padding's."""
    folder = tmp_path_factory.mktemp("roberta")
    bpe = ByteLevelBPETokenizer()
    texts = [str(row["text"]) for row in tiny_models.rows(20)]
    bpe.train_from_iterator(texts, 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False)
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>", unk_token="<unk>", **special)
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    config = RobertaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, type_vocab_size=1, **SIZES
    )
    RobertaModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mpnet(tmp_path_factory, roberta):
    """One that biases attention by distance."""
    folder = tmp_path_factory.mktemp("mpnet")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(roberta / name, folder)
    torch.manual_seed(1)
    MPNetModel(MPNetConfig(**NARROW, num_hidden_layers=2)).save_pretrained(folder)
    return folder


def refusal(call, *arguments, kind=ConfigError):
    with pytest.raises(kind) as refused:
        call(*arguments)
    return str(refused.value)


def tensors(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# Building


def test_the_new_head_is_drawn_from_the_seed(encoder):
    first, again, other = (tensors(model.build(config_of(encoder), seed)) for seed in (0, 0, 1))
    assert same(first, again)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_the_encoder_is_the_pretrained_one(encoder):
    built, pretrained = tensors(model.build(config_of(encoder), 0)), load_file(encoder / "model.safetensors")
    assert pretrained
    for name, tensor in pretrained.items():
        assert torch.equal(built[f"bert.{name}"], tensor)


def test_the_head_tells_human_from_ai(encoder):
    built = model.build(config_of(encoder), 0)
    assert built.config.id2label == {0: "human", 1: "ai"}
    assert built.config.label2id == {"human": 0, "ai": 1}
    assert built.classifier.out_features == 2


@pytest.mark.parametrize("pooling", ["encoder", "mean"])
def test_the_first_layers_can_be_kept_alone(encoder, tmp_path, pooling):
    whole, short = (model.build(config_of(encoder, pooling=pooling, layers=layers), 0) for layers in (0, 1))
    kept, all_of_them = short.base_model.encoder.layer, whole.base_model.encoder.layer
    assert (len(kept), len(all_of_them)) == (1, 2)
    assert torch.equal(kept[0].output.dense.weight, all_of_them[0].output.dense.weight)
    model.save(short, tmp_path)
    assert len(model.load(tmp_path).base_model.encoder.layer) == 1


def test_more_layers_than_there_are_are_refused(encoder):
    with pytest.raises(ConfigError, match=f"model.layers=3: expected at most 2, the layers of {encoder}"):
        model.build(config_of(encoder, layers=3), 0)


def test_a_window_larger_than_the_positions_is_refused(encoder):
    assert model.build(config_of(encoder, window=128), 0) is not None
    assert refusal(model.build, config_of(encoder, window=129), 0) == (
        f"model.window=129: expected at most 128, the positions of {encoder}"
    )


def test_the_positions_that_roberta_keeps_for_padding_hold_no_token(roberta):
    assert refusal(model.build, config_of(roberta, window=65), 0) == (
        f"model.window=65: expected at most 64, the positions of {roberta}"
    )


@pytest.mark.parametrize("kind", ["encoder", "distilbert", "roberta"])
@pytest.mark.parametrize(("dropout", "attention"), [(0.0, 0.0), (0.3, 0.2)])
def test_dropout_is_what_the_configuration_says(request, kind, dropout, attention):
    config = config_of(request.getfixturevalue(kind), dropout=dropout, attention_dropout=attention)
    built = model.build(config, 0)
    rates = {name: module.p for name, module in built.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert rates
    for name, rate in rates.items():
        assert rate == (attention if "attention.self" in name or "attention.dropout" in name else dropout), name
    wanted = {"attention_probs_dropout_prob", "attention_dropout"} & set(vars(built.config))
    assert [getattr(built.config, name) for name in wanted] == [attention]


@pytest.mark.parametrize("kind", ["encoder", "distilbert", "roberta", "mpnet"])
def test_a_local_directory_in_the_hubs_format_works_by_configuration(request, kind, tmp_path):
    config = config_of(request.getfixturevalue(kind))
    tokenizer = model.load_tokenizer(config)
    built = model.build(config, 0)
    full = tokenizer.encode([" ".join(str(row["text"]) for row in tiny_models.rows(4))])[0][: config.window - 2]
    batch = collate([full, full[:5]], tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id)
    assert batch.lengths.tolist() == [64, 7]
    backend = TorchBackend(built, torch.device("cpu"))
    scores = backend.log_odds(batch)
    alone = backend.log_odds(collate([full[:5]], tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id))
    assert scores.shape == (2,)
    assert scores[1] == pytest.approx(alone[0], abs=1e-5)
    model.save(built, tmp_path)
    again = TorchBackend(model.load(tmp_path), torch.device("cpu")).log_odds(batch)
    assert np.array_equal(again, scores)


@pytest.mark.parametrize("kind", ["encoder", "distilbert", "roberta", "mpnet"])
def test_a_mean_pooled_model_reads_all_tokens_but_padding(request, kind, tmp_path):
    network = model.build(config_of(request.getfixturevalue(kind), pooling="mean"), seed=0).eval()
    ids, mask = torch.randint(5, 40, (2, 12)), torch.ones(2, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    with torch.inference_mode():
        logits = network(input_ids=ids, attention_mask=mask).logits
        states = network.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = network.classifier(torch.stack([states[0].mean(0), states[1, :7].mean(0)]))
    assert torch.allclose(logits, expected, atol=1e-6)
    model.save(network, tmp_path)
    loaded = model.load(tmp_path)
    assert same(tensors(loaded), tensors(network))
    with torch.inference_mode():
        assert torch.allclose(loaded(input_ids=ids, attention_mask=mask).logits, logits, atol=1e-6)


def test_a_mean_pooled_model_keeps_the_pretrained_encoder_and_draws_its_head_from_the_seed(encoder):
    one, again, other = (model.build(config_of(encoder, pooling="mean"), seed=seed) for seed in (0, 0, 1))
    assert same(tensors(one), tensors(again))
    assert same(tensors(one.encoder), tensors(other.encoder))
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    pretrained = load_file(encoder / "model.safetensors")
    found = tensors(one.encoder)
    assert all(torch.equal(value, pretrained[name]) for name, value in found.items() if name in pretrained)
    assert found.keys() & pretrained.keys()


def test_a_mean_pooled_model_that_lacks_a_tensor_is_refused(encoder, tmp_path):
    model.save(model.build(config_of(encoder, pooling="mean"), seed=0), tmp_path)
    change_tensors(tmp_path, lambda held: held.pop("classifier.weight"))
    assert "do not fit the architecture: {'missing_keys': ['classifier.weight']}" in refusal(
        model.load, tmp_path, kind=BundleError
    )


@pytest.mark.parametrize("pooling", ["encoder", "mean"])
@pytest.mark.parametrize(("what", "learns"), [("nothing", "all"), ("embeddings", "rest"), ("encoder", "head")])
def test_what_is_frozen_keeps_its_weights(encoder, pooling, what, learns):
    network = model.build(config_of(encoder, pooling=pooling), seed=0)
    model.freeze(network, what)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    words = {name for name, _ in network.named_parameters() if "word_embeddings" in name}
    head = {name for name, _ in network.named_parameters() if name.startswith("classifier")}
    everything = {name for name, _ in network.named_parameters()}
    assert words
    assert trained == {"all": everything, "rest": everything - words, "head": head}[learns]


def test_log_odds_are_of_ai_against_human(encoder):
    built = model.build(config_of(encoder), 0).eval()
    ids = torch.tensor([[2, 7, 8, 9, 3, 0, 0, 0]])
    with torch.inference_mode():
        human, ai = built(input_ids=ids, attention_mask=(ids > 0).long()).logits[0].double()
    batch = collate([np.asarray([7, 8, 9], np.int32)], np.asarray([2], np.int32), np.asarray([3], np.int32), 0)
    assert TorchBackend(built, torch.device("cpu")).log_odds(batch) == pytest.approx([float(ai - human)], abs=1e-6)


@pytest.mark.parametrize(("precision", "expected"), [("fp32", None), ("bf16", torch.bfloat16)])
def test_a_precision_that_is_asked_for_is_taken(precision, expected):
    assert model.autocast_dtype(precision, torch.device("cpu")) == expected


@pytest.mark.parametrize(("hardware", "expected"), [(True, torch.bfloat16), (False, None)])
def test_auto_is_bf16_where_the_hardware_has_it(monkeypatch, hardware, expected):
    monkeypatch.setattr(model, "has_bf16", lambda device: hardware)
    assert model.autocast_dtype("auto", torch.device("cpu")) == expected


# Saving and loading


@pytest.fixture
def saved(encoder, tmp_path):
    folder = tmp_path / "saved"
    model.save(model.build(config_of(encoder), 0), folder)
    return folder


def test_a_saved_model_is_two_files_and_loads_as_it_was(encoder, saved):
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    loaded = model.load(saved)
    assert same(tensors(loaded), tensors(model.build(config_of(encoder), 0)))
    assert not loaded.training
    assert {tensor.dtype for tensor in loaded.state_dict().values() if tensor.is_floating_point()} == {torch.float32}


def test_saving_and_loading_keep_the_verbosity_of_transformers(encoder, tmp_path):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    model.save(model.build(config_of(encoder), 0), tmp_path)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def change_tensors(folder, change):
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_tensor_is_refused(saved):
    change_tensors(saved, lambda held: held.pop("classifier.bias"))
    assert refusal(model.load, saved, kind=BundleError) == (
        f"{saved}: the weights do not fit the architecture: {{'missing_keys': ['classifier.bias']}}"
    )


def test_a_tensor_too_many_is_refused(saved):
    change_tensors(saved, lambda held: held.update({"extra.weight": torch.zeros(2)}))
    assert refusal(model.load, saved, kind=BundleError) == (
        f"{saved}: the weights do not fit the architecture: {{'unexpected_keys': ['extra.weight']}}"
    )


def unreadable(folder):
    return f"{folder}: expected a readable config.json and model.safetensors: "


def test_a_tensor_of_another_shape_is_refused(saved):
    change_tensors(saved, lambda held: held.update({"classifier.bias": torch.zeros(3)}))
    assert refusal(model.load, saved, kind=BundleError).startswith(unreadable(saved))


def test_a_truncated_file_is_refused(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert refusal(model.load, saved, kind=BundleError) == (
        f"{unreadable(saved)}Error while deserializing header: incomplete metadata, file not fully covered"
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_refused(saved, name):
    (saved / name).unlink()
    assert refusal(model.load, saved, kind=BundleError).startswith(unreadable(saved))


def test_pickled_weights_are_never_loaded(saved):
    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    assert refusal(model.load, saved, kind=BundleError).startswith(unreadable(saved))


@pytest.mark.parametrize(
    ("kind", "config", "attention"),
    [
        (DebertaV2Model, DebertaV2Config(num_hidden_layers=2, **NARROW), "eager"),
        (ModernBertModel, ModernBertConfig(num_hidden_layers=2, **NARROW, **ALL_TOKENS), "sdpa"),
    ],
)
def test_the_mean_of_any_encoder_is_loaded_as_it_was_built(encoder, tmp_path, kind, config, attention):
    """With the first layer alone, and with the attention that the encoder has."""
    kind(config).save_pretrained(tmp_path / "encoder")
    built = model.build(config_of(tmp_path / "encoder", pooling="mean", layers=1), 0).eval()
    (tmp_path / "saved").mkdir()
    model.save(built, tmp_path / "saved")
    loaded = model.load(tmp_path / "saved")
    inputs = {"input_ids": torch.arange(5, 21).reshape(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}
    assert torch.equal(loaded(**inputs).logits, built(**inputs).logits)
    assert loaded.encoder.config._attn_implementation == attention
