"""Telemetry of a training run: progress, `metrics.jsonl`, Weights & Biases and a profile. Only rank 0 writes."""

from __future__ import annotations

import gzip
import json
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from detect_ai.core.config import Config
from detect_ai.core.errors import TrainingError
from detect_ai.core.storage import Storage
from detect_ai.core.tracking import Tracker

if TYPE_CHECKING:
    import torch

    from detect_ai.training.trainer import Trainer

T = TypeVar("T")
logger = logging.getLogger(__name__)

PROFILE_WAIT, PROFILE_WARMUP, PROFILE_ACTIVE = 5, 2, 5  # steps


@contextmanager
def open_telemetry(arguments: dict[str, Any], trainer: Trainer) -> Iterator[Telemetry]:
    """Open the outputs of a run and close them at its end; a TrainingError is logged and raised again.

    Args:
        arguments: those of `worker.train_loop`.
        trainer: of this rank.
    """
    config: Config = arguments["config"]
    name, writes = arguments["name"], trainer.rank == 0
    storage, folder = Storage(config.storage.root), f"runs/{config.run}/{name}"
    log = MetricsLog(storage, folder, trainer.steps) if writes else None
    with (
        Tracker(
            config,
            enabled=writes,
            group=arguments["group"],
            name=name,
            id=name.replace("/", "-"),  # a resumed run stays one run
            resume="allow",
            facts={"corpus_fingerprint": arguments["corpus"]},
        ) as tracker,
        _progress_bar(name, trainer) if writes and arguments["bar"] else nullcontext() as bar,
        _profiler(storage, f"{folder}/profile") if writes and config.train.profile else nullcontext() as profiler,
    ):
        telemetry = Telemetry(trainer, name, config.train.log_every, tracker, log, bar, profiler)
        telemetry.write("start", {"step": trainer.steps, "workers": trainer.world_size, "time": time.time()})
        try:
            yield telemetry
        except TrainingError as error:
            telemetry.write("error", {"step": trainer.synchronized_steps, "error": str(error)})
            raise


class Telemetry:
    """Logs the steps and evaluations of a trainer. Every rank must call every method: metrics are summed over ranks.

    Args:
        trainer: of this rank.
        name: of the run.
        every: steps between two lines of the log.
        tracker: Weights & Biases.
        log: `metrics.jsonl`, on rank 0.
        bar: progress bar on the driver's terminal; without one rank 0 logs a line instead.
        profiler: of torch.
    """

    def __init__(
        self, trainer: Trainer, name: str, every: int, tracker: Tracker, log: MetricsLog | None, bar: Any, profiler: Any
    ) -> None:
        self._trainer, self._name, self._every = trainer, name, every
        self._tracker, self._log, self._bar, self._profiler = tracker, log, bar, profiler
        self._data_wait = 0.0  # seconds since the last line of the log

    def time_data_wait(self, steps: Iterable[T]) -> Iterator[T]:
        """The same steps; measures how long each is waited for, except the first, which is start-up."""
        stream, first = iter(steps), True
        while True:
            started = time.perf_counter()
            try:
                step = next(stream)
            except StopIteration:
                return
            self._data_wait += 0.0 if first else time.perf_counter() - started
            first = False
            yield step

    def log_step(self) -> None:
        """Log an optimizer step."""
        trainer = self._trainer
        due = trainer.steps % self._every == 0
        if due:
            trainer.synchronize()
        status = f"loss of rank 0 {trainer.last_loss:.3f} lr {trainer.lr:.1e}"
        if self._bar is not None:
            self._bar.update(1)
            self._bar.set_description(f"{self._name} {status}")
        elif self._log and due:
            logger.info("%s: step %d/%d %s", self._name, trainer.steps, trainer.total_steps, status)
        if self._profiler is not None:
            self._profiler.step()
        if not due:
            return
        metrics = trainer.since_log.metrics()
        metrics["data_wait"] = round(min(1.0, self._data_wait / max(metrics["seconds"], 0.01)), 3)
        self._data_wait = 0.0
        metrics |= {"grad_norm": trainer.grad_norm, "lr": trainer.lr, "step": trainer.steps}
        metrics["memory_bytes"] = _peak_memory(trainer.device)
        self._tracker.log({f"train/{key}": value for key, value in metrics.items()}, trainer.steps)
        self.write("training", metrics, flush=False)

    def log_evaluation(self, metrics: dict[str, Any]) -> None:
        """Log the metrics of an evaluation."""
        self._tracker.log({f"validation/{key}": value for key, value in metrics.items()}, self._trainer.steps)
        self.write("evaluation", metrics)

    def write(self, kind: str, values: dict[str, Any], flush: bool = True) -> None:
        """Add a line to `metrics.jsonl`, on rank 0."""
        if self._log:
            self._log.write({"kind": kind, **values}, flush)

    def flush(self) -> None:
        """Write all lines so far: before a checkpoint, so that a run that resumes from it has the lines up to it."""
        if self._log:
            self._log.flush()


class MetricsLog:
    """`metrics.jsonl` of a run. A run that resumes from a step keeps the lines up to it.

    An object store cannot append, so the file is rewritten at checkpoints, evaluations and errors, not at every line.

    Args:
        storage: of the run.
        folder: key of the run.
        steps: from which it resumes.
    """

    def __init__(self, storage: Storage, folder: str, steps: int) -> None:
        self._storage, self._key = storage, f"{folder}/metrics.jsonl"
        lines = read_metrics(storage, folder)
        self._lines = [line for line in lines if line["step"] <= steps and line["kind"] != "error"]

    def write(self, line: dict[str, Any], flush: bool = True) -> None:
        """Add a line, which has a `kind` and a `step`; without `flush` it is written with the next one that is."""
        self._lines.append(line)
        if flush:
            self.flush()

    def flush(self) -> None:
        """Write all lines so far."""
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        self._storage.write_bytes(self._key, text.encode())


def read_metrics(storage: Storage, folder: str) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` of a run, each with a `kind` (start, training, evaluation, error) and a `step`."""
    try:
        text = storage.read_bytes(f"{folder}/metrics.jsonl").decode()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


def _progress_bar(name: str, trainer: Trainer) -> closing[Any]:
    from ray.experimental import tqdm_ray

    bar = tqdm_ray.tqdm(desc=name, total=trainer.total_steps, unit="step")
    bar.update(trainer.steps)
    return closing(bar)


def _profiler(storage: Storage, folder: str) -> Any:
    """Record a few steps; write a trace for Perfetto or chrome://tracing and a table of the operations."""
    from torch import profiler

    def write(profile: Any) -> None:
        with tempfile.TemporaryDirectory() as name:
            trace = Path(name) / "trace.json"
            profile.export_chrome_trace(str(trace))
            storage.write_bytes(f"{folder}/trace.json.gz", gzip.compress(trace.read_bytes()))
        by = "self_cuda_time_total" if profile.profiler.use_device == "cuda" else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=by, row_limit=25)
        storage.write_bytes(f"{folder}/operations.txt", table.encode())

    schedule = profiler.schedule(wait=PROFILE_WAIT, warmup=PROFILE_WARMUP, active=PROFILE_ACTIVE, repeat=1)
    return profiler.profile(schedule=schedule, on_trace_ready=write, record_shapes=True)


def _peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
