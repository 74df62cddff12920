"""The false positives with the highest probability of AI, with scores of their sentences."""

from __future__ import annotations

from typing import Any

import numpy as np

from detect_ai.detector.dataset import texts_at
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation.task import EvalTask

MAX_TEXTS = 20


def top_false_positives(task: EvalTask, verdicts: Verdicts) -> list[dict[str, Any]]:
    """Human texts labelled AI at the default target, those of the highest probability first."""
    labelled_ai = np.flatnonzero((verdicts.labels == 0) & (verdicts.predictions[task.spec.default_target_fpr] == 1))
    order = np.argsort(-verdicts.probabilities[labelled_ai], kind="stable")
    top = verdicts[labelled_ai[order][:MAX_TEXTS]]
    if not (len(top) and task.config.evaluation.include_texts):
        return []
    texts = texts_at(task.data, task.config.score, top.rows.tolist())
    scored = task.score_generated([(row, text, "") for row, text in texts.items()], "windows")
    spans = dict(zip(scored.ids.tolist(), scored.spans.tolist(), strict=True))
    return [
        {
            "id": top.ids[i],
            "domain": top.columns["domain"][i],
            "source": top.columns["source"][i],
            "probability": float(top.probabilities[i]),
            "p_value": float(top.p_values[i]),
            "num_tokens": int(top.num_tokens[i]),
            "sentences": [
                {"text": texts[row][span["start"] : span["end"]], "probability": span["probability"]}
                for span in spans[row] or []
            ],
        }
        for i, row in enumerate(top.rows.tolist())
    ]
