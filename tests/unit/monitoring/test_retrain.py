from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from detect_ai.core.config import Config, MonitoringConfig, RetrainConfig
from detect_ai.core.errors import ConfigError, InputError
from detect_ai.core.storage import Storage
from detect_ai.detector.registry import Registry
from detect_ai.monitoring import retrain
from detect_ai.monitoring.feedback import Feedback
from detect_ai.monitoring.prediction_log import RowLog
from detect_ai.monitoring.retrain import audited, collect, hard_negatives, with_sources
from detect_ai.schemas import Label
from tests.fixtures import tiny_models
from tests.unit.monitoring.test_feedback import prediction


def keep_texts(storage: Storage) -> None:
    log, now = RowLog(storage, "texts", 9, 10**9), datetime.now(UTC)
    log.append([{"time": now, "request_id": f"r{i}", "index": 0, "text": f"text {i}"} for i in range(4)])
    log.flush()


def test_audited_texts_are_those_of_the_audit_without_conflicts(storage: Storage) -> None:
    keep_texts(storage)
    votes = Feedback(storage, MonitoringConfig())
    given = {"r0": [Label.HUMAN], "r1": [Label.AI], "r2": [Label.AI, Label.HUMAN], "r3": [Label.HUMAN]}
    for id_, labels in given.items():
        for number, label in enumerate(labels):
            votes.vote(prediction(id_), f"k{number}", label, may_audit=id_ != "r3")
    rows = audited(Config(), storage)
    assert [(row["text"], row["label"]) for row in rows] == [("text 0", 0), ("text 1", 1)]


def test_audited_texts_need_a_log_of_texts(storage: Storage) -> None:
    with pytest.raises(InputError, match=r"monitoring\.text_days"):
        audited(Config(), storage)


def test_audited_texts_need_a_label_without_conflict(storage: Storage) -> None:
    keep_texts(storage)
    with pytest.raises(InputError, match="label"):
        audited(Config(), storage)
    for key, label in (("k0", Label.AI), ("k1", Label.HUMAN)):
        Feedback(storage, MonitoringConfig()).vote(prediction("r0"), key, label, may_audit=True)
    with pytest.raises(InputError, match="label"):
        audited(Config(), storage)


def test_texts_chosen_by_score_are_for_training_alone(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dict.fromkeys(retrain.COLUMNS, "x") | {"label": 0}
    monkeypatch.setattr(retrain, "hard_negatives", lambda *_: [row])
    monkeypatch.setattr(retrain, "mirrors", lambda *_: [dict.fromkeys(("text", "group", "domain", "generator"), "x")])
    monkeypatch.setattr(retrain, "audited", lambda *_: [row])
    own = Config(retrain=RetrainConfig(humans="/data", generator="endpoint", audited=True))
    splits = {source["name"]: source.get("splits") for source in collect(own, storage)["sources"]}
    chosen = {"*": ["train", "validation"]}
    assert splits == {"hard_negatives": chosen, "mirrors": chosen, "audited": None}


def test_hard_negatives_are_the_highest_texts_in_scope(
    storage: Storage, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, own = Registry(storage), Config()
    registry.set_champion(registry.add(tiny_bundle))
    texts = [{"text": f"text {i}", "group": f"g{i}", "label": 0} for i in range(3)]
    own.retrain = RetrainConfig(humans=str(tiny_models.write_jsonl(tmp_path / "h.jsonl", texts)), hard_negatives=2)
    values = {"score": [5.0, 9.0, 7.0], "reason": ["", "mostly_code", ""]}
    scored = pd.DataFrame({"row": [f"0-{i}" for i in range(3)], **values})
    monkeypatch.setattr(retrain, "score_in_memory", lambda *_: scored)
    assert [row["group"] for row in hard_negatives(own, storage)] == ["g0", "g2"]
    scored["reason"] = "too_short"
    with pytest.raises(InputError, match=r"retrain\.humans"):
        hard_negatives(own, storage)


def test_nothing_to_collect_is_refused(storage: Storage) -> None:
    with pytest.raises(ConfigError, match=r"retrain\.humans"):
        collect(Config(), storage)


def test_sources_are_added_to_the_corpus() -> None:
    source = {"kind": "parquet", "path": "/x/mirrors.parquet", "name": "mirrors", "group": "group"}
    own = Config()
    changed = with_sources(own, [source])
    assert [one.name for one in changed.corpus.sources] == ["mirrors"]
    assert own.corpus.sources == []
