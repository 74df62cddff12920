"""Leave-one-domain-out: the error rates of a detector in domains that its calibration has not seen. Pure.

Thresholds from all other domains are applied to the saved scores of each domain; nothing is scored or trained again.
The length models, the style directions, the effect of style on thresholds and the reach remain those fitted on all
domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detect_ai.calibration.calibration import Calibration, Scores
from detect_ai.calibration.domains import MIN_TEXTS, UNLIKE_FRACTION, lower_quantile
from detect_ai.calibration.new_domain import MIN_DOMAINS, between_domain_variance
from detect_ai.core.config import CalibrationConfig
from detect_ai.metrics import Labels


def leave_one_domain_out(
    calibration: Calibration, config: CalibrationConfig, target_fpr: float, min_tokens: int = 0
) -> dict[str, Any] | None:
    """Error rates of every domain of a calibration at the thresholds of the others, and their summary over domains.

    Returns `domains` (the rows of `domain_rates`, highest FPR first), their `summary`, and `spread_ratio`: the standard
    deviation of the tails between domains over that of the texts in a domain. Texts below `min_tokens` are uncertain.
    None with too few domains.
    """
    effects = calibration.domain_effects
    if effects is None or len(effects.domains) <= MIN_DOMAINS:
        return None
    ai = {domain.name: domain.ai.standardised(calibration.ai_length) for domain in calibration.domains}
    rows = []
    for domain in calibration.domains:
        if max(len(domain.human), len(domain.ai)) >= MIN_TEXTS:
            rest = [own for name, own in ai.items() if name != domain.name]
            without = replace(
                calibration,
                domain_effects=effects.without(domain.name, target_fpr),
                cleared_below=lower_quantile(rest, config.max_cleared),
                unlike_below=lower_quantile(rest, UNLIKE_FRACTION),
            )
            predictions = (
                np.where(np.asarray(texts.num_tokens) < min_tokens, -1, without.predictions_of(texts, target_fpr))
                for texts in (domain.human, domain.ai)
            )
            rows.append(domain_rates(domain.name, *predictions))
    own = [domain.human for domain in calibration.domains if domain.name in effects.domains]
    within = float(np.mean([texts.standardised(calibration.human_length).var(ddof=1) for texts in own]))
    column = effects.rates.index(target_fpr)
    between = between_domain_variance(np.asarray(effects.quantiles[column]), np.asarray(effects.errors[column]))
    return {
        "target_fpr": target_fpr,
        "domains": sorted(rows, key=lambda row: (-(row["fpr"] or 0.0), row["domain"])),
        **summary(rows, target_fpr),
        "spread_ratio": float(np.sqrt(between / within)),
    }


def detection_rate(
    calibration: Calibration, config: CalibrationConfig, target_fpr: float, min_tokens: int = 0
) -> float | None:
    """The detection rate (TPR) at a target: mean over left-out domains; None if no domain has enough AI texts.

    With too few domains to leave one out, it is the rate on all AI texts of calibration; with a population, on those
    that are like its texts.
    """
    left_out = leave_one_domain_out(calibration, config, target_fpr, min_tokens)
    if left_out is not None:
        macro_tpr: float | None = left_out["macro_tpr"]
        return macro_tpr
    texts = [domain.ai for domain in calibration.domains if len(domain.ai)]
    predictions = np.concatenate([calibration.predictions_of(own, target_fpr) for own in texts])
    if population := calibration.population:
        predictions = predictions[~np.concatenate([population.is_unlike(own.styles) for own in texts])]
        if len(predictions) < MIN_TEXTS:
            return None
    return float((predictions == 1).mean())


def leave_one_text_out(calibration: Calibration, human: Scores, target_fpr: float) -> Labels:
    """Predictions for the human texts of a conformal calibration, each with the threshold of the others; shape (n,)."""
    own = human.standardised(calibration.human_length)
    p_values = (own.size - np.searchsorted(np.sort(own), own, side="left")) / own.size
    reached = np.where(p_values <= target_fpr, own, np.nextafter(own, np.inf))[:, None]
    required = calibration.required_scores(human.styles)
    required = np.where(np.isinf(required), required, reached)
    return calibration.predictions(human.scores, human.num_tokens, required, target_fpr)


def domain_rates(name: str, human: Labels, ai: Labels) -> dict[str, Any]:
    """Error rates in a domain from the predictions for its texts: 0 human, 1 AI, -1 uncertain, shape (n,) per class.

    `n_human`, `n_ai`, `fpr`, `tpr`, `cleared` (AI texts labelled human), `abstained_human` and `abstained_ai`; None
    below `MIN_TEXTS` of a class.
    """

    def rate(predictions: Labels, decision: int) -> float | None:
        return float((predictions == decision).mean()) if len(predictions) >= MIN_TEXTS else None

    return {
        "domain": name,
        "n_human": len(human),
        "n_ai": len(ai),
        "fpr": rate(human, 1),
        "tpr": rate(ai, 1),
        "cleared": rate(ai, 0),
        "abstained_human": rate(human, -1),
        "abstained_ai": rate(ai, -1),
    }


def summary(rows: Sequence[dict[str, Any]], target_fpr: float) -> dict[str, Any]:
    """Summary of `domain_rates`: `mean_fpr`, `worst_fpr`, fractions of domains `above_target` and `above_twice`.

    The means of the other rates are `macro_tpr` and so on. A value is None if no domain has the rate.
    """
    names = ("fpr", "tpr", "cleared", "abstained_human", "abstained_ai")
    rates = {name: np.asarray([row[name] for row in rows if row[name] is not None]) for name in names}
    fprs = rates.pop("fpr")

    def mean(values: NDArray[Any]) -> float | None:
        return float(values.mean()) if values.size else None

    return {
        "mean_fpr": mean(fprs),
        "worst_fpr": float(fprs.max()) if fprs.size else None,
        "above_target": mean(fprs > target_fpr),
        "above_twice": mean(fprs > 2 * target_fpr),
        **{f"macro_{name}": mean(values) for name, values in rates.items()},
    }
