"""Logits of a known temperature, and frames of scored documents and spans."""

import numpy as np
import pandas as pd

DOMAINS, LENGTHS = ("essays", "prose"), (32, 96, 300)


def sample(seed=0, n=400, temperature=2.5):
    """Labels and logits of a known temperature."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 2, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-truth))).astype(int)
    return labels, truth * temperature


def scored_spans(rows):
    """From (document, label, score, tokens, domain); the longest of a document is the whole."""
    scored = pd.DataFrame(rows, columns=["document", "label", "score", "num_tokens", "domain"])
    return scored.assign(is_whole=scored["num_tokens"] == scored.groupby("document")["num_tokens"].transform("max"))
