"""The false positives with the highest probability of AI, with scores of their sentences."""

from __future__ import annotations

from typing import Any

import numpy as np

from detect_ai.detector.dataset import texts_at
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation.task import EvalTask

NUM_TEXTS = 20


def top_false_positives(task: EvalTask, verdicts: Verdicts) -> list[dict[str, Any]]:
    """Human texts called AI at the default target, those of the highest probability first.

    `evaluation.include_texts` adds scored sentences.
    """
    options, target = task.config.evaluation, task.spec.default_target_fpr
    false_positives = np.flatnonzero((verdicts.labels == 0) & (verdicts.calls(target) == 1))
    order = np.argsort(-verdicts.probabilities[false_positives], kind="stable")
    top = verdicts[false_positives[order][:NUM_TEXTS]]
    sentences: dict[str, list[dict[str, Any]]] = {}
    if options.include_texts and len(top):
        texts = texts_at(task.data, task.config.score, top.rows.tolist())
        scored = task.score_generated([(row, text, "") for row, text in texts.items()], "windows")
        for row, spans in zip(scored.ids.tolist(), scored.spans.tolist(), strict=True):
            sentences[row] = [
                {"text": texts[row][span["start"] : span["end"]], "probability": span["probability"]}
                for span in spans or []
            ]
    return [
        {
            "id": top.ids[i],
            "domain": top.columns["domain"][i],
            "source": top.columns["source"][i],
            "probability": float(top.probabilities[i]),
            "p_value": float(top.p_values[i]),
            "num_tokens": int(top.num_tokens[i]),
            "sentences": sentences.get(row, []),
        }
        for i, row in enumerate(top.rows.tolist())
    ]
