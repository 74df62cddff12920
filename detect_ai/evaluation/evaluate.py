"""The stage `evaluate`: metrics of a bundle on labelled texts, with intervals, by slice and under attack.

Thresholds are those of the bundle, set on its calibration split; the evaluated texts do not change them.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np

from detect_ai.calibration.leave_one_out import leave_one_domain_out
from detect_ai.core.config import Config, ScoreConfig, check_names
from detect_ai.core.errors import ConfigError
from detect_ai.core.job import attempt, read_result
from detect_ai.core.storage import Storage
from detect_ai.core.tracking import Tracker
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector.registry import Registry, spec_of
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation import slices
from detect_ai.evaluation.baseline import evaluate_baseline
from detect_ai.evaluation.cleaned import cleaned_metrics
from detect_ai.evaluation.contamination import corpus_of, count_contaminated
from detect_ai.evaluation.errors import top_false_positives
from detect_ai.evaluation.mixed_documents import sentence_score_metrics
from detect_ai.evaluation.robustness import attacked_metrics
from detect_ai.evaluation.summary import without_intervals
from detect_ai.evaluation.task import OUR_COLUMNS, EvalTask, score_labelled
from detect_ai.metrics import key_of_target
from detect_ai.reports.evaluation import evaluation_report
from detect_ai.text.attacks import ATTACKS

logger = logging.getLogger(__name__)

# Metrics kept for each slice, by prefix: a published bundle contains them, and there may be hundreds of slices.
MAIN_METRICS = ("column", "value", "n_human", "n_ai", "auroc", "tpr_", "fpr_at", "cleared_ai_", "abstained_fraction")


def result_name(config: Config) -> str:
    """Name of the stored result. Results on other data never replace the result on the test split."""
    return f"evaluate-{data_name(config)}" if config.data else "evaluate"


def data_name(config: Config) -> str:
    """The name of `data` in results: the name of its file or folder."""
    last = config.data.partition("?")[0].rstrip("/").rpartition("/")[2].partition(".")[0]
    return re.sub(r"[^\w.-]", "-", last)[:48].strip("-._") or "data"


def evaluate(config: Config, storage: Storage) -> dict[str, Any]:
    """Evaluate `bundle` (default: the candidate of this run) on `data` (default: the test split of this run).

    Returns the metrics of `summary.compute_metrics` over all texts (`fpr_at_target` and similar metrics are at the
    default target of the bundle), the main metrics by slice and attack, and `test_fingerprint`, which identifies texts
    and labels. Raises ConfigError if the test split is not from the bundle's corpus, CorpusError for unreadable or
    unlabelled data.
    """
    check_names("evaluation.attacks", config.evaluation.attacks, ATTACKS)
    started = time.perf_counter()
    folder = f"runs/{config.run}/{result_name(config)}"
    key = f"{folder}/{attempt('evaluation')}"
    task = _task(config, storage, key)
    with storage.whole(key):
        verdicts, skipped = score_labelled(task.data, task.bundle, task.config.score, (storage, f"{key}/verdicts"))
        report = _report(task, verdicts)
        report["data"]["skipped"] = skipped
        report["seconds"] = round(time.perf_counter() - started, 1)
        storage.write_json(f"{key}/report.json", report)
        storage.write_bytes(f"{key}/report.html", evaluation_report(report).encode())
    storage.prune(folder, "evaluation-", config.storage.keep)
    overall = report["overall"]
    logger.info("%s on %s: %s", task.spec.version, task.name, describe(overall))
    name = f"{result_name(config)}-{task.spec.version}"
    with Tracker(config, name=name, group=config.run, job_type="evaluate") as tracker:
        scalars = {f"evaluation/{k}": v for k, v in overall.items() if isinstance(v, int | float)}
        tracker.log({**scalars, "evaluation/version": task.spec.version, "evaluation/data": task.name})
    return {
        **overall,
        "default_target": task.spec.default_target_fpr,
        "baseline": report["baseline"] and without_intervals(report["baseline"]),
        "slices": [
            {name: value for name, value in row.items() if value is not None and name.startswith(MAIN_METRICS)}
            for row in report["slices"]
        ],
        "cleaned": {"changed": report["cleaned"]["changed"], **without_intervals(report["cleaned"]["overall"])},
        **{name: report[name] for name in ("attacks", "new_domains", "notes", "sentence_scores")},
        "contaminated": report["data"]["contaminated"],
        "data": task.data,
        "bundle": task.bundle[1] if task.bundle[0] is storage else task.bundle[0].uri(task.bundle[1]),
        "version": task.spec.version,
        "test_fingerprint": report["data"]["fingerprint"],
        "report": f"{key}/report.html",
        "report_json": f"{key}/report.json",
    }


def evaluate_overall(
    data: str, bundle: tuple[Storage, str], config: ScoreConfig, scratch: tuple[Storage, str]
) -> dict[str, Any]:
    """The metrics of `evaluate` over all labelled texts of a file or folder, without slices, attacks or a report.

    Verdicts are written to `scratch`, which is deleted. Raises CorpusError for unreadable or unlabelled data.
    """
    spec, (storage, key) = spec_of(*bundle), scratch
    try:
        verdicts, _ = score_labelled(data, bundle, config, scratch)
    finally:
        storage.delete(key)
    overall = slices.overall_metrics(verdicts, spec, score_intervals=False)
    return {**overall, "version": spec.version, "test_fingerprint": verdicts.fingerprint}


def describe(metrics: dict[str, Any]) -> str:
    """The main metrics in one line."""
    decisions = ("fpr_at_target", "tpr_at_target", "cleared_ai_fraction", "abstained_fraction")
    names = ("auroc", "tpr_at_fpr_1", *decisions, "ece")
    shown = [f"{name} {metrics[name]:.3f}" for name in names if metrics.get(name) is not None]
    return f"{', '.join(shown)} ({metrics['n_human']} human, {metrics['n_ai']} AI texts)"


def _task(config: Config, storage: Storage, key: str) -> EvalTask:
    if config.bundle:
        bundle = Registry(storage).resolve(config.bundle)
    else:
        bundle = storage, str(read_result(storage, config.run, "calibrate")["bundle"])
    spec, out = spec_of(*bundle), (storage, key)
    if config.data:
        known = corpus_of(storage, spec)
        return EvalTask(config, bundle, spec, config.data, data_name(config), known, out)
    corpus = Corpus.of_run(storage, config.run)
    if corpus.manifest.fingerprint != spec.corpus["fingerprint"]:
        raise ConfigError(
            f"bundle {spec.version} was trained on corpus {spec.corpus['fingerprint'][:12]}, but run={config.run} has "
            f"{corpus.manifest.fingerprint[:12]}, whose test split may be in its training data. Name the texts with "
            f"data=…: they are searched for near duplicates of the training data"
        )
    config = config.model_copy(update={"score": config.score.model_copy(update=OUR_COLUMNS)})
    return EvalTask(config, bundle, spec, storage.uri(f"{corpus.key}/test"), "test", corpus, out)


def _report(task: EvalTask, verdicts: Verdicts) -> dict[str, Any]:
    """The content of the report page, as plain values; see `detect_ai.reports.evaluation`."""
    spec, corpus = task.spec, task.corpus
    fingerprint, contaminated = verdicts.fingerprint, None
    scores, baseline = evaluate_baseline(task, verdicts) if task.config.evaluation.baseline else (None, None)
    if corpus and not task.config.data:
        # `prepare` keeps near duplicates in one split. Metrics of different test splits are not compared.
        fingerprint, contaminated = corpus.split_fingerprint("test"), 0
    elif corpus and task.config.evaluation.baseline:
        contaminated = count_contaminated(corpus, task.data, task.config.score, verdicts)
    targets = sorted(spec.calibration.thresholds)
    overall = slices.overall_metrics(verdicts, spec)
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "bundle": {
            "version": spec.version,
            "base_model": spec.base_model,
            "corpus": spec.corpus,
            "targets": targets,
            "default_target": spec.default_target_fpr,
            "prevalence": spec.calibration.prevalence,
            "min_tokens_by_target": {repr(target): spec.min_tokens_at(target) for target in targets},
        },
        "data": {
            "name": task.name,
            "rows": len(verdicts),
            "contaminated": contaminated,
            "other_corpus": bool(task.config.data),
            "fingerprint": fingerprint,
        },
        "overall": overall,
        "baseline": baseline,
        "slices": slices.slices(verdicts, spec),
        "lengths": slices.lengths(verdicts, spec),
        "cleaned": cleaned_metrics(task, verdicts),
        "attacks": attacked_metrics(task, verdicts),
        "new_domains": leave_one_domain_out(
            spec.calibration,
            spec.calibration_config,
            spec.default_target_fpr,
            spec.min_tokens_at(spec.default_target_fpr),
        ),
        "curves": slices.curves(verdicts, scores, spec.calibration.prevalence),
        "abstentions": dict(Counter(reason for reasons in verdicts.reasons for reason in reasons).most_common()),
        "top_false_positives": top_false_positives(task, verdicts),
        "sentence_scores": sentence_score_metrics(task, verdicts),
        "notes": _notes(task, verdicts, overall),
    }


def _notes(task: EvalTask, verdicts: Verdicts, overall: dict[str, Any]) -> list[str]:
    """Notes on where the guarantee of the thresholds does not hold for these texts."""
    notes = []
    if task.corpus and task.config.data:
        known = {row["domain"] for row in task.corpus.manifest.counts if row["split"] == "calibration"}
        domains = verdicts.columns["domain"][verdicts.labels == 0]
        unseen = [name for name in np.unique(domains).tolist() if name and name not in known]
        if unseen:
            fraction = float(np.isin(domains, unseen).mean())
            listed = ", ".join(unseen[:8]) + (" …" if len(unseen) > 8 else "")
            notes.append(f"{100 * fraction:.0f}% of the human texts are of domains not seen in calibration ({listed}).")
    for target, threshold in sorted(task.spec.calibration.thresholds.items()):
        name = f"fpr_at_target_{key_of_target(target)}"
        if (overall[f"{name}_low"] or 0) > threshold.fpr_bound:
            notes.append(
                f"At the {100 * target:g}% target {100 * overall[name]:.1f}% of the human texts were labelled AI, more "
                f"than chance explains: they are unlike the calibration texts."
            )
    return notes
