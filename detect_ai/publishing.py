"""The stages `publish` (through the gate) and `rollback`: the only ones that move the champion."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from detect_ai import bundle
from detect_ai.config import Config
from detect_ai.errors import ConfigError, GateError
from detect_ai.promotion import Gate, decide
from detect_ai.registry import Registry
from detect_ai.reports.card import model_card
from detect_ai.stage import read_result
from detect_ai.storage import Storage
from detect_ai.tracking import open_run

METRICS_FILE, CARD_FILE = "metrics.json", "MODEL_CARD.md"


def publish(config: Config, storage: Storage) -> dict[str, Any]:
    """Put the evaluated candidate into the registry and make it champion, if it passes the gate.

    Raises:
        GateError: it does not pass; the champion stays.
        ConfigError: the figures are those of another bundle than the candidate.
    """
    candidate = read_result(storage, config.run, "calibrate")
    figures = read_result(storage, config.run, "evaluate")
    if figures["version"] != candidate["version"]:
        raise ConfigError(
            f"run={config.run}: the figures are of {figures['version']}, the candidate is {candidate['version']}: "
            f"run `python jobs/evaluate.py run={config.run}` again"
        )
    registry = Registry(storage)
    before = registry.champion()
    gate = Gate(config.gate.min_auroc, config.gate.max_auroc_drop)
    reasons = decide(figures, _metrics_of(registry, before), gate)
    if reasons:
        raise GateError(
            f"{candidate['version']} was not published, the champion stays {before}: {' '.join(reasons)} "
            f"The bounds are gate.min_auroc and gate.max_auroc_drop"
        )
    version = _add(storage, registry, candidate["bundle"], figures)
    registry.set_champion(version)
    _track(config, registry, version, figures)
    return {"champion": version, "before": before, "auroc": figures["auroc"]}


def _track(config: Config, registry: Registry, version: str, figures: dict[str, Any]) -> None:
    """The champion as an artifact in W&B."""
    with open_run(config, name=f"publish-{version}", group=config.run, job_type="publish") as tracker:
        told = {name: value for name, value in figures.items() if isinstance(value, int | float)}
        with registry.folder(version) as folder:
            tracker.artifact("detector", folder, told, [version, "champion"])


def rollback(config: Config, storage: Storage) -> dict[str, Any]:
    """Make the version before the champion champion again. Raises RegistryError when there is none."""
    registry = Registry(storage)
    before = registry.champion()
    return {"champion": registry.rollback(), "before": before}


def _add(storage: Storage, registry: Registry, candidate: str, figures: dict[str, Any]) -> str:
    """Seal the candidate again, with its figures and its card, and add it to the registry."""
    with storage.local_folder(candidate) as source, tempfile.TemporaryDirectory() as scratch:
        spec = bundle.read_spec(source)
        folder = Path(shutil.copytree(source, Path(scratch) / "bundle"))
        shown = {name: value for name, value in figures.items() if name not in ("bundle", "version")}
        (folder / METRICS_FILE).write_text(json.dumps(shown, indent=2) + "\n")
        (folder / CARD_FILE).write_text(model_card(spec, shown), encoding="utf-8")
        bundle.seal(folder, spec)
        return registry.add(folder)


def _metrics_of(registry: Registry, version: str | None) -> dict[str, Any] | None:
    if version is None:
        return None
    with registry.folder(version) as folder:
        figures: dict[str, Any] = json.loads((folder / METRICS_FILE).read_text())
    return figures
