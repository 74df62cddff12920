"""Model card of a published bundle, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detect_ai.metrics import key_of_target
from detect_ai.reports.render import render

MAX_SLICES = 30
MIN_TEXTS = 20  # of a class, to list a slice


def model_card(info: Mapping[str, Any], metrics: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> str:
    """Render the model card from `model_info.card_info` and the metrics on the test split and on other data."""
    slices = [row for row in metrics.get("slices", []) if max(row["n_human"], row["n_ai"]) >= MIN_TEXTS]
    return render(
        "model_card.md.jinja",
        info=info,
        metrics=metrics,
        others=others,
        targets=[{**row, "key": key_of_target(row["target_fpr"])} for row in info["thresholds"]],
        slices=slices[:MAX_SLICES],
    )
