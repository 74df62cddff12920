"""The stage `compare`: two or more bundles, and published figures, on the same texts, with paired tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from detect_ai import metrics
from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, InputError
from detect_ai.core.job import attempt
from detect_ai.core.storage import Storage
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.dataset import SLICES, require_labels
from detect_ai.detector.registry import Registry, spec_of
from detect_ai.detector.score import judge
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation import intervals
from detect_ai.evaluation.contamination import baseline_figures, baseline_for, corpus_of, count_contaminated, read_again
from detect_ai.evaluation.evaluate import data_name
from detect_ai.evaluation.paired import delong, mcnemar, paired_bootstrap
from detect_ai.evaluation.slices import figures_of, groups_of
from detect_ai.evaluation.summary import without_intervals

logger = logging.getLogger(__name__)

MIN_SLICE = 50  # texts
MAX_SLICES = 20  # of a column, the largest ones


def compare(config: Config, storage: Storage) -> dict[str, Any]:
    """Compare the bundles of `compare.bundles`, and published figures, on the texts of `data`.

    Raises:
        ConfigError: fewer than two detectors, no such bundle, or bundles without a common target.
        CorpusError: the data cannot be read, or has no labels.
        InputError: a score is not finite, or a file of published figures is not of the expected form.
    """
    if len(config.compare.bundles) + len(config.compare.published) < 2 or not config.compare.bundles:
        raise ConfigError(
            f"compare.bundles={config.compare.bundles}: expected two or more, or one and compare.published"
        )
    if not config.data:
        raise ConfigError("data=: expected a file or folder of Parquet, CSV or JSON lines with texts and labels")
    published = [_published(path) for path in config.compare.published]
    registry = Registry(storage)
    places = {name: registry.locate(name) for name in config.compare.bundles}
    specs = {name: spec_of(*where) for name, where in places.items()}
    target = _common_target(specs)
    key = f"runs/{config.run}/{attempt('comparison')}"
    with storage.whole(key):
        require_labels(config.data, config.score)
        judged = {name: _judged(config, storage, key, i, places[name]) for i, name in enumerate(places)}
        report = _report(config, storage, specs, judged, published, target)
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
    """The smallest target FPR that all bundles have a threshold for. Raises ConfigError when there is none."""
    common = set.intersection(*(set(spec.calibration.thresholds) for spec in specs.values()))
    if not common:
        have = "; ".join(f"{name}: {sorted(spec.calibration.thresholds)}" for name, spec in specs.items())
        raise ConfigError(f"compare.bundles: no target FPR that all have a threshold for ({have})")
    return min(common)


def _published(path: str) -> dict[str, Any]:
    """Figures of a detector that is not at hand: a JSON file with `name` and figures as `evaluate` prints them."""
    storage, key = Storage.around(path)
    try:
        found = storage.read_json(key)
    except FileNotFoundError:
        raise ConfigError(f"compare.published: {path}: no such file") from None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise InputError(f"compare.published: {path}: expected an object with a name and figures such as auroc")
    figures = {name: value for name, value in found.items() if isinstance(value, int | float) or value is None}
    return {"name": found["name"], "version": None, "published": True, **figures}


def _judged(config: Config, storage: Storage, key: str, number: int, where: tuple[Storage, str]) -> Verdicts:
    out = f"{key}/verdicts-{number}"
    judge(config.data, where, replace(config.score, format="parquet", target_fpr=0.0), (storage, out))
    verdicts = Verdicts.read(storage, out)
    verdicts = verdicts[verdicts.labelled]
    return verdicts[np.argsort(verdicts.rows, kind="stable")]


def _report(
    config: Config,
    storage: Storage,
    specs: dict[str, DetectorSpec],
    judged: dict[str, Verdicts],
    published: list[dict[str, Any]],
    target: float,
) -> dict[str, Any]:
    first = next(iter(judged.values()))
    both = 0 < int(first.labels.sum()) < len(first)
    bundles = [
        {
            "name": name,
            "version": specs[name].version,
            "published": False,
            **figures_of(verdicts, specs[name], config.evaluation.bootstrap, config.seed),
        }
        for name, verdicts in judged.items()
    ]
    fingerprints = {spec.corpus["fingerprint"] for spec in specs.values()}
    if len(fingerprints) > 1:
        logger.warning("the bundles learnt from %d different corpora: what differs may be those", len(fingerprints))
    corpora = {name: corpus_of(storage, spec) for name, spec in specs.items()}
    # The baseline is that of the first bundle whose corpus is at hand.
    of = next((name for name, corpus in corpora.items() if corpus), next(iter(specs)))
    baseline = baseline_for(corpora[of], specs[of], config.seed) if config.evaluation.baseline else None
    sketch = config.evaluation.contamination and any(corpora.values())
    scores, sketches = read_again(config, config.data, first, baseline, sketch)
    learnt = {}
    if sketches is not None:
        own = {corpus.manifest.fingerprint: corpus for corpus in corpora.values() if corpus}
        learnt = {f: count_contaminated(corpus, sketches, config.corpus.similarity) for f, corpus in own.items()}
    for bundle in bundles:
        bundle["contaminated"] = learnt.get(specs[bundle["name"]].corpus["fingerprint"])
    return {
        "data": {
            "name": data_name(config),
            "rows": len(first),
            "skipped": {},
            "one_class": not both,
            "contaminated": max(learnt.values(), default=None),  # of the bundle that has seen most of them
            "contamination_checked": set(learnt) == fingerprints,
            "other_corpus": len(fingerprints) > 1,
            "fingerprint": first.fingerprint,
        },
        "bundles": [*bundles, *published],
        "pairs": [_pair(config, a, b, judged, target) for a, b in combinations(judged, 2)],
        "slices": list(_slices(judged, specs)),
        "baseline": None
        if baseline is None or scores is None
        else baseline_figures(judged[of], specs[of], baseline, scores, config.evaluation.bootstrap, config.seed),
    }


def _pair(config: Config, a: str, b: str, judged: dict[str, Verdicts], target: float) -> dict[str, Any]:
    """Paired tests: DeLong's of the AUROCs, McNemar's of the right calls, and a bootstrap of the FPRs.

    Where texts come in groups, both differences are resampled by group: DeLong's test and McNemar's take texts for
    independent, and the p-value of the former is left out.
    """
    one, other = judged[a], judged[b]
    groups, rounds = groups_of(one), config.evaluation.bootstrap
    nothing = dict.fromkeys(("difference", "low", "high", "p_value"))
    areas: dict[str, Any] = nothing
    rates: dict[str, Any] = nothing
    if min(np.bincount(one.labels, minlength=2)) >= 2:
        areas = delong(one.labels, one.scores, other.scores)
        if groups is not None and (one.columns["group"] != "").any():
            found: dict[str, Any] = nothing
            if rounds:
                found = paired_bootstrap(
                    metrics.auroc, one.labels, one.scores, other.scores, groups, rounds, config.seed
                )
            areas = {**areas, "low": found["low"], "high": found["high"], "p_value": None}
    right_one, right_other = (verdicts.calls(target) == verdicts.labels for verdicts in (one, other))
    human = one.labels == 0
    called = [(verdicts.calls(target) == 1).astype(float)[human] for verdicts in (one, other)]
    if human.any():
        rates = {**nothing, "difference": float(called[0].mean() - called[1].mean())}
    if rounds and human.sum() > 1:
        own = None if groups is None else groups[human]
        if own is None or len(set(intervals.group_numbers(own, len(own)).tolist())) > 1:
            rates = paired_bootstrap(_mean, one.labels[human], called[0], called[1], own, rounds, config.seed)
    return {
        "a": a,
        "b": b,
        "auroc_difference": areas["difference"],
        "low": areas["low"],
        "high": areas["high"],
        "p_value": areas["p_value"],
        "mcnemar": mcnemar(right_one, right_other),
        "target": target,
        "fpr_difference": rates["difference"],
        "fpr_low": rates["low"],
        "fpr_high": rates["high"],
    }


def _mean(_: Any, values: Any) -> float:
    return float(np.asarray(values).mean())


def _slices(judged: dict[str, Verdicts], specs: dict[str, DetectorSpec]) -> Iterator[dict[str, Any]]:
    first = next(iter(judged.values()))
    for column in SLICES:
        for value, chosen in first.by_value(column, MAX_SLICES, MIN_SLICE):
            figures = {name: figures_of(found[chosen], specs[name], 0) for name, found in judged.items()}
            yield {"column": column, "value": value, "figures": figures}


def _write(storage: Storage, key: str, report: dict[str, Any]) -> None:
    from detect_ai.reports.evaluation import comparison_report

    storage.write_json(f"{key}/report.json", report)
    storage.write_bytes(f"{key}/report.html", comparison_report(report).encode())
