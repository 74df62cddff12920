"""A sweep as a page, as JSON, and its best configuration as a file for `jobs/train.py`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import yaml

from detect_ai.core.config import Config
from detect_ai.core.storage import Storage
from detect_ai.reports import sweep_plots
from detect_ai.reports.html import render
from detect_ai.training import search_space, trials

# Keys of `train` that belong to a machine or a stage, not to what is trained.
_LEFT_OUT = ("num_workers", "cpus_per_worker", "threads_per_worker", "use_gpu", "from_sweep", "profile")
_HEAD = """# @package _global_
# Trial {trial} of {folder}, the best by validation AUROC ({auroc:.4f}) after at most {epochs} epochs.
# python jobs/train.py --config-dir <folder of this file's folder> experiment=best
"""


def write_reports(config: Config, storage: Storage, folder: str, result: dict[str, Any]) -> dict[str, str]:
    """Write the reports of a sweep into its folder. Returns their keys."""
    keys = {
        "report": f"{folder}/sweep.html",
        "report_json": f"{folder}/sweep.json",
        "best_config": f"{folder}/configs/experiment/best.yaml",
    }
    storage.write_bytes(keys["best_config"], best_config(config, folder, result["best"]).encode())
    storage.write_json(keys["report_json"], {**result, "sweep": asdict(config.sweep)})
    storage.write_bytes(keys["report"], sweep_report(config, folder, result).encode())
    return keys


def best_config(config: Config, folder: str, best: trials.Record) -> str:
    """The model and the training of the best trial, with the epochs of a training, as an option of `experiment`."""
    chosen = search_space.apply(config, best["values"])
    train = {name: value for name, value in asdict(chosen.train).items() if name not in _LEFT_OUT}
    head = _HEAD.format(trial=best["trial"], folder=folder, auroc=best["auroc"], epochs=config.sweep.epochs)
    return head + yaml.safe_dump({"model": asdict(chosen.model), "train": train}, sort_keys=False)


def sweep_report(config: Config, folder: str, result: dict[str, Any]) -> str:
    """A sweep as one HTML page without scripts or files beside it."""
    found = trials.ranked(result["trials"])
    names = list(config.sweep.space)
    judged = [record for record in found if record["status"] != "failed"]
    rows = [{**record, "shown": [trials.shown(record["values"].get(name)) for name in names]} for record in found]
    varied = [name for name in names if len({str(record["values"].get(name)) for record in judged}) > 1]
    return render(
        "sweep.html.jinja",
        folder=folder,
        config=config,
        result=result,
        rows=rows,
        names=names,
        counts={status: sum(r["status"] == status for r in found) for status in ("finished", "stopped", "failed")},
        scatters=[(name, sweep_plots.scatter(judged, name)) for name in varied],
        curves=sweep_plots.curves(found, result["best"]["trial"]),
    )
