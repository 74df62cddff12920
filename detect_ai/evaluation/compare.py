"""The stage `compare`: compare bundles on the same texts, with paired bootstrap intervals of their differences."""

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
from detect_ai.detector.dataset import SLICES
from detect_ai.detector.registry import Registry, spec_of
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation.contamination import corpus_of, count_contaminated
from detect_ai.evaluation.evaluate import data_name
from detect_ai.evaluation.slices import differences, overall_metrics
from detect_ai.evaluation.summary import without_intervals
from detect_ai.evaluation.task import score_labelled
from detect_ai.reports.evaluation import comparison_report

logger = logging.getLogger(__name__)

MIN_SLICE = 50  # texts
MAX_SLICES = 20  # per column, the largest ones


def compare(config: Config, storage: Storage) -> dict[str, Any]:
    """Compare the bundles of `compare.bundles` on the texts of `data`.

    Raises ConfigError for fewer than two bundles or bundles without a common target, CorpusError for unreadable data.
    """
    if len(config.compare.bundles) < 2:
        raise ConfigError(f"compare.bundles={config.compare.bundles}: expected two or more")
    if not config.data:
        raise ConfigError("data=: expected a file or folder of Parquet, CSV or JSON lines with texts and labels")
    registry = Registry(storage)
    places = {name: registry.resolve(name) for name in config.compare.bundles}
    specs = {name: spec_of(*place) for name, place in places.items()}
    common = set.intersection(*(set(spec.calibration.thresholds) for spec in specs.values()))
    if not common:
        have = "; ".join(f"{name}: {sorted(spec.calibration.thresholds)}" for name, spec in specs.items())
        raise ConfigError(f"compare.bundles: no target FPR that all have a threshold for ({have})")
    key = f"runs/{config.run}/{attempt('comparison')}"
    with storage.whole(key):
        scored = {}
        for i, (name, place) in enumerate(places.items()):
            verdicts, skipped = score_labelled(config.data, place, config.score, (storage, f"{key}/verdicts-{i}"))
            scored[name] = verdicts[np.argsort(verdicts.rows, kind="stable")]  # the same order for all bundles
        report = _report(config, storage, specs, scored, target=min(common))
        report["data"]["skipped"] = skipped
        storage.write_json(f"{key}/report.json", report)
        storage.write_bytes(f"{key}/report.html", comparison_report(report).encode())
    storage.prune(f"runs/{config.run}", "comparison-", config.storage.keep)
    return {
        "bundles": [without_intervals(bundle) for bundle in report["bundles"]],
        "pairs": report["pairs"],
        "data": config.data,
        "report": f"{key}/report.html",
        "report_json": f"{key}/report.json",
    }


def _report(
    config: Config, storage: Storage, specs: dict[str, DetectorSpec], scored: dict[str, Verdicts], target: float
) -> dict[str, Any]:
    """The content of the report page, as plain values; see `detect_ai.reports.evaluation`."""
    first = next(iter(scored.values()))
    corpora = {spec.corpus["fingerprint"]: corpus_of(storage, spec) for spec in specs.values()}
    contaminated = {
        fingerprint: count_contaminated(corpus, config.data, config.score, first)
        if corpus and config.evaluation.baseline
        else None
        for fingerprint, corpus in corpora.items()
    }
    if len(contaminated) > 1:
        logger.warning("the bundles were trained on %d corpora, which may explain differences", len(contaminated))
    bundles = [
        {
            "name": name,
            "version": specs[name].version,
            "contaminated": contaminated[specs[name].corpus["fingerprint"]],
            **overall_metrics(verdicts, specs[name]),
        }
        for name, verdicts in scored.items()
    ]
    slices = [
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
    ]
    return {
        "data": {
            "name": data_name(config),
            "rows": len(first),
            "other_corpus": len(contaminated) > 1,
            "fingerprint": first.fingerprint,
        },
        "bundles": bundles,
        "target": target,
        "pairs": [{"a": a, "b": b, **differences(scored[a], scored[b], target)} for a, b in combinations(scored, 2)],
        "slices": slices,
    }
