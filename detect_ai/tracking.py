"""Weights & Biases, never required: without a key it writes offline, and no failure of it stops a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

logger = logging.getLogger(__name__)


def resolve_mode(mode: str) -> str:
    """`auto` is online with a key and offline without; WANDB_MODE decides over both."""
    if mode != "auto":
        return mode
    if chosen := os.environ.get("WANDB_MODE"):
        return chosen
    netrc = Path("~/.netrc").expanduser()
    has_key = bool(os.environ.get("WANDB_API_KEY")) or (netrc.is_file() and "api.wandb.ai" in netrc.read_text())
    return "online" if has_key else "offline"


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
                settings=wandb.Settings(silent=True, console="off"),
                **settings,
            )
        except Exception as error:  # tracking is never worth a run
            logger.warning("W&B is off for this run: %s", error)
            return
        if mode == "offline":
            logger.info("W&B is offline (no key): send it later with `wandb sync %s`", folder / "wandb")

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Record values at a step."""
        if self._run is None:
            return
        try:
            self._run.log(dict(values), step=step)
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
