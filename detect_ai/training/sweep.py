"""The stage `sweep`: Ray Tune over `run_training`, to find the best values of a search space.

An interrupted sweep resumes when the stage runs again under the same run name with the same configuration: finished
trials stay, unfinished ones continue from their last checkpoint.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from detect_ai.core import ray_runtime, resume
from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, InputError, TrainingError, unwrap_ray_error
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.training import checkpoint, search_space
from detect_ai.training import train as training
from detect_ai.training.checkpoint import NOT_EVALUATED

if TYPE_CHECKING:
    from ray.tune import ResultGrid, Tuner

logger = logging.getLogger(__name__)

Trial = dict[str, Any]
TRIAL_CPUS = 0.1  # a trial's own actor only waits; its workers reserve what they need
_ASHA_REDUCTION = 2  # every rung stops half of its trials
_DONE = "done"  # in the last report of a trial: it came to its end


def sweep(config: Config, storage: Storage) -> dict[str, Any]:
    """Train once for each trial and name the best one.

    A trial that fails is listed with its error and does not end the sweep.

    Returns:
        `best` and `trials` as `_trial_result` returns them, and `corpus`.

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
    ray_runtime.connect()
    corpus = Corpus.of_run(storage, config.run)
    training.checked_tokenizer(config, corpus)
    training.require_training_resources(config, "a trial of the sweep", training.DATA_CPUS + TRIAL_CPUS)
    searched = {name: value for name, value in config.sweep.model_dump().items() if name != "max_concurrent"}
    digest = resume.digest(config, corpus.manifest.fingerprint, searched)
    with resume.attempted(storage, config.run, "sweep", digest) as (name, resumed):
        if resumed:
            logger.info("sweep: resuming the interrupted sweep %s; its finished trials stay", name)
        folder = f"runs/{config.run}/{name}"
        results = _tune(config, corpus, name)
        trials = [_trial_result(results[i], storage, folder) for i in range(len(results))]
        logger.info("trials of %s:\n%s", name, table(trials))
        best = ranked(trials)[0]
    storage.prune(f"runs/{config.run}", "sweep-", config.storage.keep)
    if best["status"] == "failed":
        raise TrainingError(f"all {len(trials)} trials failed; the first error: {trials[0]['error']}")
    return {"best": best, "trials": trials, "corpus": corpus.key}


def _tune(config: Config, corpus: Corpus, name: str) -> ResultGrid:
    """Run the trials, or those that an interrupted sweep has left."""
    import ray
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler
    from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

    storage, settings = corpus.storage, config.sweep
    path = storage.path(f"runs/{config.run}/{name}/tune")
    trainable = tune.with_resources(trial_function(ray.put((config, corpus)), name), {"CPU": TRIAL_CPUS})
    if tune.Tuner.can_restore(path, storage_filesystem=storage.filesystem):
        # Trials that failed because of their values have ended; those that another error ended run again.
        tuner: Tuner = tune.Tuner.restore(path, trainable, storage_filesystem=storage.filesystem, resume_errored=True)
        return tuner.fit()
    search: Any = BasicVariantGenerator(random_state=config.seed, max_concurrent=concurrency(config))
    if settings.search == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        search = ConcurrencyLimiter(OptunaSearch(metric="auroc", mode="max", seed=config.seed), concurrency(config))
    scheduler = None
    if settings.stop == "asha":
        # max_t is above the last epoch: a trial that gets there ends by itself, with a last report.
        scheduler = AsyncHyperBandScheduler("epoch", max_t=settings.epochs + 1, reduction_factor=_ASHA_REDUCTION)
    tuner = tune.Tuner(
        trainable,
        param_space=search_space.tune_space(config),
        tune_config=tune.TuneConfig(
            metric="auroc",
            mode="max",
            num_samples=1 if settings.search == "grid" else settings.trials,
            search_alg=search,
            scheduler=scheduler,
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


def concurrency(config: Config) -> int:
    """Trials that fit the free resources, at most `sweep.max_concurrent` when that is given; at least one.

    On a cluster that can grow `sweep.max_concurrent` is taken as it is.
    """
    import ray

    free = ray.available_resources()  # a service may hold the rest
    train = config.train
    cpus = train.worker_range[0] * train.cpus_per_worker + training.DATA_CPUS + TRIAL_CPUS
    fits = int(free.get("CPU", 0) // cpus)
    if train.use_gpu:
        fits = min(fits, int(free.get("GPU", 0) // train.worker_range[0]))
    if ray_runtime.can_grow() and config.sweep.max_concurrent:
        return config.sweep.max_concurrent
    limit = config.sweep.max_concurrent or math.inf
    return int(min(max(1, fits), limit))


def trial_function(reference: Any, sweep_name: str) -> Callable[[dict[str, Any]], None]:
    """The function that Ray Tune runs for each trial.

    A training that fails because of its values is the trial's result; whatever else ends a trial, such as workers that
    die too often or a cluster without room, is left to Ray Tune to repeat.

    Args:
        reference: Ray's reference to the configuration and the corpus.
        sweep_name: of the sweep.
    """

    def trial(values: dict[str, Any]) -> None:
        import ray
        from ray import tune
        from ray.exceptions import RayActorError
        from ray.train import ControllerError, TrainingFailedError

        base, corpus = ray.get(reference)
        base.train.epochs = base.sweep.epochs
        base.train.num_workers = base.train.worker_range[0]  # which `concurrency` assumes
        name = f"{sweep_name}/{tune.get_context().get_trial_id()}"
        callbacks = [_report_evaluations(base.sweep.epochs)]
        try:
            config = search_space.apply(base, values)
            result = training.run_training(config, corpus, name, callbacks, group=sweep_name)
        except (TrainingError, InputError, TrainingFailedError) as error:
            causes = getattr(error, "worker_failures", {}).values()
            if isinstance(error, ControllerError) or (causes and all(isinstance(e, RayActorError) for e in causes)):
                raise  # machines or storage failed, not these values
            reason = str(unwrap_ray_error(error)).strip().splitlines()[-1]
            tune.report({"auroc": NOT_EVALUATED, "epoch": 0, _DONE: True, "error": reason})
            return
        # Ray Tune knows the last epoch; the last report has the best one.
        last = result.history[-1]
        tune.report({"auroc": result.metrics["auroc"], "epoch": last["epoch"], "step": last["step"], _DONE: True})

    return trial


def _report_evaluations(epochs: int) -> Any:
    """Report evaluations to Ray Tune, not the checkpoints between them, which have no AUROC.

    The last epoch is left to the trial's own last report: asha would stop the trial before it.
    """
    from ray.tune.integration.ray_train import TuneReportCallback

    class ReportEvaluations(TuneReportCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if metrics[0]["auroc"] != NOT_EVALUATED and metrics[0]["epoch"] < epochs:
                values = {name: value for name, value in metrics[0].items() if name not in ("history", "score")}
                super().after_report(run_context, [values], checkpoint)

    return ReportEvaluations()


def _trial_result(result: Any, storage: Storage, folder: str) -> Trial:
    """The result of a trial.

    Returns:
        `trial` (its id), `values`, `status` (finished, stopped by the scheduler, or failed), the metrics and the
        `checkpoint` of its best evaluation, and its `error`.
    """
    reported = result.metrics or {}
    # The id of a trial is also its folder; of one that never reported anything only the path is known.
    trial = reported.get("trial_id") or re.sub(r".*trial_([0-9a-f]+(_\d{5})?).*", r"\1", str(result.path))
    # A trial may be stopped while it writes: what it reported to Ray Tune is complete.
    evaluations = [
        (key, metrics)
        for key, metrics in evaluated_checkpoints(storage, f"{folder}/{trial}")
        if metrics["step"] <= reported.get("step", -1)
    ]
    error = reported.get("error")
    if result.error is not None:
        error = error or str(result.error).strip().splitlines()[-1]
    if not error and not evaluations:
        error = "no evaluated checkpoint"
    key, metrics = max(evaluations, key=lambda pair: _score(pair[1]), default=("", {}))
    names = ("auroc", "val_loss", "accuracy", "epoch", "step")
    return {
        "trial": trial,
        "values": result.config or {},
        "status": "failed" if error else "finished" if reported.get(_DONE) else "stopped",
        **{name: None if error else metrics[name] for name in names},
        "checkpoint": None if error else key,
        "error": error,
    }


def evaluated_checkpoints(storage: Storage, folder: str) -> list[tuple[str, dict[str, Any]]]:
    """The registered checkpoints of a run that have an evaluation: their keys and metrics."""
    keys = [f"{folder}/{result['checkpoint_dir_name']}" for result in checkpoint.registered(storage, folder)]
    return [(key, storage.read_json(f"{key}/metrics.json")) for key in keys if storage.exists(f"{key}/metrics.json")]


def _score(metrics: Mapping[str, Any]) -> tuple[float, float]:
    return metrics["auroc"], -metrics["val_loss"]


def ranked(trials: list[Trial]) -> list[Trial]:
    """Finished trials, best first; then those that were stopped; then those that failed."""
    order = ("finished", "stopped", "failed")

    def key(trial: Trial) -> tuple[Any, ...]:
        score = (0.0, 0.0) if trial["status"] == "failed" else _score(trial)
        return order.index(trial["status"]), *(-value for value in score)

    return sorted(trials, key=key)


def table(trials: list[Trial]) -> str:
    """The trials as lines of text, best first."""
    names = list(dict.fromkeys(name for trial in trials for name in trial["values"]))
    rows = [[*names, "auroc", "val_loss", "accuracy", "epoch", "status"]]
    for trial in ranked(trials):
        values = [trial["values"].get(name) for name in names]
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
        if trial["status"] == "failed":
            rows.append([*cells, "", "", "", "", f"failed: {trial['error']}"])
        else:
            metrics = [f"{trial[name]:.4f}" for name in ("auroc", "val_loss", "accuracy")]
            rows.append([*cells, *metrics, str(trial["epoch"]), trial["status"]])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    return "\n".join(lines)
