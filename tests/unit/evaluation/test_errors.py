"""The false positives with the highest probability of AI."""

from types import SimpleNamespace

import numpy as np

from detect_ai.core.config import Config
from detect_ai.evaluation import errors
from tests.unit.evaluation.conftest import SPEC, verdicts_of


def test_top_false_positives_are_human_texts_labelled_ai(monkeypatch):
    predictions, probabilities = [-1, 1, 1, 1, 1], [0.99, 0.6, 0.95, 0.9, 0.99]
    verdicts = verdicts_of([0, 0, 0, 0, 1], [9.0, 5.0, 1.0, 2.0, 9.0], predictions, probabilities)

    def generated(rows, spans):
        return SimpleNamespace(ids=np.asarray([row for row, *_ in rows]), spans=np.full(len(rows), None))

    monkeypatch.setattr(errors, "texts_at", lambda data, config, rows: dict.fromkeys(rows, "A text."))
    monkeypatch.setattr(errors, "MAX_TEXTS", 2)
    task = SimpleNamespace(config=Config(), spec=SPEC, data="", score_generated=generated)
    rows = errors.top_false_positives(task, verdicts)
    assert [row["id"] for row in rows] == ["id2", "id3"]
