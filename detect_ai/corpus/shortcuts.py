"""Shortcut audit: how well trivial features and the TF-IDF baseline separate the classes of a corpus. Pure.

A detector learns any feature that separates the classes. Features are measured on normalised texts, because a detector
cannot learn a feature that the normaliser removes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from detect_ai.corpus.baseline import TfidfModel, word_counts
from detect_ai.metrics import auroc, largest_count
from detect_ai.text.normalize import normalise

MIN_TEXTS = 20  # of a class, to measure a slice
MAX_SLICES = 40  # of a column, the largest ones

_MARKDOWN = re.compile(r"\*\*|__|```|(?:^| )#+ ")
_ASSISTANT = re.compile(
    r"\bas an? (?:large |ai |artificial intelligence )+(?:language )?(?:model|assistant)\b"
    r"|\bi(?:'m| am) (?:sorry|afraid),? (?:but )?i (?:can(?:no|')t|am unable)"
    r"|\A\W*(?:sure|certainly|of course|absolutely)\b[!,.]"
    r"|\bhere(?:'s| is) (?:an?|the|your|my) (?:\w+ ){0,3}(?:essay|article|story|text|version|rewrite|draft|letter)\b"
    r"|\bi hope (?:this|that) helps\b"
    r"|\[(?:your|insert|name|date|address|school|teacher|student|city|state|company|recipient)\b[^\]\n]{0,40}\]",
    re.IGNORECASE,
)


def _rate(count: int, text: str) -> float:
    return 1000.0 * count / max(1, len(text))


FEATURES: dict[str, tuple[Callable[[str], float], str]] = {  # name: (measure, advice); rates are per 1,000 characters
    "words": (lambda t: len(t.split()), "balance lengths with corpus.balance=weight"),
    "non-ASCII characters": (lambda t: _rate(sum(c > "\x7f" for c in t), t), "edit both classes in the same way"),
    "Markdown": (lambda t: _rate(len(_MARKDOWN.findall(t)), t), "edit both classes in the same way"),
    "capital letters": (lambda t: _rate(sum(map(str.isupper, t)), t), "check whether a source was lower-cased"),
    "digits": (lambda t: _rate(sum(map(str.isdigit, t)), t), "match the topics of both classes"),
    "final punctuation": (lambda t: t.endswith((*".!?\"')",)), "check whether the texts of one class are truncated"),
    "phrases of assistants": (lambda t: _rate(len(_ASSISTANT.findall(t)), t), "remove them from the source"),
}


def audit_texts(rows: pd.DataFrame) -> dict[str, Any]:
    """Measure how well features and a baseline, fitted on the training split, separate the classes of a corpus.

    Args:
        rows: `text` as read, `label` (0 human, 1 AI), `weight` in the loss, `split`, `domain`, `generator`, `source`;
            both classes in the training split and in the others.

    Returns:
        `n_human` and `n_ai`; `features`, the strongest first, as `name`, `higher_in` ("human" or "ai"), `auroc` in the
        training split (with loss weights, at least 0.5) and `held_out` (below 0.5 if the direction is reversed);
        `baseline`: TF-IDF over all held-out texts, as `n_human`, `n_ai`, `auroc` and `fpr`; `slices`: the same by
        `column` and `value`. AUROC is None with few texts of a class; `fpr` uses the threshold with 5% FPR over all
        human texts. The AI texts of a generator are compared with all human texts.
    """
    from sklearn.metrics import roc_auc_score

    texts = [normalise(text).text for text in rows["text"]]
    labels, weights = rows["label"].to_numpy(np.int64), rows["weight"].to_numpy(np.float64)
    train = rows["split"].to_numpy() == "train"
    features: list[dict[str, Any]] = []
    for name, (measure, _) in FEATURES.items():
        values = np.asarray([measure(text) for text in texts], np.float64)
        own, other = (
            float(roc_auc_score(labels[part], values[part], sample_weight=weights[part])) for part in (train, ~train)
        )
        if own >= 0.5:
            features.append({"name": name, "higher_in": "ai", "auroc": own, "held_out": other})
        else:
            features.append({"name": name, "higher_in": "human", "auroc": 1 - own, "held_out": 1 - other})
    counts = word_counts(texts)
    scores = TfidfModel.fit(counts[train], labels[train], weights[train]).score(counts[~train])
    held = rows[~train].assign(score=scores)
    humans = held.loc[held["label"] == 0, "score"]
    threshold = np.sort(humans)[-1 - largest_count(0.05, len(humans))]

    def measured(part: pd.DataFrame, human: pd.Series[float]) -> dict[str, Any]:
        ai = part.loc[part["label"] == 1, "score"]
        truth = np.repeat([0, 1], [len(human), len(ai)])
        return {
            "n_human": len(human),
            "n_ai": len(ai),
            "auroc": auroc(truth, np.concatenate([human, ai])) if min(len(human), len(ai)) >= MIN_TEXTS else None,
            "fpr": float((human > threshold).mean()) if len(human) >= MIN_TEXTS else None,
        }

    slices = []
    for column in ("domain", "generator", "source"):
        for value in held.loc[held[column] != "", column].value_counts()[:MAX_SLICES].index:
            part = held[held[column] == value]
            own_humans = humans if column == "generator" else part.loc[part["label"] == 0, "score"]
            slices.append({"column": column, "value": value, **measured(part, own_humans)})
    return {
        "n_human": int((labels == 0).sum()),
        "n_ai": int(labels.sum()),
        "features": sorted(features, key=lambda feature: -feature["auroc"]),
        "baseline": measured(held, humans),
        "slices": [row for row in slices if row["auroc"] is not None or row["fpr"] is not None],
    }
