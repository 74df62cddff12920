"""Floating point operations, by hand."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detect_ai.models import encoder as model
from detect_ai.models import flops
from tests.unit.conftest import config_of


@pytest.fixture
def network(encoder):
    return model.build(config_of(encoder), seed=0)


def matrices(network):
    """Numbers in the matrices that are applied to every token, and in those of one vector of a row."""
    named = {name: p.numel() for name, p in network.named_parameters() if p.ndim == 2 and "embeddings" not in name}
    last = (
        f"layer.{network.config.num_hidden_layers - 1}."
        if getattr(network.config, "pooling", "encoder") == "encoder"
        else "no layer"
    )
    once = {name for name in named if last in name and "key" not in name and "value" not in name}
    once |= {name for name in named if "pooler" in name or name.startswith("classifier")}
    assert "classifier.weight" in once
    return sum(n for name, n in named.items() if name not in once), sum(named[name] for name in once)


def test_a_token_costs_six_operations_a_weight_and_attention_grows_with_the_square(network):
    counter = flops.Counter(network)
    layers, width = network.config.num_hidden_layers, network.config.hidden_size
    every, once = matrices(network)
    for lengths in ([10], [10, 30]):
        expected = sum(6 * every * n + 6 * once + 12 * width * ((layers - 1) * n**2 + n) for n in lengths)
        assert counter.of_training(np.asarray(lengths, np.int32)) == expected


def test_of_a_model_whose_head_reads_all_tokens_every_layer_counts_whole(encoder):
    network = model.build(dataclasses.replace(config_of(encoder), pooling="mean"), seed=0)
    layers, width = network.config.num_hidden_layers, network.config.hidden_size
    every, once = matrices(network)
    expected = 6 * every * 10 + 6 * once + 12 * layers * width * 100
    assert flops.Counter(network).of_training(np.asarray([10], np.int32)) == expected


def test_frozen_weights_are_only_read_forwards(network):
    network.requires_grad_(False)
    layers, width = network.config.num_hidden_layers, network.config.hidden_size
    every, once = matrices(network)
    expected = 2 * every * 10 + 2 * once + 4 * width * ((layers - 1) * 100 + 10)
    assert flops.Counter(network).of_training(np.asarray([10], np.int32)) == expected


def test_below_a_head_that_alone_learns_nothing_goes_backwards(network):
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    layers, width = network.config.num_hidden_layers, network.config.hidden_size
    every, once = matrices(network)
    head = network.classifier.weight.numel()
    expected = 2 * every * 10 + 2 * (once - head) + 6 * head + 4 * width * ((layers - 1) * 100 + 10)
    assert flops.Counter(network).of_training(np.asarray([10], np.int32)) == expected


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA A100-SXM4-40GB", None, 19.5e12),
        ("Tesla T4", torch.float16, 65e12),
        ("NVIDIA L4", torch.bfloat16, 121e12),
        ("a card of tomorrow", torch.bfloat16, None),
    ],
)
def test_the_peak_is_that_of_the_card_and_the_precision(monkeypatch, name, dtype, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert flops.peak(SimpleNamespace(type="cuda"), dtype) == expected


def test_of_a_cpu_no_peak_is_known():
    assert flops.peak(torch.device("cpu"), torch.bfloat16) is None
