"""Labels that people give to served texts, and error rates from them.

Reported texts are a biased sample: people appeal false positives, but nobody reports a missed AI text. Error rates and
the budget therefore use only audit votes: votes by API keys with the scope `audit` on texts that the service drew at
random (`monitoring.audit_fraction`). All other votes are appeals, which are listed and never averaged.

A vote is one key's label of one text, with facts of its prediction, never the text. The last vote of a key counts.
Audit votes stay until their request is erased, because the budget counts from the first; appeals expire with the log.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sql
from sqlalchemy.sql import func

from detect_ai.core.config import Config, MonitoringConfig
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.metrics import exact_rate_interval
from detect_ai.monitoring import log_files
from detect_ai.monitoring.log_files import FOLDER
from detect_ai.schemas import Label

PASSWORD = "DETECT_AI_FEEDBACK_PASSWORD"  # noqa: S105 - the name of a variable
ALTERNATIVE = 4  # the alternative hypothesis is a false positive rate this many times the budget
FALSE_ALARM = 0.01  # probability that a detector within the budget is ever reported
MIN_LABELLED = 0.8  # of the drawn texts; with fewer labels there are no rates
LISTED = 1000  # texts listed in the report

_METADATA = sql.MetaData()
VOTES = sql.Table(
    "detect_ai_votes",
    _METADATA,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("time", sql.DateTime(timezone=True), nullable=False, index=True),
    sql.Column("request_id", sql.String(128), nullable=False, index=True),
    sql.Column("index", sql.Integer, nullable=False),
    sql.Column("key", sql.String(64), nullable=False),  # id of the API key
    sql.Column("label", sql.String(8), nullable=False),  # human or ai
    sql.Column("audited", sql.Boolean, nullable=False),  # the text was drawn and the key has the scope `audit`
    # Of the prediction
    sql.Column("predicted", sql.String(16), nullable=False),
    sql.Column("model_version", sql.String(16), nullable=False),
    sql.Column("target_fpr", sql.Double, nullable=False),
)
_IDS = ["request_id", "index"]
_FACTS = ["model_version", "target_fpr"]


class Feedback:
    """The votes in a database, opened on first use. All methods raise ConfigError while it is not usable."""

    def __init__(self, storage: Storage, config: MonitoringConfig) -> None:
        self.storage, self.config = storage, config
        self._engine: sql.Engine | None = None

    def vote(self, prediction: Mapping[str, Any], key: str, label: Label, may_audit: bool) -> tuple[bool, bool]:
        """Record a label of a text, given its row of the prediction log; `may_audit`: the key has the scope `audit`.

        Returns whether it is an audit vote, and whether votes of the same kind (audit or appeal) on the text disagree.
        """
        now, audited = datetime.now(UTC), may_audit and bool(prediction["audited"])
        values = {**{name: prediction[name] for name in (*_IDS, *_FACTS)}, "audited": audited}
        alike = [VOTES.c[name] == values[name] for name in (*_IDS, "audited")]
        vote = {**values, "time": now, "key": key, "label": label.value, "predicted": prediction["label"]}
        expired = VOTES.c.time < now - timedelta(self.config.log_days)
        with self._begin() as connection:
            connection.execute(sql.delete(VOTES).where(~VOTES.c.audited, expired))
            connection.execute(sql.insert(VOTES).values(vote))
            labels = connection.scalars(sql.select(VOTES.c.label).where(VOTES.c.id.in_(_last(*alike))).distinct())
            return audited, len(labels.all()) > 1

    def erase(self, request_id: str) -> int:
        """Delete all votes on a request, and return their number."""
        with self._begin() as connection:
            return int(connection.execute(sql.delete(VOTES).where(VOTES.c.request_id == request_id)).rowcount)

    def audited_texts(self) -> pd.DataFrame:
        """Texts with audit votes: `request_id`, `index`, and `truth`, which is null if keys disagree."""
        with self._begin() as connection:
            return pd.read_sql(_audited_texts(), connection)[[*_IDS, "truth"]]

    def appeals(self) -> list[dict[str, Any]]:
        """The newest appeals: the last vote of each key on each text."""
        columns = (*_IDS, "predicted", "label", "key", "model_version", "time")
        chosen = sql.select(*(VOTES.c[name] for name in columns))
        newest = chosen.where(VOTES.c.id.in_(_last(~VOTES.c.audited))).order_by(VOTES.c.id.desc()).limit(LISTED)
        with self._begin() as connection:
            return [{**row, "time": str(row["time"])} for row in connection.execute(newest).mappings()]

    def budgets(self) -> dict[str, dict[str, Any]]:
        """The budget of every version with audited human texts; the database counts them."""
        texts = _audited_texts().subquery()
        groups, is_ai = [texts.c[name] for name in _FACTS], sql.case((texts.c.predicted == Label.AI.value, 1), else_=0)
        rows = sql.select(*groups, func.count(), func.sum(is_ai)).where(texts.c.truth == Label.HUMAN.value)
        counts = defaultdict[str, list[tuple[float, int, int]]](list)
        with self._begin() as connection:
            for row in connection.execute(rows.group_by(*groups)).all():
                version, target, humans, accused = tuple(row)
                counts[version].append((target, humans, int(accused)))
        return {version: budget(own) for version, own in counts.items()}

    @contextmanager
    def _begin(self) -> Iterator[sql.Connection]:
        try:
            self._engine = self._engine or self._open()
            with self._engine.begin() as connection:
                yield connection
        except (sql.exc.SQLAlchemyError, ImportError, OSError) as error:  # the error message may contain a password
            raise ConfigError(
                f"monitoring.feedback_url: expected a database that SQLAlchemy opens, found {type(error).__name__}: "
                "check the address, the driver and the permissions"
            ) from None

    def _open(self) -> sql.Engine:
        if self.config.feedback_url:
            url = sql.make_url(self.config.feedback_url)
            if url.username and PASSWORD in os.environ:
                url = url.set(password=os.environ[PASSWORD])
        elif self.storage.is_local:
            file = Path(self.storage.path(f"{FOLDER}/feedback.db"))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(0o600)
            url = sql.URL.create("sqlite", database=str(file))
        else:
            raise ConfigError(
                f"monitoring.feedback_url is empty, and {self.storage.root} is not a local folder, where it would be "
                "SQLite: give the URL of a database, such as postgresql+psycopg://user@host/name"
            )
        engine = sql.create_engine(url, pool_pre_ping=True)
        try:
            _METADATA.create_all(engine)
        except sql.exc.DBAPIError:  # another process may have created the table meanwhile
            _METADATA.create_all(engine)
        return engine


def _last(*conditions: sql.ColumnElement[bool]) -> sql.Select[Any]:
    """Ids of the last vote of each key on each text."""
    return sql.select(func.max(VOTES.c.id)).where(*conditions).group_by(VOTES.c.key, *(VOTES.c[n] for n in _IDS))


def _audited_texts() -> sql.Select[Any]:
    """Texts with audit votes, facts of their predictions, and `truth`: their label, null if keys disagree."""
    ids, low, high = [VOTES.c[name] for name in _IDS], func.min(VOTES.c.label), func.max(VOTES.c.label)
    facts = [func.min(VOTES.c[name]).label(name) for name in (*_FACTS, "predicted")]
    texts = sql.select(*ids, *facts, sql.case((low == high, low)).label("truth"))
    return texts.where(VOTES.c.id.in_(_last(VOTES.c.audited))).group_by(*ids)


def report(config: Config, storage: Storage) -> dict[str, Any]:
    """Error rates and false accusation budget of every version, appeals, conflicts and texts to label.

    Rates cover the drawn texts in the log, the budget covers all audit votes. Raises ConfigError if there is no
    prediction log or the database is not usable.
    """
    columns = ("time", *_IDS, "model_version", "label", "audited", "audit_fraction")
    log = log_files.read(storage, columns=columns)
    if not log.num_rows:
        raise ConfigError(f"no predictions under {storage.root}: serve with monitoring.log=true")
    feedback = Feedback(storage, config.monitoring)
    texts, budgets = feedback.audited_texts(), feedback.budgets()
    uses = log.group_by(_IDS).aggregate([([], "count_all")])
    drawn = log.filter(log["audited"]).join(uses, _IDS).to_pandas().sort_values("time")
    drawn = drawn.merge(texts, "left", _IDS, indicator=True)
    is_unique = drawn["count_all"] == 1  # with a repeated request id, it is unknown which text a vote is on
    drawn["truth"] = drawn["truth"].where(is_unique)
    waiting = drawn[is_unique & (drawn["_merge"] == "left_only")].head(LISTED)
    return {
        "predictions": log.num_rows,
        "versions": {
            version: {**rates(drawn[drawn["model_version"] == version]), "budget": budgets.get(version, budget([]))}
            for version in sorted({*log["model_version"].to_pylist(), *budgets})
        },
        "appeals": feedback.appeals(),
        "conflicts": texts.loc[texts["truth"].isna(), _IDS].to_dict("records"),
        # Without verdicts, which would bias the labellers.
        "to_label": waiting[[*_IDS, "model_version", "time"]].assign(time=waiting["time"].map(str)).to_dict("records"),
    }


def rates(drawn: pd.DataFrame) -> dict[str, Any]:
    """Error rates of drawn texts, by Hájek's estimator with 95% intervals, if enough of them are labelled.

    Labelling only suspicious texts would bias them. Intervals are exact (Clopper and Pearson 1934) for the effective
    sample size (Kish 1965). `drawn` has the columns `label` of the verdict, `truth` (or null) and `audit_fraction`.
    """
    labelled = drawn[drawn["truth"].notna()]
    fraction = len(labelled) / max(1, len(drawn))
    result: dict[str, Any] = {"drawn": len(drawn), "labelled": fraction, "rates": None, "reason": None}
    if drawn.empty:
        return result | {"reason": "no text was drawn: serve with monitoring.audit_fraction above 0"}
    if fraction < MIN_LABELLED:
        need = f"labels of at least {MIN_LABELLED:.0%} of the drawn texts"
        return result | {"reason": f"expected {need}, found {len(labelled)} of {len(drawn)}"}
    weights, is_ai = 1 / labelled["audit_fraction"].to_numpy(float), (labelled["label"] == Label.AI.value).to_numpy()
    classes = {"false_positive_rate": Label.HUMAN, "detection_rate": Label.AI}
    of_class = {name: (labelled["truth"] == label.value).to_numpy(float) for name, label in classes.items()}
    return result | {"rates": {name: _rate(is_ai, weights * own) for name, own in of_class.items()}}


def _rate(hits: np.ndarray, weights: np.ndarray) -> dict[str, float | None]:
    total = float(weights.sum())
    if not total:
        return {"rate": None, "low": None, "high": None, "texts": 0.0}
    rate, n = float(weights @ hits / total), total**2 / float(weights @ weights)
    low, high = exact_rate_interval(rate * n, n)
    return {"rate": rate, "low": low, "high": high, "texts": n}


def budget(counts: Iterable[tuple[float, int, int]]) -> dict[str, Any]:
    """The spent fraction of the false accusation budget of a version: 1 is evidence that the target FPR is exceeded.

    The likelihood ratio for a rate `ALTERNATIVE` times the budget is a test martingale: within the budget, the
    probability that it ever reaches 1 / `FALSE_ALARM` is at most `FALSE_ALARM`, however often it is checked (Ville
    1939). `counts` has one entry for each target: the target, the number of audited human texts with it since the
    first audit, and how many of them were labelled AI.
    """
    evidence, humans, accused = 0.0, 0, 0
    for rate, n, k in counts:
        higher = min(ALTERNATIVE * rate, (1 + rate) / 2)
        evidence += k * math.log(higher / rate) + (n - k) * math.log((1 - higher) / (1 - rate))
        humans, accused = humans + n, accused + k
    spent = max(0.0, evidence / -math.log(FALSE_ALARM))
    return {"humans": humans, "accused": accused, "spent": spent, "is_spent": spent >= 1}
