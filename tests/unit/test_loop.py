"""Parts of the training loop that need no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from detect_ai import model
from detect_ai.config import ModelConfig, TrainConfig
from detect_ai.loop import lr_share, make_optimizer


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(decay: str) -> None:
    shares = [lr_share(step, 100, 0.1, decay) for step in range(101)]
    assert shares[:10] == [(step + 1) / 10 for step in range(10)]
    assert max(shares) == shares[9] == 1
    assert shares[9:] == sorted(shares[9:], reverse=True)
    assert shares[100] == pytest.approx(0)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert lr_share(0, 100, 0.0, "linear") == 1


def test_half_way_cosine_and_linear_decay_meet() -> None:
    assert lr_share(50, 100, 0.0, "cosine") == pytest.approx(lr_share(50, 100, 0.0, "linear")) == pytest.approx(0.5)


def test_biases_and_norms_do_not_decay(encoder: Path) -> None:
    network = model.build(ModelConfig(path=str(encoder), window=64, stride=48), seed=0)
    decayed, rest = make_optimizer(network, TrainConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in rest["params"])
    assert len(decayed["params"]) + len(rest["params"]) == len(list(network.parameters()))
