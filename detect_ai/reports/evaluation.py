"""HTML reports of an evaluation and of a comparison, from the dictionaries that those stages write as JSON.

Metrics are those of `detect_ai.evaluation.summary.compute_metrics`; one that is None or absent is shown as "–".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detect_ai.metrics import key_of_target
from detect_ai.reports import plots
from detect_ai.reports.html import decimal, number, percent, render, token_range

MAX_ROWS = 40  # of a column in a table of slices
MAX_SENTENCES = 40  # of a text

# Name, label, whether it is shown in percent, and 1 (-1) if higher (lower) is better.
Line = tuple[str, str, bool, int]
DEFAULT_LINES: tuple[Line, ...] = (
    ("cleared_ai_fraction", "AI texts called human (cleared)", True, -1),
    ("abstained_fraction", "Abstained", True, 0),
    ("abstained_human", "Abstained, human texts", True, 0),
    ("abstained_ai", "Abstained, AI texts", True, 0),
    ("ppv_at_5", "Precision (PPV) if 5% of texts are AI", True, 1),
    ("ppv_at_20", "Precision (PPV) if 20% of texts are AI", True, 1),
)
SCORE_LINES: tuple[Line, ...] = (
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
    bundle, overall, baseline = report["bundle"], report["overall"], report["baseline"]
    default = bundle["default_target"]
    key = key_of_target(default)
    fpr, tpr = f"fpr_at_target_{key}", f"tpr_at_target_{key}"
    everything = {"column": "", "value": "all texts", **overall}
    points = []
    for target in bundle["targets"]:
        x, y = (overall[f"{name}_at_target_{key_of_target(target)}"] for name in ("fpr", "tpr"))
        if x is not None and y is not None:
            points.append((f"{100 * target:g}% target", x, y))
    return render(
        "evaluation.html.jinja",
        report=report,
        key=key,
        target=f"{100 * default:g}%",
        warnings=[*_baseline_warnings(overall, baseline), *_data_warnings(report)],
        rows=_rows(_lines(bundle["targets"]), [overall, baseline or {}]),
        spread=overall.get("fpr_by_group"),
        slices=_by_column(report["slices"]),
        lengths=[{"name": token_range(row), **row} for row in report["lengths"]],
        top_false_positives=[
            {**text, "sentences": text["sentences"][:MAX_SENTENCES]} for text in report["top_false_positives"]
        ],
        plots={
            "roc": plots.roc(report["curves"], points),
            "reliability": plots.reliability(report["curves"]["reliability"]),
            "histogram": plots.histogram(report["curves"]["histogram"]),
            "fpr": plots.rates_by_slice(
                [everything, *report["slices"]], fpr, "n_human", "false positive rate", target=default
            ),
            "tpr": plots.rates_by_slice([everything, *report["slices"]], tpr, "n_ai", "detection rate"),
        },
    )


def comparison_report(report: Mapping[str, Any]) -> str:
    """Render a comparison of bundles on the same texts as one HTML page without scripts or external files."""
    bundles = report["bundles"]
    return render(
        "compare.html.jinja",
        report=report,
        target=f"{100 * report['target']:g}%",
        key=key_of_target(report["target"]),
        summary=_leader(bundles, report["pairs"]),
        warnings=list(_data_warnings(report)),
        rows=_rows(_lines([report["target"]]), bundles),
        slices=_by_column(report["slices"]),
    )


def _lines(targets: Sequence[float]) -> list[Line]:
    rates: list[Line] = []
    for target in targets:
        key, at = key_of_target(target), f"at the {100 * target:g}% target"
        rates += [
            (f"fpr_at_target_{key}", f"False positive rate {at}", True, 0),
            (f"tpr_at_target_{key}", f"Detection rate {at}", True, 0),
        ]
    return [*rates, *DEFAULT_LINES, *SCORE_LINES]


def _rows(lines: Sequence[Line], columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each metric with a cell for each column; the best one is marked where higher or lower is better."""
    rows = []
    for name, label, in_percent, better in lines:
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


def _baseline_warnings(metrics: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> Iterator[str]:
    ours, theirs = metrics.get("auroc"), (baseline or {}).get("auroc")
    if ours is not None and theirs is not None and theirs >= ours:
        yield f"The TF-IDF baseline is as good or better: AUROC {decimal(theirs)} against {decimal(ours)}."


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


def _by_column(slices: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The largest slices of each column, in the order of the columns."""
    columns = dict.fromkeys(row["column"] for row in slices)
    return [(column, [row for row in slices if row["column"] == column][:MAX_ROWS]) for column in columns]


def _leader(bundles: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> str:
    """Which detector has the highest AUROC, and whether the next one is within chance of it."""
    ranked = sorted((row for row in bundles if row.get("auroc") is not None), key=lambda row: -row["auroc"])
    if len(ranked) < 2:
        return "The detectors cannot be ranked: AUROC needs texts of both classes."
    first, second = ranked[:2]
    summary = (
        f"{first['name']} has the highest AUROC, {decimal(first['auroc'])}; {second['name']} follows with "
        f"{decimal(second['auroc'])}."
    )
    names = {first["name"], second["name"]}
    pair = next(pair for pair in pairs if {pair["a"], pair["b"]} == names)
    low, high = pair["auroc_difference_low"], pair["auroc_difference_high"]
    if None in (low, high):
        return f"{summary} There are too few texts or groups to tell whether the difference is due to chance."
    within = low <= 0 <= high
    return f"{summary} The 95% interval of the difference {'includes' if within else 'excludes'} zero."
