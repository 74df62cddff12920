from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sql

from detect_ai.core.config import Config, MonitoringConfig
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.monitoring import feedback
from detect_ai.monitoring.feedback import FALSE_ALARM, PASSWORD, VOTES, Feedback, budget, rates
from detect_ai.monitoring.prediction_log import RowLog
from detect_ai.schemas import Label

HUMAN, AI = Label.HUMAN, Label.AI
LIMIT = -np.log(FALSE_ALARM)


def prediction(request_id: str = "r1", **changes: Any) -> dict[str, Any]:
    known = {"request_id": request_id, "index": 0, "label": "ai", "model_version": "v1", "target_fpr": 0.01}
    return {**known, "score": 1.5, "num_tokens": 80, "audited": True, "audit_fraction": 0.02, **changes}


@pytest.fixture
def votes(storage: Storage) -> Feedback:
    return Feedback(storage, MonitoringConfig())


def audit(votes: Feedback, truth: Label, *names: str, key: str = "k1", **changes: Any) -> None:
    for name in names:
        votes.vote(prediction(name, **changes), key, truth, may_audit=True)


def truths(votes: Feedback) -> dict[str, str | None]:
    texts = votes.audited_texts()
    return dict(zip(texts["request_id"], texts["truth"].where(texts["truth"].notna(), None), strict=True))


def texts(humans: int, accused: int, found: int = 0, missed: int = 0, fraction: float = 0.02) -> pd.DataFrame:
    """Labelled texts of the audit: human texts, some of them false positives, and AI texts found and missed."""
    verdicts = ["ai"] * accused + ["human"] * (humans - accused) + ["ai"] * found + ["human"] * missed
    truth = ["human"] * humans + ["ai"] * (found + missed)
    return pd.DataFrame({"label": verdicts, "truth": truth, "audit_fraction": fraction})


def test_a_key_has_one_vote_and_changes_it(votes: Feedback) -> None:
    audit(votes, AI, "r1")
    assert votes.vote(prediction(), "k1", HUMAN, may_audit=True) == (True, False)
    assert truths(votes) == {"r1": "human"}


def test_keys_that_disagree_are_a_conflict(votes: Feedback) -> None:
    assert votes.vote(prediction(), "k1", AI, may_audit=True) == (True, False)
    assert votes.vote(prediction(), "k2", HUMAN, may_audit=True) == (True, True)
    assert truths(votes) == {"r1": None}
    assert votes.budgets() == {}


def test_votes_are_of_one_text_of_a_request(votes: Feedback) -> None:
    audit(votes, AI, "r1")
    assert votes.vote(prediction(index=1), "k2", HUMAN, may_audit=True) == (True, False)
    assert len(votes.audited_texts()) == 2


@pytest.mark.parametrize(("drawn", "may_audit"), [(True, False), (False, True), (False, False)])
def test_votes_on_other_texts_or_without_the_scope_are_appeals(votes: Feedback, drawn: bool, may_audit: bool) -> None:
    audit(votes, AI, "r1")
    assert votes.vote(prediction(audited=drawn), "k2", HUMAN, may_audit) == (False, False)
    (appeal,) = votes.appeals()
    assert datetime.fromisoformat(appeal.pop("time"))
    facts = {"model_version": prediction()["model_version"], "key": "k2", "predicted": "ai"}
    assert appeal == {"request_id": "r1", "index": 0, "label": "human", **facts}
    assert truths(votes) == {"r1": "ai"}
    assert votes.budgets() == {}


def test_appeals_that_disagree_are_a_conflict(votes: Feedback) -> None:
    assert votes.vote(prediction(), "k1", HUMAN, may_audit=False) == (False, False)
    assert votes.vote(prediction(), "k2", AI, may_audit=False) == (False, True)


def test_erased_requests_have_no_votes(votes: Feedback) -> None:
    audit(votes, AI, "r1", "r2")
    assert votes.erase("r1") == 1
    assert list(truths(votes)) == ["r2"]


def test_appeals_expire_with_the_log_and_audit_votes_stay(votes: Feedback) -> None:
    votes.vote(prediction("r1"), "k1", HUMAN, may_audit=False)
    audit(votes, HUMAN, "r2")
    assert votes._engine
    with votes._engine.begin() as connection:
        connection.execute(sql.update(VOTES).values(time=datetime.now(UTC) - timedelta(31)))
    votes.vote(prediction("r3"), "k1", HUMAN, may_audit=False)
    assert [appeal["request_id"] for appeal in votes.appeals()] == ["r3"]
    assert list(truths(votes)) == ["r2"]


def test_a_database_url_may_be_given(storage: Storage, tmp_path: Path) -> None:
    audit(Feedback(storage, MonitoringConfig(feedback_url=f"sqlite:///{tmp_path}/other.db")), AI, "r1")
    assert (tmp_path / "other.db").exists()


def test_only_the_owner_reads_the_local_database(votes: Feedback, tmp_path: Path) -> None:
    audit(votes, AI, "r1")
    assert (tmp_path / "monitoring/feedback.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("url", ["sqlite:////no/such/folder/x.db", "nonsense", "postgresql+nodriver://u@h/d"])
def test_a_database_that_cannot_be_opened_is_named_without_its_url(
    storage: Storage, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, "secret")
    votes = Feedback(storage, MonitoringConfig(feedback_url=url))
    with pytest.raises(ConfigError, match=r"monitoring\.feedback_url") as error:
        votes.budgets()
    assert url not in str(error.value)
    assert "secret" not in str(error.value)
    assert (error.value.__cause__, error.value.__suppress_context__) == (None, True)


def test_a_database_is_used_once_it_can_be_opened(storage: Storage, tmp_path: Path) -> None:
    votes = Feedback(storage, MonitoringConfig(feedback_url=f"sqlite:///{tmp_path}/later/votes.db"))
    with pytest.raises(ConfigError):
        votes.budgets()
    (tmp_path / "later").mkdir()
    audit(votes, HUMAN, "r1")
    assert votes.budgets()["v1"]["humans"] == 1


def test_an_object_store_needs_a_url(storage: Storage) -> None:
    storage.is_local = False
    with pytest.raises(ConfigError, match=r"monitoring\.feedback_url"):
        Feedback(storage, MonitoringConfig()).budgets()


def test_the_password_comes_from_the_environment(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[sql.URL] = []
    monkeypatch.setenv(PASSWORD, "p@ss/word")
    monkeypatch.setattr(sql, "create_engine", lambda url, **_: opened.append(url) or sql.create_mock_engine(url, None))
    monkeypatch.setattr(feedback, "_METADATA", sql.MetaData())
    Feedback(storage, MonitoringConfig(feedback_url="sqlite://user@host/name"))._open()
    Feedback(storage, MonitoringConfig(feedback_url="sqlite:///file.db"))._open()
    assert [url.password for url in opened] == ["p@ss/word", None]


def test_processes_may_create_the_table_at_the_same_time(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    create_all, calls = feedback._METADATA.create_all, []

    def beaten(engine: sql.Engine) -> None:
        """Another process creates the table between the check and the creation."""
        calls.append(engine)
        if len(calls) == 1:
            create_all(engine)
            create_all(engine, checkfirst=False)
        create_all(engine)

    monkeypatch.setattr(feedback._METADATA, "create_all", beaten)
    assert Feedback(storage, MonitoringConfig()).budgets() == {}
    assert len(calls) == 2


def test_rates_of_audited_texts() -> None:
    result = rates(texts(humans=200, accused=4, found=30, missed=10))
    fpr, tpr = result["rates"]["false_positive_rate"], result["rates"]["detection_rate"]
    assert (result["drawn"], result["labelled"], result["reason"]) == (240, 1, None)
    assert (fpr["rate"], tpr["rate"]) == (0.02, 0.75)
    assert (round(fpr["low"], 4), round(fpr["high"], 4)) == (0.0055, 0.0504)  # exact binomial
    assert round(fpr["texts"]) == 200


def test_texts_weigh_by_the_inverse_of_their_probability() -> None:
    rare, common = texts(humans=10, accused=1, fraction=0.01), texts(humans=10, accused=5, fraction=0.1)
    result = rates(pd.concat([rare, common]))["rates"]
    assert result["false_positive_rate"]["rate"] == pytest.approx((100 * 1 + 10 * 5) / (100 * 10 + 10 * 10))
    assert result["detection_rate"]["rate"] is None


@pytest.mark.parametrize(("labelled", "has_rates"), [(79, False), (80, True)])
def test_rates_need_labels_of_most_drawn_texts(labelled: int, has_rates: bool) -> None:
    drawn = texts(humans=100, accused=4)
    drawn.loc[labelled:, "truth"] = None
    result = rates(drawn)
    assert result["labelled"] == labelled / 100
    assert (result["rates"] is not None, result["reason"] is None) == (has_rates, has_rates)


def test_no_draw_gives_no_rates() -> None:
    result = rates(texts(humans=0, accused=0))
    assert (result["rates"], result["drawn"]) == (None, 0)
    assert "audit_fraction" in result["reason"]


def test_budget_is_counted_by_version_and_target(votes: Feedback) -> None:
    audit(votes, HUMAN, "a", "b")
    audit(votes, HUMAN, "b", key="k2")
    audit(votes, HUMAN, "c", label="human", target_fpr=0.05)
    audit(votes, AI, "d")
    audit(votes, HUMAN, "e", model_version="v2", label="uncertain")
    found = votes.budgets()
    assert {v: (own["humans"], own["accused"]) for v, own in found.items()} == {"v1": (3, 2), "v2": (1, 0)}
    assert found["v1"] == budget([(0.01, 2, 2), (0.05, 1, 0)])
    assert found["v1"]["spent"] == pytest.approx((2 * np.log(4) + np.log(0.8 / 0.95)) / LIMIT)


def test_the_database_counts_the_votes(votes: Feedback, monkeypatch: pytest.MonkeyPatch) -> None:
    audit(votes, HUMAN, *(f"r{i}" for i in range(40)))
    counted: list[Any] = []
    monkeypatch.setattr(feedback, "budget", lambda counts: counted.append(counts) or {})
    votes.budgets()
    assert counted == [[(0.01, 40, 40)]]


def alarms(fpr: float, seeds: int, days: int) -> int:
    """How many simulated services ever spend the budget of 1%, checked daily on 2% of 1,000 human texts a day."""
    rng = np.random.default_rng(0)
    drawn = rng.binomial(1000, 0.02, (seeds, days))
    accused = rng.binomial(drawn, fpr)
    found = 0
    for n, k in zip(drawn.cumsum(1).tolist(), accused.cumsum(1).tolist(), strict=True):
        found += any(budget([(0.01, n[day], k[day])])["is_spent"] for day in range(days))
    return found


def test_the_budget_is_hardly_ever_spent_at_the_target() -> None:
    assert alarms(0.01, seeds=1000, days=730) <= 10


def test_the_budget_is_spent_soon_at_four_times_the_target() -> None:
    assert alarms(0.04, seeds=200, days=25) >= 180


def write(storage: Storage, rows: Sequence[dict[str, Any]]) -> Config:
    """Write a log of these rows; returns a configuration for its report."""
    log = RowLog(storage, "predictions", 2, 10**9)
    log.append([{"time": datetime.now(UTC), "reasons": [], **row} for row in rows])
    log.flush()
    config = Config()
    config.storage.root = storage.root
    return config


def test_report_lists_what_needs_a_label_without_verdicts(storage: Storage, votes: Feedback) -> None:
    config = write(storage, [prediction("r1", audited=False), prediction("r2"), prediction("r3")])
    votes.vote(prediction("r1", audited=False), "k1", HUMAN, may_audit=True)
    audit(votes, HUMAN, "r2")
    result = feedback.report(config, storage)
    own = result["versions"]["v1"]
    assert (result["predictions"], own["drawn"], own["labelled"], own["rates"]) == (3, 2, 0.5, None)
    assert [row["request_id"] for row in result["to_label"]] == ["r3"]
    assert set(result["to_label"][0]) == {"request_id", "index", "model_version", "time"}
    assert [row["request_id"] for row in result["appeals"]] == ["r1"]
    assert own["budget"]["humans"] == 1


def test_report_separates_versions(storage: Storage, votes: Feedback) -> None:
    config = write(storage, [prediction("r1"), prediction("r2", model_version="v2", label="human")])
    audit(votes, HUMAN, "r1", *(f"old{i}" for i in range(4)))
    audit(votes, HUMAN, "r2", model_version="v2", label="human")
    versions = feedback.report(config, storage)["versions"]
    assert {v: own["rates"]["false_positive_rate"]["rate"] for v, own in versions.items()} == {"v1": 1, "v2": 0}
    assert {v: own["budget"]["is_spent"] for v, own in versions.items()} == {"v1": True, "v2": False}


def test_texts_in_conflict_are_not_labelled(storage: Storage, votes: Feedback) -> None:
    config = write(storage, [prediction("r1"), prediction("r2")])
    audit(votes, HUMAN, "r1", "r2")
    audit(votes, AI, "r2", key="k2")
    result = feedback.report(config, storage)
    assert result["versions"]["v1"]["labelled"] == 0.5
    assert result["conflicts"] == [{"request_id": "r2", "index": 0}]
    assert result["to_label"] == []


def test_texts_of_a_repeated_request_id_are_not_labelled(storage: Storage, votes: Feedback) -> None:
    config = write(storage, [prediction("r1"), prediction("r1", audited=False), prediction("r2"), prediction("r2")])
    audit(votes, HUMAN, "r1")
    result = feedback.report(config, storage)
    assert (result["versions"]["v1"]["drawn"], result["versions"]["v1"]["labelled"]) == (3, 0)
    assert result["to_label"] == []


def test_report_needs_a_log(storage: Storage) -> None:
    with pytest.raises(ConfigError, match=r"monitoring\.log=true"):
        feedback.report(Config(), storage)


@pytest.mark.parametrize("audited", [True, False])
def test_report_without_votes_has_no_rates(storage: Storage, audited: bool) -> None:
    result = feedback.report(write(storage, [prediction("r1", audited=audited)]), storage)
    assert result["versions"]["v1"]["rates"] is None
    assert len(result["to_label"]) == int(audited)
    assert result["appeals"] == result["conflicts"] == []
