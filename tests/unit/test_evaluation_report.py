"""The pages of the evaluation and of the comparison, of figures that `metrics` makes of drawn scores."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from detect_ai import metrics
from detect_ai.reports.evaluation import comparison_report, evaluation_report

EVIL = "$x$ <script>alert(1)</script> & \"so\" 'on'"
LONG = "a source with a name that is far too long for a table and for a figure alike " * 2
TARGETS = [0.01, 0.05]
DOMAINS = ["news", "essays", "reviews", EVIL]
GENERATORS = ["gpt-4o", "llama-3-8b", "mistral-7b"]
BOUNDS = [(1, 64), (64, 128), (128, 256), (256, None)]
VOID = {"script", "link", "iframe", "object", "img"}
EMPTY = {"meta", "br", "path", "use", "rect"}


def drawn(humans: int = 900, ais: int = 500, seed: int = 3, apart: float = 2.6) -> dict[str, Any]:
    """Labels, scores, probabilities, calls, domains, generators and tokens of texts of one detector."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [humans, ais])
    domains = rng.choice(DOMAINS, labels.size)
    scores = rng.normal(apart * labels, 1.0) + 0.6 * (domains == "essays")
    return {
        "labels": labels,
        "scores": scores,
        "probabilities": 1 / (1 + np.exp(-apart * (scores - apart / 2))),
        "calls": {t: metrics.calls_at(scores, upper - 0.4, upper) for t, upper in zip(TARGETS, (2.5, 1.8), strict=True)},
        "domain": domains,
        "generator": np.where(labels == 1, rng.choice(GENERATORS, labels.size), ""),
        "tokens": rng.integers(20, 400, labels.size),
    }


def figures_of(texts: dict[str, Any], kept: Any = slice(None), rounds: int = 0) -> dict[str, Any]:
    calls = {target: made[kept] for target, made in texts["calls"].items()}
    three = (texts[name][kept] for name in ("labels", "scores", "probabilities"))
    return metrics.report(*three, calls, 0.05, rounds=rounds)


@cache
def _made(humans: int, ais: int) -> dict[str, Any]:
    texts, plain = drawn(humans, ais), drawn(humans, ais, seed=4, apart=1.7)
    labels, p, tokens = texts["labels"], texts["probabilities"], texts["tokens"]
    both = 0 < labels.sum() < labels.size
    edges = np.linspace(0, 1, 21)
    slices = [
        {"column": column, "value": value, **figures_of(texts, texts[column] == value)}
        for column, values in (("domain", DOMAINS), ("generator", GENERATORS))
        for value in values
        if (texts[column] == value).any()
    ]
    slices.append({"column": "source", "value": LONG, **figures_of(texts)})
    lengths = [(low, high, (tokens >= low) & (tokens < (high or 10**9))) for low, high in BOUNDS]
    clean = figures_of(texts)
    return {
        "bundle": {
            "version": "20261124-e5",
            "base_model": "made/base",
            "corpus": {"name": "essays", "fingerprint": "f00d" * 16, "language": "en", "licences": ["CC0", "MIT"]},
            "targets": TARGETS,
            "default_target": 0.05,
            "min_tokens_by_target": {"0.01": 48, "0.05": 24},
        },
        "data": {
            "name": "held-out essays",
            "rows": humans + ais + 19,
            "skipped": {"no_text": 12, "bad_row": 7},
            "one_class": not both,
            "contaminated": 3,
            "contamination_checked": True,
            "other_corpus": True,
            "fingerprint": "beef" * 16,
        },
        "overall": figures_of(texts, rounds=20),
        "baseline": figures_of(plain, rounds=20),
        "slices": slices,
        "lengths": [{"low": low, "high": high, **figures_of(texts, kept)} for low, high, kept in lengths],
        "attacks": [
            {"attack": "none", **clean, "tpr_ratio": 1.0, "fpr_ratio": 1.0},
            {"attack": "homoglyph", **clean, "tpr_ratio": 0.31, "fpr_ratio": 4.25},
            {"attack": "article_deletion", **clean, "tpr_ratio": 0.94, "fpr_ratio": None},
        ],
        "curves": {
            "roc": metrics.roc(labels, texts["scores"]) if both else None,
            "baseline_roc": metrics.roc(plain["labels"], plain["scores"]) if both else None,
            "reliability": metrics.reliability(labels, p),
            "histogram": {
                "edges": edges.tolist(),
                "human": np.histogram(p[labels == 0], edges)[0].tolist(),
                "ai": np.histogram(p[labels == 1], edges)[0].tolist(),
            },
        },
        "uncertain": {"too_short": 41, "between_thresholds": 163},
        "worst": [
            {
                "id": f"essays-{EVIL}",
                "domain": EVIL,
                "source": LONG,
                "probability": 0.991,
                "p_value": 0.0004,
                "num_tokens": 318,
                "sentences": [
                    {"text": "In conclusion, technology plays an important role in our lives.", "probability": 0.97},
                    {"text": f"My aunt said {EVIL} and left the room.", "probability": 0.12},
                    {"text": "It is therefore important to consider both sides of this question.", "probability": 0.74},
                    {"text": "This one has no figure.", "probability": None},
                ],
            },
            {
                "id": "hidden",
                "domain": "",
                "source": "letters",
                "probability": 0.93,
                "p_value": None,
                "num_tokens": 77,
                "sentences": [],
            },
        ],
        "explanation": {
            "n_documents": 120,
            "sentence_auroc_windows": 0.81,
            "sentence_auroc_occlusion": 0.74,
            "ai_fraction_error": 0.13,
        },
        "exchangeability": [f"The source {EVIL} is not in the calibration split."],
        "seconds": 83.4,
        "created": "2026-11-24T13:00:00Z",
    }


def made(humans: int = 900, ais: int = 500) -> dict[str, Any]:
    return copy.deepcopy(_made(humans, ais))


def compared() -> dict[str, Any]:
    """A report of three detectors, one with a hostile name, and a baseline."""
    report = made()
    names = {"champion": 2.6, EVIL: 2.5, "someone-else/roberta": 1.9}
    bundles = [
        {"name": name, "version": version, "published": version is None, **figures_of(drawn(apart=apart), rounds=20)}
        for (name, apart), version in zip(names.items(), ("20261124-e5", "20261120-a1", None), strict=True)
    ]
    few = ("auroc", "fpr_at_target_1", "tpr_at_target_1")
    return {
        "data": report["data"],
        "bundles": bundles,
        "pairs": [
            {
                **{"a": "champion", "b": EVIL, "auroc_difference": 0.004, "low": -0.003, "high": 0.011},
                **{"p_value": 0.262, "mcnemar": {"only_a": 31, "only_b": 27, "p_value": 0.694}, "fpr_difference": -0.002},
            },
            {
                **{"a": "champion", "b": "someone-else/roberta", "auroc_difference": 0.061, "low": 0.044, "high": 0.078},
                **{"p_value": 1e-9, "mcnemar": None, "fpr_difference": None},
            },
        ],
        "slices": [
            {
                "column": "domain",
                "value": domain,
                "figures": {bundle["name"]: {name: bundle[name] for name in few} for bundle in bundles},
            }
            for domain in DOMAINS
        ],
        "baseline": report["baseline"],
    }
