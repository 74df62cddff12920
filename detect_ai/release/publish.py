"""The stages `publish` (through the promotion gate) and `rollback`: only these move the champion pointer."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from detect_ai.core import audit_log
from detect_ai.core.config import Config
from detect_ai.core.errors import BundleError, ConfigError, CorpusError, GateError, RegistryError
from detect_ai.core.job import attempt, read_result, result_key
from detect_ai.core.storage import Storage
from detect_ai.core.tracking import Tracker
from detect_ai.detector import bundle
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.model_info import card_info
from detect_ai.detector.registry import Registry, spec_of
from detect_ai.evaluation.contamination import corpus_of
from detect_ai.evaluation.evaluate import describe, evaluate_overall
from detect_ai.evaluation.task import OUR_COLUMNS
from detect_ai.release.promotion_gate import TEST, gate
from detect_ai.reports.model_card import model_card

logger = logging.getLogger(__name__)

_EVALUATION = "evaluate"  # results: evaluate.json on the test split, evaluate-<name>.json on other data


def publish(config: Config, storage: Storage) -> dict[str, Any]:
    """Add the evaluated candidate to the registry and make it champion, if it passes the gate.

    With `bundle` the candidate is a version in the registry, such as one added by `export`. Raises GateError if it does
    not pass, ConfigError if it was not evaluated, and ConflictError if another process has moved the champion since.
    """
    registry = Registry(storage)
    number, before = registry.read_champion()
    if config.bundle:
        version = registry.find(config.bundle) or config.bundle
        place = registry.resolve(version)
        evaluations = metrics_of(registry, version) | _evaluations(config, storage, version)
    else:
        candidate = read_result(storage, config.run, "calibrate")
        version, place = candidate["version"], (storage, str(candidate["bundle"]))
        evaluations = _evaluations(config, storage, version)
        if TEST not in evaluations:
            raise ConfigError(
                f"run={config.run}: evaluate the candidate {version}: python jobs/evaluate.py run={config.run}"
            )
    champion = champion_metrics(config, storage, before, spec_of(*place), evaluations) if before else None
    reasons, warnings = gate(evaluations, champion, config.gate)
    for warning in warnings:
        logger.warning("%s", warning)
    numbers = {
        data: {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        for data, metrics in evaluations.items()
    }
    evidence = {"before": before, "metrics": numbers, "warnings": warnings}
    if reasons:
        audit_log.record(storage, "publish-refused", version=version, **evidence, reasons=reasons)
        raise GateError(
            f"{version} was not published, the champion stays {before or 'unset'}: {' '.join(reasons)} "
            f"The bounds are those of the configuration group `gate`"
        )
    if not config.bundle:
        version = add_version(storage, candidate["bundle"], evaluations)
    registry.set_champion(version, after=number)
    audit_log.record(storage, "publish", version=version, **evidence)
    with (
        Tracker(config, name=f"publish-{version}", group=config.run, job_type="publish") as tracker,
        registry.folder(version) as folder,
    ):
        tracker.artifact("detector", folder, numbers[TEST], [version, "champion"])
    return {"champion": version, "before": before, "auroc": evaluations[TEST]["auroc"], "warnings": warnings}


def _evaluations(config: Config, storage: Storage, version: str) -> dict[str, dict[str, Any]]:
    """The metrics of a version on the test split and on the other data that the run evaluated, by name."""
    evaluations = {}
    for file in storage.list(f"runs/{config.run}"):
        stage, is_json, _ = file.partition(".json")
        if is_json and stage.partition("-")[0] == _EVALUATION:
            metrics = read_result(storage, config.run, stage)
            name = stage.removeprefix(_EVALUATION).removeprefix("-") or TEST
            if metrics["version"] == version:
                evaluations[name] = metrics
            else:
                logger.warning("the evaluation on %s is of %s, not of %s: not used", name, metrics["version"], version)
    return evaluations


def champion_metrics(
    config: Config, storage: Storage, champion: str, candidate: DetectorSpec, evaluations: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The evaluations of the champion, by arbitrary names. Missing ones on the candidate's texts are computed now.

    The champion may have been trained on some of these texts, which favours it, so the comparison is conservative. Two
    kinds of texts are not compared: texts that storage no longer has, and the sample of a recalibration, which is not
    kept: there a candidate is compared only with its parent, with the metrics that `recalibrate` measured.
    """
    found = metrics_of(Registry(storage), champion)
    parent = evaluations[TEST].get("parent") or {}
    if parent.get("version") == champion:
        found["sample"] = {**parent, "test_fingerprint": evaluations[TEST]["test_fingerprint"]}
    known = {metrics.get("test_fingerprint") for metrics in found.values()}
    for name in [name for name, metrics in evaluations.items() if metrics["test_fingerprint"] not in known]:
        try:
            measured = _evaluate_champion(config, storage, champion, candidate, name, evaluations[name])
        except (BundleError, CorpusError, RegistryError) as error:
            logger.warning("the champion %s cannot be evaluated on %s: %s", champion, name, error)
            continue
        if measured:
            found[f"candidate's {name}"] = measured
    return found


def _evaluate_champion(
    config: Config, storage: Storage, champion: str, candidate: DetectorSpec, name: str, metrics: dict[str, Any]
) -> dict[str, Any] | None:
    """The metrics of the champion on the texts of an evaluation, stored under the run; None if those are missing."""
    fingerprint = metrics["test_fingerprint"]
    key = f"runs/{config.run}/champion/{champion}-{hashlib.sha256(fingerprint.encode()).hexdigest()[:16]}.json"
    if storage.exists(key):
        return dict(storage.read_json(key))
    registry = Registry(storage)
    place = registry.resolve(champion)
    # A champion recalibrated for one population abstains on most other texts: use its parent there.
    while (spec := spec_of(*place)).calibration.population and spec.parent:
        for recorded in metrics_of(registry, spec.parent).values():
            if recorded.get("test_fingerprint") == fingerprint:
                return recorded
        place = registry.resolve(spec.parent)
    is_test, corpus = name == TEST, corpus_of(storage, candidate)
    if is_test and corpus and corpus.split_fingerprint("test") == fingerprint:
        data, columns = storage.uri(f"{corpus.key}/test"), OUR_COLUMNS
    elif not is_test and "data" in metrics:
        record = storage.read_json(result_key(config.run, f"{_EVALUATION}-{name}"))
        data, columns = metrics["data"], {own: record["config"]["score"][own] for own in OUR_COLUMNS}
    else:
        return None
    scratch = storage, f"runs/{config.run}/{attempt('champion')}"
    measured = evaluate_overall(data, place, config.score.model_copy(update=columns), scratch)
    if is_test:
        measured["test_fingerprint"] = fingerprint  # the fingerprint of the shards
    logger.info("champion %s on %s: %s", spec.version, name, describe(measured))
    if measured["test_fingerprint"] != fingerprint:
        return None  # the texts have changed since
    storage.write_json(key, measured)
    return measured


def rollback(config: Config, storage: Storage) -> dict[str, Any]:
    """Return to the previous champion. Raises RegistryError if there is none, or its bundle cannot be loaded."""
    registry = Registry(storage)
    before = registry.champion()
    version = registry.rollback()
    audit_log.record(storage, "rollback", version=version, before=before)
    return {"champion": version, "before": before}


def add_version(storage: Storage, candidate: str, evaluations: dict[str, dict[str, Any]]) -> str:
    """Add a bundle with its metrics and model card to the registry of its storage, and return its version.

    `evaluations` are results of the stage `evaluate` by name of the data, including `TEST`.
    """
    with storage.local_folder(candidate) as source, tempfile.TemporaryDirectory() as scratch:
        spec = bundle.read_spec(source)
        folder = Path(shutil.copytree(source, Path(scratch) / "bundle"))
        shown = {
            name: {key: value for key, value in metrics.items() if key not in ("bundle", "data", "version")}
            for name, metrics in evaluations.items()
        }
        (folder / bundle.METRICS_FILE).write_text(json.dumps(shown, indent=2) + "\n")
        others = {name: metrics for name, metrics in shown.items() if name != TEST}
        (folder / bundle.CARD_FILE).write_text(model_card(card_info(spec), shown[TEST], others), encoding="utf-8")
        bundle.write_spec(folder, spec)
        return Registry(storage).add(folder)


def metrics_of(registry: Registry, version: str) -> dict[str, dict[str, Any]]:
    """The evaluations in the bundle of a version, by name of the data. Raises RegistryError if there are none."""
    with registry.folder(version) as folder:
        path = folder / bundle.METRICS_FILE
        if not path.is_file():
            raise RegistryError(
                f"version {version} has no {bundle.METRICS_FILE}: publish it by its run, after jobs/evaluate.py"
            )
        metrics: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return metrics
