"""Leave-one-domain-out: the error rates of a detector in domains that its calibration has not seen. Pure.

Each domain of a calibration is decided by the thresholds that all the others give, from its saved scores: nothing is
scored or trained again. The length models remain those of all domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from detect_ai.calibration.calibration import Calibration, Domain
from detect_ai.calibration.domains import MIN_TEXTS, UNLIKE_FRACTION, ai_quantile
from detect_ai.calibration.new_domain import MIN_DOMAINS, between_domain_variance, fit_domain_effects, tail
from detect_ai.core.config import CalibrationConfig
from detect_ai.metrics import Labels


def leave_one_domain_out(
    calibration: Calibration, config: CalibrationConfig, target_fpr: float
) -> dict[str, Any] | None:
    """Error rates of every domain of a calibration at the thresholds of the others, and their summary over domains.

    Returns `domains`, the highest FPR first, each with `n_human`, `n_ai`, `fpr`, `tpr`, `cleared` (AI texts labelled
    human), `abstained_human` and `abstained_ai`, None below `MIN_TEXTS` of a class; and over the domains `mean_fpr`,
    `worst_fpr`, `above_target` and `above_twice` (fractions of the domains), means of the other rates as `macro_tpr`
    and so on, and `spread_ratio`: the standard deviation of the domains' tails over that of the texts in one. None
    with too few domains.
    """
    large = {domain.name: domain.human for domain in calibration.domains if len(domain.human) >= MIN_TEXTS}
    human = {name: texts.standardised(calibration.human_length) for name, texts in large.items()}
    if len(human) <= MIN_DOMAINS:
        return None
    ai = {domain.name: domain.ai.standardised(calibration.ai_length) for domain in calibration.domains}
    rows = []
    for domain in calibration.domains:
        if max(len(domain.human), len(domain.ai)) >= MIN_TEXTS:
            others = {name: scores for name, scores in human.items() if name != domain.name}
            styles = {name: large[name].styles for name in others}
            rest = [own for name, own in ai.items() if name != domain.name]
            without = replace(
                calibration,
                domain_effects=fit_domain_effects(others, styles, [target_fpr], config.new_domain_confidence),
                cleared_below=ai_quantile(rest, config.max_cleared),
                unlike_below=ai_quantile(rest, UNLIKE_FRACTION),
            )
            rows.append({"domain": domain.name, **_rates(without, domain, target_fpr)})
    fprs = np.asarray([row["fpr"] for row in rows if row["fpr"] is not None])
    within = float(np.mean([scores.var(ddof=1) for scores in human.values()]))
    tails = np.asarray([tail(scores, target_fpr) for scores in human.values()])
    between = between_domain_variance(*tails.T)
    return {
        "target_fpr": target_fpr,
        "domains": sorted(rows, key=lambda row: (-(row["fpr"] or 0.0), row["domain"])),
        "mean_fpr": float(fprs.mean()),
        "worst_fpr": float(fprs.max()),
        "above_target": float((fprs > target_fpr).mean()),
        "above_twice": float((fprs > 2 * target_fpr).mean()),
        **{f"macro_{name}": _macro(rows, name) for name in ("tpr", "cleared", "abstained_human", "abstained_ai")},
        "spread_ratio": float(np.sqrt(between / within)),
    }


def _rates(calibration: Calibration, domain: Domain, target_fpr: float) -> dict[str, Any]:
    human, ai = (
        calibration.predictions_of(texts, target_fpr) if len(texts) >= MIN_TEXTS else None
        for texts in (domain.human, domain.ai)
    )
    return {
        "n_human": len(domain.human),
        "n_ai": len(domain.ai),
        "fpr": _rate(human, 1),
        "tpr": _rate(ai, 1),
        "cleared": _rate(ai, 0),
        "abstained_human": _rate(human, -1),
        "abstained_ai": _rate(ai, -1),
    }


def _rate(predictions: Labels | None, decision: int) -> float | None:
    return None if predictions is None else float((predictions == decision).mean())


def _macro(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return float(np.mean(values)) if values else None
