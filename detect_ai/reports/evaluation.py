"""HTML reports of an evaluation and of a comparison, from the dictionaries that those stages write as JSON.

Metrics are those of `detect_ai.evaluation.summary.compute_metrics`; a missing or None metric is shown as "–".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detect_ai.metrics import key_of_target
from detect_ai.reports import plots
from detect_ai.reports.render import decimal, number, percent, render

# Name and label of a metric, whether it is a percentage, and 1 (-1) if higher (lower) is better.
METRICS: tuple[tuple[str, str, bool, int], ...] = (
    ("cleared_ai_fraction", "AI texts labelled human (cleared)", True, -1),
    ("abstained_fraction", "Abstained", True, 0),
    ("abstained_human", "Abstained, human texts", True, 0),
    ("abstained_ai", "Abstained, AI texts", True, 0),
    ("ppv_at_5", "Precision (PPV) if 5% of texts are AI", True, 1),
    ("ppv_at_20", "Precision (PPV) if 20% of texts are AI", True, 1),
    ("auroc", "AUROC", False, 1),
    ("tpr_at_fpr_0_1", "Detection rate at 0.1% FPR", True, 1),
    ("tpr_at_fpr_1", "Detection rate at 1% FPR", True, 1),
    ("tpr_at_fpr_5", "Detection rate at 5% FPR", True, 1),
    ("ece", "Calibration error (ECE)", False, -1),
    ("brier", "Brier score", False, -1),
    ("log_loss", "Log loss", False, -1),
)


def evaluation_report(report: Mapping[str, Any]) -> str:
    """Render the evaluation of one bundle as one HTML page without scripts or external files."""
    bundle, overall, baseline = report["bundle"], report["overall"], report["baseline"] or {}
    default, curves = bundle["default_target"], report["curves"]
    key = key_of_target(default)
    points = []
    for target in bundle["targets"]:
        x, y = (overall[f"{name}_at_target_{key_of_target(target)}"] for name in ("fpr", "tpr"))
        if x is not None and y is not None:
            points.append((f"{100 * target:g}% target", x, y))
    warnings = list(_data_warnings(report))
    if None not in (overall.get("auroc"), baseline.get("auroc")) and baseline["auroc"] >= overall["auroc"]:
        aurocs = f"AUROC {decimal(baseline['auroc'])} against {decimal(overall['auroc'])}"
        warnings.insert(0, f"The TF-IDF baseline is as good or better: {aurocs}.")
    everything = {"column": "", "value": "all texts", **overall}
    return render(
        "evaluation.html.jinja",
        report=report,
        key=key,
        target=f"{100 * default:g}%",
        warnings=warnings,
        rows=_metric_rows(bundle["targets"], [overall, baseline]),
        plots={
            "roc": plots.roc(curves, points),
            "reliability": plots.reliability(curves["reliability"]),
            "histogram": plots.histogram(curves["histogram"], "predicted probability of AI", log="y"),
            "fpr": plots.fpr_by_slice([everything, *report["slices"]], f"fpr_at_target_{key}", default),
        },
    )


def comparison_report(report: Mapping[str, Any]) -> str:
    """Render a comparison of bundles on the same texts as one HTML page without scripts or external files."""
    return render(
        "compare.html.jinja",
        report=report,
        target=f"{100 * report['target']:g}%",
        key=key_of_target(report["target"]),
        warnings=list(_data_warnings(report)),
        rows=_metric_rows([report["target"]], report["bundles"]),
    )


def _metric_rows(targets: Sequence[float], columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per metric with a cell per column; the best cell is marked if higher or lower is better."""
    at_targets = [
        (f"{name}_at_target_{key_of_target(target)}", f"{label} at the {100 * target:g}% target", True, 0)
        for target in targets
        for name, label in (("fpr", "False positive rate"), ("tpr", "Detection rate"))
    ]
    rows = []
    for name, label, in_percent, better in (*at_targets, *METRICS):
        show = percent if in_percent else decimal
        values = [better * column[name] for column in columns if column.get(name) is not None]
        best = max(values) if better and len(set(values)) > 1 else None
        cells = []
        for column in columns:
            value, low, high = (column.get(f"{name}{end}") for end in ("", "_low", "_high"))
            interval = "" if None in (value, low, high) else f"{show(low)} to {show(high)}"
            is_best = best is not None and value is not None and better * value == best
            cells.append({"value": show(value), "interval": interval, "best": is_best})
        rows.append({"label": label, "cells": cells})
    return rows


def _data_warnings(report: Mapping[str, Any]) -> Iterator[str]:
    data, bundles = report["data"], report.get("bundles", [])
    metrics = bundles[0] if bundles else report["overall"]
    if not (metrics["n_human"] and metrics["n_ai"]):
        yield "All texts are of one class: metrics that compare the classes are missing."
    for name, count in [(row["name"], row["contaminated"]) for row in bundles] or [("", data["contaminated"])]:
        of = f" of {name}" if name else ""
        if count is None:
            yield f"Contamination was not checked: these texts may be in the training data{of}."
        elif count:
            yield (
                f"{number(count)} of these texts have a near duplicate in the training data{of}: the metrics are too "
                f"optimistic."
            )
    if data["other_corpus"]:
        yield (
            "The detectors were trained on different corpora, which may explain their differences."
            if "bundles" in report
            else "These texts are not from the corpus that the thresholds were calibrated on."
        )
    yield from report.get("notes", [])
