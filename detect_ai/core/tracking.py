"""Weights & Biases tracking. Optional: offline without a key, and its failures never stop a run."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

from detect_ai.core.config import Config
from detect_ai.core.storage import Storage

logger = logging.getLogger(__name__)

FOLDER = "wandb"  # key of the runs under the storage root
RUNS_PER_KEPT = 100  # W&B runs kept for each of `storage.keep`: a sweep of 100 trials keeps them all
FINISH_SECONDS = 60.0  # to send what is left; W&B's own default is unbounded


def resolve_mode(mode: str) -> str:
    """`auto`: WANDB_MODE if set, else online with an API key and offline without."""
    if mode != "auto":
        return mode
    if chosen := os.environ.get("WANDB_MODE"):
        return chosen
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_has_key() else "offline"


def _netrc_has_key() -> bool:
    try:
        return b"api.wandb.ai" in Path("~/.netrc").expanduser().read_bytes()
    except (OSError, RuntimeError):  # no file, no permission, or no home
        return False


def open_run(config: Config, enabled: bool = True, facts: Mapping[str, Any] | None = None, **settings: Any) -> Tracker:
    """A tracked run in the project `detect_ai`.

    Args:
        config: storage and tracking are used; the published part is recorded.
        enabled: false on ranks that do not report.
        facts: recorded in addition to the configuration.
        settings: arguments of `wandb.init`, such as name, group and job_type.
    """
    return Tracker(
        resolve_mode(config.tracking.mode) if enabled else "disabled",
        Storage(config.storage.root),
        keep=config.storage.keep * RUNS_PER_KEPT,
        project="detect_ai",
        config=config.published() | dict(facts or {}),
        **settings,
    )


class Tracker:
    """One tracked run. The first failure of W&B is logged and ends tracking, not the run.

    Offline runs are written to the storage root; where that is an object store, to a temporary folder first, which is
    uploaded when the run ends.

    Args:
        mode: online, offline or disabled.
        storage: root under which runs are kept.
        keep: runs kept there; older ones are deleted.
        settings: arguments of `wandb.init`.
    """

    def __init__(self, mode: str, storage: Storage, keep: int, **settings: Any) -> None:
        self._run: Any = None
        self._storage, self._keep = storage, keep
        if mode == "disabled":
            return
        try:
            import wandb

            self._folder = Path(storage.root if storage.is_local else tempfile.mkdtemp(prefix="detect_ai-wandb-"))
            self._folder.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                mode=cast(Literal["online", "offline"], mode),
                dir=str(self._folder),
                settings=wandb.Settings(silent=True, console="off", finish_timeout=FINISH_SECONDS),
                **settings,
            )
        except Exception as error:  # tracking must not stop a run
            logger.warning("W&B is off for this run: %s", error)
            return
        if mode == "offline":
            logger.info("W&B is offline: send the run later with `wandb sync` from %s", storage.uri(FOLDER))

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record metrics, at a step where there is one."""
        self._safely(lambda run: run.log(dict(values), step=step))

    def curve(self, name: str, title: str, columns: tuple[str, str], points: Iterable[tuple[float, float]]) -> None:
        """Record a line plot and its points as a table."""

        def plot(run: Any) -> None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(point) for point in points])
            run.log({name: wandb.plot.line(table, *columns, title=title)})

        self._safely(plot)

    def artifact(self, name: str, folder: Path, metadata: Mapping[str, Any], aliases: list[str]) -> None:
        """Record the files of a folder as a version of a model."""

        def add(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(name, type="model", metadata=dict(metadata))
            artifact.add_dir(str(folder))
            run.log_artifact(artifact, aliases=aliases)

        self._safely(add)

    def _safely(self, report: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            report(self._run)
        except Exception as error:  # tracking must not stop a run
            logger.warning("W&B stopped: %s", error)
            self._run = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._safely(lambda run: run.finish(exit_code=0 if kind is None else 1))
        self._safely(lambda _: self._store())

    def _store(self) -> None:
        """Upload an offline run, and delete the oldest runs."""
        if not self._storage.is_local:
            import wandb

            wandb.teardown()  # `finish` does not wait for the files of an offline run
            for folder in self._folder.glob("wandb/offline-run-*"):
                self._storage.upload(folder, f"{FOLDER}/{folder.name}")
            shutil.rmtree(self._folder)
        runs = [name for name in self._storage.list(FOLDER) if "run-" in name]
        runs.sort(key=lambda name: name.partition("run-")[2])  # by start time
        for name in runs[: max(0, len(runs) - self._keep)]:
            self._storage.delete(f"{FOLDER}/{name}")
