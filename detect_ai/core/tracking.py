"""Weights & Biases, never required: without a key it writes offline, and no failure of it stops a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

from detect_ai.core.config import Config

logger = logging.getLogger(__name__)

_RUNS = 100  # trials of a sweep that are kept at least
_FINISH_SECONDS = 60.0  # for what is left to send; W&B's own default is to wait for ever


def resolve_mode(mode: str) -> str:
    """`auto` is online with a key and offline without; WANDB_MODE decides over both."""
    if mode != "auto":
        return mode
    if chosen := os.environ.get("WANDB_MODE"):
        return chosen
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_has_key() else "offline"


def _netrc_has_key() -> bool:
    try:
        return b"api.wandb.ai" in Path("~/.netrc").expanduser().read_bytes()
    except (OSError, RuntimeError):  # there is none, it is not ours to read, or there is no home
        return False


def open_run(config: Config, told: bool = True, facts: Mapping[str, Any] | None = None, **settings: Any) -> Tracker:
    """A tracked run in the project of the configuration, kept below the storage root where that is local.

    Args:
        config: storage, sweep and tracking are read, and all of it is recorded.
        told: whether this process is the one that tells; else the run is disabled.
        facts: recorded beside the configuration.
        settings: further arguments of `wandb.init`, such as name, group and job_type.
    """
    local = "://" not in config.storage.root
    # No stage may delete what another one of the same loop wrote: trials, a training, an evaluation, a publication.
    # A stage need not be told of the sweep before it.
    runs = max(_RUNS, config.sweep.num_trials) + 3
    return Tracker(
        resolve_mode(config.tracking.mode) if told else "disabled",
        folder=Path(config.storage.root if local else "~/.cache/detect_ai").expanduser(),
        keep=config.storage.keep * runs,
        project=config.tracking.project,
        config=config.to_dict() | dict(facts or {}),
        **settings,
    )


class Tracker:
    """One tracked run. Every call is safe: the first failure is logged once and ends tracking, not the run.

    Args:
        mode: online, offline or disabled.
        folder: where runs are written.
        keep: runs kept in the folder; older ones are deleted.
        settings: arguments of `wandb.init` such as project, group, name and config.
    """

    def __init__(self, mode: str, folder: Path, keep: int, **settings: Any) -> None:
        self._run: Any = None
        if mode == "disabled":
            return
        try:
            import wandb

            folder.mkdir(parents=True, exist_ok=True)
            _prune(folder / "wandb", keep - 1)
            self._run = wandb.init(
                mode=cast(Literal["online", "offline"], mode),
                dir=str(folder),
                settings=wandb.Settings(silent=True, console="off", finish_timeout=_FINISH_SECONDS),
                **settings,
            )
        except Exception as error:  # tracking is never worth a run
            logger.warning("W&B is off for this run: %s", error)
            return
        if mode == "offline":
            logger.info("W&B is offline (no key, or by choice): send it later with `wandb sync %s`", folder / "wandb")

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record values, at a step where there is one."""
        self._safely(lambda run: run.log(dict(values), step=step))

    def curve(self, name: str, title: str, columns: tuple[str, str], points: Iterable[tuple[float, float]]) -> None:
        """Record a plot of one line, and its points as a table."""

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

    def _safely(self, tell: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            tell(self._run)
        except Exception as error:  # tracking is never worth a run
            logger.warning("W&B stopped: %s", error)
            self._run = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=0 if kind is None else 1)
        except Exception as error:  # tracking is never worth a run
            logger.warning("W&B did not finish: %s", error)


def _prune(folder: Path, keep: int) -> None:
    """Delete the oldest runs, offline and online ones: nothing grows for ever."""
    import shutil

    runs = [path for path in folder.glob("*run-*") if path.is_dir()]
    runs.sort(key=lambda path: path.name.partition("run-")[2])  # the time it began
    for path in runs[: max(0, len(runs) - keep)]:
        shutil.rmtree(path, ignore_errors=True)
