"""Predictions and results in the forms that RAID's leaderboard reads (Dugan et al. 2024, arXiv:2405.07940). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detect_ai.metrics import largest_count

Strings = NDArray[np.str_]
TARGET_FPR = 0.05


def predictions(ids: Sequence[str], probabilities: Sequence[float]) -> list[dict[str, Any]]:
    """`predictions.json`: a score for each id, not rounded."""
    return [{"id": name, "score": float(value)} for name, value in zip(ids, probabilities, strict=True)]


def results(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    domains: Strings,
    generators: Strings,
    attacks: Strings,
    target_fpr: float = TARGET_FPR,
) -> dict[str, Any]:
    """`results.json`: the share of AI texts found by domain, generator and attack.

    As RAID has it, each domain's threshold is set on its own human texts without an attack, so that their FPR is the
    target: a figure of what the scores could do, not of the detector's thresholds. RAID's decoding strategies are not
    told apart. A domain without human texts has no threshold, and is left out.

    Args:
        labels: 0 human, 1 ai, shape (n,).
        probabilities: P(AI), shape (n,).
        domains: shape (n,).
        generators: shape (n,).
        attacks: "none" for texts as they were written, shape (n,).
        target_fpr: in (0, 1).
    """
    thresholds, fprs = {}, {}
    for domain in np.unique(domains).tolist():
        human = np.sort(probabilities[(labels == 0) & (domains == domain) & (attacks == "none")])
        if human.size:
            allowed = largest_count(target_fpr, human.size)
            # A score equal to the last human one that may not be called AI is not called AI either.
            thresholds[domain] = float(np.nextafter(human[-1 - allowed], np.inf)) if allowed < human.size else 0.0
            fprs[domain] = float((human >= thresholds[domain]).mean())
    called = probabilities >= np.asarray([thresholds.get(domain, np.inf) for domain in domains.tolist()])
    judged = (labels == 1) & np.isin(domains, list(thresholds))
    scores = []
    for domain, attack, model in product(*(_values(column[judged]) for column in (domains, attacks, generators))):
        chosen = judged.copy()
        for column, value in ((domains, domain), (attacks, attack), (generators, model)):
            chosen &= (column == value) if value != "all" else True
        total = int(chosen.sum())
        if total:
            tp = int(called[chosen].sum())
            scores.append(
                {
                    "domain": domain,
                    "model": model,
                    "decoding": "all",
                    "repetition_penalty": "all",
                    "attack": attack,
                    "tp": tp,
                    "fn": total - tp,
                    "accuracy": tp / total,
                }
            )
    return {"scores": scores, "thresholds": thresholds, "fpr": fprs, "target_fpr": target_fpr}


def _values(column: Strings) -> list[str]:
    return [*np.unique(column).tolist(), "all"]
