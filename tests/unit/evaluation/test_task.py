"""Scoring for an evaluation, without Ray."""

from types import SimpleNamespace

from detect_ai.core.config import ScoreConfig
from detect_ai.core.storage import Storage
from detect_ai.evaluation import task
from detect_ai.evaluation.task import EvalTask, score_labelled
from tests.unit.evaluation.conftest import verdicts_of


def test_metrics_are_at_the_prevalence_of_the_calibration(tmp_path, monkeypatch):
    configs, storage = [], Storage(str(tmp_path))
    monkeypatch.setattr(task, "require_labels", lambda *_: None)
    monkeypatch.setattr(task, "score_texts", lambda data, bundle, config, out: configs.append(config) or {"skipped": 0})
    monkeypatch.setattr(task.Verdicts, "read", lambda *_: verdicts_of([0, 1], [0.0, 1.0]))
    config = ScoreConfig(prevalence=0.05, format="jsonl", workers=3)
    bundle = storage, "bundle"
    score_labelled("data.csv", bundle, config, (storage, "out"))
    own = EvalTask(SimpleNamespace(score=config), bundle, None, "data.csv", "data", None, (storage, "out"))
    own.score_generated([("0", "a text", "synonym")])
    assert [(used.prevalence, used.format, used.workers) for used in configs] == [(None, "parquet", 3)] * 2
