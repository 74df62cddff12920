"""The stage `sweep`: Ray Tune over `run_training`, to find the best values of a search space.

A sweep that was cut off goes on when the stage runs again under the same run name with the same configuration: finished
trials stay, unfinished ones go on from their last checkpoint.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from detect_ai.core import ray_runtime, resume
from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, TrainingError
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.reports.sweep import write_reports
from detect_ai.training import search_space, trials
from detect_ai.training import train as training

if TYPE_CHECKING:
    from ray.tune import ResultGrid, Tuner
    from ray.tune.schedulers import TrialScheduler

logger = logging.getLogger(__name__)

TRIAL_CPUS = 0.1  # a trial's own actor only waits; its workers reserve what they need
_REDUCTION = 2  # asha: the share of trials that a rung ends is one half


def sweep(config: Config, storage: Storage) -> dict[str, Any]:
    """Train once for each trial and name the best: a table, a report, and the best trial's checkpoint by its key.

    A trial that fails stands in the table with its error and does not end the sweep.

    Raises:
        ConfigError: nothing is to be searched, or Optuna is not installed.
        ResourceError: the cluster cannot place a single trial, or another job makes this sweep.
        TrainingError: every trial failed.
    """
    if not config.sweep.space:
        raise ConfigError("config: sweep.space is empty: name what to try, such as sweep=grid or sweep=random")
    if config.sweep.search == "optuna" and find_spec("optuna") is None:
        raise ConfigError("config: sweep.search=optuna: expected Optuna: pip install 'detect-ai[sweep]'")
    ray_runtime.connect()
    corpus = Corpus.of_run(storage, config.run)
    training.checked_tokenizer(config, corpus)
    training.require_training_resources(config, "a trial of the sweep", training.DATA_CPUS + TRIAL_CPUS)
    searched = {name: value for name, value in asdict(config.sweep).items() if name != "max_concurrent"}
    digest = resume.digest(config, corpus.manifest.fingerprint, searched)
    with resume.attempted(storage, config.run, "sweep", digest) as (name, goes_on):
        if goes_on:
            logger.info("sweep: %s was cut off and goes on; its finished trials stay", name)
        free = _free_cpus()
        found = trials.records(_run(config, corpus, name), storage, f"runs/{config.run}/{name}")
        _wait_until_free(free)
        logger.info("trials of %s:\n%s", name, trials.table(found))
        best = trials.best(found)
        if best is not None:
            result = {"best": best, "trials": found, "concurrent": concurrency(config), "corpus": corpus.key}
            result |= write_reports(config, storage, f"runs/{config.run}/{name}", result)
    storage.prune(f"runs/{config.run}", "sweep-", config.storage.keep)
    if best is None:
        raise TrainingError(f"all {len(found)} trials failed; the first said: {found[0]['error']}")
    return result


def _run(config: Config, corpus: Corpus, name: str) -> ResultGrid:
    import ray
    from ray import tune

    storage, folder = corpus.storage, f"runs/{config.run}/{name}/tune"
    trainable = tune.with_resources(trials.trainable(ray.put((config, corpus)), name), {"CPU": TRIAL_CPUS})
    path = storage.path(folder)
    if tune.Tuner.can_restore(path, storage_filesystem=storage.filesystem):
        # Trials that failed for their values have ended; those that an error of another kind ended are made again.
        tuner: Tuner = tune.Tuner.restore(path, trainable, storage_filesystem=storage.filesystem, resume_errored=True)
        return tuner.fit()
    tuner = tune.Tuner(
        trainable,
        param_space=search_space.tune_space(config),
        tune_config=tune.TuneConfig(
            metric="auroc",
            mode="max",
            num_samples=1 if config.sweep.search == "grid" else config.sweep.trials,
            search_alg=_algorithm(config),
            scheduler=_scheduler(config),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage.path(f"runs/{config.run}/{name}"),
            storage_filesystem=storage.filesystem,
            failure_config=tune.FailureConfig(max_failures=config.train.max_failures),
            verbose=0,
        ),
    )
    return tuner.fit()


def _algorithm(config: Config) -> Any:
    """What draws the values of trials, so many at once. Ray Tune's own limit is none for the variant generator."""
    from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

    if config.sweep.search != "optuna":
        return BasicVariantGenerator(random_state=config.seed, max_concurrent=concurrency(config))
    from ray.tune.search.optuna import OptunaSearch

    return ConcurrencyLimiter(OptunaSearch(metric="auroc", mode="max", seed=config.seed), concurrency(config))


def _scheduler(config: Config) -> TrialScheduler | None:
    from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule

    sweep = config.sweep
    if sweep.stop == "asha":
        # Above the last epoch: a trial that gets there ends by itself, and says what it has found.
        return AsyncHyperBandScheduler(
            "epoch", max_t=sweep.epochs + 1, grace_period=sweep.grace, reduction_factor=_REDUCTION
        )
    if sweep.stop == "median":
        # Else trials are paused at every epoch until others have come as far, each time with a start of its own.
        never = sys.maxsize
        return MedianStoppingRule("epoch", grace_period=sweep.grace, min_samples_required=2, min_time_slice=never)
    return None


def concurrency(config: Config) -> int:
    """Trials that fit what the cluster has free, at most `sweep.max_concurrent` when that is given; at least one.

    A cluster that can grow makes room for as many as are asked for.
    """
    import ray

    free = ray.available_resources()  # a service may hold the rest
    train = config.train
    each = train.worker_range[0] * train.cpus_per_worker + training.DATA_CPUS + TRIAL_CPUS
    fits = int(free.get("CPU", 0) // each)
    if train.use_gpu:
        fits = min(fits, int(free.get("GPU", 0) // train.worker_range[0]))
    if ray_runtime.can_grow() and config.sweep.max_concurrent:
        return config.sweep.max_concurrent
    limit = config.sweep.max_concurrent or math.inf
    return int(min(max(1, fits), limit))


def _free_cpus() -> float:
    import ray

    return float(ray.available_resources().get("CPU", 0))


def _wait_until_free(cpus: float, seconds: float = 30) -> None:
    """Wait until the trials' actors have gone: after a sweep as many CPUs are free as before it."""
    until = time.monotonic() + seconds
    while _free_cpus() < cpus:
        if time.monotonic() > until:
            logger.warning("after the sweep %g CPUs are free, before it %g were", _free_cpus(), cpus)
            return
        time.sleep(0.2)
