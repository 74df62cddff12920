"""What every rank of a training run does: steps over the stream, evaluations, checkpoints, and going on from one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from detect_ai.core.config import Config, TrainConfig
from detect_ai.core.errors import TrainingError
from detect_ai.core.storage import Storage
from detect_ai.models import encoder
from detect_ai.training import checkpoint, runlog
from detect_ai.training.data import Microbatch, microbatch
from detect_ai.training.telemetry import Observer
from detect_ai.training.trainer import Learner


def train_loop(arguments: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker; after a failure, again on new ones.

    A run whose loss is not finite would fail again in the same way: the run's log tells it, and every rank ends
    orderly, whereas what is raised here makes Ray Train start the workers anew.

    Args:
        arguments: `config`, `steps_per_epoch`, `validation_labels` (one for each document, in order), `corpus` (its
            fingerprint), `name`, `group` and `bar`.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config: Config = arguments["config"]
    learner = _learner(config, arguments["steps_per_epoch"])
    history = checkpoint.restore(learner)
    storage, folder = Storage(config.storage.root), f"runs/{config.run}/{arguments['name']}"
    with Observer(arguments, learner, storage, folder) as observer:
        if is_over(learner, history, config.train):
            return
        if learner.rank == 0:
            # Read where the stream is made, a moment later.
            runlog.write_start(storage, folder, learner.steps, learner.world_size)
        try:
            _run(learner, history, config.train, arguments["validation_labels"], observer)
        except TrainingError as error:
            observer.failed(error)


def _learner(config: Config, steps_per_epoch: int) -> Learner:
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    torch.set_num_threads(config.train.threads_per_worker)
    module = encoder.build(config.model, config.seed)
    encoder.freeze(module, config.train.frozen)
    if config.train.gradient_checkpointing:
        module.gradient_checkpointing_enable()
    return Learner(
        config.train,
        # No buffer of an encoder changes: nothing is to be sent before every step.
        ray.train.torch.prepare_model(
            module, parallel_strategy_kwargs={"forward_sync_buffers": False, "gradient_as_bucket_view": True}
        ),
        ray.train.torch.get_device(),
        context.get_world_size(),
        steps_per_epoch,
        config.seed,
        context.get_world_rank(),
    )


def _run(learner: Learner, history: list[dict[str, Any]], config: TrainConfig, labels: Any, observer: Observer) -> None:
    import ray.train

    validation = ray.train.get_dataset_shard("validation")
    training = ray.train.get_dataset_shard("train")
    for step in observer.watched(steps(read(training), learner.rank, learner.world_size), training.stats):
        learner.step(step)
        observer.step()
        if learner.at_epoch_end:
            learner.settle()
            epoch = {"epoch": -(-learner.steps // learner.steps_per_epoch), "step": learner.steps, "lr": learner.lr}
            history.append(learner.epoch.figures() | learner.evaluate(read(validation), labels) | epoch)
            observer.evaluated(history[-1])
        if learner.at_epoch_end or (config.checkpoint_every and learner.steps % config.checkpoint_every == 0):
            observer.checkpointing()
            checkpoint.report(learner, history)
        if is_over(learner, history, config):
            return


def is_over(learner: Learner, history: list[dict[str, Any]], config: TrainConfig) -> bool:
    """Whether all steps are made, or evaluations have not become better for too long.

    Every rank decides from the same figures, which are those of all ranks' scores joined.
    """
    if learner.steps >= learner.total_steps:
        return True
    return bool(config.patience) and evaluations_since_best(history, config.stop_on) >= config.patience


def evaluations_since_best(history: list[dict[str, Any]], figure: str) -> int:
    """Evaluations after the first that reached the best `auroc` or `val_loss`."""
    values = [-epoch[figure] if figure == "val_loss" else epoch[figure] for epoch in history]
    return len(values) - 1 - values.index(max(values)) if values else 0


def read(shard: Any) -> Iterator[Microbatch]:
    """The microbatches that Ray Data hands to this rank, the next one fetched while the model runs."""
    rows = shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    return map(microbatch, rows)


def steps(stream: Iterable[Microbatch], rank: int, ranks: int) -> Iterator[list[Microbatch]]:
    """The microbatches of a rank, step by step. Dealt otherwise than in turn, ranks would wait for one another."""
    step: list[Microbatch] = []
    for part in stream:
        assert part.slot == len(step) * ranks + rank, f"rank {rank} of {ranks} got microbatch {part.slot} of a step"
        step.append(part)
        if part.last:
            yield step
            step = []
    assert not step, "the stream ended within a step"
