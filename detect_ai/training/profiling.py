"""A few steps of a training run under torch.profiler, and how long it waited for data."""

from __future__ import annotations

import gzip
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from detect_ai.core.storage import Storage

WAIT, WARM, ACTIVE = 5, 2, 5  # steps
T = TypeVar("T")


class Profiler:
    """Records `ACTIVE` steps and writes a trace, a table of operations and the share of time spent waiting for data.

    Under `<folder>/profile/`: `trace.json.gz` (for chrome://tracing or Perfetto), `operations.txt`, `data.json`, and
    `data.txt` with Ray Data's own statistics. A run of fewer than `WAIT + WARM + ACTIVE` steps records what there is.

    Args:
        storage: where the run lies.
        folder: key of the run.
        wanted: nothing is recorded otherwise.
    """

    def __init__(self, storage: Storage, folder: str, wanted: bool) -> None:
        self._storage, self._folder, self._profile = storage, f"{folder}/profile", None
        self._waited = self._steps = 0.0
        self._since = time.perf_counter()
        self._stats: Callable[[], str] = str
        if wanted:
            self._profile = self._make()

    def _make(self) -> Any:
        from torch import profiler

        return profiler.profile(
            schedule=profiler.schedule(wait=WAIT, warmup=WARM, active=ACTIVE, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
        )

    def watched(self, steps: Iterable[T], stats: Callable[[], str]) -> Iterator[T]:
        """The same steps; the time until each is there counts as waiting. `stats` tells of Ray Data's operators."""
        stream = iter(steps)
        self._stats = stats
        while True:
            asked = time.perf_counter()
            try:
                step = next(stream)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            yield step

    def step(self) -> None:
        """A step has been made."""
        self._steps += 1
        if self._profile is not None:
            self._profile.step()

    def _write(self, profile: Any) -> None:
        with tempfile.TemporaryDirectory() as name:
            trace = Path(name) / "trace.json"
            profile.export_chrome_trace(str(trace))
            self._storage.write_bytes(f"{self._folder}/trace.json.gz", gzip.compress(trace.read_bytes()))
        by = "self_cuda_time_total" if profile.profiler.use_device == "cuda" else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=by, row_limit=25)
        self._storage.write_bytes(f"{self._folder}/operations.txt", table.encode())

    def __enter__(self) -> Self:
        if self._profile is not None:
            self._profile.start()
            self._since = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._profile is None:
            return
        self._profile.stop()
        seconds = time.perf_counter() - self._since
        share = self._waited / seconds if seconds else 0.0
        figures = {"steps": int(self._steps), "seconds": seconds, "waiting_for_data": share}
        self._storage.write_json(f"{self._folder}/data.json", figures)
        self._storage.write_bytes(f"{self._folder}/data.txt", self._stats().encode())
