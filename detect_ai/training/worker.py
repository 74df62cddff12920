"""The training loop that Ray Train runs on every worker: step, accumulate, evaluate, checkpoint, log.

Optimizer, schedule and evaluation are in `detect_ai.training.trainer`, the input streams in `detect_ai.training.data`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import ray.train.torch
import torch

from detect_ai.core.config import Config
from detect_ai.core.errors import TrainingError
from detect_ai.core.ray_runtime import cores
from detect_ai.core.storage import Storage
from detect_ai.models import encoder
from detect_ai.training import checkpoint
from detect_ai.training.batch_plan import Microbatch, joined
from detect_ai.training.data import read_stream
from detect_ai.training.telemetry import open_telemetry
from detect_ai.training.trainer import Trainer


def train_loop(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train from the run's last checkpoint, or from the pretrained encoder, to the end.

    Ray Train calls this on every worker, and after a failure again on new workers. A non-finite loss would recur, so it
    is returned as `error`: an exception would make Ray Train restart the workers.

    The arguments are `config`, `streams` (a `data.StreamDataConfig`), `steps_per_epoch`, `validation_labels` (one per
    document, in order), `corpus` (its fingerprint), `name` and `group` of the run, and `share` (number of training runs
    on the machine). Returns `history` (the metrics of all evaluations) and `error`.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config: Config = arguments["config"]
    context = ray.train.get_context()
    workers = context.get_local_world_size() * arguments["share"]  # workers on this machine
    torch.set_num_threads(config.train.threads_per_worker or max(1, cores() // workers))
    # The buffers of an encoder never change, so they need no broadcast before a step.
    ddp = {"forward_sync_buffers": False, "gradient_as_bucket_view": True}
    trainer = Trainer(
        config.train,
        ray.train.torch.prepare_model(encoder.build(config.model, config.seed), parallel_strategy_kwargs=ddp),
        ray.train.torch.get_device(),
        context.get_world_size(),
        arguments["steps_per_epoch"],
        config.seed,
        context.get_world_rank(),
    )
    history = checkpoint.restore(trainer)
    if trainer.steps == trainer.total_steps:  # resumed from the final checkpoint
        return {"history": history, "error": None}
    trainer.fit_memory(config.model.window)
    every = config.train.checkpoint_every
    storage, folder = Storage(config.storage.root), f"runs/{config.run}/{arguments['name']}"
    steps = group_steps(microbatches_of("train", arguments, trainer), trainer.rank, trainer.world_size)
    try:
        with open_telemetry(arguments, trainer) as telemetry:
            for microbatches in telemetry.time_data_wait(steps):
                train_step(trainer, microbatches)
                telemetry.log_step()
                if trainer.at_epoch_end:
                    trainer.synchronize()
                    metrics = trainer.epoch.metrics()
                    validation = microbatches_of("validation", arguments, trainer)
                    metrics |= trainer.evaluate(validation, arguments["validation_labels"])
                    metrics |= {"epoch": -(-trainer.steps // trainer.steps_per_epoch), "step": trainer.steps}
                    history.append(metrics | {"lr": trainer.lr})
                    telemetry.log_evaluation(history[-1])
                if trainer.at_epoch_end or (every and trainer.steps % every == 0):
                    telemetry.flush()
                    checkpoint.report(trainer, history, storage, folder)
                if trainer.steps == trainer.total_steps:
                    break
    except TrainingError as error:
        return {"history": history, "error": str(error)}
    return {"history": history, "error": None}


def microbatches_of(split: str, arguments: dict[str, Any], trainer: Trainer) -> Iterator[Microbatch]:
    """This rank's microbatches of a split; `train` starts at the next step. A single worker does not use Ray Data."""
    if trainer.world_size == 1:
        return arguments["streams"].plan(split, 1, trainer.steps).microbatches()  # type: ignore[no-any-return]
    return read_stream(ray.train.get_dataset_shard(split))


def train_step(trainer: Trainer, microbatches: list[Microbatch]) -> None:
    """One optimizer step: accumulate the gradients of this rank's microbatches, then update, which may raise."""
    trainer.begin_step()
    parts = joined(microbatches, trainer.max_tokens, trainer.pad_id)
    losses = [trainer.backward(part, sync=part is parts[-1]) for part in parts]
    trainer.update(parts, losses)


def group_steps(stream: Iterable[Microbatch], rank: int, world_size: int) -> Iterator[list[Microbatch]]:
    """Group a rank's microbatches into steps and check their order: in a wrong order, ranks would deadlock."""
    step: list[Microbatch] = []
    for part in stream:
        expected = len(step) * world_size + rank
        assert part.slot == expected, f"rank {rank} of {world_size} got microbatch {part.slot} of a step"
        step.append(part)
        if part.last:
            yield step
            step = []
    assert not step, "the stream ended within a step"
