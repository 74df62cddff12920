"""Telemetry of a training run: `metrics.jsonl`, Weights & Biases, log lines and a profile. Only rank 0 writes."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from detect_ai.core.storage import Storage
from detect_ai.core.tracking import Tracker

if TYPE_CHECKING:
    from detect_ai.training.trainer import Trainer

T = TypeVar("T")
logger = logging.getLogger(__name__)


@contextmanager
def open_telemetry(arguments: dict[str, Any], trainer: Trainer) -> Iterator[Telemetry]:
    """Open the outputs of a run and close them at its end; arguments as in `worker.train_loop`."""
    config, name, writes = arguments["config"], arguments["name"], trainer.rank == 0
    storage, folder = Storage(config.storage.root), f"runs/{config.run}/{name}"
    with (
        Tracker(
            config,
            enabled=writes,
            group=arguments["group"],
            name=name,
            id=name.replace("/", "-"),  # a resumed run keeps its id
            resume="allow",
            facts={"corpus_fingerprint": arguments["corpus"]},
        ) as tracker,
        _profiler(storage, f"{folder}/profile") if writes and config.train.profile else nullcontext() as profiler,
    ):
        telemetry = Telemetry(trainer, storage, folder, config.train.log_every, tracker, profiler)
        try:
            yield telemetry
        finally:
            telemetry.flush()  # also writes the lines before a non-finite loss


class Telemetry:
    """Logs the steps and evaluations of a trainer. Every rank must call every method: metrics are summed over ranks.

    `metrics.jsonl` gets one line per `every` steps. An object store cannot append, so the file is rewritten at
    checkpoints, not at every line. A run that resumes from a step keeps the lines up to that step.
    """

    def __init__(
        self, trainer: Trainer, storage: Storage, folder: str, every: int, tracker: Tracker, profiler: Any
    ) -> None:
        self._trainer, self._storage, self._folder = trainer, storage, folder
        self._every, self._tracker, self._profiler = every, tracker, profiler
        self._data_wait = 0.0  # seconds since the last line of the log
        self._lines = [line for line in read_metrics(storage, folder) if line["step"] <= trainer.steps]
        self._lines.append({"kind": "start", "step": trainer.steps, "workers": trainer.world_size, "time": time.time()})
        self.flush()

    def time_data_wait(self, steps: Iterable[T]) -> Iterator[T]:
        """Pass the steps through and measure the wait for each, except the first, which is start-up."""
        asked = None
        for step in steps:
            self._data_wait += time.perf_counter() - asked if asked is not None else 0.0
            yield step
            asked = time.perf_counter()

    def log_step(self) -> None:
        """Log the steps since the last line, if one is due."""
        trainer = self._trainer
        if self._profiler is not None:
            self._profiler.step()
        if trainer.steps % self._every:
            return
        trainer.synchronize()
        metrics = trainer.since_log.metrics()
        metrics["data_wait"] = round(min(1.0, self._data_wait / max(metrics["seconds"], 0.01)), 3)
        self._data_wait = 0.0
        metrics |= {"grad_norm": trainer.grad_norm, "lr": trainer.lr, "step": trainer.steps}
        self._tracker.log({f"train/{key}": value for key, value in metrics.items()}, trainer.steps)
        self._lines.append({"kind": "training", **metrics})
        if trainer.rank == 0:
            step, loss = f"{trainer.steps}/{trainer.total_steps}", metrics["train_loss"]
            logger.info("%s: step %s loss %.3f lr %.1e", self._folder, step, loss, trainer.lr)

    def log_evaluation(self, metrics: dict[str, Any]) -> None:
        """Log the metrics of an evaluation."""
        self._tracker.log({f"validation/{key}": value for key, value in metrics.items()}, self._trainer.steps)
        self._lines.append({"kind": "evaluation", **metrics})

    def flush(self) -> None:
        """Write all lines so far. Call it before a checkpoint, so that a run that resumes there has all lines."""
        if self._trainer.rank == 0:
            text = "".join(json.dumps(line) + "\n" for line in self._lines)
            self._storage.write_bytes(f"{self._folder}/metrics.jsonl", text.encode())


def read_metrics(storage: Storage, folder: str) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` of a run, each with a `kind` (start, training, evaluation) and a `step`."""
    try:
        text = storage.read_bytes(f"{folder}/metrics.jsonl").decode()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


def _profiler(storage: Storage, folder: str) -> Any:
    """Record a few steps, and write a trace for Perfetto or chrome://tracing and a table of the operations."""
    from torch import profiler

    def write(profile: Any) -> None:
        by = "self_cuda_time_total" if profile.profiler.use_device == "cuda" else "self_cpu_time_total"
        with tempfile.TemporaryDirectory() as name:
            profile.export_chrome_trace(f"{name}/trace.json.gz")
            (Path(name) / "operations.txt").write_text(profile.key_averages().table(sort_by=by, row_limit=25))
            storage.upload(name, folder)

    schedule = profiler.schedule(wait=5, warmup=2, active=5, repeat=1)
    return profiler.profile(schedule=schedule, on_trace_ready=write, record_shapes=True)
