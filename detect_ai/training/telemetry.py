"""What a training run tells while it runs: progress, figures, W&B, a profile. Rank 0 tells, the others count."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch

from detect_ai.core.config import Config
from detect_ai.core.storage import Storage
from detect_ai.core.tracking import Tracker, open_run
from detect_ai.training.data import Microbatch
from detect_ai.training.profiling import Profiler
from detect_ai.training.progress import Progress
from detect_ai.training.runlog import RunLog
from detect_ai.training.trainer import Learner


class Observer:
    """Tells of a learner's steps and evaluations.

    Args:
        arguments: those of `loop.train_loop`.
        learner: of this rank.
        storage: where the run lies.
        folder: key of the run.
    """

    def __init__(self, arguments: dict[str, Any], learner: Learner, storage: Storage, folder: str) -> None:
        config: Config = arguments["config"]
        self._learner, self._every = learner, config.train.log_every
        self._error: Exception | None = None
        first = learner.rank == 0
        self._log = RunLog(storage, folder, learner.steps) if first else None
        self._tracker = _tracker(arguments, first)
        self._progress = _progress(arguments, learner)
        self._profiler = Profiler(storage, folder, config.train.profile and first)

    def watched(self, steps: Iterable[list[Microbatch]], stats: Callable[[], str]) -> Iterator[list[Microbatch]]:
        """The same steps, each waited for under the eyes of the profiler."""
        return self._profiler.watched(steps, stats)

    def step(self) -> None:
        """A step has been made. Every rank must say so."""
        learner = self._learner
        told = learner.steps % self._every == 0
        if told:
            learner.settle()
        self._progress.step(lambda: f"loss of rank 0 {learner.last_loss:.3f} lr {learner.lr:.1e}")
        self._profiler.step()
        if not told:
            return
        figures = learner.lately.figures() | {"grad_norm": learner.grad_norm, "lr": learner.lr, "step": learner.steps}
        figures["memory_bytes"] = _memory(learner.device)
        self._tracker.log({f"train/{name}": value for name, value in figures.items()}, learner.steps)
        if self._log:
            self._log.write({"kind": "training", **figures}, now=False)

    def evaluated(self, figures: dict[str, Any]) -> None:
        """An evaluation gave figures."""
        self._tracker.log({f"validation/{name}": value for name, value in figures.items()}, self._learner.steps)
        if self._log:
            self._log.write({"kind": "evaluation", **figures})

    def checkpointing(self) -> None:
        """A checkpoint is about to be written: a run that goes on from it has the lines up to it."""
        if self._log:
            self._log.flush()

    def failed(self, error: Exception) -> None:
        """The run cannot go on."""
        self._error = error
        if self._log:
            self._log.write({"kind": "error", "step": self._learner.settled, "error": str(error)})

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        for part in (self._tracker, self._progress, self._profiler):
            self._stack.enter_context(part)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._error:  # told, and not raised again
            kind, value = type(self._error), self._error
        self._stack.__exit__(kind, value, at)


def _memory(device: torch.device) -> int:
    """Bytes that were held at most: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _tracker(arguments: dict[str, Any], first: bool) -> Tracker:
    config: Config = arguments["config"]
    name: str = arguments["name"]
    return open_run(
        config,
        told=first,
        group=arguments["group"],
        name=name,
        id=name.replace("/", "-"),  # a run that goes on stays one run
        resume="allow",
        facts={"corpus_fingerprint": arguments["corpus"]},
    )


def _progress(arguments: dict[str, Any], learner: Learner) -> Progress:
    first = learner.rank == 0
    every = arguments["config"].train.log_every if first else learner.total_steps + 1
    return Progress(arguments["name"], learner.total_steps, arguments["bar"] and first, every, learner.steps)
