"""Training and scoring on a GPU: `make test-gpu`. Without a GPU these tests fail; no other command runs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detect_ai.core.config import ModelConfig, TrainConfig
from detect_ai.core.errors import ResourceError
from detect_ai.models import encoder as model
from detect_ai.models.backends.torch import TorchBackend
from detect_ai.models.batch import Batch
from detect_ai.training import checkpoint
from detect_ai.training.batch_plan import Microbatch
from detect_ai.training.trainer import Trainer
from detect_ai.training.worker import train_step

ROWS, LENGTH = 16, 64


@pytest.fixture(scope="module")
def device() -> Iterator[torch.device]:
    assert torch.cuda.is_available(), "these tests need a GPU"
    yield torch.device("cuda")
    torch.cuda.empty_cache()


def network(encoder: Path, **changes: Any) -> Any:
    return model.build(ModelConfig(path=str(encoder), window=LENGTH, stride=48, **changes), seed=0)


def trainer_of(module: Any, device: torch.device, **changes: Any) -> Trainer:
    config = TrainConfig(**{"lr": 1e-3, "epochs": 1, "warmup": 0.0, **changes})
    return Trainer(config, module.to(device), device, world_size=1, steps_per_epoch=20)


def part(seed: int = 0, rows: int = ROWS) -> Microbatch:
    """Random token ids and labels; the rows differ in length."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(LENGTH // 2, LENGTH + 1, rows).astype(np.int32)
    batch = Batch(rng.integers(5, 25, (rows, LENGTH)).astype(np.int32), lengths)
    labels = rng.integers(0, 2, rows)
    return Microbatch(batch, labels, np.ones(rows, np.float32), np.arange(rows), float(rows), slot=0, last=True)


def losses(trainer: Trainer, count: int) -> list[float]:
    values = []
    for seed in range(count):
        train_step(trainer, [part(seed)])
        trainer.synchronize()
        values.append(trainer.since_log.metrics()["train_loss"])
    return values


@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-4), ("bf16", 0.02), ("auto", 0.02)])
def test_losses_match_the_cpu(encoder: Path, device: torch.device, precision: str, within: float) -> None:
    expected = losses(trainer_of(network(encoder), torch.device("cpu"), precision="fp32"), 6)
    trainer = trainer_of(network(encoder), device, precision=precision)
    assert losses(trainer, 6) == pytest.approx(expected, abs=within)
    assert trainer.dtype == (None if precision == "fp32" else torch.bfloat16)


def test_step_returns_before_the_gpu_is_done(encoder: Path, device: torch.device) -> None:
    trainer = trainer_of(network(encoder), device)
    losses(trainer, 2)
    train_step(trainer, [part()])  # completes while the next one is in the queue
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    train_step(trainer, [part()])
    assert not torch.cuda.current_stream().query(), "the step waited"
    trainer.synchronize()
    assert torch.cuda.current_stream().query()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_run_ends_with_equal_parameters(
    encoder: Path, device: torch.device, precision: str, tmp_path: Path
) -> None:
    """With dropout, whose random draws depend only on the step."""

    def fresh() -> Trainer:
        return trainer_of(network(encoder, dropout=0.2), device, precision=precision)

    whole, half, other = fresh(), fresh(), fresh()
    for seed in range(6):
        train_step(whole, [part(seed)])
    for seed in range(3):
        train_step(half, [part(seed)])
    checkpoint.write_state(half.state(), tmp_path)
    other.module.load_state_dict(half.module.state_dict())
    other.load_state(checkpoint.read_state(tmp_path))
    for seed in range(3, 6):
        train_step(other, [part(seed)])
    for value, expected in zip(other.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.allclose(value, expected, atol=1e-5)


def test_out_of_memory_names_batch_and_remedy(encoder: Path, device: torch.device) -> None:
    trainer = trainer_of(network(encoder), device)
    torch.cuda.empty_cache()
    used = torch.cuda.memory_reserved() + 32 * 2**20
    torch.cuda.set_per_process_memory_fraction(used / torch.cuda.get_device_properties(device).total_memory)
    try:
        with pytest.raises(
            ResourceError, match=r"step 1: no memory left on cuda for 60000 rows of 64 tokens"
        ) as refused:
            train_step(trainer, [part(rows=60_000)])
        assert "lower train.microbatch_size" in str(refused.value)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_joined_microbatches_train_alike(encoder: Path, device: torch.device) -> None:
    plain, joining = trainer_of(network(encoder), device), trainer_of(network(encoder), device)
    joining.fit_memory(LENGTH)
    assert joining.max_tokens > 4 * ROWS * LENGTH
    assert all(p.grad is None for p in joining.module.parameters())
    parts = [replace(part(seed), step_weight=4.0 * ROWS) for seed in range(4)]
    for trainer in (plain, joining):
        train_step(trainer, parts)
        trainer.synchronize()
    for value, expected in zip(joining.module.parameters(), plain.module.parameters(), strict=True):
        assert torch.allclose(value, expected, atol=1e-4)


@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-3), ("auto", 0.1)])
def test_scores_match_the_cpu(encoder: Path, device: torch.device, precision: str, within: float) -> None:
    batch = part().batch
    expected = TorchBackend(network(encoder), torch.device("cpu")).log_odds(batch)
    scores = TorchBackend(network(encoder), device, precision).log_odds(batch)
    np.testing.assert_allclose(scores, expected, atol=within)


def test_compiled_model_trains_alike_at_every_shape(encoder: Path, device: torch.device) -> None:
    plain = trainer_of(network(encoder), device, precision="fp32")
    compiled = trainer_of(network(encoder), device, precision="fp32", compile=True)
    for seed, rows in enumerate((16, 8, 3, 16)):
        step = []
        for trainer in (plain, compiled):
            train_step(trainer, [part(seed, rows)])
            trainer.synchronize()
            step.append(trainer.since_log.metrics()["train_loss"])
        assert step[1] == pytest.approx(step[0], abs=1e-4)
