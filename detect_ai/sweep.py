"""The stage `sweep`: Ray Tune over `run_training`, to find the learning rate."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from typing import Any

from detect_ai import cluster, training
from detect_ai.config import Config, SweepConfig
from detect_ai.corpus.manifest import Corpus
from detect_ai.errors import TrainingError
from detect_ai.stage import attempt, read_result
from detect_ai.storage import Storage

logger = logging.getLogger(__name__)

TRIAL_CPUS = 0.1  # a trial's own actor only waits; its workers reserve what they need


def sweep(config: Config, storage: Storage) -> dict[str, Any]:
    """Train once for each learning rate and name the best: a table, and the best trial's checkpoint by its key.

    A trial that fails stands in the table with its error and does not end the sweep.

    Raises:
        ResourceError: the cluster cannot place a single trial.
        TrainingError: every trial failed.
    """
    cluster.connect()
    corpus = Corpus.open(storage, read_result(storage, config.run, "prepare")["corpus"])
    training.checked_tokenizer(config, corpus)
    training.require_training_resources(config, "a trial of the sweep", training.DATA_CPUS + TRIAL_CPUS)
    name = attempt("sweep")
    trials = _run(config, corpus, name)
    storage.prune(f"runs/{config.run}", "sweep-", config.storage.keep)
    finished = [trial for trial in trials if trial["error"] is None]
    best = max(finished, key=lambda trial: (trial["auroc"], -trial["val_loss"]), default=None)
    if best is None:
        raise TrainingError(f"all {len(trials)} trials failed; the first said: {trials[0]['error']}")
    logger.info("trials of %s:\n%s", name, table(trials))
    _wait_until_free()
    return {"best": best, "trials": trials, "concurrent": concurrency(config), "corpus": corpus.key}


def _run(config: Config, corpus: Corpus, name: str) -> list[dict[str, Any]]:
    import ray
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    reference = ray.put((config, corpus))

    def trial(space: dict[str, Any]) -> None:
        base, data = ray.get(reference)
        settings = replace(base, train=replace(base.train, lr=space["lr"], epochs=base.sweep.epochs))
        trial_name = f"{name}/{tune.get_context().get_trial_id()}"
        result = training.run_training(settings, data, trial_name, callbacks=[TuneReportCallback()], group=name)
        # What Tune knows is the last epoch. The best one and its checkpoint are reported as the trial's last word.
        tune.report({**result.metrics, "checkpoint": result.checkpoint, "done_well": True})

    storage = corpus.storage
    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": TRIAL_CPUS}),
        param_space={"lr": _space(config.sweep)},
        tune_config=tune.TuneConfig(
            metric="auroc",
            mode="max",
            num_samples=1 if config.sweep.search == "grid" else config.sweep.trials,
            search_alg=tune.search.BasicVariantGenerator(random_state=config.seed, max_concurrent=concurrency(config)),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage.path(f"runs/{config.run}/{name}"),
            storage_filesystem=storage.filesystem,
            verbose=0,
        ),
    )
    results = tuner.fit()
    return [_record(results[i]) for i in range(len(results))]


def _space(config: SweepConfig) -> Any:
    from ray import tune

    if config.search == "grid":
        return tune.grid_search(list(config.lrs))
    return tune.loguniform(config.lr_min, config.lr_max)


def _record(result: Any) -> dict[str, Any]:
    found = result.metrics or {}
    figures = {name: found.get(name) for name in ("auroc", "val_loss", "accuracy", "epoch", "checkpoint")}
    failed = result.error is not None or not found.get("done_well")
    error = str(result.error).strip().splitlines()[-1] if result.error is not None else "it reported no result"
    return {"lr": (result.config or {}).get("lr"), **figures, "error": error if failed else None}


def concurrency(config: Config) -> int:
    """Trials that fit the cluster at once, at most `sweep.max_concurrent` when that is given; at least one."""
    import ray

    free = ray.cluster_resources()
    train = config.train
    each = train.worker_range[0] * train.cpus_per_worker + training.DATA_CPUS + TRIAL_CPUS
    fits = int(free.get("CPU", 0) // each)
    if train.use_gpu:
        fits = min(fits, int(free.get("GPU", 0) // train.worker_range[0]))
    limit = config.sweep.max_concurrent or math.inf
    return int(min(max(1, fits), limit))


def _wait_until_free(seconds: float = 30) -> None:
    """Wait until the trials' actors have gone: after a sweep the whole cluster is free for the next stage."""
    import ray

    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if ray.available_resources().get("CPU", 0) >= ray.cluster_resources().get("CPU", 0):
            return
        time.sleep(0.2)
    logger.warning("CPUs are still held %g s after the sweep: %s", seconds, ray.available_resources())


def table(trials: list[dict[str, Any]]) -> str:
    """The trials as lines of text, best first."""
    lines = [f"{'lr':>10} {'auroc':>8} {'val_loss':>9} {'accuracy':>9} {'epoch':>6}"]
    failed = [t for t in trials if t["error"] is not None]
    finished = [t for t in trials if t["error"] is None]
    for t in [*sorted(finished, key=lambda t: (-t["auroc"], t["val_loss"])), *failed]:
        if t["error"] is not None:
            lines.append(f"{t['lr']:>10.2e} failed: {t['error']}")
        else:
            lines.append(
                f"{t['lr']:>10.2e} {t['auroc']:>8.4f} {t['val_loss']:>9.4f} {t['accuracy']:>9.4f} {t['epoch']:>6}"
            )
    return "\n".join(lines)
