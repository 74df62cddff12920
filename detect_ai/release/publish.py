"""The stages `publish` (through the gate) and `rollback`: the only ones that move the champion."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, GateError, RegistryError
from detect_ai.core.job import read_result
from detect_ai.core.storage import Storage
from detect_ai.core.tracking import open_run
from detect_ai.detector import bundle
from detect_ai.detector.model_info import model_info
from detect_ai.detector.registry import Registry
from detect_ai.release.promotion_gate import Gate, decide
from detect_ai.reports.model_card import model_card

METRICS_FILE = "metrics.json"
_OTHER = "evaluate-"  # how results of other data begin


def publish(config: Config, storage: Storage) -> dict[str, Any]:
    """Put the evaluated candidate into the registry and make it champion, if it passes the gate.

    With `bundle` it is a version that the registry has already, such as `export` puts there.

    Raises:
        GateError: it does not pass; the champion stays.
        ConfigError: the figures are those of another bundle than the candidate.
        RegistryError: no such version.
    """
    registry = Registry(storage)
    if config.bundle:
        version = registry.version(config.bundle)
        return _promote(config, registry, version, _metrics_of(registry, version), lambda: version)
    candidate = read_result(storage, config.run, "calibrate")
    figures = read_result(storage, config.run, "evaluate")
    if figures["version"] != candidate["version"]:
        raise ConfigError(
            f"run={config.run}: the figures are of {figures['version']}, the candidate is {candidate['version']}: "
            f"run `python jobs/evaluate.py run={config.run}` again"
        )
    others = _others(config, storage, candidate["version"])
    return _promote(
        config,
        registry,
        candidate["version"],
        figures,
        lambda: add_version(storage, registry, candidate["bundle"], figures, others),
    )


def _others(config: Config, storage: Storage, version: str) -> dict[str, dict[str, Any]]:
    """What the run found of the candidate on other texts than its test split, by the name of the data."""
    names = [name for name in storage.list(f"runs/{config.run}") if name.startswith(_OTHER) and name.endswith(".json")]
    found = {
        name.removeprefix(_OTHER).removesuffix(".json"): read_result(storage, config.run, name.removesuffix(".json"))
        for name in sorted(names)
    }
    return {name: figures for name, figures in found.items() if figures["version"] == version}


def _promote(
    config: Config, registry: Registry, candidate: str, figures: dict[str, Any], add: Callable[[], str]
) -> dict[str, Any]:
    """Move the pointer to what `add` returns, if the candidate passes the gate. Raises GateError."""
    before = registry.champion()
    gate = Gate(config.gate.min_auroc, config.gate.max_auroc_drop)
    reasons = decide(figures, _metrics_of(registry, before) if before else None, gate)
    if reasons:
        raise GateError(
            f"{candidate} was not published, the champion stays {before}: {' '.join(reasons)} "
            f"The bounds are gate.min_auroc and gate.max_auroc_drop"
        )
    version = add()
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


def add_version(
    storage: Storage,
    registry: Registry,
    candidate: str,
    figures: dict[str, Any],
    others: dict[str, dict[str, Any]] | None = None,
) -> str:
    """Seal a bundle again, with its figures and its card, add it to the registry and return its version.

    Args:
        storage: where it lies.
        registry: gets it.
        candidate: its key.
        figures: of the stage `evaluate`.
        others: the same of other texts than the test split, by the name of the data.
    """
    with storage.local_folder(candidate) as source, tempfile.TemporaryDirectory() as scratch:
        spec = bundle.read_spec(source)
        folder = Path(shutil.copytree(source, Path(scratch) / "bundle"))
        shown = {name: value for name, value in figures.items() if name not in ("bundle", "version")}
        (folder / METRICS_FILE).write_text(json.dumps(shown, indent=2) + "\n")
        (folder / bundle.CARD_FILE).write_text(model_card(card_info(spec), shown, others), encoding="utf-8")
        bundle.seal(folder, spec)
        return registry.add(folder)


def card_info(spec: bundle.DetectorSpec) -> dict[str, Any]:
    """What the model card says about a bundle, see `reports.model_card.model_card`."""
    return {
        "base_model": spec.base_model,
        "model_licence": spec.provenance["model_licence"],
        "corpus": spec.corpus,
        "window": spec.window,
        "stride": spec.stride,
        "domains": spec.registers,
        "parent": spec.parent,
        "backend": spec.backend,
        "run": spec.provenance["run"],
        "git_revision": spec.provenance["git_revision"],
        "prevalence": spec.calibration.prevalence,
        "num_human": spec.calibration.num_human,
        "thresholds": [
            {**held.model_dump(), "domains": [{"name": c.compared_with, **c.model_dump()} for c in held.categories]}
            for held in model_info(spec, {}).thresholds
        ],
    }


def _metrics_of(registry: Registry, version: str) -> dict[str, Any]:
    """The figures of a version. Raises RegistryError when it came into the registry without any."""
    with registry.folder(version) as folder:
        path = folder / METRICS_FILE
        if not path.is_file():
            raise RegistryError(
                f"version {version} has no {METRICS_FILE}: publish it by its run, after jobs/evaluate.py"
            )
        figures: dict[str, Any] = json.loads(path.read_text())
    return figures
