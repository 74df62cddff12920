"""An encoder takes a mask as it is: nothing is read back from the device while the model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import RobertaConfig, RobertaForSequenceClassification

from detect_ai.core.config import ModelConfig, TrainConfig
from detect_ai.models import encoder as model
from detect_ai.models.backends.torch import model_inputs
from detect_ai.models.batch import Batch
from detect_ai.models.masking import keep_mask
from detect_ai.training.data import Microbatch
from detect_ai.training.trainer import Learner

CPU = torch.device("cpu")


class Readings(TorchDispatchMode):
    """Counts the values that Python reads from tensors: each makes it wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@contextmanager
def as_transformers_has_it(network: Any) -> Iterator[None]:
    encoder = network.base_model
    hooks = dict(encoder._forward_pre_hooks)
    encoder._forward_pre_hooks.clear()
    yield
    encoder._forward_pre_hooks.update(hooks)


def batch(lengths: tuple[int, ...]) -> Batch:
    ids = np.random.default_rng(0).integers(5, 25, (len(lengths), 16)).astype(np.int32)
    return Batch(ids, np.asarray(lengths, np.int32))


@pytest.fixture(params=["encoder", "mean"])
def network(request: pytest.FixtureRequest, encoder: Path) -> Any:
    return model.build(ModelConfig(path=str(encoder), window=64, stride=48, pooling=request.param), seed=0)


def test_a_mask_that_would_hide_nothing_is_left_out() -> None:
    assert model_inputs(batch((16, 16)), CPU).keys() == {"input_ids"}
    assert model_inputs(batch((16, 15)), CPU).keys() == {"input_ids", "attention_mask"}


def test_without_a_mask_logits_are_those_of_one_that_hides_nothing(network: Any) -> None:
    network.eval()
    inputs = model_inputs(batch((16, 16)), CPU)
    masked = network(**inputs, attention_mask=torch.ones(2, 16, dtype=torch.int64)).logits
    with Readings() as readings:
        found = network(**inputs).logits
    assert torch.allclose(found, masked, atol=1e-6)
    assert readings.count == 0


@pytest.mark.parametrize("lengths", [(16, 3, 9), (16, 16), (1,)])
def test_logits_and_gradients_are_those_of_transformers_own_mask(network: Any, lengths: tuple[int, ...]) -> None:
    def found() -> list[torch.Tensor]:
        network.zero_grad()
        logits = network(**model_inputs(batch(lengths), CPU)).logits
        logits.square().sum().backward()
        return [logits.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]

    ours = found()
    with as_transformers_has_it(network):
        for one, other in zip(ours, found(), strict=True):
            assert torch.allclose(one, other, atol=1e-6)


def test_a_step_of_training_reads_nothing_back(network: Any) -> None:
    """Else a GPU runs dry at every step. What a step gave is read when the next one is on its way."""
    learner = Learner(TrainConfig(precision="fp32", epochs=1), network, CPU, world_size=1, steps_per_epoch=9)
    part = Microbatch(
        batch((16, 3, 9)), np.asarray([0, 1, 1]), np.ones(3, np.float32), np.arange(3), 3.0, slot=0, last=True, epoch=0
    )
    learner.step([part])
    learner.settle()
    with Readings() as readings:
        learner.step([part])
    assert readings.count == 0
    with as_transformers_has_it(network), Readings() as readings:
        network(**model_inputs(part.batch, CPU))
    assert readings.count == 1, "transformers no longer looks at the mask: detect_ai.models.masking can go"


def test_encoders_of_other_kinds_stay_as_they_are() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    other = RobertaForSequenceClassification(RobertaConfig(vocab_size=30, **sizes))
    keep_mask(other)
    assert not other.base_model._forward_pre_hooks


def test_a_loaded_model_is_as_fast_as_a_built_one(network: Any, tmp_path: Path) -> None:
    model.save(network, tmp_path)
    loaded = model.load(tmp_path)
    assert len(loaded.base_model._forward_pre_hooks) == 1
    assert loaded.base_model.config._attn_implementation == "sdpa", "the fast attention"
