"""Floating point operations, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detect_ai import flops, model
from tests.unit.conftest import config_of


@pytest.fixture
def network(encoder):
    return model.build(config_of(encoder), seed=0)


def matrices(network):
    return sum(p.numel() for name, p in network.named_parameters() if p.ndim == 2 and "embeddings" not in name)


def test_a_token_costs_six_operations_a_weight_and_attention_grows_with_the_square(network):
    counter = flops.Counter(network)
    layers, width = network.config.num_hidden_layers, network.config.hidden_size
    for lengths in ([10], [10, 30]):
        expected = sum(6 * matrices(network) * n + 12 * layers * width * n**2 for n in lengths)
        assert counter.of_training(np.asarray(lengths, np.int32)) == expected


def test_frozen_weights_are_only_read_forwards(network):
    network.requires_grad_(False)
    layers, width = network.config.num_hidden_layers, network.config.hidden_size
    expected = 2 * matrices(network) * 10 + 4 * layers * width * 100
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
