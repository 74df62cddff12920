"""Model card of a published bundle, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detect_ai.metrics import key_of_target

MAX_SLICES = 30
MIN_TEXTS = 20  # of a class, to list a slice


def model_card(
    info: Mapping[str, Any], metrics: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """Render the model card.

    Args:
        info: of the bundle: `base_model`, `model_licence`, `corpus` (dict with `name`, `fingerprint`, `language`,
            `licences`, perhaps `demonstration`), `window`, `stride`, `domains` (list), `parent`, `backend`, `run`,
            `git_revision`, `prevalence`, `num_human` and `thresholds`: a list of dicts with `target_fpr`, `min_tokens`,
            `expected_fpr`, `fpr_upper_bound` (or None) and `domains`, a list of dicts with `name`, `num_human`,
            `expected_fpr`, `fpr_upper_bound`.
        metrics: of the test split, as the stage `evaluate` returns them.
        others: the same for other data, by name.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("detect_ai", "reports/templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - Markdown from metrics and configuration, no text of a user
    )
    environment.filters |= {"percent": _percent, "rate": _rate, "decimal": _decimal, "cell": _cell}
    slices = [row for row in metrics.get("slices", []) if max(row["n_human"], row["n_ai"]) >= MIN_TEXTS]
    template = environment.get_template("model_card.md.jinja")
    return template.render(
        info=info,
        metrics=metrics,
        others=others or {},
        targets=[{**row, "key": key_of_target(row["target_fpr"])} for row in info["thresholds"]],
        slices=slices[:MAX_SLICES],
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _rate(metrics: Mapping[str, Any], name: str) -> str:
    """A rate with its interval where it has one."""
    value, low, high = (metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None or low is None or high is None:
        return _percent(value)
    return f"{100 * value:.1f}% ({100 * low:.1f}–{100 * high:.1f}%)"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _cell(value: str) -> str:
    """A name from the data as plain text in a Markdown table."""
    plain = " ".join(value.split())[:60]
    return "".join(f"\\{c}" if c in "\\|`*_[]<>#" else c for c in plain)
