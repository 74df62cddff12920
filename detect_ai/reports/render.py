"""Jinja environment of the reports and the number formats of their filters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_NAME = 60  # characters of a name in a table


def render(template: str, **values: Any) -> str:
    """Render a template. HTML templates escape all values; in Markdown, names from the data need the filter `cell`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("detect_ai", "reports/templates"),
        undefined=StrictUndefined,
        autoescape=template.endswith(".html.jinja"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {f.__name__: f for f in (number, percent, decimal, signed, name, rate, cell)}
    return environment.get_template(template).render(**values)


def number(value: float | None) -> str:
    """A count."""
    return "–" if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A fraction as a percentage: one decimal below 10%, two below 0.1%; only 1 is shown as 100%."""
    if value is None:
        return "–"
    if value in (0, 1):
        return f"{100 * value:.0f}%"
    if value < 0.1:
        return f"{100 * value:.{1 if value >= 0.001 else 2}f}%"
    return f"{100 * value:.0f}%" if value < 0.995 else f"{min(100 * value, 99.9):.1f}%"


def decimal(value: float | None) -> str:
    """An AUROC or another value from 0 to 1, with three decimals; only 1 is shown as 1.000."""
    return "–" if value is None else f"{min(value, 0.999) if value < 1 else value:.3f}"


def signed(value: float | None) -> str:
    """A difference with its sign."""
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def name(value: str) -> str:
    """A name on one line, shortened to fit a table."""
    value = " ".join(value.split())
    return (value if len(value) <= MAX_NAME else f"{value[: MAX_NAME - 1]}…") or "(none)"


def cell(value: str) -> str:
    """A name from the data as plain text in a Markdown table."""
    return "".join(f"\\{c}" if c in "\\|`*_[]<>#" else c for c in name(value))


def rate(metrics: Mapping[str, Any], key: str) -> str:
    """A rate with its interval, if any."""
    value, low, high = (metrics.get(f"{key}{end}") for end in ("", "_low", "_high"))
    interval = "" if None in (value, low, high) else f" ({percent(low)} to {percent(high)})"
    return f"{percent(value)}{interval}"
