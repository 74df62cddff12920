"""The stage `drift`: compare logged or replayed texts with a reference; each replica also compares its own texts."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from detect_ai.calibration.leave_one_out import domain_rates
from detect_ai.core.config import Config, DriftConfig
from detect_ai.core.errors import ConfigError, DetectAIError, InputError
from detect_ai.core.job import attempt
from detect_ai.core.storage import Storage
from detect_ai.detector.dataset import Text, texts_of
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from detect_ai.detector.score import read_and_score
from detect_ai.detector.verdict_table import PREDICTIONS
from detect_ai.monitoring.log_files import FOLDER, read
from detect_ai.monitoring.prediction_log import Record, log_secret, prediction_row, sketched
from detect_ai.monitoring.reference import COLUMNS, Check, Reference, Traffic
from detect_ai.reports import plots
from detect_ai.reports.render import render

if TYPE_CHECKING:
    from detect_ai.detector.bundle import DetectorSpec

logger = logging.getLogger("ray.serve")

ALARMS, KEPT_ALARMS = f"{FOLDER}/drift", 100
MAX_REFERENCE = 20_000  # texts of the log; a random sample if there are more
PLOTTED = 2000  # sampled texts of the reference
SEEDS = 50  # replays of each change
MAX_WINDOWS = 20  # per replay
MAX_POOL, MIN_POOL = 400, 50  # texts per replayed value
MAX_VALUES = 8  # per column, the most frequent ones
SHORT_WORDS = 60


def drift(config: Config, storage: Storage) -> dict[str, Any]:
    """Compare the logged texts of a bundle (default: the champion) with a reference, window by window.

    With `monitoring.drift.simulate`, texts of `data` are replayed instead, to measure which changes are detected.
    Raises ConfigError for a log with fewer texts than a window, InputError for a reference with fewer.
    """
    where, bundle = Registry(storage).resolve(config.bundle)
    key = f"runs/{config.run}/{attempt('drift')}"
    with where.local_folder(bundle) as folder:
        detector = Detector.load(folder)
    if config.monitoring.drift.simulate:
        bounds = {"false_alarms": config.monitoring.drift.false_alarms, "seeds": SEEDS, "max_windows": MAX_WINDOWS}
        result = {"version": detector.version, **bounds, "replays": replay(config, detector)}
    else:
        result = {"version": detector.version, **compare_log(config.monitoring.drift, storage, detector.spec)}
    storage.write_json(f"{key}/report.json", result)
    storage.write_bytes(f"{key}/report.html", render("drift.html.jinja", report=result).encode())
    storage.prune(f"runs/{config.run}", "drift-", config.storage.keep)
    short = {name: value for name, value in result.items() if name not in ("windows", "plots")}
    return {**short, "report": f"{key}/report.html"}


def compare_log(config: DriftConfig, storage: Storage, spec: DetectorSpec) -> dict[str, Any]:
    """The windows of the log in order, each with its p-values and alarms, and the result of the last window."""
    after = (pc.field("time") >= _midnight_after(config.days[1])) if config.days else True
    rows = read(storage, columns=("time", *COLUMNS), where=(pc.field("model_version") == spec.version) & after)
    reference = read_reference(config, storage, spec)
    number = len(rows) // config.window
    if not number:
        raise ConfigError(
            f"the log has {len(rows)} texts of version {spec.version} to compare, a window needs {config.window}: wait "
            "for more, or give a smaller monitoring.drift.window"
        )
    windows, checks = [rows.slice(i * config.window, config.window) for i in range(number)], []
    for window in windows:
        check = reference.check(Traffic.of_log(window))
        checks.append({"time": window["time"][-1].as_py().isoformat(), **check._asdict()})
    last, before = Traffic.of_log(windows[-1]), reference.sample(check.ai_fraction, PLOTTED)
    return {
        "texts": len(rows),
        "window": config.window,
        "false_alarms": config.false_alarms,
        "reference": config.reference or "calibration",
        "num_windows": number,
        "num_alarms": sum(bool(one["alarms"]) for one in checks),
        "alarms": check.alarms,
        "sentences": check.sentences,
        "ai_fraction": check.ai_fraction,
        "windows": checks,
        "plots": {
            "p_values": plots.p_values([one["p_values"] for one in checks], reference.level),
            "scores": plots.two_distributions(before.scores, last.scores, "log-odds of AI"),
            "lengths": plots.two_distributions(before.num_tokens, last.num_tokens, "tokens"),
        },
    }


def read_reference(config: DriftConfig, storage: Storage, spec: DetectorSpec) -> Reference:
    """Days of the log if the configuration names them, else the calibration texts of a bundle. Takes some seconds.

    Raises InputError for fewer texts than a window, OSError if storage cannot be read.
    """
    if not config.days:
        traffic, class_weights = Traffic.of_calibration(spec, log_secret(storage))
        return Reference(traffic, config.window, config.false_alarms, class_weights)
    first, end = (_midnight_after(day) for day in (config.days[0] - timedelta(1), config.days[1]))
    where = (pc.field("model_version") == spec.version) & (pc.field("time") >= first) & (pc.field("time") < end)
    rows = read(storage, columns=COLUMNS, where=where)
    if not len(rows):
        raise InputError(
            f"monitoring.drift.reference={config.reference}: no texts of version {spec.version} are in the log"
        )
    number = min(len(rows), max(MAX_REFERENCE, config.window))
    drawn = np.sort(np.random.default_rng(0).choice(len(rows), number, replace=False))
    return Reference(Traffic.of_log(rows.take(drawn)), config.window, config.false_alarms)


def _midnight_after(day: date) -> datetime:
    return datetime.combine(day + timedelta(1), datetime.min.time(), UTC)


def replay(config: Config, detector: Detector) -> list[dict[str, Any]]:
    """Detection delays for changes of the traffic from one value of a column of `data` to another.

    `length` cuts each text to `SHORT_WORDS` words. Each change has the median and the 90% quantile of the number of
    texts until the first alarm, over `SEEDS` replays of up to `MAX_WINDOWS` windows (null: not detected in so many),
    and the error rates in the new traffic.
    """
    if not config.data:
        raise ConfigError("monitoring.drift.simulate: expected data=, a labelled file or folder to replay")
    texts, replays = list(texts_of(config.data, config.score)), []
    for column in config.monitoring.drift.simulate:
        pools = _pools(texts, column)
        if len(pools) < 2:
            raise InputError(
                f"monitoring.drift.simulate={column}: expected a column of {config.data} with at least two values of "
                f"{MIN_POOL} texts, or `length`; found {', '.join(pools) or 'none'}"
            )
        scored = {value: _scored(detector, pool) for value, pool in pools.items()}
        for before in pools:
            window = min(config.monitoring.drift.window, len(scored[before][0]))
            reference = Reference(scored[before][0], window, config.monitoring.drift.false_alarms)
            for after, (traffic, rates) in scored.items():
                noticed = [_noticed_after(reference, traffic, seed) for seed in range(SEEDS)]
                change = {"column": column, "from": before, "to": after, "window": window}
                replays.append({**change, **_summary(noticed), **rates})
    return replays


def _pools(texts: Sequence[Text], column: str) -> dict[str, list[Text]]:
    """Texts by the value of a column, in a fixed random order."""
    shuffled = [texts[i] for i in np.random.default_rng(0).permutation(len(texts)).tolist()]
    if column == "length":
        cut = [replace(text, text=" ".join(text.text.split()[:SHORT_WORDS])) for text in shuffled[:MAX_POOL]]
        return {"as they are": shuffled[:MAX_POOL], f"first {SHORT_WORDS} words": cut}
    pools: dict[str, list[Text]] = {}
    for text in shuffled:
        pools.setdefault(text.values.get(column) or "none", []).append(text)
    largest = sorted(pools, key=lambda value: -len(pools[value]))[:MAX_VALUES]
    return {value: pools[value][:MAX_POOL] for value in largest if len(pools[value]) >= MIN_POOL}


def _scored(detector: Detector, texts: Sequence[Text]) -> tuple[Traffic, dict[str, float | None]]:
    """Texts as traffic, and the error rates on them."""
    documents, scores = read_and_score(detector, texts)
    target = detector.spec.default_target_fpr
    verdicts = [detector.verdict(d, s, None, target) for d, s in zip(documents, scores.tolist(), strict=True)]
    rows = [sketched(prediction_row(*one), b"replay") for one in zip(documents, scores.tolist(), verdicts, strict=True)]
    predictions, labels = (
        np.asarray(of) for of in ([PREDICTIONS[v.label] for v in verdicts], [t.label for t in texts])
    )
    rates = domain_rates("", predictions[labels == 0], predictions[labels == 1])
    return Traffic.of_rows(rows), {name: rates[name] for name in ("fpr", "tpr")}


def _noticed_after(reference: Reference, traffic: Traffic, seed: int) -> int | None:
    """Number of texts until the first alarm; None if there is no alarm in `MAX_WINDOWS` windows."""
    rng = np.random.default_rng(seed)
    for number in range(1, MAX_WINDOWS + 1):
        if reference.check(traffic[rng.integers(0, len(traffic), reference.window)]).alarms:
            return number * reference.window
    return None


def _summary(noticed: Sequence[int | None]) -> dict[str, Any]:
    ends = sorted(noticed, key=lambda number: number or math.inf)
    return {
        "noticed": 1 - noticed.count(None) / len(noticed),
        "median": ends[(len(ends) - 1) // 2],
        "quantile_90": ends[math.ceil(0.9 * len(ends)) - 1],
    }


class DriftWatch:
    """Compares the texts of a replica with `read_reference`, window by window, in the log's thread."""

    def __init__(self, storage: Storage, spec: DetectorSpec, config: DriftConfig, record: Record) -> None:
        self.storage, self.spec, self.config, self.record = storage, spec, config, record
        self._reference: Reference | None = None
        self._rows: list[Mapping[str, Any]] = []
        self._last: Check | None = None
        texts = spec.calibration.num_human + spec.calibration.num_ai
        self._is_on = bool(config.days) or texts >= config.window
        if not self._is_on:
            logger.warning(
                "no drift alarms: calibration had %d texts, monitoring.drift.window=%d", texts, config.window
            )

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows of the prediction log, except rows of another version (a canary) and rows of the reference.

        Records the last comparison on every call, also without rows, because Ray drops metrics that are not set again.
        Raises OSError if storage cannot be read or written; the texts of that window are not compared again.
        """
        if self._is_on:
            own, days = [row for row in rows if row["model_version"] == self.spec.version], self.config.days
            self._rows += [row for row in own if not days or row["time"].date() > days[1]]
        while len(self._rows) >= self.config.window:
            window, self._rows = self._rows[: self.config.window], self._rows[self.config.window :]
            self._check(window)
        if self._last:
            for signal, p_value in self._last.p_values.items():
                self.record("drift_p_value", p_value, signal=signal)
                self.record("drift_alarm", float(signal in self._last.alarms), signal=signal)

    def _check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        try:  # read the reference only when there is a window
            self._reference = self._reference or read_reference(self.config, self.storage, self.spec)
        except DetectAIError as error:
            logger.error("No drift alarms until the next deployment: %s", error)
            self._is_on, self._rows = False, []
            return
        self._last = check = self._reference.check(Traffic.of_rows(rows))
        if check.alarms:
            logger.warning("Drift in the last %d texts: %s", len(rows), " ".join(check.sentences))
            now, known = datetime.now(UTC).isoformat(), {"model_version": self.spec.version, "texts": len(rows)}
            self.storage.write_json(f"{ALARMS}/{attempt('alarm')}.json", {"time": now, **known, **check._asdict()})
            self.storage.prune(ALARMS, "alarm-", KEPT_ALARMS)
