"""What the HTML reports share: how a template is filled, and how numbers are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_NAME = 60  # characters of a name in a table


def render(template: str, **values: Any) -> str:
    """A page as HTML. Whatever a value says is shown as text; only figures are markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("detect_ai", "reports/templates"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {filter.__name__: filter for filter in (number, percent, area, name, times, signed, p)}
    return environment.get_template(template).render(**values)


def number(value: float | None) -> str:
    """A count."""
    return "–" if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share; a decimal where it is below 10%, two below 0.1%, and nothing below 100% is shown as 100%."""
    if value is None:
        return "–"
    if value in (0, 1):
        return f"{100 * value:.0f}%"
    if value < 0.1:
        return f"{100 * value:.{1 if value >= 0.001 else 2}f}%"
    return f"{100 * value:.0f}%" if value < 0.995 else f"{min(100 * value, 99.9):.1f}%"


def area(value: float | None) -> str:
    """An AUROC, or another figure from 0 to 1; nothing below 1 is shown as 1."""
    return "–" if value is None else f"{min(value, 0.999) if value < 1 else 1:.3f}"


def times(value: float | None) -> str:
    """A ratio."""
    return "–" if value is None else f"{value:.2f}×"


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def p(value: float | None) -> str:
    """A p-value."""
    return "–" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def name(value: str) -> str:
    """A name on one line, shortened where it would break a table."""
    value = " ".join(value.split())
    return (value if len(value) <= MAX_NAME else f"{value[: MAX_NAME - 1]}…") or "(none)"


def range_of_tokens(row: Mapping[str, Any]) -> str:
    """The lengths from `low` to below `high`; without an end where that is None."""
    return f"{row['low']:,}–{row['high'] - 1:,}" if row["high"] is not None else f"{row['low']:,} and more"
