"""The model card, written from the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.model_info import model_info
from detect_ai.evaluation.summary import key_of_target

MAX_SLICES = 30
MIN_TEXTS = 20


def model_card(
    spec: DetectorSpec, figures: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """The card of a bundle as Markdown.

    Args:
        spec: of the bundle.
        figures: of its test split, as the stage `evaluate` gives them.
        others: the same of other texts, by the name of the data.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("detect_ai", "reports/templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - Markdown from figures and configuration, no text of a user
    )
    environment.filters |= {"percent": _percent, "rate": _rate, "figure": _figure, "cell": _cell}
    targets = [
        {"percent": f"{100 * each.target_fpr:g}", "key": key_of_target(each.target_fpr), "held": each}
        for each in model_info(spec, {}).thresholds
    ]
    slices = [row for row in figures.get("slices", []) if max(row["n_human"], row["n_ai"]) >= MIN_TEXTS]
    template = environment.get_template("model_card.md.jinja")
    shown = {"figures": figures, "others": others or {}, "targets": targets, "accused": slices[:MAX_SLICES]}
    return template.render(spec=spec, **shown) + "\n"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _rate(figures: Mapping[str, Any], name: str) -> str:
    """A rate with its interval."""
    value, low, high = (figures.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None or low is None or high is None:
        return "–"
    return f"{100 * value:.1f}% ({100 * low:.1f}–{100 * high:.1f}%)"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _cell(value: str) -> str:
    """A name from the data, as plain text in a table of Markdown."""
    plain = " ".join(value.split())[:60]
    return "".join(f"\\{c}" if c in "\\|`*_[]<>#" else c for c in plain)
