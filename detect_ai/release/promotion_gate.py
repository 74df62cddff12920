"""The gates: may a candidate become champion, and is an export of a bundle as good as the bundle?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detect_ai.core.errors import ConfigError


@dataclass(frozen=True)
class Gate:
    """What a candidate must reach.

    Attributes:
        min_auroc: the least AUROC on the test split, in [0, 1].
        max_auroc_drop: how far AUROC may lie below the champion's on the same test data, in [0, 1].
    """

    min_auroc: float
    max_auroc_drop: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} must be in [0, 1], found {value}")


def decide(candidate: Mapping[str, Any], champion: Mapping[str, Any] | None, gate: Gate) -> list[str]:
    """Judges a candidate against the gate and, on the same test data, against the champion.

    Figures of different test data are not compared.

    Args:
        candidate: the figures of `summary.compute_metrics` and "test_fingerprint", which names the test data.
        champion: the same for the champion, None while there is none.
        gate: what is required.

    Returns:
        The reasons to refuse, one sentence each with the figure found and the figure required; empty: it
        passes.

    Raises:
        KeyError: a champion is given and "test_fingerprint" is missing.
    """
    found = _auroc(candidate)
    if found is None:
        return [f"The candidate has no AUROC; at least {gate.min_auroc} is required."]
    reasons = []
    if found < gate.min_auroc:
        reasons.append(f"AUROC is {found}; at least {gate.min_auroc} is required.")
    if champion is not None and candidate["test_fingerprint"] == champion["test_fingerprint"]:
        reasons += _compare(found, _auroc(champion), gate)
    return reasons


@dataclass(frozen=True)
class Likeness:
    """How near an export of a bundle must come to it, on the same texts.

    Attributes:
        max_auroc_change: how far AUROC may move, up or down, in [0, 1].
        max_tpr_drop: how far the TPR at an FPR of 1% may fall, in [0, 1]: 0.005 is half a percentage point.
    """

    max_auroc_change: float
    max_tpr_drop: float


def unlike(found: Mapping[str, Any], parent: Mapping[str, Any], bounds: Likeness) -> list[str]:
    """Judges an export by the bundle that it was made from.

    Args:
        found: its "auroc" and "tpr_at_fpr_1".
        parent: the same of the bundle, on the same texts.
        bounds: what is required.

    Returns:
        The reasons to refuse, one sentence each with the change found and the change allowed; empty: it passes.
    """
    # Rounded, for 0.95 - 0.949 is a little more than 0.001 in floating point.
    moved = round(abs(found["auroc"] - parent["auroc"]), 12)
    fell = round(parent["tpr_at_fpr_1"] - found["tpr_at_fpr_1"], 12)
    reasons = []
    if not moved <= bounds.max_auroc_change:  # NaN is no pass
        reasons.append(f"AUROC moved by {moved:.4f}; {bounds.max_auroc_change:g} is allowed.")
    if not fell <= bounds.max_tpr_drop:
        reasons.append(f"TPR at 1% FPR fell by {100 * fell:.2f} points; {100 * bounds.max_tpr_drop:g} are allowed.")
    return reasons


def _compare(found: float, best: float | None, gate: Gate) -> list[str]:
    if best is None:
        return [
            f"The champion has no AUROC on the same test data to compare the candidate's {found} with; "
            f"a drop of at most {gate.max_auroc_drop} is required."
        ]
    # Rounded, for 0.95 - 0.94 is a little more than 0.01 in floating point.
    drop = round(best - found, 12)
    if drop <= gate.max_auroc_drop:
        return []
    return [
        f"AUROC fell by {drop}, from the champion's {best} to {found} on the same test data; "
        f"a drop of at most {gate.max_auroc_drop} is required."
    ]


def _auroc(figures: Mapping[str, Any]) -> float | None:
    """The AUROC if it was measured; NaN, which passes every comparison, was not."""
    value = figures.get("auroc")
    return None if value is None or math.isnan(value) else float(value)
