"""Jinja environment of the HTML reports and the number formats of their filters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_NAME = 60  # characters of a name in a table


def render(template: str, **values: Any) -> str:
    """Render a template as HTML; all values are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("detect_ai", "reports/templates"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "decimal": decimal, "signed": signed, "name": name}
    return environment.get_template(template).render(**values)


def number(value: float | None) -> str:
    """A count."""
    return "–" if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A fraction in percent: one decimal below 10%, two below 0.1%; only 1 is shown as 100%."""
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


def token_range(row: Mapping[str, Any]) -> str:
    """The lengths from `low` to below `high` (None: no limit)."""
    return f"{row['low']:,}–{row['high'] - 1:,}" if row["high"] is not None else f"{row['low']:,} and more"
