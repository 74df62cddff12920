"""Evaluation of sentence scores on mixed documents: human texts with AI sentences inserted at known positions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detect_ai import metrics
from detect_ai.detector.dataset import texts_at
from detect_ai.detector.verdict_table import PREDICTIONS, Verdicts
from detect_ai.evaluation.task import EvalTask
from detect_ai.text.normalize import normalise
from detect_ai.text.sentences import sentences

Span = tuple[int, int]
MIN_RUN = 2  # sentences
MIN_TOKENS = 100  # of each of the two texts of a mixed document


def sentence_score_metrics(task: EvalTask, verdicts: Verdicts) -> dict[str, Any] | None:
    """How well sentence scores separate AI and human sentences in mixed documents; None without documents.

    AI sentences from the same domain, 20 to 60% of the result, are inserted into `evaluation.mixed_documents` human
    texts. `ai_fraction_error` is the mean absolute error of the AI fraction of a document; `predictions` holds the
    fraction of documents by label at the default target.
    """
    documents = _mixed_documents(task, verdicts)
    if not documents:
        return None
    scored = task.score_generated([(str(i), text, "") for i, (text, _) in enumerate(documents)], "occlusion")
    labels, by_window, by_occlusion, errors = [], [], [], []
    for number, spans in zip(scored.ids.tolist(), scored.spans.tolist(), strict=True):
        places = [(span["start"], span["end"]) for span in spans]
        truth = sentence_labels(places, documents[int(number)][1])
        labels.append(truth)
        by_window += [span["probability"] for span in spans]
        by_occlusion += [span["effect"] for span in spans]
        sizes = np.asarray([end - start for start, end in places], np.float64)
        predicted = np.asarray([span["probability"] >= 0.5 for span in spans])
        errors.append(abs(float((sizes * predicted).sum() - (sizes * truth).sum()) / sizes.sum()))
    truth = np.concatenate(labels)
    both = 0 < truth.sum() < len(truth)
    predictions = scored.predictions[task.spec.default_target_fpr]
    return {
        "n_documents": len(documents),
        "n_sentences": len(truth),
        "sentence_auroc_windows": metrics.auroc(truth, by_window) if both else None,
        "sentence_auroc_occlusion": metrics.auroc(truth, by_occlusion) if both else None,
        "ai_fraction_error": float(np.mean(errors)),
        "predictions": {name: float((predictions == value).mean()) for name, value in PREDICTIONS.items()},
    }


def _mixed_documents(task: EvalTask, verdicts: Verdicts) -> list[tuple[str, list[Span]]]:
    """Up to `evaluation.mixed_documents` documents, each made from a human and an AI text of one domain."""
    rng, pairs = np.random.default_rng([task.config.seed, 4]), []
    for domain in np.unique(verdicts.columns["domain"]).tolist():
        own = (verdicts.num_tokens >= MIN_TOKENS) & (verdicts.columns["domain"] == domain)
        human, ai = (rng.permutation(np.flatnonzero(own & (verdicts.labels == label))) for label in (0, 1))
        pairs += list(zip(human.tolist(), ai.tolist(), strict=False))
    pairs = [pairs[i] for i in rng.permutation(len(pairs))[: task.config.evaluation.mixed_documents]]
    if not pairs:
        return []
    texts = texts_at(task.data, task.config.score, [verdicts.rows[i] for pair in pairs for i in pair])
    documents = []
    for pair in pairs:
        human_text, ai_text = (normalise(texts[verdicts.rows[i]]).text for i in pair)
        fraction = float(rng.uniform(0.2, 0.6))
        if min(len(sentences(human_text)), len(sentences(ai_text))) >= MIN_RUN:
            documents.append(mix(human_text, ai_text, rng, fraction, runs=2))
    return documents


def mix(human: str, ai: str, rng: np.random.Generator, fraction: float, runs: int) -> tuple[str, list[Span]]:
    """Insert consecutive sentences of an AI text between the sentences of a human text, which stays complete.

    Both texts are normalised and have at least two sentences. `fraction` of the sentences of the result are AI (less
    where the AI text is too short), in `runs` parts of two or more sentences (fewer where there is no room). Returns
    the mixed text, which begins and ends with human text, and the spans `[start, end)` of the AI parts in characters.
    """
    ours, theirs = sentences(human), sentences(ai)
    count = min(len(theirs), max(MIN_RUN, round(len(ours) * fraction / (1 - fraction))))
    runs = min(runs, count // MIN_RUN, len(ours) - 1)
    first = int(rng.integers(len(theirs) - count + 1))
    after = np.sort(rng.choice(len(ours) - 1, size=runs, replace=False)).tolist()
    spare = count - MIN_RUN * runs
    cuts = np.sort(rng.integers(spare + 1, size=runs - 1)) + MIN_RUN * np.arange(1, runs)
    text, spans, copied = "", [], 0
    for place, (start, stop) in zip(after, pairwise([0, *cuts.tolist(), count]), strict=True):
        end, resumes = ours[place][1], ours[place + 1][0]
        text += human[copied:resumes]
        part = ai[theirs[first + start][0] : theirs[first + stop - 1][1]]
        spans.append((len(text), len(text) + len(part)))
        text += part + human[end:resumes]
        copied = resumes
    return text + human[copied:], spans


def sentence_labels(spans: Sequence[Span], ai_spans: Sequence[Span]) -> NDArray[np.int64]:
    """Label of each sentence `[start, end)`: 1 if more than half of its characters are in the AI parts, else 0."""
    labels = []
    for start, end in spans:
        inside = sum(max(0, min(end, ai_end) - max(start, ai_start)) for ai_start, ai_end in ai_spans)
        labels.append(int(2 * inside > end - start))
    return np.asarray(labels, np.int64)
