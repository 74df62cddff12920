"""Metrics of the evaluated texts after cleaning them as `prepare` cleans training texts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from detect_ai.corpus.cleaning import clean_text
from detect_ai.detector.dataset import texts_of
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation.slices import overall_metrics, slices
from detect_ai.evaluation.task import EvalTask

MEASURED = ("digests", "scores", "probabilities", "p_values", "fpr_bounds", "num_tokens", "reasons")


def cleaned_metrics(task: EvalTask, verdicts: Verdicts) -> dict[str, Any]:
    """Metrics (`overall` and by slice) after `clean_text`, and the number of texts that it `changed` by class.

    Texts that `clean_text` does not change are not scored again. Refusals, which training drops, stay unchanged.
    """
    labelled, changed = set(verdicts.rows.tolist()), {}
    for text in texts_of(task.data, task.config.score):
        cleaned = clean_text(text.text) if text.row in labelled else None
        if cleaned is not None and cleaned != text.text:
            changed[text.row] = cleaned
    if changed:
        verdicts = rescored(verdicts, task.score_generated([(row, text, "") for row, text in changed.items()]))
    labels = verdicts.labels[np.isin(verdicts.rows, list(changed))]
    return {
        "changed": {"human": int((labels == 0).sum()), "ai": int((labels == 1).sum())},
        "overall": overall_metrics(verdicts, task.spec, score_intervals=False),
        "slices": slices(verdicts, task.spec),
    }


def rescored(verdicts: Verdicts, scored: Verdicts) -> Verdicts:
    """The verdicts, updated with those `scored` for changed versions of some texts (their ids are rows of the data)."""
    place = {row: i for i, row in enumerate(verdicts.rows.tolist())}
    taken = np.arange(len(verdicts))  # positions in the old verdicts followed by the new ones
    taken[[place[row] for row in scored.ids.tolist()]] = len(verdicts) + np.arange(len(scored))
    arrays = {name: np.concatenate([getattr(verdicts, name), getattr(scored, name)])[taken] for name in MEASURED}
    predictions = {
        target: np.concatenate([old, scored.predictions[target]])[taken] for target, old in verdicts.predictions.items()
    }
    compared = np.concatenate([verdicts.columns["compared_with"], scored.columns["compared_with"]])[taken]
    columns = {**verdicts.columns, "compared_with": compared}
    return replace(verdicts, **arrays, predictions=predictions, columns=columns)
