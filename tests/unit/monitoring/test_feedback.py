from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from detect_ai.core.config import Config, MonitoringConfig
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.monitoring import feedback, prediction_log
from detect_ai.monitoring.feedback import Feedback, budget, by_text, error_rates
from detect_ai.monitoring.prediction_log import RowLog
from detect_ai.schemas import Label

HUMAN, AI = Label.HUMAN, Label.AI


def prediction(request_id: str = "r1", **changes: Any) -> dict[str, Any]:
    known = {"request_id": request_id, "index": 0, "label": "ai", "model_version": "v1", "target_fpr": 0.01}
    return {**known, "score": 1.5, "num_tokens": 80, "audited": False, "audit_fraction": 0.02, **changes}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def votes(storage: Storage) -> Feedback:
    return Feedback(storage, MonitoringConfig())


def texts(humans: int, accused: int, found: int = 0, missed: int = 0, fraction: float = 0.02) -> pd.DataFrame:
    """Audited texts: human ones, of which some are accused, and AI texts found and missed."""
    predicted = ["ai"] * accused + ["human"] * (humans - accused) + ["ai"] * found + ["human"] * missed
    frame = pd.DataFrame({"predicted": predicted, "audited": True, "audit_fraction": fraction, "target_fpr": 0.01})
    return frame.assign(human=[1.0] * humans + [0.0] * (found + missed))


def test_a_key_has_one_vote_and_changes_it(votes: Feedback) -> None:
    votes.vote(prediction(), "k1", AI)
    assert not votes.vote(prediction(), "k1", HUMAN)
    assert votes.votes()[["key", "label"]].to_numpy().tolist() == [["k1", "human"]]


def test_keys_that_disagree_are_a_conflict(votes: Feedback) -> None:
    assert not votes.vote(prediction(), "k1", AI)
    assert votes.vote(prediction(), "k2", HUMAN)
    assert len(votes.votes()) == 2
    assert by_text(votes.votes())["human"].tolist() == [0.5]


def test_votes_are_of_one_text_of_a_request(votes: Feedback) -> None:
    votes.vote(prediction(), "k1", AI)
    assert not votes.vote(prediction(index=1), "k2", HUMAN)
    assert len(by_text(votes.votes())) == 2


def test_erased_requests_have_no_votes(votes: Feedback) -> None:
    votes.vote(prediction("r1"), "k1", AI)
    votes.vote(prediction("r2"), "k1", AI)
    assert votes.erase("r1") == 1
    assert votes.votes()["request_id"].tolist() == ["r2"]


def test_a_database_url_may_be_given(storage: Storage, tmp_path: Path) -> None:
    Feedback(storage, MonitoringConfig(feedback_url=f"sqlite:///{tmp_path}/other.db")).vote(prediction(), "k1", AI)
    assert (tmp_path / "other.db").exists()


@pytest.mark.parametrize(
    "url", ["sqlite:////no/such/folder/secret.db", "nonsense", "postgresql+nodriver://u:secret@h/d"]
)
def test_a_database_that_cannot_be_opened_is_named_without_its_url(storage: Storage, url: str) -> None:
    with pytest.raises(ConfigError, match=r"monitoring\.feedback_url") as error:
        Feedback(storage, MonitoringConfig(feedback_url=url))
    assert "secret" not in str(error.value)


def test_rates_of_audited_texts() -> None:
    rates = error_rates(texts(humans=200, accused=4, found=30, missed=10))
    fpr, tpr = rates["false_positive_rate"], rates["detection_rate"]
    assert (fpr["rate"], tpr["rate"]) == (0.02, 0.75)
    assert (round(fpr["low"], 4), round(fpr["high"], 4)) == (0.0055, 0.0504)  # exact binomial
    assert round(fpr["texts"]) == 200


def test_texts_weigh_by_the_inverse_of_their_probability() -> None:
    rare, common = texts(humans=10, accused=1, fraction=0.01), texts(humans=10, accused=5, fraction=0.1)
    rates = error_rates(pd.concat([rare, common]))
    assert rates["false_positive_rate"]["rate"] == pytest.approx((100 * 1 + 10 * 5) / (100 * 10 + 10 * 10))
    assert rates["detection_rate"]["rate"] is None


def test_appeals_alone_give_no_rate() -> None:
    rates = error_rates(texts(humans=50, accused=50).assign(audited=False))
    assert {rate["rate"] for rate in rates.values()} == {None}


def test_appeals_do_not_count_in_rates_and_budget() -> None:
    appeals = texts(humans=50, accused=50).assign(audited=False)
    both = pd.concat([texts(humans=100, accused=1), appeals])
    assert error_rates(both)["false_positive_rate"]["rate"] == 0.01
    assert budget(both)["humans"] == 100


def alerts(fpr: float, seeds: int = 200, humans: int = 500) -> int:
    """How many simulated audits spend the budget of 1%: looked at after every text."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(seeds):
        frame = texts(humans, 0)
        frame["predicted"] = np.where(rng.random(humans) < fpr, "ai", "human")
        found += int(budget(frame)["is_spent"])
    return found


def test_the_budget_alerts_at_four_times_the_rate_and_not_at_the_rate() -> None:
    assert alerts(0.04) >= 180
    assert alerts(0.01) <= 2


def test_the_spent_budget_is_that_of_all_replicas(storage: Storage, votes: Feedback) -> None:
    Feedback(storage, MonitoringConfig()).vote(prediction(audited=True), "k1", HUMAN)
    assert votes.spent == 0
    votes.refresh()
    assert votes.spent == budget(texts(humans=1, accused=1))["spent"] > 0


def test_a_vote_reads_no_other_texts(votes: Feedback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(votes, "votes", lambda: pytest.fail("reads all votes"))
    votes.vote(prediction(), "k1", AI)


def test_an_unreadable_database_keeps_the_spent_budget(votes: Feedback, monkeypatch: pytest.MonkeyPatch) -> None:
    votes.spent = 0.5
    feedback._METADATA.drop_all(votes._engine)
    votes.refresh()
    assert votes.spent == 0.5


def test_report_lists_what_needs_a_label(storage: Storage, votes: Feedback) -> None:
    log = RowLog(storage, "predictions", 2, 10**9)
    now = datetime.now(UTC)
    rows = [{"time": now, **prediction(name, audited=name != "r1"), "reasons": []} for name in ("r1", "r2", "r3")]
    log.append(rows)
    log.flush()
    votes.vote(rows[0], "k1", HUMAN)
    votes.vote(rows[1], "k1", HUMAN)
    config = Config()
    config.storage.root = storage.root
    result = feedback.report(config, storage)
    assert (result["predictions"], result["audited"]) == (3, 2)
    assert [row["request_id"] for row in result["to_label"]] == ["r3"]
    assert [row["request_id"] for row in result["appeals"]] == ["r1"]
    assert result["rates"]["false_positive_rate"]["rate"] == 1.0


def test_report_needs_a_log(storage: Storage) -> None:
    with pytest.raises(ConfigError, match=r"monitoring\.log=true"):
        feedback.report(Config(), storage)


def test_log_and_feedback_keep_the_same_facts() -> None:
    assert set(feedback._COPIED) <= set(prediction_log.PREDICTIONS.names)
