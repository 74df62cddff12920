"""The trials of a sweep: what one does, what it leaves behind, and how they compare."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from detect_ai.core import rules
from detect_ai.core.errors import InputError, TrainingError, ours
from detect_ai.core.storage import Storage
from detect_ai.training import checkpoint_list, runlog, search_space, train
from detect_ai.training.runlog import UNKNOWN

if TYPE_CHECKING:
    from ray.tune import ResultGrid

Record = dict[str, Any]
_OVER = "over"  # in the last word of a trial: it came to its end
_CURVE = ("epoch", "step", "auroc", "val_loss", "train_loss")


def trainable(reference: Any, sweep: str) -> Callable[[dict[str, Any]], None]:
    """The function of a trial for Ray Tune.

    A training that fails for its values is the trial's result; whatever else ends a trial, such as workers that die
    too often or a cluster without room, is Ray Tune's to repeat.

    Args:
        reference: of Ray, to the configuration and the corpus.
        sweep: name of the sweep.
    """

    def trial(values: dict[str, Any]) -> None:
        import ray
        from ray import tune
        from ray.exceptions import RayActorError
        from ray.train import ControllerError, TrainingFailedError

        base, corpus = ray.get(reference)
        base.train.epochs = base.sweep.epochs
        base.train.num_workers = base.train.worker_range[0]  # what the number of trials at once was worked out for
        name = f"{sweep}/{tune.get_context().get_trial_id()}"
        try:
            config = search_space.apply(base, values)
            rules.check(config)  # each value alone was allowed; together they need not be
            result = train.run_training(config, corpus, name, callbacks=[_evaluations(base.sweep.epochs)], group=sweep)
        except (TrainingError, InputError, TrainingFailedError) as error:
            causes = getattr(error, "worker_failures", {}).values()
            if isinstance(error, ControllerError) or (causes and all(isinstance(e, RayActorError) for e in causes)):
                raise  # machines or storage failed, not these values
            tune.report({"auroc": UNKNOWN, "epoch": 0, _OVER: True, "error": str(ours(error)).strip().splitlines()[-1]})
            return
        # What Tune knows is the last epoch: the best one is the trial's last word.
        epochs = result.history[-1]["epoch"]
        tune.report(
            {"auroc": result.metrics["auroc"], "epoch": epochs, "step": result.history[-1]["step"], _OVER: True}
        )

    return trial


def _evaluations(epochs: int) -> Any:
    """Tells Ray Tune of evaluations, of nothing else: checkpoints between them have no AUROC.

    Not of the last epoch, after which the trial has its own last word: asha would stop it there, before that word.
    """
    from ray.tune.integration.ray_train import TuneReportCallback

    class Evaluations(TuneReportCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if metrics[0]["auroc"] != UNKNOWN and metrics[0]["epoch"] < epochs:
                told = {name: value for name, value in metrics[0].items() if name not in ("history", "rank")}
                super().after_report(run_context, [told], checkpoint)

    return Evaluations()


def records(results: ResultGrid, storage: Storage, folder: str) -> list[Record]:
    """What the trials of a sweep came to, in the order in which they began.

    Returns:
        For each trial its `values`, `status` (finished, stopped: it fell behind, failed), the figures and the
        `checkpoint` of its best evaluation, the `curve` of all, and its `error`.
    """
    return [_record(results[i], storage, folder) for i in range(len(results))]


def _record(result: Any, storage: Storage, folder: str) -> Record:
    told = result.metrics or {}
    trial = _trial_id(result)
    curve = [line for line in runlog.read(storage, f"{folder}/{trial}") if line["kind"] == "evaluation"]
    # A trial may be stopped while it writes: what it told Ray Tune of lies there whole.
    kept = [pair for pair in _evaluated(storage, f"{folder}/{trial}") if pair[1]["step"] <= told.get("step", -1)]
    error = told.get("error") or (str(result.error).strip().splitlines()[-1] if result.error is not None else None)
    if not error and not kept:
        error = "it left no evaluated checkpoint"
    best = max(kept, key=lambda pair: _rank(pair[1]), default=("", {}))
    figures = {name: best[1].get(name) for name in ("auroc", "val_loss", "accuracy", "epoch", "step")}
    return {
        "trial": trial,
        "values": result.config or {},
        "status": "failed" if error else "finished" if told.get(_OVER) else "stopped",
        **(figures if not error else dict.fromkeys(figures)),
        "checkpoint": None if error else best[0],
        "curve": [{name: line[name] for name in _CURVE} for line in curve],
        "error": error,
    }


def _trial_id(result: Any) -> str:
    """The id of a trial, which is also its folder; one that never told anything is known by its path alone."""
    told: str | None = (result.metrics or {}).get("trial_id")
    return told or re.sub(r".*trial_([0-9a-f]+(_\d{5})?).*", r"\1", str(result.path))


def _evaluated(storage: Storage, folder: str) -> list[tuple[str, dict[str, Any]]]:
    """The evaluated checkpoints that Ray Train has written whole and keeps, by key, with their figures."""
    keys = [f"{folder}/{result['checkpoint_dir_name']}" for result in checkpoint_list.read(storage, folder)]
    return [(key, storage.read_json(f"{key}/figures.json")) for key in keys if storage.exists(f"{key}/figures.json")]


def _rank(figures: Mapping[str, Any]) -> tuple[float, float]:
    return figures["auroc"], -figures["val_loss"]


def ranked(found: list[Record]) -> list[Record]:
    """Finished trials, best first; then those that were stopped; then those that failed."""
    order = ("finished", "stopped", "failed")

    def key(record: Record) -> tuple[Any, ...]:
        worst_first = (0.0, 0.0) if record["status"] == "failed" else _rank(record)
        return order.index(record["status"]), *(-value for value in worst_first)

    return sorted(found, key=key)


def best(found: list[Record]) -> Record | None:
    """The best trial, of equals the surest; none when all failed."""
    first = ranked(found)[0] if found else None
    return None if first is None or first["status"] == "failed" else first


def table(found: list[Record]) -> str:
    """The trials as lines of text, best first."""
    names = list(dict.fromkeys(name for record in found for name in record["values"]))
    rows = [[*names, "auroc", "val_loss", "accuracy", "epoch", "status"]]
    for record in ranked(found):
        values = [shown(record["values"].get(name)) for name in names]
        if record["status"] == "failed":
            rows.append([*values, "", "", "", "", f"failed: {record['error']}"])
        else:
            figures = [f"{record[name]:.4f}" for name in ("auroc", "val_loss", "accuracy")]
            rows.append([*values, *figures, str(record["epoch"]), record["status"]])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A value of a trial, short."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
