"""The stage `sweep`: search for the best hyperparameters with Ray Tune over `run_training`.

An interrupted sweep resumes when the stage runs again under the same run name with the same configuration: finished
trials stay, unfinished trials resume from their last checkpoint.
"""

from __future__ import annotations

import logging
import math
from importlib.util import find_spec
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.train import ControllerError, TrainingFailedError
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from detect_ai.core import ray_runtime, resume
from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, InputError, TrainingError, unwrap_ray_error
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.training import search_space
from detect_ai.training import train as training
from detect_ai.training.checkpoint import NOT_EVALUATED

logger = logging.getLogger(__name__)

Trial = dict[str, Any]
TRIAL_CPUS = 0.1  # a trial's own actor only waits; its workers reserve their own resources
_ENDED = "reached_end"  # in the last report of a trial that was not stopped; Ray's own `done` is also set by ASHA


def sweep(config: Config, storage: Storage) -> dict[str, Any]:
    """Train once per trial and return the best trial.

    A failed trial is listed with its error and does not end the sweep. Returns `best` and `trials`, in the format of
    `_trial_result`, and `corpus`.

    Raises:
        ConfigError: the search space is empty, or Optuna is not installed.
        ResourceError: the cluster cannot place a single trial, or another job runs this sweep.
        TrainingError: every trial failed.
    """
    if not config.sweep.space:
        raise ConfigError("config: sweep.space is empty: name what to try, such as sweep=grid or sweep=random")
    search_space.check(config)
    if config.sweep.search == "optuna" and find_spec("optuna") is None:
        raise ConfigError("config: sweep.search=optuna: expected Optuna: pip install 'detect-ai[sweep]'")
    ray_runtime.connect(storage, dashboard=True)
    corpus = Corpus.of_run(storage, config.run)
    training.checked_tokenizer(config, corpus)
    training.require_training_resources(config, "a trial of the sweep", TRIAL_CPUS)
    searched = {name: value for name, value in config.sweep.model_dump().items() if name != "max_concurrent"}
    digest = resume.digest(config, corpus.manifest.fingerprint, searched)
    with resume.attempted(storage, config.run, "sweep", digest) as (name, resumed):
        if resumed:
            logger.info("sweep: resuming the interrupted sweep %s; its finished trials stay", name)
        results = _tune(config, corpus, name)
        trials = ranked([_trial_result(results[i]) for i in range(len(results))])
        logger.info("trials of %s:\n%s", name, table(trials))
    storage.prune(f"runs/{config.run}", "sweep-", config.storage.keep)
    if trials[0]["status"] == "failed":
        raise TrainingError(f"all {len(trials)} trials failed; the first error: {trials[0]['error']}")
    return {"best": trials[0], "trials": trials, "corpus": corpus.key}


def _tune(config: Config, corpus: Corpus, name: str) -> tune.ResultGrid:
    """Run the trials, or the remaining trials of an interrupted sweep."""
    storage, settings, folder = corpus.storage, config.sweep, f"runs/{config.run}/{name}"
    trials = concurrency(config)
    share = 1 if ray_runtime.can_grow() else math.ceil(trials / machines())
    path = storage.path(f"{folder}/tune")
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, config=config, corpus=corpus, sweep_name=name, share=share), {"CPU": TRIAL_CPUS}
    )
    if tune.Tuner.can_restore(path, storage_filesystem=storage.filesystem):
        # Trials that failed because of their values are final; trials that ended with another error run again.
        tuner = tune.Tuner.restore(path, trainable, storage_filesystem=storage.filesystem, resume_errored=True)
        return tuner.fit()
    search: Any = BasicVariantGenerator(random_state=config.seed, max_concurrent=trials)
    if settings.search == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        search = ConcurrencyLimiter(OptunaSearch(metric="auroc", mode="max", seed=config.seed), trials)
    scheduler = None
    if settings.stop == "asha":
        # Every rung stops half of its trials. max_t is above the last epoch, where a trial ends without ASHA.
        scheduler = AsyncHyperBandScheduler("epoch", max_t=settings.epochs + 1, reduction_factor=2)
    samples = 1 if settings.search == "grid" else settings.trials
    tuner = tune.Tuner(
        trainable,
        param_space=search_space.tune_space(config),
        tune_config=tune.TuneConfig(
            metric="auroc", mode="max", num_samples=samples, search_alg=search, scheduler=scheduler
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage.path(folder),
            storage_filesystem=storage.filesystem,
            failure_config=tune.FailureConfig(max_failures=config.train.max_failures),
            verbose=0,
        ),
    )
    return tuner.fit()


def concurrency(config: Config) -> int:
    """Number of concurrent trials: as many as fit the free resources, at most `sweep.max_concurrent`; at least one.

    Never more than the number of trials, and without GPUs no more workers in total than cores: a small machine declares
    more CPUs than it has (`ray_runtime.LOCAL_CPUS`). An autoscaling cluster uses `sweep.max_concurrent` unchanged.
    """
    train, limit = config.train, config.sweep.max_concurrent
    if limit and ray_runtime.can_grow():
        return limit
    free, workers = ray.available_resources(), train.worker_range[0]  # a service may use the others
    fits = free.get("CPU", 0) // (workers * train.cpus_per_worker + training.data_cpus(workers) + TRIAL_CPUS)
    if train.use_gpu:
        fits = min(fits, free.get("GPU", 0) // workers)
    else:
        fits = min(fits, machines() * ray_runtime.cores() // workers)
    return max(1, int(min(fits, limit or fits, num_trials(config))))


def num_trials(config: Config) -> int:
    """Number of trials of the whole sweep."""
    if config.sweep.search != "grid":
        return config.sweep.trials
    return math.prod(len(values) for values in config.sweep.space.values())


def machines() -> int:
    """Number of machines of the cluster that run tasks."""
    return max(1, sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes()))


def run_trial(values: dict[str, Any], config: Config, corpus: Corpus, sweep_name: str, share: int) -> None:
    """Train with the values of a trial, one of `share` trials on its machine, and report to Ray Tune.

    If training fails because of the values, that is the trial's result. Ray Tune retries a trial that ends for another
    reason, such as workers that die too often or a cluster without free resources.
    """
    config.train.epochs = config.sweep.epochs
    config.train.num_workers = config.train.worker_range[0]  # which `concurrency` assumes
    name = f"{sweep_name}/{tune.get_context().get_trial_id()}"
    try:
        config = search_space.apply(config, values)
        result = training.run_training(config, corpus, name, [ReportEvaluations(config)], sweep_name, share)
    except (TrainingError, InputError, TrainingFailedError) as error:
        # A dead worker also breaks the collective operations of the others.
        causes = [getattr(e, "health_check_failure", e) for e in getattr(error, "worker_failures", {}).values()]
        if isinstance(error, ControllerError) or any(isinstance(cause, RayActorError) for cause in causes):
            raise  # machines or storage failed, not these values
        reason = str(unwrap_ray_error(error)).strip().splitlines()[-1]
        tune.report({"auroc": NOT_EVALUATED, "epoch": 0, _ENDED: True, "error": reason})
        return
    # The metrics of the best epoch, reported with the number of the last epoch.
    last = {"epoch": result.history[-1]["epoch"], "checkpoint": result.checkpoint, _ENDED: True}
    tune.report(result.metrics | last)


class ReportEvaluations(TuneReportCallback):
    """Report evaluations to Ray Tune, but not the checkpoints between them, which have no AUROC.

    The trial's final report covers the last epoch; a report here would let ASHA stop the trial before that.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._epochs = config.train.epochs

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Ray Train calls this after every report of its workers."""
        if metrics[0]["auroc"] != NOT_EVALUATED and metrics[0]["epoch"] < self._epochs:
            super().after_report(run_context, metrics, checkpoint)


def _trial_result(result: Any) -> Trial:
    """The result of a trial: `trial` (its id; None if it never reported), `values`, `status`, metrics and `error`.

    A trial is finished, stopped by the scheduler, or failed. A finished trial has the metrics and `checkpoint` of its
    best epoch, a stopped trial the metrics of its last epoch; `epoch` is always the last one.
    """
    reported = result.metrics or {}
    error = reported.get("error")
    if result.error is not None:
        error = error or str(result.error).strip().splitlines()[-1]
    names = ("auroc", "val_loss", "accuracy", "epoch", "checkpoint")
    return {
        "trial": reported.get("trial_id"),
        "values": result.config or {},
        "status": "failed" if error else "finished" if reported.get(_ENDED) else "stopped",
        **{name: None if error else reported.get(name) for name in names},
        "error": error,
    }


def ranked(trials: list[Trial]) -> list[Trial]:
    """Finished trials, best first (by AUROC, ties by validation loss); then those that were stopped or failed."""
    places = {"finished": 0, "stopped": 1, "failed": 2}
    return sorted(trials, key=lambda t: (places[t["status"]], -(t["auroc"] or 0.0), t["val_loss"] or 0.0))


def table(trials: list[Trial]) -> str:
    """The trials as lines of text, in their order."""
    import pandas as pd

    names = ("auroc", "val_loss", "accuracy", "epoch", "status", "error")
    rows = [trial["values"] | {name: "" if trial[name] is None else trial[name] for name in names} for trial in trials]
    return str(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format))
