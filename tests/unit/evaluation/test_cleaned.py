"""Texts cleaned as in training: only those that change are scored again."""

from types import SimpleNamespace

import numpy as np

from detect_ai.core.config import Config
from detect_ai.evaluation.cleaned import cleaned_metrics
from tests.fixtures import tiny_models
from tests.unit.evaluation.conftest import SPEC, TARGET, verdicts_of

BODY = "The road is long, and nobody knows where it ends. " * 3
TEXTS = [
    (0, f"{BODY}So it goes.Every day."),
    (0, BODY),
    (1, f"Sure, here is an essay on the roads:\n\n{BODY}"),
    (1, "I'm sorry, but I can't assist with that request."),  # stays: the text has nothing else
    (1, BODY),
]
CLEAN = {"0-0": f"{BODY}So it goes. Every day.", "0-2": BODY}


def test_only_changed_texts_are_scored_again(tmp_path):
    rows = [{"text": text, "label": label} for label, text in [*TEXTS, ("", "No label.It is left out.")]]
    labels, scores = np.asarray([label for label, _ in TEXTS]), np.asarray([2.0, 2.0, 0.0, 0.0, 2.0])
    verdicts = verdicts_of(labels, scores, domain=np.asarray(["a", "b", "a", "b", "b"]))
    asked = []

    def score_generated(generated):
        asked.extend(generated)
        scored = verdicts_of(np.zeros(2, int), [4.0, 0.0])  # that of the AI text first
        scored.ids[:] = ["0-2", "0-0"]
        return scored

    data = str(tiny_models.write_jsonl(tmp_path / "texts.jsonl", rows))
    task = SimpleNamespace(data=data, config=Config(), spec=SPEC, score_generated=score_generated)
    metrics = cleaned_metrics(task, verdicts)
    assert {row: text for row, text, _ in asked} == CLEAN
    assert metrics["changed"] == {"human": 1, "ai": 1}
    assert verdicts.predictions[TARGET].tolist() == [1, 1, 0, 0, 1]  # scores above 1
    rates = [metrics["overall"][name] for name in ("fpr_at_target", "tpr_at_target", "n_human", "n_ai")]
    assert rates == [0.5, 2 / 3, 2, 3]
    assert metrics["overall"]["auroc"] == np.mean([0.5, 0.5, 0, 1, 1, 1])


def test_texts_that_stay_have_the_same_metrics(tmp_path):
    verdicts = verdicts_of([0, 1], [0.0, 2.0])
    data = str(tiny_models.write_jsonl(tmp_path / "texts.jsonl", [{"text": BODY, "label": label} for label in (0, 1)]))
    metrics = cleaned_metrics(SimpleNamespace(data=data, config=Config(), spec=SPEC), verdicts)
    assert metrics["changed"] == {"human": 0, "ai": 0}
    assert (metrics["overall"]["auroc"], metrics["overall"]["tpr_at_target"]) == (1, 1)
