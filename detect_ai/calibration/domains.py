"""Thresholds by domain (Mondrian conformal prediction), minimum lengths and the scaling of spans.

Scores of documents and of spans of them are a frame with the columns `label` (0 human, 1 AI), `score` (log-odds of AI),
`num_tokens`, `domain` (as `calibration.domain_classifier` names it; "" where it is not known), `document` (its number)
and `is_whole` (whether it is the whole document).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from detect_ai.calibration.calibration import Calibration, GroupCalibration
from detect_ai.calibration.conformal import conformal_threshold, require_texts
from detect_ai.calibration.scaling import Scaling, fit_scaling

if TYPE_CHECKING:
    import pandas as pd

MIN_SCALED = 30  # texts of each class, for a scaling of their own
MIN_TPR = 0.5  # lengths with a lower detection rate are too short for a verdict


def calibrate_domains(calibration: Calibration, scored: pd.DataFrame, lengths: Sequence[int] = ()) -> Calibration:
    """Add thresholds by domain, minimum lengths for a verdict, and the scaling of spans.

    Domains are those of the documents; without any, all texts stay one group.

    `calibration` is that of the whole documents; a domain with few texts of a class takes its scaling. `scored` are
    the documents and one span of each in every range of lengths, whose edges are `lengths` (tokens, ascending). Raises
    CalibrationError for too few human documents of a domain.
    """
    spans = scored[~scored["is_whole"]]
    fitted = replace(calibration, span_scaling=_own_scaling(spans, calibration.prevalence))
    domains = []
    for name in sorted(set(scored["domain"][scored["is_whole"]]) - {""}):
        own = scored[scored["domain"] == name]
        documents = own[own["is_whole"]]
        human = np.sort(documents["score"][documents["label"] == 0])
        require_texts(human.size, min(calibration.thresholds), name)
        scaling = _own_scaling(documents, calibration.prevalence) or calibration
        group = GroupCalibration(
            temperature=scaling.temperature,
            midpoint=scaling.midpoint,
            human_scores=tuple(human.tolist()),
            thresholds={target: conformal_threshold(human, target) for target in calibration.thresholds},
            domain=name,
        )
        domains.append(replace(group, min_tokens=_min_tokens(group, own, lengths)))
    if domains:
        return replace(fitted, domains=tuple(domains))
    return replace(fitted, min_tokens=_min_tokens(fitted, scored, lengths))


def _own_scaling(scored: pd.DataFrame, prevalence: float) -> Scaling | None:
    """The scaling of some texts; None where there are too few of a class."""
    num_ai = int(scored["label"].sum())
    if min(num_ai, len(scored) - num_ai) < MIN_SCALED:
        return None
    return fit_scaling(scored["label"], scored["score"], prevalence)


def _min_tokens(group: GroupCalibration, scored: pd.DataFrame, lengths: Sequence[int]) -> dict[float, int]:
    """By target, the length from which every range has the detection rate; 0 where not even the longest has it.

    A domain whose longest texts are hard to detect is hard at any length, so the length is not the reason there.
    """
    if not lengths:
        return {}
    ranges: list[tuple[int, dict[float, float]]] = []  # upper edge (0: none), detection rate by target
    longest_last = scored[scored["label"] == 1].sort_values("num_tokens", kind="stable")
    for low, high in pairwise([0, *lengths, np.inf]):
        ai = longest_last[(longest_last["num_tokens"] >= low) & (longest_last["num_tokens"] < high)]
        scores = ai.drop_duplicates("document", keep="last")["score"]  # spans of one document are not independent
        if len(scores):
            rates = {target: float((scores >= group.bounds(target)[1]).mean()) for target in group.thresholds}
            ranges.append((int(high) if np.isfinite(high) else 0, rates))
    min_tokens = {}
    for target in group.thresholds:
        is_found = bool(ranges) and ranges[-1][1][target] >= MIN_TPR
        too_short = [high for high, rates in ranges if rates[target] < MIN_TPR]
        min_tokens[target] = max(too_short, default=0) if is_found else 0
    return min_tokens
