"""The corpus report, a page that stands alone: no script, no font, no image from elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from detect_ai.core.config import SPLITS
from detect_ai.reports.html import number, render

MAX_ROWS = 40  # of a table


def corpus_report(report: Mapping[str, Any]) -> str:
    """The page for what `inspecting.describe` found, as HTML."""
    from detect_ai.reports import corpus_plots, plots

    audit = report["audit"]
    return render(
        "corpus.html.jinja",
        report=report,
        by_split=[{"split": split, **_classes(report["counts"], "split", split)} for split in SPLITS],
        slices={column: _slices(report["counts"], column) for column in ("source", "domain", "generator", "attack")},
        quarantine=_by_reason(report["quarantine"], report["corpus"]["dropped"]),
        figures={
            "lengths": corpus_plots.length_by_class(report["lengths"]),
            "features": corpus_plots.feature_aurocs(audit["features"]),
            "baseline": corpus_plots.baseline_by_slice(audit["baseline"], audit["slices"]),
            "accused": corpus_plots.accused_by_slice(audit["baseline"], audit["slices"]),
            "dropped": plots.count_bars("dropped", report["corpus"]["dropped"]),
        },
    )


def _classes(counts: Sequence[Mapping[str, Any]], column: str, value: str) -> dict[str, int]:
    """Rows of each class where a column has a value."""
    found = {"human": 0, "ai": 0}
    for row in counts:
        if row[column] == value:
            found["ai" if row["label"] else "human"] += row["rows"]
    return found


def _slices(counts: Sequence[Mapping[str, Any]], column: str) -> list[dict[str, Any]]:
    """Rows of each class by the values of a column, largest first; no table for a single one."""
    by_value = {row[column]: _classes(counts, column, row[column]) for row in counts}
    if len(by_value) < 2:
        return []
    largest = sorted(by_value.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    return [{"value": value or "(none)", **classes} for value, classes in largest[:MAX_ROWS]]


def _by_reason(quarantine: Sequence[Mapping[str, Any]], dropped: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows by reason, and the sources they came from; reasons that put nothing into the quarantine too."""
    sources: dict[str, list[str]] = defaultdict(list)
    for row in sorted(quarantine, key=lambda row: -row["rows"]):
        sources[row["reason"]].append(f"{row['source'] or '(none)'} {number(row['rows'])}")
    return [
        {"reason": reason, "rows": rows, "sources": sources[reason][:5], "more": len(sources[reason][5:])}
        for reason, rows in dropped.items()
        if rows
    ]
