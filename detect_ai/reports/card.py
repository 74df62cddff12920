"""The model card, written from the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detect_ai.bundle import DetectorSpec


def model_card(spec: DetectorSpec, figures: Mapping[str, Any]) -> str:
    """The card of a bundle as Markdown.

    Args:
        spec: of the bundle.
        figures: of `metrics.report` on its test split.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("detect_ai", "reports"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - Markdown from figures and configuration, no text of a user
    )
    targets = [
        {"percent": f"{100 * target:g}", "key": f"{100 * target:g}".replace(".", "_"), "threshold": threshold}
        for target, threshold in sorted(spec.calibration.thresholds.items())
    ]
    template = environment.get_template("model_card.md.jinja")
    return template.render(spec=spec, figures=figures, targets=targets) + "\n"
