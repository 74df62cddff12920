"""Optional Weights & Biases tracking: offline without a key; its failures never stop a run."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from detect_ai.core.config import Config
from detect_ai.core.storage import Storage

logger = logging.getLogger(__name__)

FOLDER = "wandb"  # key of the runs under the storage root
RUNS_PER_KEPT = 100  # W&B runs kept for each of `storage.keep`: a sweep of 100 trials keeps them all
FINISH_SECONDS = 60.0  # to send the remaining data; W&B's own default is unbounded


class Tracker:
    """A run in W&B's project `detect_ai`. The first failure of W&B is logged and ends tracking, not the run.

    Offline runs are written to the storage root; if that is an object store, they are uploaded when they end.

    Args:
        config: only its `published` part is recorded.
        enabled: false on ranks that do not report.
        facts: recorded in addition to the configuration.
        settings: arguments of `wandb.init`, such as name, group and job_type.
    """

    def __init__(
        self, config: Config, enabled: bool = True, facts: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        self._run: Any = None
        self._storage, self._keep = Storage(config.storage.root), config.storage.keep * RUNS_PER_KEPT
        mode: Any = config.tracking.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE", "auto")
        if mode == "disabled" or not enabled:
            return
        try:
            import wandb

            if mode == "auto":  # a key in the environment or in ~/.netrc
                mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
            local = self._storage.is_local
            self._folder = Path(self._storage.root if local else tempfile.mkdtemp(prefix="detect_ai-wandb-"))
            self._folder.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                mode=mode,
                dir=str(self._folder),
                project="detect_ai",
                config=config.published() | dict(facts or {}),
                settings=wandb.Settings(silent=True, console="off", finish_timeout=FINISH_SECONDS),
                **settings,
            )
        except Exception as error:  # tracking must not stop a run
            logger.warning("W&B is off for this run: %s", error)
            return
        if mode == "offline":
            logger.info("W&B is offline: send the run later with `wandb sync` from %s", self._storage.uri(FOLDER))

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record metrics."""
        self._safely(lambda run: run.log(dict(values), step=step))

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
        def finish(run: Any) -> None:
            run.finish(exit_code=0 if kind is None else 1)
            if not self._storage.is_local:
                import wandb

                wandb.teardown()  # `finish` does not wait for the files of an offline run
                for folder in self._folder.glob("wandb/offline-run-*"):
                    self._storage.upload(folder, f"{FOLDER}/{folder.name}")
                shutil.rmtree(self._folder)
            for prefix in ("run-", "offline-run-"):
                self._storage.prune(FOLDER, prefix, self._keep)

        self._safely(finish)
