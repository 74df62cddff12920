"""Labels that people give to served texts, and what may be concluded from them.

Who reports a text chooses it: people appeal accusations, nobody reports a missed AI text. So error rates come only from
the texts that the service drew at random for an audit (`monitoring.audit_fraction`), each weighted by the inverse of
the probability with which it was drawn; all other labels are appeals, which are listed and never averaged.

A vote is one key's label of one text, with the facts of its prediction. Votes are never changed: the last one of a key
counts, and conflicts between keys stay visible.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sql

from detect_ai.core.config import Config, MonitoringConfig
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.metrics import exact_rate_interval
from detect_ai.monitoring import prediction_log
from detect_ai.monitoring.prediction_log import FOLDER
from detect_ai.schemas import Label

logger = logging.getLogger("ray.serve")

ALTERNATIVE = 4  # the budget is tested against a false positive rate so many times as high
FALSE_ALARM = 0.01  # probability that a detector that keeps the budget is ever reported
LISTED = 1000  # texts of the report

_METADATA = sql.MetaData()
VOTES = sql.Table(
    "detect_ai_votes",
    _METADATA,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("time", sql.DateTime(timezone=True), nullable=False),
    sql.Column("request_id", sql.String(128), nullable=False, index=True),
    sql.Column("index", sql.Integer, nullable=False),
    sql.Column("key", sql.String(64), nullable=False),  # id of the API key
    sql.Column("label", sql.String(8), nullable=False),  # human or ai
    # Of the prediction
    sql.Column("predicted", sql.String(16), nullable=False),
    sql.Column("model_version", sql.String(16), nullable=False),
    sql.Column("target_fpr", sql.Float, nullable=False),
    sql.Column("score", sql.Float, nullable=False),
    sql.Column("num_tokens", sql.Integer, nullable=False),
    sql.Column("audited", sql.Boolean, nullable=False),
    sql.Column("audit_fraction", sql.Float, nullable=False),
)
_TEXT = ["request_id", "index"]
_COPIED = (*_TEXT, "model_version", "target_fpr", "score", "num_tokens", "audited", "audit_fraction")


class Feedback:
    """The votes in a database. ConfigError if it cannot be opened.

    `spent` is how much of the false accusation budget they had spent at the last `refresh`.
    """

    spent = 0.0

    def __init__(self, storage: Storage, config: MonitoringConfig) -> None:
        self.config = config
        url = config.feedback_url
        if not url:
            if not storage.is_local:
                raise ConfigError(
                    f"monitoring.feedback_url is empty, and {storage.root} is not a local folder, where it would be "
                    "SQLite: give the URL of a database, such as postgresql+psycopg://host/name"
                )
            storage.filesystem.create_dir(storage.path(FOLDER), recursive=True)
            url = f"sqlite:///{storage.path(FOLDER)}/feedback.db"
        try:
            self._engine = sql.create_engine(url)
            _METADATA.create_all(self._engine)
        except (sql.exc.SQLAlchemyError, ImportError) as error:  # its message may repeat a password
            raise ConfigError(
                f"monitoring.feedback_url: expected a database that SQLAlchemy opens, found {type(error).__name__}: "
                "check the address, the driver and the permissions"
            ) from None

    def vote(self, prediction: Mapping[str, Any], key: str, label: Label) -> bool:
        """Record a label of a text, given its row of the prediction log. Returns whether other keys disagree."""
        vote = {name: prediction[name] for name in _COPIED} | {"predicted": prediction["label"]}
        same_text = [VOTES.c[name] == prediction[name] for name in _TEXT]
        with self._engine.begin() as connection:
            connection.execute(sql.insert(VOTES).values(time=datetime.now(UTC), key=key, label=label.value, **vote))
            rows = connection.execute(sql.select(VOTES.c.key, VOTES.c.label).where(*same_text).order_by(VOTES.c.id))
            last = {row.key: row.label for row in rows}
        return len(set(last.values())) > 1

    def refresh(self) -> None:
        """Compute `spent` from all votes, also those that other replicas took; it stays if the database fails."""
        try:
            self.spent = budget(by_text(self.votes()))["spent"]
        except sql.exc.SQLAlchemyError as error:  # its message may repeat a password
            logger.error("the votes cannot be read: %s", type(error).__name__)

    def erase(self, request_id: str) -> int:
        """Delete all votes on a request, and return their number."""
        with self._engine.begin() as connection:
            return int(connection.execute(sql.delete(VOTES).where(VOTES.c.request_id == request_id)).rowcount)

    def votes(self) -> pd.DataFrame:
        """The last vote of each key on each text in `monitoring.log_days`, oldest first, columns as the table."""
        since = datetime.now(UTC) - timedelta(self.config.log_days)
        with self._engine.connect() as connection:
            rows = connection.execute(sql.select(VOTES).where(VOTES.c.time >= since).order_by(VOTES.c.id))
            frame = pd.DataFrame(rows.all(), columns=rows.keys())
        return frame.drop_duplicates(["request_id", "index", "key"], keep="last").reset_index(drop=True)


def report(config: Config, storage: Storage) -> dict[str, Any]:
    """Error rates of the audited texts, the false accusation budget, appeals, conflicts and texts to label.

    Raises ConfigError without a prediction log, or when the database cannot be opened.
    """
    drawn = prediction_log.read(storage, columns=["time", *_TEXT, "audited"]).to_pandas().set_index(_TEXT)
    if drawn.empty:
        raise ConfigError(f"no predictions under {storage.root}: serve with monitoring.log=true")
    texts, audited = by_text(Feedback(storage, config.monitoring).votes()), drawn[drawn["audited"]]
    waiting = audited[~audited.index.isin(texts.index)].head(LISTED)
    appeals = texts[~texts["audited"]].tail(LISTED)
    conflicts = texts[texts["human"].between(0, 1, inclusive="neither")]
    return {
        "predictions": len(drawn),
        "audited": len(audited),
        "rates": error_rates(texts),
        "budget": budget(texts),
        "appeals": appeals.reset_index()[[*_TEXT, "predicted", "human"]].to_dict("records"),
        "conflicts": conflicts.reset_index()[_TEXT].to_dict("records"),
        "to_label": waiting.assign(time=waiting["time"].astype(str)).reset_index()[[*_TEXT, "time"]].to_dict("records"),
    }


def by_text(votes: pd.DataFrame) -> pd.DataFrame:
    """A row for each text, by request and index in the order of their first votes: that of its first vote, and `human`.

    `human` is the fraction of the keys that call it human: a key has one vote, however often it is sent.
    """
    marked = votes.assign(human=(votes["label"] == Label.HUMAN.value).astype(float))
    grouped = marked.groupby(_TEXT, sort=False)
    return grouped.first().assign(human=grouped["human"].mean())


def error_rates(texts: pd.DataFrame) -> dict[str, Any]:
    """False positive and detection rate of the audited texts, by Hájek's estimator, with 95% intervals.

    Takes texts of `by_text`. Intervals are exact for the effective number of texts (Kish 1965). Without audited texts
    the rates are None: those of appeals would be rates of a choice.
    """
    audited = texts[texts["audited"]]
    weights = 1 / audited["audit_fraction"].to_numpy(float)
    is_ai, human = (audited["predicted"] == Label.AI.value).to_numpy(float), audited["human"].to_numpy(float)
    return {
        name: _rate(is_ai, weights * of_class)
        for name, of_class in (("false_positive_rate", human), ("detection_rate", 1 - human))
    }


def _rate(hits: np.ndarray, weights: np.ndarray) -> dict[str, float | None]:
    total = float(weights.sum())
    if not total:
        return {"rate": None, "low": None, "high": None, "texts": 0.0}
    rate, n = float(weights @ hits / total), total**2 / float(weights @ weights)
    low, high = exact_rate_interval(rate * n, n)
    return {"rate": rate, "low": low, "high": high, "texts": n}


def budget(texts: pd.DataFrame) -> dict[str, Any]:
    """How much of the false accusation budget is spent: at 1 the audit shows that its rate is exceeded.

    The likelihood ratio of a rate `ALTERNATIVE` times as high as the target of each text is a test martingale: while
    the targets hold it ever reaches 1 / `FALSE_ALARM` with at most that probability, however often it is looked at
    (Ville 1939). Takes texts of `by_text`.
    """
    audited = texts[texts["audited"] & (texts["human"] > 0.5)]
    rates, accused = audited["target_fpr"].to_numpy(float), (audited["predicted"] == Label.AI.value).to_numpy()
    higher = np.minimum(ALTERNATIVE * rates, (1 + rates) / 2)
    steps = np.where(accused, np.log(higher / rates), np.log((1 - higher) / (1 - rates)))
    spent = float(np.cumsum(steps).max(initial=0.0)) / -math.log(FALSE_ALARM)
    return {"humans": len(audited), "accused": int(accused.sum()), "spent": spent, "is_spent": spent >= 1}
