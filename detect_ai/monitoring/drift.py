"""The stage `drift`: whether logged or replayed texts are like a reference; a replica asks the same of its texts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from detect_ai.core.config import Config, DriftConfig
from detect_ai.core.errors import ConfigError, InputError
from detect_ai.core.job import attempt
from detect_ai.core.storage import Storage
from detect_ai.detector.dataset import Text, texts_of
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from detect_ai.monitoring.prediction_log import FOLDER, log_secret, prediction_row, read
from detect_ai.monitoring.reference import Check, Reference, Traffic
from detect_ai.reports import plots
from detect_ai.reports.render import render

if TYPE_CHECKING:
    from detect_ai.detector.bundle import DetectorSpec

logger = logging.getLogger("ray.serve")

KEPT_ALARMS = 100
COLUMNS = ("time", "model_version", "score", "num_tokens", "reasons", "nearest_domain", "sketch")
SEEDS = 50  # replays of each change
MAX_WINDOWS = 20  # of a replay
MAX_POOL, MIN_POOL = 400, 50  # texts of a value that is replayed
MAX_VALUES = 8  # of a column, the most frequent ones
SHORT_WORDS = 60


def drift(config: Config, storage: Storage) -> dict[str, Any]:
    """Compare the logged texts of a bundle, the champion unless one is named, with a reference, a window at a time.

    With `monitoring.drift.simulate` texts of `data` are replayed instead, to see what would be noticed. Raises
    ConfigError for a log with fewer texts than a window, InputError for a reference with fewer.
    """
    where, bundle = Registry(storage).resolve(config.bundle)
    key = f"runs/{config.run}/{attempt('drift')}"
    with where.local_folder(bundle) as folder:
        detector = Detector.load(folder)
    if config.monitoring.drift.simulate:
        result = {"version": detector.version, "replays": replay(config, detector)}
    else:
        result = {"version": detector.version, **compare_log(config.monitoring.drift, storage, detector.spec)}
    storage.write_json(f"{key}/report.json", result)
    storage.write_bytes(f"{key}/report.html", render("drift.html.jinja", report=result).encode())
    storage.prune(f"runs/{config.run}", "drift-", config.storage.keep)
    short = {name: value for name, value in result.items() if name not in ("windows", "plots")}
    return {**short, "report": f"{key}/report.html"}


def compare_log(config: DriftConfig, storage: Storage, spec: DetectorSpec) -> dict[str, Any]:
    """The windows of the log in their order, each with its p-values and alarms, and the verdict on the last one."""
    rows = [row for row in read(storage, columns=COLUMNS).to_pylist() if row["model_version"] == spec.version]
    reference = Traffic.of_calibration(spec, log_secret(storage))
    if config.reference:
        first, last = _days(config.reference)
        reference = Traffic.of_rows([row for row in rows if first <= row["time"].date() <= last])
        rows = [row for row in rows if row["time"].date() > last]
    number = len(rows) // config.window
    if not number:
        raise ConfigError(
            f"the log has {len(rows)} texts of version {spec.version} to compare, a window needs {config.window}: wait "
            "for more, or give a smaller monitoring.drift.window"
        )
    fitted = Reference(reference, config.window, config.false_alarms)
    live, windows = Traffic.of_rows(rows), []
    for i in range(number):
        own = slice(i * config.window, (i + 1) * config.window)
        windows.append({"time": rows[own.stop - 1]["time"].isoformat(), **fitted.check(live[own])._asdict()})
    last_window = live[slice((number - 1) * config.window, number * config.window)]
    return {
        "texts": len(rows),
        "window": config.window,
        "false_alarms": config.false_alarms,
        "reference": config.reference or "calibration",
        "num_windows": number,
        "num_alarms": sum(bool(window["alarms"]) for window in windows),
        "alarms": windows[-1]["alarms"],
        "sentences": windows[-1]["sentences"],
        "windows": windows,
        "plots": {
            "p_values": plots.p_values([window["p_values"] for window in windows], fitted.level),
            "scores": plots.two_distributions(reference.scores, last_window.scores, "log-odds of AI"),
            "lengths": plots.two_distributions(reference.lengths, last_window.lengths, "tokens"),
        },
    }


def _days(given: str) -> tuple[date, date]:
    try:
        first, last = map(date.fromisoformat, given.split("/"))
    except ValueError:
        raise ConfigError(
            f"monitoring.drift.reference={given}: expected a first and a last day, such as 2026-11-01/2026-11-14"
        ) from None
    return first, last


def replay(config: Config, detector: Detector) -> list[dict[str, Any]]:
    """What is noticed when traffic changes from one value of a column of `data` to another, and after how many texts.

    `length` cuts each text to `SHORT_WORDS` words. A change has the median and the 90% quantile of the texts until the
    first alarm over `SEEDS` replays of up to `MAX_WINDOWS` windows (null: not noticed in so many), and the error rates
    in the new traffic.
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
        before_values = ["as they are"] if column == "length" else list(pools)
        for before in before_values:
            window = min(config.monitoring.drift.window, len(scored[before][0]))
            reference = Reference(scored[before][0], window, config.monitoring.drift.false_alarms)
            for after, (traffic, rates) in scored.items():
                noticed = [_noticed_after(reference, traffic, seed) for seed in range(SEEDS)]
                replays.append({"column": column, "from": before, "to": after, **_summary(noticed), **rates})
    return replays


def _pools(texts: Sequence[Text], column: str) -> dict[str, list[Text]]:
    """Texts by the value of a column, in a fixed random order."""
    order = np.random.default_rng(0).permutation(len(texts)).tolist()
    if column == "length":
        whole = [texts[i] for i in order][:MAX_POOL]
        cut = [text.__class__(text.row, text.id, _first_words(text.text), text.label, text.values) for text in whole]
        return {"as they are": whole, f"first {SHORT_WORDS} words": cut}
    pools: dict[str, list[Text]] = {}
    for i in order:
        pools.setdefault(texts[i].values.get(column) or "none", []).append(texts[i])
    largest = sorted(pools, key=lambda value: -len(pools[value]))[:MAX_VALUES]
    return {value: pools[value][:MAX_POOL] for value in largest if len(pools[value]) >= MIN_POOL}


def _first_words(text: str) -> str:
    return " ".join(text.split()[:SHORT_WORDS])


def _scored(detector: Detector, texts: Sequence[Text]) -> tuple[Traffic, dict[str, float | None]]:
    """The traffic of texts, and their error rates."""
    target = detector.spec.default_target_fpr
    documents = detector.read([text.text for text in texts])
    scores = detector.score([document.input_ids for document in documents])
    verdicts = [detector.verdict(d, s, None, target) for d, s in zip(documents, scores.tolist(), strict=True)]
    is_ai = np.asarray([verdict.label == "ai" for verdict in verdicts])
    labels = np.asarray([-1 if text.label is None else text.label for text in texts])
    rates = {
        name: float(is_ai[labels == label].mean()) if (labels == label).any() else None
        for name, label in (("fpr", 0), ("tpr", 1))
    }
    rows = map(prediction_row, documents, scores.tolist(), verdicts, repeat(b"replay"))
    return Traffic.of_rows(list(rows)), rates


def _noticed_after(reference: Reference, traffic: Traffic, seed: int) -> int | None:
    """Texts until the first alarm; None if there is none in `MAX_WINDOWS` windows."""
    rng = np.random.default_rng(seed)
    for number in range(1, MAX_WINDOWS + 1):
        if reference.check(traffic[rng.integers(0, len(traffic), reference.window)]).alarms:
            return number * reference.window
    return None


def _summary(noticed: Sequence[int | None]) -> dict[str, Any]:
    found = sorted(number for number in noticed if number is not None)
    ends = [*found, *[None] * (len(noticed) - len(found))]
    return {
        "noticed": len(found) / len(noticed),
        "median": ends[(len(ends) - 1) // 2],
        "quantile_90": ends[int(np.ceil(0.9 * len(ends))) - 1],
    }


class DriftWatch:
    """Compares the texts of a replica with the calibration of its bundle, a window at a time, in the log's thread."""

    def __init__(self, storage: Storage, spec: DetectorSpec, config: DriftConfig, record: Callable[..., None]) -> None:
        self.storage, self.spec, self.config, self.record = storage, spec, config, record
        self._reference: Reference | None = None
        self._rows: list[Mapping[str, Any]] = []
        self._last: Check | None = None
        texts = spec.calibration.num_human + spec.calibration.num_ai
        self._is_on = config.window <= texts
        if not self._is_on:
            logger.warning(
                "monitoring.drift.window=%d: no drift alarms, calibration had %d texts", config.window, texts
            )

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows of the prediction log; those of another version, a canary, are left out.

        Records the last comparison each time, also without rows: Ray forgets metrics that are not set again.
        """
        if self._is_on:
            self._rows += [row for row in rows if row["model_version"] == self.spec.version]
        while len(self._rows) >= self.config.window:
            window, self._rows = self._rows[: self.config.window], self._rows[self.config.window :]
            self._check(window)
        if self._last:
            for signal, p_value in self._last.p_values.items():
                self.record("drift_p_value", p_value, signal=signal)
                self.record("drift_alarm", float(signal in self._last.alarms), signal=signal)

    def _check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self._reference is None:  # some seconds of work: not before there is a window
            traffic = Traffic.of_calibration(self.spec, log_secret(self.storage))
            self._reference = Reference(traffic, self.config.window, self.config.false_alarms)
        self._last = check = self._reference.check(Traffic.of_rows(rows))
        if check.alarms:
            now = datetime.now(UTC)
            logger.warning("Drift in the last %d texts: %s", len(rows), " ".join(check.sentences))
            alarm = {"time": now.isoformat(), "model_version": self.spec.version, "texts": len(rows), **check._asdict()}
            name = f"alarm-{now.strftime('%Y%m%dT%H%M%S%f')}.json"
            try:
                self.storage.write_bytes(f"{FOLDER}/drift/{name}", json.dumps(alarm, indent=2).encode())
                self.storage.prune(f"{FOLDER}/drift", "alarm-", KEPT_ALARMS)
            except OSError as error:
                logger.error("The drift alarm was not written: %s", error)
