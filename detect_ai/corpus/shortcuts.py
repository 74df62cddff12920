"""Shortcut audit: how well trivial features and a TF-IDF baseline separate the classes of a corpus. Pure.

A detector learns any feature that separates the classes. Everything is fitted on the training split and measured on
the others (`held_out`), or within the training split as a detector sees it (`auroc`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detect_ai.core.errors import CorpusError
from detect_ai.corpus.baseline import Floats, Ints, TfidfModel, word_counts
from detect_ai.metrics import auroc, largest_count, tpr_at_fpr
from detect_ai.text.normalize import normalise
from detect_ai.text.sentences import sentences

MIN_TEXTS = 20  # of one class, to measure a slice
MAX_SLICES = 40  # of a column, the largest ones
PRIOR = 2.0  # texts of prior weight for each category
FOLDS = 5
MIN_OPENING = 20  # texts that begin with a word, before it is shown: a rarer one may identify a text
MAX_OPENINGS, MAX_WORD_CHARS = 12, 24
SLICE_COLUMNS = ("domain", "generator", "source")

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_MARKDOWN = re.compile(r"\*\*|__|^\s*(?:#+|[-*•]|\d+[.)])\s|```", re.MULTILINE)
_ASSISTANT = re.compile(
    r"\bas an? (?:large |ai |artificial intelligence )+(?:language )?(?:model|assistant)\b"
    r"|\bi(?:'m| am) (?:sorry|afraid),? (?:but )?i (?:can(?:no|')t|am unable)"
    r"|\A\W*(?:sure|certainly|of course|absolutely)\b[!,.]"
    r"|\bhere(?:'s| is) (?:an?|the|your|my) (?:\w+ ){0,3}(?:essay|article|story|text|version|rewrite|draft|letter)\b"
    r"|\bi hope (?:this|that) helps\b"
    r"|\[(?:your|insert|name|date|address|school|teacher|student|city|state|company|recipient)\b[^\]\n]{0,40}\]",
    re.IGNORECASE,
)


def _rate(count: float, text: str) -> float:
    return 1000.0 * count / max(1, len(text))


def _matches(pattern: re.Pattern[str], text: str) -> float:
    return _rate(sum(1 for _ in pattern.finditer(text)), text)


def _mean(values: Sequence[int]) -> float:
    return sum(values) / max(1, len(values))


def _distinct(text: str) -> float:
    words = [word.lower() for word in _WORD.findall(text)[:100]]  # the ratio falls with length
    return len(set(words)) / max(1, len(words))


FEATURES: dict[str, tuple[Callable[[str], float], str]] = {  # name: (measure, advice); rates are per 1,000 characters
    "words": (lambda t: len(_WORD.findall(t)), "balance lengths with corpus.balance=weight"),
    "mean word length": (lambda t: _mean([len(w) for w in _WORD.findall(t)]), "add human writers of other ages"),
    "distinct words of the first 100": (_distinct, "add human writers of other ages"),
    "words per sentence": (
        lambda t: _mean([len(t[start:end].split()) for start, end in sentences(t)]),
        "add sources whose sentences have other lengths",
    ),
    "commas": (lambda t: _rate(t.count(","), t), "add sources with another punctuation"),
    "curly quotes": (lambda t: _rate(sum(map(t.count, "‘’“”„«»‹›")), t), "edit both classes in the same way"),
    "non-ASCII characters": (lambda t: _rate(sum(c > "\x7f" for c in t), t), "edit both classes in the same way"),
    "Markdown": (lambda t: _matches(_MARKDOWN, t), "edit both classes in the same way"),
    "line breaks": (lambda t: _rate(t.count("\n"), t), "give both classes the same layout"),
    "capital letters": (lambda t: _rate(sum(map(str.isupper, t)), t), "check whether a source was lower-cased"),
    "digits": (lambda t: _rate(sum(map(str.isdigit, t)), t), "match the topics of both classes"),
    "phrases of assistants": (lambda t: _matches(_ASSISTANT, t), "remove them from the source"),
}
CATEGORIES: dict[str, tuple[Callable[[str], str], str]] = {
    "first word": (lambda t: " ".join(t[:200].split()[:1]), "vary prompts and generators"),
    "last character": (lambda t: t.rstrip()[-1:], "check whether the texts of one class are truncated"),
}


@dataclass(frozen=True)
class FeatureScore:
    """Class separation by one feature alone.

    Attributes:
        name: of the feature.
        higher_in: the class with the higher values, "ai" or "human"; "" for categories.
        auroc: in the training split, weighted as the loss is, at least 0.5 for numbers; for categories out of fold.
        normalised: the same after the normaliser; None for sources and domains.
        held_out: the same in the other splits; below 0.5 if it points the other way there.
        advice: what to do about it.
    """

    name: str
    higher_in: str
    auroc: float
    normalised: float | None
    held_out: float
    advice: str


@dataclass(frozen=True)
class SliceScore:
    """The TF-IDF baseline on a slice of the held-out texts.

    Attributes:
        column: of the slice, or "all".
        value: of the column.
        n_human: human texts of the slice.
        n_ai: AI texts of the slice.
        own_humans: whether its AI texts are compared with its own human texts, or with all held-out ones.
        auroc: None without AI texts.
        tpr_at_fpr_1: None without AI texts, or with too few human ones for such a rate.
        tpr_at_fpr_5: likewise.
        called_ai: FPR of the slice where it is 5% over all human texts; None without human texts.
    """

    column: str
    value: str
    n_human: int
    n_ai: int
    own_humans: bool
    auroc: float | None
    tpr_at_fpr_1: float | None
    tpr_at_fpr_5: float | None
    called_ai: float | None


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes:
        n_human: human texts read.
        n_ai: AI texts read.
        features: the strongest first.
        baseline: over all held-out texts.
        slices: the baseline by slice.
        openings: first words whose frequency differs most, with the number of training texts of each class: dicts with
            `word`, `human` and `ai`.
        largest_groups: by split the number of groups, and the fraction of the texts in the largest.
    """

    n_human: int
    n_ai: int
    features: list[FeatureScore]
    baseline: SliceScore
    slices: list[SliceScore]
    openings: list[dict[str, Any]]
    largest_groups: dict[str, tuple[int, float]]


@dataclass(frozen=True)
class _Rows:
    """Labelled rows: positions of the training split and of the others; `folds` of the training split by group."""

    labels: Ints
    weights: Floats
    train: Ints
    held: Ints
    slices: Mapping[str, NDArray[Any]]

    def auroc(self, rows: Ints, scores: Floats) -> float:
        """Weighted AUROC of scores of some rows."""
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(self.labels[rows], scores, sample_weight=self.weights[rows]))

    def folds(self, groups: NDArray[Any]) -> list[tuple[Ints, Ints]]:
        """Stratified folds of the training split that keep groups whole, as (to fit, to score)."""
        from sklearn.model_selection import StratifiedGroupKFold

        labels, groups = self.labels[self.train], groups[self.train]
        size = min(FOLDS, int(np.bincount(labels).min()), len(np.unique(groups)))
        if size < 2:  # one group: by row
            groups, size = self.train, min(FOLDS, int(np.bincount(labels).min()))
        folds = StratifiedGroupKFold(max(2, size), shuffle=True, random_state=0).split(self.train, labels, groups)
        return [(self.train[fit], self.train[score]) for fit, score in folds]


def audit_texts(
    texts: Sequence[str], labels: ArrayLike, slices: Mapping[str, Sequence[str]], weights: ArrayLike
) -> Audit:
    """Measure what separates the classes of a corpus.

    Args:
        texts: as read, not normalised.
        labels: 0 human, 1 AI, shape (texts,).
        slices: columns `split`, `group`, `domain`, `generator` and `source`, one value a text.
        weights: of the texts in the loss, above 0, shape (texts,).

    Raises:
        CorpusError: a class is missing in the training split, or in the others.
    """
    columns = {name: np.asarray(values, object).astype(str) for name, values in slices.items()}
    is_train = columns["split"] == "train"
    truth = np.asarray(labels, np.int64)
    for name, split in (("training split", is_train), ("other splits", ~is_train)):
        if not 0 < (ai := int(truth[split].sum())) < split.sum():
            raise CorpusError(f"audit: expected both classes in the {name}, found {split.sum() - ai} human, {ai} AI")
    train, held = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    rows = _Rows(truth, np.asarray(weights, np.float64), train, held, columns)
    clean = [normalise(text).text for text in texts]
    features = []
    for name, (measure, advice) in FEATURES.items():
        raw, normalised = (np.asarray([measure(text) for text in each], np.float64) for each in (texts, clean))
        features.append(_score_number(rows, name, raw, normalised, advice))
    for name, (category, advice) in CATEGORIES.items():
        values = [np.asarray([category(text) for text in each], object).astype(str) for each in (texts, clean)]
        features.append(_score_category(rows, name, values, columns["group"], advice))
    for name in ("source", "domain"):  # folds by row: groups are within sources
        advice = f"add {name}s that hold both classes"
        features.append(_score_category(rows, name, [columns[name]], np.arange(len(truth)), advice))
    word_count, labels_held = word_counts(clean), truth[held]
    scores = TfidfModel.fit(word_count[train], truth[train], rows.weights[train]).score(word_count[held])
    return Audit(
        n_human=int((truth == 0).sum()),
        n_ai=int(truth.sum()),
        features=sorted(features, key=lambda feature: -feature.auroc),
        baseline=_score_slice("all", "", labels_held, scores, np.ones(len(held), bool)),
        slices=list(_slices(labels_held, scores, {name: columns[name][held] for name in SLICE_COLUMNS})),
        openings=_openings(truth[train], [CATEGORIES["first word"][0](texts[i]) for i in train.tolist()]),
        largest_groups=_largest_groups(columns["split"], columns["group"]),
    )


def _score_number(rows: _Rows, name: str, raw: Floats, normalised: Floats, advice: str) -> FeatureScore:
    area = rows.auroc(rows.train, raw[rows.train])
    sign = 1.0 if area >= 0.5 else -1.0
    after = rows.auroc(rows.train, sign * normalised[rows.train])
    held_out = rows.auroc(rows.held, sign * raw[rows.held])
    return FeatureScore(name, "ai" if sign > 0 else "human", max(area, 1 - area), after, held_out, advice)


def _score_category(
    rows: _Rows, name: str, values: list[NDArray[Any]], groups: NDArray[Any], advice: str
) -> FeatureScore:
    folds = rows.folds(groups)
    scored = np.concatenate([score for _, score in folds])
    aurocs = [
        rows.auroc(scored, np.concatenate([_category_log_odds(rows, each, fit, score) for fit, score in folds]))
        for each in values
    ]
    held_out = rows.auroc(rows.held, _category_log_odds(rows, values[0], rows.train, rows.held))
    return FeatureScore(name, "", aurocs[0], aurocs[1] if len(aurocs) > 1 else None, held_out, advice)


def _category_log_odds(rows: _Rows, values: NDArray[Any], fit: Ints, score: Ints) -> Floats:
    """Log-odds of AI of each category among the rows to fit, less those of all of them."""
    names, codes = np.unique(values, return_inverse=True)
    weights, labels = rows.weights[fit], rows.labels[fit]
    prior = float(np.average(labels, weights=weights))
    if not 0 < prior < 1:
        return np.zeros(len(score))
    total = np.bincount(codes[fit], weights, minlength=len(names))
    ai = np.bincount(codes[fit], weights * labels, minlength=len(names))
    rate = (ai + PRIOR * prior) / (total + PRIOR)
    return np.asarray((np.log(rate / (1 - rate)) - np.log(prior / (1 - prior)))[codes[score]], np.float64)


def _slices(labels: Ints, scores: Floats, columns: Mapping[str, NDArray[Any]]) -> Iterator[SliceScore]:
    """A score for each value that is not empty, the largest first. A generator's slice has its AI texts only."""
    for column, values in columns.items():
        kept = (values != "") & ((labels == 1) | (column != "generator"))
        for value, _ in Counter(values[kept].tolist()).most_common(MAX_SLICES):
            found = _score_slice(column, value, labels, scores, kept & (values == value))
            if max(found.n_human, found.n_ai) >= MIN_TEXTS:
                yield found


def _score_slice(column: str, value: str, labels: Ints, scores: Floats, mask: NDArray[np.bool_]) -> SliceScore:
    human, ai = mask & (labels == 0), mask & (labels == 1)
    own = int(human.sum()) >= MIN_TEXTS or column == "all"
    against = human if own else labels == 0
    truth, values = labels[against | ai], scores[against | ai]
    tprs = [
        tpr_at_fpr(truth, values, fpr) if ai.any() and largest_count(fpr, int(against.sum())) else None
        for fpr in (0.01, 0.05)
    ]
    all_humans = np.sort(scores[labels == 0])
    threshold = all_humans[-1 - largest_count(0.05, len(all_humans))]
    return SliceScore(
        column=column,
        value=value,
        n_human=int(human.sum()),
        n_ai=int(ai.sum()),
        own_humans=own,
        auroc=auroc(truth, values) if ai.any() else None,
        tpr_at_fpr_1=tprs[0],
        tpr_at_fpr_5=tprs[1],
        called_ai=float((scores[human] > threshold).mean()) if human.any() else None,
    )


def _openings(labels: Ints, words: Sequence[str]) -> list[dict[str, Any]]:
    counts = [Counter(word for word, own in zip(words, labels, strict=True) if own == label) for label in (0, 1)]
    totals = [max(1, int((labels == label).sum())) for label in (0, 1)]
    often = [word for word, n in (counts[0] + counts[1]).items() if word and n >= MIN_OPENING]
    often.sort(key=lambda word: (-abs(counts[1][word] / totals[1] - counts[0][word] / totals[0]), word))
    return [{"word": w[:MAX_WORD_CHARS], "human": counts[0][w], "ai": counts[1][w]} for w in often[:MAX_OPENINGS]]


def _largest_groups(splits: NDArray[Any], groups: NDArray[Any]) -> dict[str, tuple[int, float]]:
    largest = {}
    for split in dict.fromkeys(splits.tolist()):
        _, counts = np.unique(groups[splits == split], return_counts=True)
        largest[split] = (len(counts), float(counts.max() / counts.sum()))
    return largest
