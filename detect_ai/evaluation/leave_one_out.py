"""Leave-one-domain-out: the error rates of a detector in domains that its calibration has not seen.

Each domain is decided by the threshold that all the others give (`detect_ai.calibration.new_domain`). Only scores are
needed, so nothing is trained again. Pure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from detect_ai.calibration.new_domain import MIN_DOMAINS, Tail, between_domain_variance, new_domain_threshold, tail

MIN_TEXTS = 50  # of a class in a domain, for a rate


def leave_one_domain_out(scored: pd.DataFrame, target_fpr: float, confidence: float) -> dict[str, Any]:
    """Error rates of every domain at the threshold of the others.

    `scored` has the columns `domain`, `label` (0 human, 1 AI) and `score` (log-odds of AI). A domain counts for
    calibration with `MIN_TEXTS` human texts. Returns `domains`, the worst first, each with `n_human`, `n_ai`,
    `threshold`, `fpr` and `tpr` (None below `MIN_TEXTS`), and over the domains `mean_fpr`, `worst_fpr`, `above_target`
    and `above_twice` (fractions of domains), `macro_tpr`, and `spread_ratio`: the spread of the tails of domains over
    that of the texts in them. Raises CalibrationError for too few domains.
    """
    human = {name: part["score"].to_numpy() for name, part in scored[scored["label"] == 0].groupby("domain")}
    ai = {name: part["score"].to_numpy() for name, part in scored[scored["label"] == 1].groupby("domain")}
    tails = {name: tail(scores, target_fpr) for name, scores in human.items() if len(scores) >= MIN_TEXTS}
    domains = []
    for name in sorted(tails.keys() | {name for name, scores in ai.items() if len(scores) >= MIN_TEXTS}):
        threshold = new_domain_threshold([own for other, own in tails.items() if other != name], confidence)
        domains.append(
            {
                "domain": name,
                "n_human": len(human.get(name, ())),
                "n_ai": len(ai.get(name, ())),
                "threshold": threshold,
                "fpr": float((human[name] >= threshold).mean()) if name in tails else None,
                "tpr": float((ai[name] >= threshold).mean()) if len(ai.get(name, ())) >= MIN_TEXTS else None,
            }
        )
    fprs = np.asarray([row["fpr"] for row in domains if row["fpr"] is not None])
    tprs = [row["tpr"] for row in domains if row["tpr"] is not None]
    return {
        "domains": sorted(domains, key=lambda row: (-(row["fpr"] or 0.0), row["domain"])),
        "mean_fpr": float(fprs.mean()),
        "worst_fpr": float(fprs.max()),
        "above_target": float((fprs > target_fpr).mean()),
        "above_twice": float((fprs > 2 * target_fpr).mean()),
        "macro_tpr": float(np.mean(tprs)) if tprs else None,
        "spread_ratio": _spread_ratio(list(tails.values()), [human[name] for name in tails]),
    }


def _spread_ratio(tails: list[Tail], scores: list[np.ndarray]) -> float:
    assert len(tails) > MIN_DOMAINS
    values, errors = np.asarray(tails, np.float64).T
    within = float(np.mean([np.var(own, ddof=1) for own in scores]))
    return float(np.sqrt(between_domain_variance(values, errors) / within))
