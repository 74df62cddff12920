"""Trainings, sweeps and pipelines that were cut off, found again by what decides their outcome."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from detect_ai.core import ray_runtime
from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError
from detect_ai.core.job import Stage, attempt, read_result, run_stage
from detect_ai.core.storage import Storage

logger = logging.getLogger(__name__)

_NAME = "attempt.json"  # of an attempt: what it is, and whether it came to its end
# Keys of `train` that only say where and how safely a run is made.
_FREE = {"num_workers", "cpus_per_worker", "threads_per_worker", "log_every", "keep_checkpoints", "profile"}
_FREE |= {"resize_every_s", "max_failures", "checkpoint_every", "from_sweep"}


def digest(config: Config, *more: Any) -> str:
    """What decides the parameters that a training ends with as one name; so does what else is given, as the corpus."""
    settings = {name: value for name, value in config.train.model_dump().items() if name not in _FREE}
    all_ = [settings, config.model.model_dump(), config.seed, *more]
    return hashlib.sha256(json.dumps(all_, sort_keys=True).encode()).hexdigest()


def cut_off(storage: Storage, run: str, kind: str, digest: str) -> str | None:
    """The newest attempt of its kind in a run, when it is the same and did not come to its end."""
    names = [name for name in storage.list(f"runs/{run}") if name.startswith(f"{kind}-")]
    for name in reversed(names):
        try:
            found = storage.read_json(f"runs/{run}/{name}/{_NAME}")
        except FileNotFoundError:
            continue
        return name if found == {"digest": digest, "finished": False} else None
    return None


@contextmanager
def attempted(storage: Storage, run: str, kind: str, digest: str) -> Iterator[tuple[str, bool]]:
    """The name of an attempt, and whether it goes on from one that was cut off; nobody else may make it meanwhile.

    It counts as finished when what is inside ends without an error.

    Raises:
        ResourceError: another job makes it.
    """
    with ray_runtime.claimed(f"{storage.root}/{run}/{kind}", f"run={run}: another {kind} job is at work on it"):
        old = cut_off(storage, run, kind, digest)
        name = old or attempt(kind)
        key = f"runs/{run}/{name}/{_NAME}"
        storage.write_json(key, {"digest": digest, "finished": False})
        yield name, old is not None
        storage.write_json(key, {"digest": digest, "finished": True})


def in_turn(config: Config, storage: Storage, kind: str, stages: Mapping[str, Stage], *more: Any) -> dict[str, Any]:
    """Run stages one after another; when that was cut off, those that came to their end are not run again.

    Of an earlier attempt with the same configuration, and the same of what else is given, a result counts while it is
    still the newest of its stage.

    Returns:
        The result of each stage.

    Raises:
        ResourceError: another job is at work on it.
    """
    with attempted(storage, config.run, kind, digest(config, config.to_dict(), *more)) as (name, goes_on):
        key = f"runs/{config.run}/{name}/results.json"
        before = storage.read_json(key) if goes_on and storage.exists(key) else {}
        results: dict[str, Any] = {}
        for stage, run in stages.items():
            if stage in before and before[stage] == _newest(storage, config.run, stage):
                logger.info("%s: done by the %s that was cut off", stage, kind)
                results[stage] = before[stage]
            else:
                before = {}  # what comes after it is to be run again, too
                results[stage] = run_stage(stage, run, config, storage)
                storage.write_json(key, results)
    storage.prune(f"runs/{config.run}", f"{kind}-", config.storage.keep)
    return results


def _newest(storage: Storage, run: str, stage: str) -> Any:
    try:
        return read_result(storage, run, stage)
    except ConfigError:
        return None
