"""The stage `evaluate`: what a bundle makes of labelled texts, with intervals, by slice and under attack.

Thresholds are those of the bundle, fixed on its calibration split: the texts judged here decide nothing.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError
from detect_ai.core.job import attempt, read_result
from detect_ai.core.storage import Storage
from detect_ai.core.tracking import open_run
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.dataset import require_labels
from detect_ai.detector.registry import Registry, spec_of
from detect_ai.detector.score import judge
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation import raid_format, robustness, slices, summary
from detect_ai.evaluation.contamination import baseline_figures, baseline_for, corpus_of, count_contaminated, read_again

logger = logging.getLogger(__name__)

REPORTED_TARGETS = ("1", "5")  # percent: their figures are always there, null where the bundle has no such target


@dataclass(frozen=True)
class Subject:
    """What is judged on what.

    Attributes:
        where: storage and key of the bundle.
        spec: of the bundle.
        data: a path or a URI.
        name: of the data, for results.
        corpus: that the bundle learnt from, when storage has it.
        is_test: the data is the test split of that corpus.
    """

    where: tuple[Storage, str]
    spec: DetectorSpec
    data: str
    name: str
    corpus: Corpus | None
    is_test: bool


def result_name(config: Config) -> str:
    """Under which name the result is kept: figures of other data than the test split never stand for its."""
    return f"evaluate-{data_name(config)}" if config.data else "evaluate"


def data_name(config: Config) -> str:
    """The name of `data` in results: given, or of the file or folder."""
    last = config.data.partition("?")[0].rstrip("/").rpartition("/")[2].partition(".")[0]
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in config.evaluation.name or last)
    return safe[:48].strip("-._") or "data"


def evaluate(config: Config, storage: Storage) -> dict[str, Any]:
    """Judge a bundle on labelled texts.

    The bundle is `bundle`, else the candidate of this run; the texts are `data`, else the test split of this run.

    Raises:
        ConfigError: no such bundle, or the test split is of another corpus than the bundle's.
        CorpusError: the data cannot be read, or has no labels.
    """
    started = time.perf_counter()
    subject = _subject(config, storage)
    kept = f"runs/{config.run}/{result_name(config)}"
    key = f"{kept}/{attempt('evaluation')}"
    with storage.whole(key):
        require_labels(subject.data, config.score)
        plain = replace(config.score, format="parquet")
        judged = judge(subject.data, subject.where, plain, (storage, f"{key}/verdicts"))
        verdicts = Verdicts.read(storage, f"{key}/verdicts")
        skipped = {"no_text": judged.skipped, "no_label": int((~verdicts.labelled).sum())}
        verdicts = verdicts[verdicts.labelled]
        report = _report(config, storage, key, subject, verdicts, {k: v for k, v in skipped.items() if v})
        report["seconds"] = round(time.perf_counter() - started, 1)
        written = _write(storage, key, report, verdicts)
    storage.prune(kept, "evaluation-", config.storage.keep)
    overall = report["overall"]
    logger.info("%s on %s: %s", subject.spec.version, subject.name, describe(overall))
    _track(config, subject, report)
    return {
        **{f"{figure}_at_target_{percent}": None for figure in ("fpr", "tpr") for percent in REPORTED_TARGETS},
        **overall,
        "baseline": report["baseline"] and summary.without_intervals(report["baseline"]),
        "slices": [_main(row) for row in report["slices"]],
        "attacks": report["attacks"],
        "exchangeability": report["exchangeability"],
        "explanation": report["explanation"],
        "contaminated": report["data"]["contaminated"],
        "data": subject.data,
        "bundle": subject.where[1] if subject.where[0] is storage else subject.where[0].uri(subject.where[1]),
        "version": subject.spec.version,
        "test_fingerprint": report["data"]["fingerprint"],
        **written,
    }


def _track(config: Config, subject: Subject, report: dict[str, Any]) -> None:
    """Figures, ROC and calibration in W&B."""
    name = f"{result_name(config)}-{subject.spec.version}"
    with open_run(config, name=name, group=config.run, job_type="evaluate") as tracker:
        figures = {f"evaluation/{k}": v for k, v in report["overall"].items() if isinstance(v, int | float)}
        tracker.log({**figures, "evaluation/version": subject.spec.version, "evaluation/data": subject.name})
        roc, bins = report["curves"]["roc"], report["curves"]["reliability"]
        if roc:
            points = zip(roc["fpr"], roc["tpr"], strict=True)
            tracker.curve("evaluation/roc", "ROC", ("false positive rate", "true positive rate"), points)
        calibration = [(row["mean_probability"], row["share_ai"]) for row in bins]
        tracker.curve("evaluation/calibration", "Calibration", ("probability of AI", "share of AI texts"), calibration)


def _main(row: dict[str, Any]) -> dict[str, Any]:
    """The main figures of a slice: a published bundle carries them, and there may be hundreds of slices."""
    kept = ("column", "value", "n_human", "n_ai", "auroc", "tpr_", "fpr_", "uncertain_share")
    return {name: value for name, value in row.items() if value is not None and name.startswith(kept)}


def describe(figures: dict[str, Any]) -> str:
    """The main figures in one line."""
    names = ("auroc", "tpr_at_fpr_1", "tpr_at_fpr_5", "fpr_at_target_1", "fpr_at_target_5", "ece", "uncertain_share")
    shown = [f"{name} {figures[name]:.3f}" for name in names if figures.get(name) is not None]
    return f"{', '.join(shown)} ({figures['n_human']} human, {figures['n_ai']} AI texts)"


# What is judged


def _subject(config: Config, storage: Storage) -> Subject:
    if config.bundle:
        where = Registry(storage).locate(config.bundle)
    else:
        where = storage, str(read_result(storage, config.run, "calibrate")["bundle"])
    spec = spec_of(*where)
    corpus = corpus_of(storage, spec)
    if config.data:
        return Subject(where, spec, config.data, data_name(config), corpus, is_test=False)
    prepared = Corpus.of_run(storage, config.run)
    if prepared.manifest.fingerprint != spec.corpus["fingerprint"]:
        raise ConfigError(
            f"bundle {spec.version} learnt from corpus {spec.corpus['fingerprint'][:12]}, run={config.run} has "
            f"{prepared.manifest.fingerprint[:12]}, whose test split it may have seen. Name the texts with data=…: "
            f"they are searched for what it learnt from"
        )
    return Subject(where, spec, storage.uri(f"{prepared.key}/test"), "test", prepared, is_test=True)


def fingerprint_of_test(corpus: Corpus) -> str:
    """What names the test data: figures with another name cannot be compared."""
    return ",".join(shard.sha256 for shard in corpus.shards("test"))


# The report


def _report(
    config: Config, storage: Storage, key: str, subject: Subject, verdicts: Verdicts, skipped: dict[str, int]
) -> dict[str, Any]:
    """Everything that the page shows, as plain values (see `reports.evaluation`)."""
    e, spec, corpus = config.evaluation, subject.spec, subject.corpus
    targets = sorted(spec.calibration.thresholds)
    overall = slices.figures_of(verdicts, spec, e.bootstrap, config.seed)
    baseline = baseline_for(corpus, spec, config.seed) if e.baseline else None
    # Of the test split it is known: prepare parts near duplicates from each other.
    sketch = e.contamination and corpus is not None and not subject.is_test
    baseline_scores, sketches = read_again(config, subject.data, verdicts, baseline, sketch)
    contaminated = 0 if subject.is_test else None
    if sketches is not None and corpus is not None:
        contaminated = count_contaminated(corpus, sketches, config.corpus.similarity)
    attacks = robustness.attacked(config, subject.where, subject.data, (storage, key), verdicts, targets[0])
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "bundle": {
            "version": spec.version,
            "base_model": spec.base_model,
            "corpus": spec.corpus,
            "targets": targets,
            "default_target": spec.default_target_fpr,
            "min_tokens_by_target": {repr(target): spec.min_tokens_at(target) for target in targets},
        },
        "data": {
            "name": subject.name,
            "rows": len(verdicts),
            "skipped": skipped,
            "one_class": not 0 < verdicts.labels.sum() < len(verdicts),
            "contaminated": contaminated,
            "contamination_checked": contaminated is not None,
            "other_corpus": not subject.is_test,
            "fingerprint": fingerprint_of_test(corpus) if subject.is_test and corpus else verdicts.fingerprint,
        },
        "overall": overall,
        "baseline": None
        if baseline is None or baseline_scores is None
        else baseline_figures(verdicts, spec, baseline, baseline_scores, e.bootstrap, config.seed),
        "slices": slices.slices(verdicts, spec),
        "lengths": slices.lengths(verdicts, spec),
        "attacks": attacks,
        "curves": slices.curves(verdicts, baseline_scores),
        "uncertain": dict(Counter(reason for reasons in verdicts.reasons for reason in reasons).most_common()),
        "worst": robustness.worst(
            config, subject.where, subject.data, (storage, key), verdicts, spec.default_target_fpr
        ),
        "explanation": robustness.explained(
            config, subject.where, subject.data, (storage, key), verdicts, spec.default_target_fpr
        ),
        "exchangeability": _exchangeability(subject, verdicts, overall, targets),
    }


def _exchangeability(subject: Subject, verdicts: Verdicts, overall: dict[str, Any], targets: list[float]) -> list[str]:
    """What breaks, or may break, the guarantee of the thresholds on these texts."""
    said = [
        "The guarantee holds on average for human texts exchangeable with the calibration texts: the same sources, "
        "topics, writers and lengths."
    ]
    if subject.corpus is not None and not subject.is_test:
        known = {row["domain"] for row in subject.corpus.manifest.counts if row["split"] == "calibration"}
        domains = verdicts.columns["domain"][verdicts.labels == 0]
        strange = [name for name in np.unique(domains).tolist() if name and name not in known]
        if strange:
            share = float(np.isin(domains, strange).mean())
            shown = ", ".join(strange[:8]) + (" …" if len(strange) > 8 else "")
            said.append(f"{100 * share:.0f}% of the human texts are of domains that calibration never saw ({shown}).")
    groups = len(set(verdicts.columns["group"].tolist()) - {""})
    if groups and slices.groups_of(verdicts) is None:
        said.append(
            f"All texts are of {groups} groups: too few to tell how figures vary from one to another. Intervals take "
            f"texts for independent and are too narrow."
        )
    for target in targets:
        percent = summary.key_of_target(target)
        low, rate = overall[f"fpr_at_target_{percent}_low"], overall[f"fpr_at_target_{percent}"]
        if rate is not None and low > target:
            said.append(
                f"At the target of {100 * target:g}% it called {100 * rate:.1f}% of these human texts AI, more than "
                f"chance allows: they are not like the calibration texts."
            )
    unsure = float((verdicts.columns["compared_with"] == "").mean())
    if subject.spec.registers and unsure > 0:
        said.append(
            f"{100 * unsure:.0f}% of the texts are of no register that the detector knows "
            f"({', '.join(subject.spec.registers)}); they are judged by the strictest thresholds, without a guarantee."
        )
    return said


def _write(storage: Storage, key: str, report: dict[str, Any], verdicts: Verdicts) -> dict[str, str]:
    from detect_ai.reports.evaluation import evaluation_report

    storage.write_json(f"{key}/report.json", report)
    storage.write_bytes(f"{key}/report.html", evaluation_report(report).encode())
    predictions = raid_format.predictions(verdicts.ids.tolist(), verdicts.probabilities.tolist())
    storage.write_json(f"{key}/predictions.json", predictions)
    attacks = verdicts.columns["attack"].copy()
    attacks[attacks == ""] = "none"
    found = raid_format.results(
        verdicts.labels, verdicts.probabilities, verdicts.columns["domain"], verdicts.columns["generator"], attacks
    )
    storage.write_json(f"{key}/results.json", found)
    return {name: f"{key}/{file}" for name, file in (("report", "report.html"), ("report_json", "report.json"))}
