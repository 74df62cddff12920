"""Parts of the training loop that need no cluster."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from detect_ai.core.config import Config, ModelConfig, TrainConfig
from detect_ai.core.errors import ResourceError, TrainingError
from detect_ai.models import encoder as model
from detect_ai.models.batch import Batch
from detect_ai.training import checkpoint, telemetry
from detect_ai.training import trainer as learning_
from detect_ai.training.data import Microbatch
from detect_ai.training.runlog import UNKNOWN
from detect_ai.training.trainer import Learner, lr_share, make_optimizer
from detect_ai.training.worker import evaluations_since_best, steps

# The learning rate


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(decay: str) -> None:
    shares = [lr_share(step, 100, 0.1, decay) for step in range(101)]
    assert shares[:10] == [(step + 1) / 10 for step in range(10)]
    assert max(shares) == shares[9] == 1
    assert shares[9:] == sorted(shares[9:], reverse=True)
    assert shares[100] == pytest.approx(0)


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_every_step_of_a_run_of_any_length_learns_something(total: int, warmup: float, decay: str) -> None:
    shares = [lr_share(step, total, warmup, decay) for step in range(total)]
    assert all(0 < share <= 1 for share in shares)
    assert max(shares) == 1


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert lr_share(0, 100, 0.0, "linear") == 1


def test_half_way_cosine_and_linear_decay_meet() -> None:
    assert lr_share(50, 100, 0.0, "cosine") == pytest.approx(lr_share(50, 100, 0.0, "linear")) == pytest.approx(0.5)


def test_linear_decay_is_a_line_and_cosine_lies_above_it_first_and_below_it_later() -> None:
    linear, cosine = ([lr_share(step, 100, 0.0, decay) for step in range(100)] for decay in ("linear", "cosine"))
    assert np.allclose(np.diff(linear), -0.01)
    assert cosine[20] > linear[20]
    assert cosine[80] < linear[80]


# The optimizer


@pytest.fixture
def network(encoder: Path) -> Any:
    return model.build(ModelConfig(path=str(encoder), window=64, stride=48), seed=0)


def test_biases_and_norms_do_not_decay(network: Any) -> None:
    decayed, rest = make_optimizer(network, TrainConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in network.named_parameters()}
    assert not any("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in decayed["params"])
    assert all("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in rest["params"])


def test_every_parameter_is_in_one_group_and_frozen_ones_in_none(network: Any) -> None:
    frozen = network.bert.embeddings.word_embeddings.weight
    frozen.requires_grad = False
    held = [id(p) for group in make_optimizer(network, TrainConfig(lr=3e-5)).param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters() if p is not frozen)


def test_the_optimizer_has_the_learning_rate_of_the_configuration(network: Any) -> None:
    assert {group["lr"] for group in make_optimizer(network, TrainConfig(lr=3e-5)).param_groups} == {3e-5}


# Steps


def part(rows: int = 2, weight: float = 1.0, last: bool = True, step_weight: float | None = None, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 50, (rows, 8)).astype(np.int32)
    weights = np.full(rows, weight, np.float32)
    return Microbatch(
        batch=Batch(ids, rng.integers(3, 9, rows).astype(np.int32)),
        labels=np.arange(rows) % 2,
        weights=weights,
        documents=np.arange(rows),
        step_weight=float(weights.sum()) if step_weight is None else step_weight,
        slot=0,
        last=last,
        epoch=0,
    )


def slots(*each: int, ends: tuple[int, ...]) -> Any:
    """Microbatches by their place in a step; those at the positions of `ends` are the last of one."""
    return [SimpleNamespace(slot=slot, last=i in ends) for i, slot in enumerate(each)]


def test_microbatches_are_grouped_into_steps_at_their_last_one() -> None:
    found = steps(slots(0, 1, 2, 0, 0, 1, ends=(2, 3, 5)), rank=0, ranks=1)
    assert [[part.slot for part in step] for step in found] == [[0, 1, 2], [0], [0, 1]]


def test_the_ranks_take_turns() -> None:
    found = steps(slots(1, 4, 1, ends=(1, 2)), rank=1, ranks=3)
    assert [[part.slot for part in step] for step in found] == [[1, 4], [1]]


@pytest.mark.parametrize("wrong", [(0,), (1, 2), (1, 4, 4), (4,)])
def test_a_microbatch_of_another_rank_or_place_is_our_mistake(wrong: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match=rf"rank 1 of 3 got microbatch {wrong[-1]} of a step"):
        list(steps(slots(*wrong, ends=()), rank=1, ranks=3))


def test_a_step_is_handed_out_before_the_next_one_is_fetched() -> None:
    fetched = []

    def stream() -> Any:
        for i, part in enumerate(slots(0, 1, 0, 1, ends=(1, 3))):
            fetched.append(i)
            yield part

    next(steps(stream(), rank=0, ranks=1))
    assert fetched == [0, 1]


def test_a_stream_that_ends_within_a_step_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="the stream ended within a step"):
        list(steps(slots(0, 0, ends=(0,)), rank=0, ranks=1))


# Learning, on one rank


def learner(network: Any, **changes: Any) -> Learner:
    config = TrainConfig(lr=1e-3, epochs=1, warmup=0.0, precision="fp32", max_grad_norm=1e9, **changes)
    return Learner(config, network, torch.device("cpu"), world_size=1, steps_per_epoch=10)


def gradients(network: Any, parts: list[Microbatch]) -> list[torch.Tensor]:
    network.zero_grad(set_to_none=True)
    learning = learner(network)
    for each in parts:
        learning._backward(each, sync=True)
    return [p.grad.clone() for p in network.parameters()]


def test_a_step_in_microbatches_has_the_gradient_of_the_whole_step(network: Any) -> None:
    whole = part(rows=6)
    halves = [
        Microbatch(
            batch=Batch(whole.batch.input_ids[rows], whole.batch.lengths[rows]),
            labels=whole.labels[rows],
            weights=whole.weights[rows],
            documents=whole.documents[rows],
            step_weight=whole.step_weight,
            slot=0,
            last=True,
            epoch=0,
        )
        for rows in (slice(0, 2), slice(2, 6))
    ]
    for left, right in zip(gradients(network, [whole]), gradients(network, halves), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_a_document_of_weight_two_counts_like_the_document_twice(network: Any) -> None:
    once, twice = part(rows=1, weight=2.0), part(rows=1)
    doubled = Microbatch(
        batch=Batch(np.tile(twice.batch.input_ids, (2, 1)), np.tile(twice.batch.lengths, 2)),
        labels=np.tile(twice.labels, 2),
        weights=np.ones(2, np.float32),
        documents=np.asarray([0, 0]),
        step_weight=2.0,
        slot=0,
        last=True,
        epoch=0,
    )
    for left, right in zip(gradients(network, [once]), gradients(network, [doubled]), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_an_empty_microbatch_changes_no_gradient(network: Any) -> None:
    real = part(rows=2)
    empty = part(rows=1, weight=0.0, step_weight=real.step_weight, seed=1)
    for left, right in zip(gradients(network, [real]), gradients(network, [real, empty]), strict=True):
        assert torch.equal(left, right)


def test_a_step_updates_once_and_forgets_its_gradients(network: Any) -> None:
    before = [p.clone() for p in network.parameters()]
    learning = learner(network)
    learning.step([part(last=False, step_weight=4.0), part(step_weight=4.0, seed=1)])
    assert learning.steps == 1
    assert learning.lr == pytest.approx(1e-3 * 0.9)
    assert all(p.grad is None for p in network.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))


def test_repeating_a_step_lowers_its_loss(network: Any) -> None:
    learning = learner(network, weight_decay=0.0)
    losses = []
    for _ in range(8):
        learning.step([part(rows=4)])
        learning.settle()
        losses.append(learning.last_loss)
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("ignore:Seems like")
def test_the_gradient_is_clipped(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    learning = learner(network)
    learning.max_grad_norm = 1e-3
    monkeypatch.setattr(
        learning.optimizer,
        "step",
        lambda: norms.append(torch.stack([p.grad.norm() for p in network.parameters()]).norm().item()),
    )
    learning.step([part(rows=4)])
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


@pytest.mark.parametrize(
    "say",
    [
        lambda learning: learning.settle(),
        lambda learning: learning.step([part(rows=2)]),
        lambda learning: learning.state(),
        lambda learning: learning.evaluate([part(rows=2)], part(rows=2).labels),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_run_with_step_rate_and_documents(network: Any, say: Any) -> None:
    """At the next step, and before anything is judged or stored."""
    learning = learner(network)
    learning.step([part(rows=2)])
    with torch.no_grad():
        network.classifier.bias.fill_(math.nan)
    learning.step([part(rows=3, last=False), part(rows=1, seed=1)])
    with pytest.raises(TrainingError) as refused:
        say(learning)
    assert str(refused.value) == (
        "the training loss is nan at step 2 (learning rate 9.00e-04, documents 0, 1, 2 of the split train): lower "
        "train.lr, or train.precision=fp32"
    )


def test_gradients_that_overflow_are_named_as_such(network: Any) -> None:
    learning = learner(network)
    network.classifier.weight.register_hook(lambda gradient: gradient * math.inf)
    learning.step([part(rows=2)])
    said = (
        r"^the gradient's norm is (inf|nan) at step 1 \(learning rate 1.00e-03, documents 0, 1 of the split train\): "
    )
    with pytest.raises(TrainingError, match=said):
        learning.settle()


def test_a_long_list_of_documents_is_cut() -> None:
    assert learning_._named(np.arange(25)).endswith(", 18, 19 and 5 more")
    assert learning_._named(np.asarray([-1, 3, 3])) == "3"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda learning, batch: learning.step([batch]),
            "step 1: no memory left on cpu for 3 rows of 8 tokens (documents 0, 1, 2): lower train.microbatch_size (4) "
            "or model.window, or set train.gradient_checkpointing=true",
        ),
        (
            lambda learning, batch: learning.evaluate([batch], batch.labels),
            "evaluation after step 0: no memory left on cpu for 3 rows of 8 tokens (documents 0, 1, 2): lower "
            "train.microbatch_size (4) or model.window",
        ),
    ],
)
def test_no_memory_left_names_the_batch_and_what_to_change(network: Any, act: Any, message: str) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    network.register_forward_pre_hook(no_memory)
    with pytest.raises(ResourceError) as refused:
        act(learner(network), part(rows=3))
    assert str(refused.value) == message


def test_no_memory_left_for_the_optimizer_says_so(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    learning = learner(network)
    monkeypatch.setattr(learning.optimizer, "step", no_memory)
    with pytest.raises(ResourceError, match=r"^update of step 1: no memory left on cpu for 3 rows of 8 tokens"):
        learning.step([part(rows=3)])


def test_in_bf16_the_losses_are_those_of_fp32_to_its_rounding(encoder: Path) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        network = model.build(ModelConfig(path=str(encoder), window=64, stride=48), seed=0)
        config = TrainConfig(lr=1e-3, epochs=1, warmup=0.0, precision=precision)
        learning = Learner(config, network, torch.device("cpu"), world_size=1, steps_per_epoch=10)
        for seed in range(4):
            learning.step([part(rows=4, seed=seed)])
        learning.settle()
        losses.append(learning.last_loss)
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
    assert losses[1] != losses[0]


def test_the_figures_of_an_epoch_are_sums_over_its_documents(network: Any) -> None:
    learning = learner(network)
    first, second = part(rows=3), part(rows=1, seed=1)
    losses = []
    for each in (first, second):
        learning.step([each])
        learning.settle()
        losses.append(learning.last_loss * len(each.labels))
    figures = learning.epoch.figures()
    assert figures["train_loss"] == pytest.approx(sum(losses) / 4)
    used = first.batch.lengths.sum() + second.batch.lengths.sum()
    assert figures["padding"] == pytest.approx(1 - used / 32)
    assert "mfu" not in figures, "of a CPU no peak is known"
    assert learning.epoch._sums.tolist() == [0, 0, 0, 0, 0]


def test_label_smoothing_reaches_the_loss(network: Any) -> None:
    sharp, smooth = learner(network), learner(network, label_smoothing=0.5)
    logits = network(**learning_.model_inputs(part().batch, torch.device("cpu"))).logits.float()
    labels = torch.from_numpy(part().labels)
    for learning, smoothing in ((sharp, 0.0), (smooth, 0.5)):
        network.zero_grad()
        expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
        assert float(learning._backward(part(), sync=True)) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_scores_that_are_not_finite_end_the_run_with_step_rate_and_documents(network: Any) -> None:
    """A last step of an epoch whose gradients were finite may leave weights that are not."""
    learning = learner(network)
    learning.step([part(rows=2)])
    with torch.no_grad():
        network.classifier.bias.fill_(math.nan)
    with pytest.raises(TrainingError) as refused:
        learning.evaluate([part(rows=2)], part(rows=2).labels)
    assert str(refused.value) == (
        "scores are not finite after step 1 (learning rate 1.00e-03, documents 0, 1 of the split validation): lower "
        "train.lr, or train.precision=fp32"
    )


def test_of_equal_auroc_the_lowest_loss_ranks_first_and_an_unknown_one_last() -> None:
    figures = [
        {"auroc": 1.0, "val_loss": 0.001},
        {"auroc": 1.0, "val_loss": 0.4},
        {"auroc": 1.0 - 1e-9, "val_loss": 0.0},  # one pair of 30,000 x 30,000 texts
        {"auroc": UNKNOWN},
    ]
    ranks = [checkpoint.rank(each) for each in figures]
    assert ranks == sorted(ranks, reverse=True)
    assert len(set(ranks)) == 4


def test_with_gradient_checkpointing_layers_work_twice_and_gradients_stay_the_same(network: Any) -> None:
    plain = gradients_of_a_step(deepcopy(network), [part(rows=4)])
    network.gradient_checkpointing_enable()
    worked = []
    network.base_model.encoder.layer[0].intermediate.register_forward_hook(lambda *_: worked.append(1))
    for name, gradient in gradients_of_a_step(network, [part(rows=4)]).items():
        assert torch.allclose(gradient, plain[name], atol=1e-6), name
    assert len(worked) == 2


# Steps against the loss


def gradients_of_a_step(network: Any, parts: list[Microbatch], **changes: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    learning = learner(network, **changes)
    learning.optimizer.register_step_pre_hook(
        lambda *_: found.update({name: p.grad.clone() for name, p in network.named_parameters()})
    )
    words = network.base_model.get_input_embeddings().weight
    before = words.detach().clone()
    learning.optimizer.register_step_pre_hook(lambda *_: found.update({"words": words.detach() - before}))
    learning.step(parts)
    return found


def by_hand(network: Any, part: Microbatch, length: float) -> dict[str, torch.Tensor]:
    """Gradients at the weights and at embeddings moved up the gradient, added."""
    moved = deepcopy(network)

    def backward(of: Any) -> None:
        logits = of(**learning_.model_inputs(part.batch, torch.device("cpu"))).logits
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(part.labels)).backward()

    backward(network)
    plain = {name: p.grad.clone() for name, p in network.named_parameters()}
    gradient = network.base_model.get_input_embeddings().weight.grad
    with torch.no_grad():
        moved.base_model.get_input_embeddings().weight += length * gradient / gradient.norm()
    backward(moved)
    network.zero_grad()
    return {name: plain[name] + p.grad for name, p in moved.named_parameters()}


def test_a_step_against_the_loss_adds_the_gradient_at_moved_embeddings(network: Any) -> None:
    expected = by_hand(deepcopy(network), part(rows=4), length=0.7)
    found = gradients_of_a_step(network, [part(rows=4)], adversarial=0.7)
    assert not found.pop("words").any(), "the embeddings were not moved back"
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], atol=1e-6), name


def test_a_step_against_the_loss_is_the_same_in_microbatches(network: Any) -> None:
    whole, halves = part(rows=4), []
    for rows, last in ((slice(0, 2), False), (slice(2, 4), True)):
        batch = Batch(whole.batch.input_ids[rows], whole.batch.lengths[rows])
        arrays = {name: getattr(whole, name)[rows] for name in ("labels", "weights", "documents")}
        halves.append(replace(whole, batch=batch, last=last, **arrays))
    one = gradients_of_a_step(deepcopy(network), [whole], adversarial=0.7)
    two = gradients_of_a_step(network, halves, adversarial=0.7)
    for name, gradient in one.items():
        assert torch.allclose(gradient, two[name], atol=1e-6), name


def test_gradients_that_overflow_move_no_embedding(network: Any) -> None:
    words = network.base_model.get_input_embeddings().weight
    words.register_hook(lambda gradient: gradient * math.inf)
    learning = learner(network, adversarial=0.7)
    learning._gradients([part(rows=2)])
    before = words.detach().clone()
    with learning._moved_embeddings():
        assert torch.equal(words, before)


@pytest.mark.filterwarnings("ignore:Seems like")
def test_a_loss_that_is_not_finite_against_the_loss_only_names_its_documents(network: Any) -> None:
    """The step up the gradient is so long that the embeddings leave what a float holds."""
    learning = learner(network, adversarial=1e38)
    learning.step([part(rows=2)])
    with pytest.raises(
        TrainingError, match=r"^the training loss is nan at step 1 \(.*, documents 0, 1 of the split train\)"
    ):
        learning.settle()
    assert math.isfinite(learning.last_loss)


# Compiled


class Programs:
    """A compiler that compiles nothing and counts what it was given: graphs with forward passes of a shape."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        torch._dynamo.reset()
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=self._compile))

    def _compile(self, graph: Any, _: Any) -> Any:
        self.count += 1
        return graph.forward


def wide(rows: int, width: int) -> Microbatch:
    rng = np.random.default_rng(rows)
    batch = Batch(rng.integers(5, 50, (rows, width)).astype(np.int32), rng.integers(3, width, rows).astype(np.int32))
    return replace(part(rows), batch=batch)


SHAPES = ((5, 32), (3, 64), (7, 32), (2, 64), (4, 32))


@pytest.mark.parametrize(("lengths", "programs"), [(0, 1), (2, 2)])
def test_a_compiled_model_has_a_program_for_each_length_or_one_for_all(
    network: Any, monkeypatch: pytest.MonkeyPatch, lengths: int, programs: int
) -> None:
    plain = learner(deepcopy(network))
    compiler = Programs(monkeypatch)
    compiled = learner(network, compile=True, compiled_lengths=lengths)
    for shape in SHAPES:
        for learning in (plain, compiled):
            learning.step([wide(*shape)])
            learning.settle()
        assert compiled.last_loss == pytest.approx(plain.last_loss, abs=1e-5)
    assert compiler.count == programs


# Going on


def test_a_run_that_goes_on_from_a_state_ends_with_the_same_parameters(encoder: Path, tmp_path: Path) -> None:
    """With dropout: what is drawn depends on the step, not on the process."""

    def fresh() -> Any:
        return model.build(ModelConfig(path=str(encoder), window=64, stride=48, dropout=0.2), seed=0)

    batches = [part(rows=4, seed=seed) for seed in range(6)]
    whole = learner(fresh())
    for batch in batches:
        whole.step([batch])
    half = learner(fresh())
    for batch in batches[:3]:
        half.step([batch])
    weights = {name: value.clone() for name, value in half.module.state_dict().items()}
    checkpoint.write_state(half.state(), tmp_path)
    torch.manual_seed(999)
    other = learner(fresh())
    other.module.load_state_dict(weights)
    other.restore(checkpoint.read_state(tmp_path))
    assert (other.steps, other.lr) == (3, half.lr)
    for batch in batches[3:]:
        other.step([batch])
    for found, expected in zip(other.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(found, expected)
    for learning in (other, whole):
        learning.settle()
    assert other.epoch.figures()["train_loss"] == pytest.approx(whole.epoch.figures()["train_loss"])


def test_ranks_and_steps_draw_different_dropout(encoder: Path) -> None:
    network = model.build(ModelConfig(path=str(encoder), window=64, stride=48, dropout=0.5), seed=0)
    losses = set()
    for rank in (0, 1):
        learning = learner(network)
        learning.rank = rank
        for _ in range(2):
            learning.step([part(rows=2)])
            learning.settle()
            losses.add(learning.last_loss)
    assert len(losses) == 4


@pytest.mark.parametrize(
    ("figure", "values", "since"),
    [("auroc", [], 0), ("auroc", [0.9], 0), ("auroc", [0.9, 0.8, 0.9], 2), ("val_loss", [0.3, 0.2, 0.5], 1)],
)
def test_evaluations_since_the_best_are_counted_from_the_first_of_equals(
    figure: str, values: list[float], since: int
) -> None:
    assert evaluations_since_best([{figure: value} for value in values], figure) == since


def test_rank_0_alone_tells_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"config": Config(), "name": "train-1", "bar": False}
    lines = [
        telemetry._progress(arguments, SimpleNamespace(rank=rank, total_steps=100, steps=0))._every for rank in (0, 1)
    ]
    assert lines == [Config().train.log_every, 101]
