"""The mean-pooled architecture, and how other libraries read a bundle."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from detect_ai.models import encoder as model
from detect_ai.models.backends.torch import TorchBackend
from detect_ai.models.batch import collate
from tests.fixtures import tiny_models
from tests.unit.conftest import config_of


@pytest.fixture(params=["encoder", "mean"])
def bundle(request, encoder, tmp_path):
    """The files of a bundle that other libraries read, with the pooling and the network."""
    config = config_of(encoder, pooling=request.param)
    network = model.build(config, 0)
    network.classifier.weight.data *= 50
    model.save(network, tmp_path)
    model.load_tokenizer(config).save(tmp_path, config.window)
    return tmp_path, request.param, network.eval()


def loads_in_another_process(folder, imports):
    load = "transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])"
    code = [sys.executable, "-c", f"import sys, transformers\n{imports}\n{load}", str(folder)]
    return subprocess.run(code, capture_output=True, text=True, check=False)


def test_mean_is_over_tokens_without_padding(encoder):
    network = model.build(config_of(encoder, pooling="mean"), seed=0).eval()
    ids, mask = torch.randint(5, 40, (2, 12)), torch.ones(2, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    with torch.inference_mode():
        logits = network(input_ids=ids, attention_mask=mask).logits
        states = network.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = network.classifier(torch.stack([states[0].mean(0), states[1, :7].mean(0)]))
    assert torch.allclose(logits, expected, atol=1e-6)


def test_plain_transformers_loads_only_the_pooling_it_knows(bundle):
    folder, pooling, _ = bundle
    plain = loads_in_another_process(folder, "")
    assert (plain.returncode == 0) == (pooling == "encoder")
    assert ("detect_ai_mean_pooled" in plain.stderr) == (pooling == "mean")
    assert loads_in_another_process(folder, "import detect_ai").returncode == 0


def test_scores_in_transformers_equal_ours(bundle):
    folder, _, network = bundle
    texts = [str(row["text"]) for row in tiny_models.rows(3, low=10, high=200)]
    ours = model.load_tokenizer(config_of(folder))
    content = 64 - ours.num_special
    rows = collate([ids[:content] for ids in ours.encode(texts)], ours.prefix, ours.suffix, ours.pad_id)
    expected = TorchBackend(network, torch.device("cpu")).log_odds(rows)
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == 64
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        logits = loaded(**inputs).logits.double()
    np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).numpy(), expected, atol=1e-5)
    answers = pipeline("text-classification", model=str(folder), device="cpu")(texts, truncation=True)
    assert [answer["label"] for answer in answers] == ["ai" if score > 0 else "human" for score in expected]
    sure = 1 / (1 + np.exp(-np.abs(expected)))
    np.testing.assert_allclose([answer["score"] for answer in answers], sure, atol=1e-5)


def test_saved_files_name_no_local_path(bundle):
    folder, pooling, _ = bundle
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == ("detect_ai_mean_pooled" if pooling == "mean" else "bert")
    assert not config.get("encoder", config).get("_name_or_path")
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 64
