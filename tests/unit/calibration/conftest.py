"""Logits of a known temperature, and frames of scored documents and spans."""

import numpy as np
import pandas as pd

from detect_ai.core.config import CalibrationConfig

LENGTHS = (32, 96, 300)
WINDOW = 100


def config(**changes):
    values = {"target_fprs": [0.05], "default_target_fpr": 0.05, "guarantee": "expectation", **changes}
    return CalibrationConfig(**values)


def sample(seed=0, n=400, temperature=2.5):
    """Labels and logits of a known temperature."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 2, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-truth))).astype(int)
    return labels, truth * temperature


def scored_spans(rows):
    """Frame of (document, label, score, tokens, domain); the longest row of a document is the whole document."""
    scored = pd.DataFrame(rows, columns=["document", "label", "score", "num_tokens", "domain"])
    return scored.assign(is_whole=scored["num_tokens"] == scored.groupby("document")["num_tokens"].transform("max"))


def domains(number, humans=60, ai=60, between=1.0, seed=0, distance=8.0):
    """Documents of one length in domains whose mean human scores differ."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(number):
        mean = rng.normal(0, between)
        for label, count in ((0, humans), (1, ai)):
            scores = rng.normal(mean + distance * label, 1.0, count)
            rows += [(len(rows) + j, label, score, 300, f"d{i:02d}") for j, score in enumerate(scores)]
    return scored_spans(rows)
