"""The false positives with the highest probability of AI, with scores of their sentences."""

from __future__ import annotations

from typing import Any

import numpy as np

from detect_ai.core.config import Config
from detect_ai.detector.dataset import texts_at
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation.generated_texts import Place, score_generated


def top_false_positives(
    config: Config, bundle: Place, data: str, scratch: Place, verdicts: Verdicts, target: float
) -> list[dict[str, Any]]:
    """Human texts called AI at a target, those of the highest probability first.

    Args:
        config: `evaluation.top_false_positives` is their number; `evaluation.include_texts` adds scored sentences.
        bundle: storage and key.
        data: the texts.
        scratch: storage and key of a folder that does not exist.
        verdicts: of the texts.
        target: FPR.
    """
    false_positives = np.flatnonzero((verdicts.labels == 0) & (verdicts.calls(target) == 1))
    order = np.argsort(-verdicts.probabilities[false_positives], kind="stable")
    top = verdicts[false_positives[order][: config.evaluation.top_false_positives]]
    if not len(top):
        return []
    sentences: dict[str, list[dict[str, Any]]] = {}
    if config.evaluation.include_texts:
        texts = texts_at(data, config.score, top.rows.tolist())
        rows = [(row, text, "") for row, text in texts.items()]
        scored = score_generated(config.score, bundle, (scratch[0], f"{scratch[1]}/errors"), rows, "windows")
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
