"""Resume interrupted training runs, sweeps and pipelines, matched by a hash of all settings that affect the result."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from detect_ai.core import ray_runtime
from detect_ai.core.compose import CONFIG_DIR, load_config
from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError
from detect_ai.core.job import Stage, attempt, read_result, result_key, run_stage
from detect_ai.core.storage import Storage

logger = logging.getLogger(__name__)

_NAME = "attempt.json"  # file of an attempt: its digest, and whether it finished
# Keys of `train` that do not affect the result.
_FREE = {"num_workers", "cpus_per_worker", "threads_per_worker", "log_every", "profile"}
_FREE |= {"max_failures", "checkpoint_every", "from_sweep"}
_SEARCHED = ("train", "model")  # sections with keys that a sweep searches


def digest(config: Config, *more: Any) -> str:
    """A hash of all settings that affect the trained parameters, and of other values such as the corpus."""
    decisive = [config.train.model_dump(exclude=_FREE), config.model.model_dump(), config.seed, *more]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def interrupted(storage: Storage, run: str, kind: str, digest: str) -> str | None:
    """The newest attempt of a kind in a run, if it has this digest and did not finish."""
    for name in reversed(storage.list(f"runs/{run}")):
        key = f"runs/{run}/{name}/{_NAME}"
        if name.startswith(f"{kind}-") and storage.exists(key):
            return name if storage.read_json(key) == {"digest": digest, "finished": False} else None
    return None


@contextmanager
def attempted(storage: Storage, run: str, kind: str, digest: str) -> Iterator[tuple[str, bool]]:
    """Start an attempt, or resume the interrupted one; it is finished when the block ends without an error.

    Yields its name and whether it is resumed. Raises ResourceError if another job is already running.
    """
    with ray_runtime.claimed(f"{storage.root}/{run}/{kind}", f"run={run}: another {kind} job is already running"):
        old = interrupted(storage, run, kind, digest)
        name = old or attempt(kind)
        key = f"runs/{run}/{name}/{_NAME}"
        storage.write_json(key, {"digest": digest, "finished": False})
        yield name, old is not None
        storage.write_json(key, {"digest": digest, "finished": True})


def settle_pipeline(config: Config, overrides: Sequence[str]) -> None:
    """Let a pipeline run a sweep unless the command line or a file sets `train.from_sweep`.

    A searched key counts as set if the command line sets it or its value differs from the default, which comes from the
    options of `train` and `model` that the command line chooses from `configs/`. Changes `config` in place.

    Raises:
        ConfigError: a given value would be ignored: `bundle`, `data`, or a key that the sweep searches.
    """
    for name in ("bundle", "data"):
        if getattr(config, name):
            raise ConfigError(f"{name}: the pipeline evaluates its own model on its test split; use jobs/evaluate.py")
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    shipped = {f"{path.parent.name}={path.stem}" for group in _SEARCHED for path in (CONFIG_DIR / group).glob("*.yaml")}
    default = load_config([override for override in overrides if override in shipped])
    for section in _SEARCHED if config.train.from_sweep is not False else ():
        values, defaults = getattr(config, section).model_dump(), getattr(default, section).model_dump()
        for key in sorted(values.keys() & config.sweep.space.keys()):
            is_set = config.train.from_sweep is None and values[key] != defaults[key]
            if is_set or f"{section}.{key}" in given:
                raise ConfigError(
                    f"{section}.{key}={values[key]} is set, but the sweep searches it. To train with it, give "
                    "train.from_sweep=false; to sweep, remove it, or if a file sets it, give train.from_sweep=true"
                )
    if config.train.from_sweep is None:
        config.train.from_sweep = True


def run_stages(config: Config, storage: Storage, kind: str, stages: Mapping[str, Stage], *more: Any) -> dict[str, Any]:
    """Run stages in order and return their results; after an interruption, finished stages are not repeated.

    A result of the interrupted attempt is reused if configuration and `more` are unchanged and it is still the latest
    result of its stage. Raises ResourceError if another job is already running.
    """
    with attempted(storage, config.run, kind, digest(config, config.model_dump(), *more)) as (name, resumed):
        key = f"runs/{config.run}/{name}/results.json"
        before = storage.read_json(key) if resumed and storage.exists(key) else {}
        results: dict[str, Any] = {}
        for stage, run in stages.items():
            is_stored = stage in before and storage.exists(result_key(config.run, stage))
            if is_stored and before[stage] == read_result(storage, config.run, stage):
                logger.info("%s: finished before the %s was interrupted", stage, kind)
                results[stage] = before[stage]
            else:
                before = {}  # later stages must run again, too
                results[stage] = run_stage(stage, run, config, storage)
                storage.write_json(key, results)
    storage.prune(f"runs/{config.run}", f"{kind}-", config.storage.keep)
    return results
