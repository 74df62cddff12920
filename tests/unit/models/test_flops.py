from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detect_ai.models import encoder as model
from detect_ai.models import flops
from tests.unit.conftest import config_of


@pytest.mark.parametrize("pooling", ["encoder", "mean"])
def test_training_costs_six_flops_per_weight_and_attention_by_square(encoder, pooling):
    network = model.build(config_of(encoder, pooling=pooling), seed=0)
    config = network.base_model.config
    weights = sum(p.numel() for name, p in network.named_parameters() if p.ndim == 2 and "embeddings" not in name)
    expected = sum(6 * weights * n + 12 * config.num_hidden_layers * config.hidden_size * n**2 for n in (10, 30))
    assert flops.Counter(network).of_training(np.asarray([10, 30], np.int32)) == expected


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA A100-SXM4-40GB", None, 19.5e12),
        ("Tesla T4", torch.float16, 65e12),
        ("NVIDIA L4", torch.bfloat16, 121e12),
        ("an unlisted card", torch.bfloat16, None),
    ],
)
def test_peak_is_that_of_card_and_precision(monkeypatch, name, dtype, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert flops.peak(SimpleNamespace(type="cuda"), dtype) == expected


def test_peak_of_a_cpu_is_unknown():
    assert flops.peak(torch.device("cpu"), torch.bfloat16) is None
