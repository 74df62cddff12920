"""Predictions and results in the format of RAID's leaderboard (Dugan et al. 2024, arXiv:2405.07940). Pure."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detect_ai.metrics import Floats, Labels, largest_count

Strings = NDArray[np.str_]
TARGET_FPR = 0.05


def results(
    labels: Labels, probabilities: Floats, domains: Strings, generators: Strings, attacks: Strings
) -> dict[str, Any]:
    """`results.json`: the detection rate by domain, generator and attack.

    As in RAID, the threshold of a domain is set on its own unattacked human texts, for an FPR of 5%: it shows what the
    scores could achieve, not the detector's decisions. A domain without human texts is left out.

    Args:
        labels: 0 human, 1 ai, shape (n,).
        probabilities: P(AI), shape (n,).
        domains: shape (n,).
        generators: shape (n,).
        attacks: "none" for unattacked texts, shape (n,).
    """
    thresholds, fprs = {}, {}
    for domain in np.unique(domains).tolist():
        human = np.sort(probabilities[(labels == 0) & (domains == domain) & (attacks == "none")])
        if human.size:
            # The next number above the largest score that may not be called AI: ties with it are human, too.
            thresholds[domain] = float(np.nextafter(human[-1 - largest_count(TARGET_FPR, human.size)], np.inf))
            fprs[domain] = float((human >= thresholds[domain]).mean())
    positive = probabilities >= np.asarray([thresholds.get(domain, np.inf) for domain in domains.tolist()])
    scored = (labels == 1) & np.isin(domains, list(thresholds))
    columns = domains, attacks, generators
    scores = []
    for values in product(*([*np.unique(column[scored]).tolist(), "all"] for column in columns)):
        mask = scored.copy()
        for column, value in zip(columns, values, strict=True):
            mask &= (column == value) | (value == "all")
        if total := int(mask.sum()):
            domain, attack, model = values
            tp = int(positive[mask].sum())
            row = {"domain": domain, "model": model, "decoding": "all", "repetition_penalty": "all", "attack": attack}
            scores.append({**row, "tp": tp, "fn": total - tp, "accuracy": tp / total})
    return {"scores": scores, "thresholds": thresholds, "fpr": fprs, "target_fpr": TARGET_FPR}
