"""HTML report of a corpus: contents, shortcut audit, TF-IDF baseline, dropped rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from detect_ai.reports import plots
from detect_ai.reports.html import number, render

MAX_ROWS = 40  # of a table
SLICES = ("source", "domain", "generator", "attack")


def corpus_report(report: Mapping[str, Any]) -> str:
    """Render what `corpus.audit.describe` returns as one HTML page without scripts or external files."""
    counts, features = report["counts"], report["audit"]["features"]
    return render(
        "corpus.html.jinja",
        report=report,
        by_split=[{"split": split, **_classes(counts, "split", split)} for split in report["corpus"]["rows"]],
        slices={column: _by_value(counts, column) for column in SLICES},
        quarantine=_by_reason(report["quarantine"], report["corpus"]["dropped"]),
        lengths=plots.lengths_by_class(report["lengths"]),
        features=plots.bars({row["name"]: row["auroc"] for row in features[:20]}, "AUROC (0.5: uninformative)", 0.5),
    )


def _classes(counts: Sequence[Mapping[str, Any]], column: str, value: str) -> dict[str, int]:
    """Number of texts of each class with a value in a column."""
    rows = {"human": 0, "ai": 0}
    for row in counts:
        if row[column] == value:
            rows["ai" if row["label"] else "human"] += row["rows"]
    return rows


def _by_value(counts: Sequence[Mapping[str, Any]], column: str) -> list[dict[str, Any]]:
    """Number of texts of each class by the values of a column, largest first; nothing for a single value."""
    by_value = {row[column]: _classes(counts, column, row[column]) for row in counts}
    if len(by_value) < 2:
        return []
    largest = sorted(by_value.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    return [{"value": value or "(none)", **classes} for value, classes in largest[:MAX_ROWS]]


def _by_reason(quarantine: Sequence[Mapping[str, Any]], dropped: Mapping[str, int]) -> list[dict[str, Any]]:
    """Dropped rows by reason, with the sources that lost most."""
    sources: dict[str, list[str]] = defaultdict(list)
    for row in sorted(quarantine, key=lambda row: -row["rows"]):
        sources[row["reason"]].append(f"{row['source'] or '(none)'} {number(row['rows'])}")
    return [
        {"reason": reason, "rows": rows, "sources": ", ".join(sources[reason][:5])}
        for reason, rows in dropped.items()
        if rows
    ]
