"""Optimizer steps, evaluation and resuming on one rank, without a cluster."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detect_ai.core.config import ModelConfig, TrainConfig
from detect_ai.core.errors import ResourceError, TrainingError
from detect_ai.models import encoder as model
from detect_ai.models.batch import Batch
from detect_ai.training import checkpoint
from detect_ai.training import trainer as trainer_module
from detect_ai.training.batch_plan import Microbatch
from detect_ai.training.trainer import Trainer, lr_factor, tokens_that_fit
from detect_ai.training.worker import train_step

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "MAX_GRAD_NORM", 1e9)


def build(encoder: Path, **changes: Any) -> Any:
    return model.build(ModelConfig(path=str(encoder), window=64, stride=48, pooling="encoder", **changes), seed=0)


@pytest.fixture
def network(encoder: Path) -> Any:
    return build(encoder)


def trainer_of(network: Any, rank: int = 0, **changes: Any) -> Trainer:
    settings = {"lr": 1e-3, "epochs": 1, "warmup": 0.0, "precision": "fp32", **changes}
    return Trainer(TrainConfig(**settings), network, CPU, world_size=1, steps_per_epoch=10, rank=rank)


def part(rows: int = 2, weight: float = 1.0, step_weight: float | None = None, seed: int = 0) -> Microbatch:
    rng = np.random.default_rng(seed)
    weights = np.full(rows, weight, np.float32)
    return Microbatch(
        batch=Batch(rng.integers(5, 50, (rows, 8)).astype(np.int32), rng.integers(3, 9, rows).astype(np.int32)),
        labels=np.arange(rows) % 2,
        weights=weights,
        documents=np.arange(rows),
        step_weight=float(weights.sum()) if step_weight is None else step_weight,
        slot=0,
        last=True,
    )


def rows_of(whole: Microbatch, rows: Any) -> Microbatch:
    batch = Batch(whole.batch.input_ids[rows], whole.batch.lengths[rows])
    columns = {name: getattr(whole, name)[rows] for name in ("labels", "weights", "documents")}
    return replace(whole, batch=batch, **columns)


def train(trainer: Trainer, *parts: Microbatch) -> float:
    """One step; returns its loss."""
    train_step(trainer, list(parts))
    trainer.synchronize()
    return float(trainer.since_log.metrics()["train_loss"])


def gradients(network: Any, *parts: Microbatch, max_tokens: int = 0) -> dict[str, torch.Tensor]:
    """The gradients that a step applies."""
    applied: dict[str, torch.Tensor] = {}
    trainer = trainer_of(network)
    trainer.max_tokens = max_tokens
    trainer.optimizer.register_step_pre_hook(
        lambda *_: applied.update({name: p.grad.clone() for name, p in network.named_parameters()})
    )
    train_step(trainer, list(parts))
    return applied


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, gradient in left.items():
        assert torch.allclose(gradient, right[name], atol=1e-6), name


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
def test_learning_rate_warms_up_then_decays(total: int, warmup: float) -> None:
    factors = [lr_factor(step, total, warmup) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1
    peak = factors.index(1)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert [lr_factor(step, 4, 0.5) for step in range(5)] == [0.5, 1.0, 1.0, 0.5, 0.0]


def test_biases_and_norms_have_no_weight_decay(network: Any) -> None:
    decayed, rest = trainer_of(network, lr=3e-5, weight_decay=0.1).optimizer.param_groups
    assert (decayed["weight_decay"], rest["weight_decay"], decayed["lr"]) == (0.1, 0.0, 3e-5)
    names = {id(p): name for name, p in network.named_parameters()}
    assert not any("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in decayed["params"])
    assert all("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in rest["params"])
    assert {id(p) for group in (decayed, rest) for p in group["params"]} == names.keys()


def test_accumulated_gradients_equal_the_whole_step(network: Any) -> None:
    whole = part(rows=6)
    halves = rows_of(whole, slice(0, 2)), rows_of(whole, slice(2, 6))
    assert_close(gradients(deepcopy(network), whole), gradients(network, *halves))


@pytest.mark.parametrize("pooling", ["encoder", "mean"])
def test_joined_microbatches_have_the_same_gradients(encoder: Path, pooling: str) -> None:
    network = model.build(ModelConfig(path=str(encoder), window=64, stride=48, pooling=pooling), seed=0)
    whole = part(rows=6)
    short = rows_of(whole, slice(0, 3))
    short = replace(short, batch=Batch(short.batch.input_ids[:, :6], short.batch.lengths.clip(max=6)))
    parts, passes = (short, rows_of(whole, slice(3, 6))), []
    expected = gradients(deepcopy(network), *parts)
    network.register_forward_pre_hook(lambda _, __, given: passes.append(given["input_ids"].shape), with_kwargs=True)
    assert_close(gradients(network, *parts, max_tokens=6 * 8), expected)
    assert passes == [(6, 8)]


def test_tokens_that_fit_are_a_fraction_of_those_that_fill_the_memory() -> None:
    assert tokens_that_fit(used=100, tokens=10, free=1000) == 70
    assert tokens_that_fit(used=0, tokens=10, free=1000) > 0
    assert tokens_that_fit(used=100, tokens=10, free=-5) == 0


def test_weight_two_counts_like_the_document_twice(network: Any) -> None:
    doubled = replace(rows_of(part(rows=1), [0, 0]), step_weight=2.0)
    assert_close(gradients(deepcopy(network), part(rows=1, weight=2.0)), gradients(network, doubled))


def test_step_updates_once_and_clears_gradients(network: Any) -> None:
    before = [p.clone() for p in network.parameters()]
    trainer = trainer_of(network)
    train_step(trainer, [part(step_weight=4.0), part(step_weight=4.0, seed=1)])
    assert trainer.steps == 1
    assert trainer.lr == pytest.approx(1e-3 * 0.9)
    assert all(p.grad is None for p in network.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))


def test_loss_is_a_weighted_mean_below_weight_one(network: Any) -> None:
    full, light = (train(trainer_of(deepcopy(network)), part(rows=4, weight=weight)) for weight in (1.0, 0.1))
    assert light == pytest.approx(full, rel=1e-5)


def test_gradients_are_clipped(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "MAX_GRAD_NORM", 1e-3)
    applied = gradients(network, part(rows=4))
    norm = torch.stack([gradient.norm() for gradient in applied.values()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    "act",
    [
        lambda trainer: trainer.synchronize(),
        lambda trainer: train_step(trainer, [part(rows=2)]),
        lambda trainer: trainer.state(),
        lambda trainer: trainer.evaluate([part(rows=2)], part(rows=2).labels),
    ],
)
def test_non_finite_gradient_names_step_and_rate(network: Any, act: Callable[[Trainer], Any]) -> None:
    trainer = trainer_of(network)
    train_step(trainer, [part(rows=2)])
    with torch.no_grad():
        network.classifier.bias.fill_(math.nan)
    train_step(trainer, [part(rows=3), part(rows=1, seed=1)])
    with pytest.raises(TrainingError, match=r"norm is nan at step 2 \(learning rate 9\.00e-04\)"):
        act(trainer)


def test_non_finite_scores_name_the_step(network: Any) -> None:
    trainer = trainer_of(network)
    train_step(trainer, [part(rows=2)])
    with torch.no_grad():
        network.classifier.bias.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"scores are not finite after step 1 \(learning rate 1\.00e-03\)"):
        trainer.evaluate([part(rows=2)], part(rows=2).labels)


@pytest.mark.parametrize(
    ("fails", "act", "expected"),
    [
        ("forward", lambda trainer: train_step(trainer, [part(rows=3)]), "step 1"),
        ("optimizer", lambda trainer: train_step(trainer, [part(rows=3)]), "update of step 1"),
        ("forward", lambda trainer: trainer.evaluate([part(rows=3)], part(rows=3).labels), "evaluation after step 0"),
    ],
)
def test_out_of_memory_names_batch_and_remedy(
    network: Any, fails: str, act: Callable[[Trainer], Any], expected: str
) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer = trainer_of(network)
    if fails == "forward":
        network.register_forward_pre_hook(no_memory)
    else:
        trainer.optimizer.register_step_pre_hook(no_memory)
    batch = r"no memory left on cpu for 3 rows of 8 tokens: lower train\.microbatch_size \(4\)"
    with pytest.raises(ResourceError, match=f"^{expected}: {batch}"):
        act(trainer)


def test_bf16_losses_match_fp32_within_rounding(encoder: Path) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        trainer = trainer_of(build(encoder), precision=precision)
        losses.append([train(trainer, part(rows=4, seed=seed)) for seed in range(4)][-1])
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
    assert losses[1] != losses[0]


def test_epoch_metrics_are_sums_over_documents(network: Any) -> None:
    trainer = trainer_of(network)
    first, second = part(rows=3), part(rows=1, seed=1)
    losses = [train(trainer, step) * len(step.labels) for step in (first, second)]
    metrics = trainer.epoch.metrics()
    assert metrics["train_loss"] == pytest.approx(sum(losses) / 4)
    used = first.batch.lengths.sum() + second.batch.lengths.sum()
    assert metrics["padding"] == pytest.approx(1 - used / 32)


def test_one_compiled_program_serves_all_shapes(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compilations = []

    def count(graph: Any, _: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    torch._dynamo.reset()
    plain = trainer_of(deepcopy(network))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    compiled = trainer_of(network, compile=True)
    for rows, width in ((5, 32), (3, 64), (7, 32), (2, 64), (4, 32)):
        rng = np.random.default_rng(rows)
        ids, lengths = rng.integers(5, 50, (rows, width)), rng.integers(3, width, rows)
        step = replace(part(rows), batch=Batch(ids.astype(np.int32), lengths.astype(np.int32)))
        assert train(compiled, step) == pytest.approx(train(plain, step), abs=1e-5)
    assert len(compilations) == 1


def test_resumed_run_ends_with_equal_parameters(encoder: Path, tmp_path: Path) -> None:
    """With dropout: random draws depend on the step, not on the process."""
    batches = [part(rows=4, seed=seed) for seed in range(6)]
    whole, half, resumed = (trainer_of(build(encoder, dropout=0.2)) for _ in range(3))
    for batch in batches:
        train_step(whole, [batch])
    for batch in batches[:3]:
        train_step(half, [batch])
    checkpoint.write_state(half.state(), tmp_path)
    torch.manual_seed(999)
    resumed.module.load_state_dict({name: value.clone() for name, value in half.module.state_dict().items()})
    resumed.load_state(checkpoint.read_state(tmp_path))
    assert (resumed.steps, resumed.lr) == (3, half.lr)
    for batch in batches[3:]:
        train_step(resumed, [batch])
    for value, expected in zip(resumed.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(value, expected)
    for trainer in (resumed, whole):
        trainer.synchronize()
    assert resumed.epoch.metrics()["train_loss"] == pytest.approx(whole.epoch.metrics()["train_loss"])


def test_ranks_and_steps_draw_different_dropout(encoder: Path) -> None:
    losses = set()
    for rank in (0, 1):
        trainer = trainer_of(build(encoder, dropout=0.5), rank=rank, lr=1e-12)
        losses |= {train(trainer, part(rows=2)) for _ in range(2)}
    assert len(losses) == 4
