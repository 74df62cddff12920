"""The corpus report, a page that stands alone: no script, no font, no image from elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from detect_ai.config import SPLITS

MAX_ROWS = 40  # of a table


def corpus_report(report: Mapping[str, Any]) -> str:
    """The page for what `inspecting.describe` found, as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from detect_ai.reports import plots

    environment = Environment(
        loader=PackageLoader("detect_ai", "reports"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "percent": _percent, "area": _area}
    audit = report["audit"]
    return environment.get_template("corpus.html.jinja").render(
        report=report,
        by_split=[{"split": split, **_classes(report["counts"], "split", split)} for split in SPLITS],
        slices={column: _slices(report["counts"], column) for column in ("source", "domain", "generator", "attack")},
        quarantine=_by_reason(report["quarantine"], report["corpus"]["dropped"]),
        figures={
            "lengths": plots.length_by_class(report["lengths"]),
            "features": plots.feature_aurocs(audit["features"]),
            "baseline": plots.baseline_by_slice(audit["baseline"], audit["slices"]),
            "accused": plots.accused_by_slice(audit["baseline"], audit["slices"]),
            "dropped": plots.dropped_by_reason(report["corpus"]["dropped"]),
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
        sources[row["reason"]].append(f"{row['source'] or '(none)'} {_number(row['rows'])}")
    return [
        {"reason": reason, "rows": rows, "sources": sources[reason][:5], "more": len(sources[reason][5:])}
        for reason, rows in dropped.items()
        if rows
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%" if 0 < value < 0.1 else f"{100 * value:.0f}%"


def _area(value: float | None) -> str:
    """An AUROC; nothing below 1 is shown as 1."""
    return "–" if value is None else f"{min(value, 0.999) if value < 1 else 1:.3f}"
