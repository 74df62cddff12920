"""The stage `compare`: two or more bundles on the same texts, with paired bootstrap intervals of their differences."""

from __future__ import annotations

import logging
from itertools import combinations
from typing import Any

import numpy as np

from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError
from detect_ai.core.job import attempt
from detect_ai.core.storage import Storage
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.dataset import SLICES, require_labels
from detect_ai.detector.registry import Registry, spec_of
from detect_ai.detector.score import score_texts
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation.baseline import baseline_for, baseline_metrics
from detect_ai.evaluation.contamination import corpus_of, count_contaminated, score_baseline_and_hash
from detect_ai.evaluation.evaluate import data_name
from detect_ai.evaluation.slices import differences, overall_metrics
from detect_ai.evaluation.summary import without_intervals

logger = logging.getLogger(__name__)

MIN_SLICE = 50  # texts
MAX_SLICES = 20  # of a column, the largest ones


def compare(config: Config, storage: Storage) -> dict[str, Any]:
    """Compare the bundles of `compare.bundles` on the texts of `data`.

    Raises:
        ConfigError: fewer than two bundles, no such bundle, or bundles without a common target.
        CorpusError: the data cannot be read, or has no labels.
        InputError: a score is not finite.
    """
    if len(config.compare.bundles) < 2:
        raise ConfigError(f"compare.bundles={config.compare.bundles}: expected two or more")
    if not config.data:
        raise ConfigError("data=: expected a file or folder of Parquet, CSV or JSON lines with texts and labels")
    registry = Registry(storage)
    places = {name: registry.resolve(name) for name in config.compare.bundles}
    specs = {name: spec_of(*place) for name, place in places.items()}
    target = _common_target(specs)
    key = f"runs/{config.run}/{attempt('comparison')}"
    with storage.whole(key):
        require_labels(config.data, config.score)
        scored = {
            name: _score(config, place, (storage, f"{key}/verdicts-{i}"))
            for i, (name, place) in enumerate(places.items())
        }
        report = _report(config, storage, places, specs, scored, target)
        _write(storage, key, report)
    storage.prune(f"runs/{config.run}", "comparison-", config.storage.keep)
    return {
        "bundles": [without_intervals(bundle) for bundle in report["bundles"]],
        "baseline": report["baseline"] and without_intervals(report["baseline"]),
        "contaminated": report["data"]["contaminated"],
        "pairs": report["pairs"],
        "data": config.data,
        "report": f"{key}/report.html",
        "report_json": f"{key}/report.json",
    }


def _common_target(specs: dict[str, DetectorSpec]) -> float:
    """The smallest target FPR that all bundles have a threshold for. Raises ConfigError if there is none."""
    common = set.intersection(*(set(spec.calibration.thresholds) for spec in specs.values()))
    if not common:
        have = "; ".join(f"{name}: {sorted(spec.calibration.thresholds)}" for name, spec in specs.items())
        raise ConfigError(f"compare.bundles: no target FPR that all have a threshold for ({have})")
    return min(common)


def _score(config: Config, bundle: tuple[Storage, str], out: tuple[Storage, str]) -> Verdicts:
    """Verdicts of the labelled texts in the order of the data."""
    score_texts(config.data, bundle, config.score.model_copy(update={"format": "parquet", "target_fpr": 0.0}), out)
    verdicts = Verdicts.read(*out)
    verdicts = verdicts[verdicts.labelled]
    return verdicts[np.argsort(verdicts.rows, kind="stable")]


def _report(
    config: Config,
    storage: Storage,
    places: dict[str, tuple[Storage, str]],
    specs: dict[str, DetectorSpec],
    scored: dict[str, Verdicts],
    target: float,
) -> dict[str, Any]:
    """Everything that the page shows, as plain values; see `detect_ai.reports.evaluation`."""
    first = next(iter(scored.values()))
    bundles = [
        {"name": name, "version": specs[name].version, **overall_metrics(verdicts, specs[name])}
        for name, verdicts in scored.items()
    ]
    fingerprints = {spec.corpus["fingerprint"] for spec in specs.values()}
    if len(fingerprints) > 1:
        logger.warning("the bundles were trained on %d corpora, which may explain differences", len(fingerprints))
    corpora = {name: corpus_of(storage, spec) for name, spec in specs.items()}
    # The baseline is that of the first bundle whose corpus is in this storage.
    owner = next((name for name, corpus in corpora.items() if corpus), next(iter(specs)))
    baseline = None
    if config.evaluation.baseline:
        baseline = baseline_for(corpora[owner], places[owner], specs[owner], config.seed)
    check = config.evaluation.baseline and any(corpora.values())
    baseline_scores, signatures = score_baseline_and_hash(config, config.data, first, baseline, check)
    contaminated = {}
    if signatures is not None:
        distinct = {corpus.manifest.fingerprint: corpus for corpus in corpora.values() if corpus}
        contaminated = {fingerprint: count_contaminated(corpus, signatures) for fingerprint, corpus in distinct.items()}
    for bundle in bundles:
        bundle["contaminated"] = contaminated.get(specs[bundle["name"]].corpus["fingerprint"])
    return {
        "data": {
            "name": data_name(config),
            "rows": len(first),
            "skipped": {},
            "one_class": not 0 < int(first.labels.sum()) < len(first),
            "contaminated": max(contaminated.values(), default=None),  # of the bundle that has seen most of them
            "contamination_checked": set(contaminated) == fingerprints,
            "other_corpus": len(fingerprints) > 1,
            "fingerprint": first.fingerprint,
        },
        "bundles": bundles,
        "target": target,
        "pairs": [{"a": a, "b": b, **differences(scored[a], scored[b], target)} for a, b in combinations(scored, 2)],
        "slices": [
            {
                "column": column,
                "value": value,
                "metrics": {
                    name: overall_metrics(verdicts[mask], specs[name], score_intervals=False)
                    for name, verdicts in scored.items()
                },
            }
            for column in SLICES
            for value, mask in first.by_value(column, MAX_SLICES, MIN_SLICE)
        ],
        "baseline": None
        if baseline is None or baseline_scores is None
        else baseline_metrics(scored[owner], specs[owner], baseline, baseline_scores),
    }


def _write(storage: Storage, key: str, report: dict[str, Any]) -> None:
    from detect_ai.reports.evaluation import comparison_report

    storage.write_json(f"{key}/report.json", report)
    storage.write_bytes(f"{key}/report.html", comparison_report(report).encode())
