"""Whether texts that a service reads are like a reference, by one test for each kind of signal. Pure.

The reference is the calibration texts of the bundle, all domains and both classes alike, or days of the prediction log.
A window of live texts is compared with it by `SIGNALS`; the distribution of every statistic without drift is that of
windows drawn from the reference, and so is that of the smallest of their p-values, which gives one probability of a
false alarm over all signals (Westfall and Young 1993, "Resampling-based multiple testing").

Texts of one window are drawn independently. Real ones come in bunches, from a class or a newsroom: a window of them
differs from the others more often than by chance, and that is what the alarm then says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from detect_ai.calibration.calibration import BOTH, NEITHER
from detect_ai.core.errors import InputError
from detect_ai.metrics import Floats
from detect_ai.monitoring.prediction_log import sketch_bits, sketches
from detect_ai.schemas import Reason

if TYPE_CHECKING:
    from detect_ai.detector.bundle import DetectorSpec

SIGNALS = ("scores", "lengths", "abstentions", "domains", "words")
RESAMPLES = 20_000  # windows drawn from the reference
DECIDED = "decided"  # not abstained
_CHUNK = 1000  # windows at once


@dataclass(frozen=True)
class Traffic:
    """Scored texts by signal; arrays have one entry for each, `words` one row.

    Attributes:
        scores: log-odds of AI.
        lengths: in tokens.
        abstentions: first reason of an uncertain verdict, or `DECIDED`.
        domains: nearest domain of calibration, "" without one.
        words: signs of their sketches, of no column where there are none.
        weights: probabilities with which they are drawn for a window.
    """

    scores: Floats
    lengths: Floats
    abstentions: NDArray[np.str_]
    domains: NDArray[np.str_]
    words: NDArray[np.uint8]
    weights: Floats

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Traffic:
        """Some of the texts."""
        return Traffic(**{name: values[rows] for name, values in vars(self).items()})

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]]) -> Traffic:
        """From rows of the prediction log."""
        packed = [row["sketch"] for row in rows]
        return cls(
            np.asarray([row["score"] for row in rows], np.float64),
            np.asarray([row["num_tokens"] for row in rows], np.float64),
            np.asarray([(row["reasons"] or [DECIDED])[0] for row in rows], np.str_),
            np.asarray([row["nearest_domain"] or "" for row in rows], np.str_),
            np.empty((len(rows), 0), np.uint8) if None in packed else sketch_bits(np.asarray(packed, np.uint64)),
            np.full(len(rows), 1 / max(1, len(rows))),
        )

    @classmethod
    def of_calibration(cls, spec: DetectorSpec, secret: bytes) -> Traffic:
        """The calibration texts of a bundle: classes by its prevalence, domains alike within a class."""
        calibration, target = spec.calibration, spec.default_target_fpr
        human = [domain.human for domain in calibration.domains if len(domain.human)]
        ai = [domain.ai for domain in calibration.domains if len(domain.ai)]
        scores, lengths, styles = (
            np.concatenate([getattr(texts, name) for texts in (*human, *ai)])
            for name in ("scores", "num_tokens", "styles")
        )
        decisions = calibration.decide(scores, lengths, calibration.required_scores(styles), target)
        reasons = [
            (lengths < spec.min_tokens_at(target), Reason.TOO_SHORT),
            (decisions == BOTH, Reason.BETWEEN_THRESHOLDS),
            (decisions == NEITHER, Reason.UNLIKE_CALIBRATION),
        ]
        weights = [
            np.full(len(texts), prior / len(domains) / len(texts))
            for prior, domains in ((1 - calibration.prevalence, human), (calibration.prevalence, ai))
            for texts in domains
        ]
        return cls(
            scores,
            lengths.astype(np.float64),
            np.select([own for own, _ in reasons], [reason.value for _, reason in reasons], DECIDED),
            np.asarray([calibration.nearest(style) or "" for style in styles], np.str_),
            sketch_bits(sketches(styles, secret)) if styles.shape[1] else np.empty(styles.shape, np.uint8),
            np.concatenate(weights),
        )


class Check(NamedTuple):
    """The comparison of one window with the reference."""

    p_values: dict[str, float]  # by signal: how often a window without drift differs as much
    alarms: list[str]  # signals beyond the level
    sentences: list[str]  # what has changed, for each alarm


class Reference:
    """A reference and the distribution of windows of `window` texts without drift.

    A window without drift raises an alarm with probability `false_alarms`, over all signals together. Raises InputError
    for fewer reference texts than a window.
    """

    def __init__(self, traffic: Traffic, window: int, false_alarms: float) -> None:
        if len(traffic) < window:
            raise InputError(
                f"monitoring.drift.window={window}: expected at most the {len(traffic)} texts of the reference: give a "
                "smaller window, or more days of the log"
            )
        self.traffic, self.window = traffic, window
        self.signals = [name for name in SIGNALS if name != "words" or traffic.words.shape[1]]
        if len(np.unique(traffic.domains)) < 2:
            self.signals.remove("domains")
        self._sorted: dict[str, tuple[Floats, Floats]] = {}  # values in their order, cumulated weights
        for name in ("scores", "lengths"):
            values = getattr(traffic, name)
            order = np.argsort(values, kind="stable")
            self._sorted[name] = values[order], np.concatenate([[0.0], np.cumsum(traffic.weights[order])])
        self._names = {name: np.unique(getattr(traffic, name)) for name in ("abstentions", "domains")}
        self._expected = {name: traffic.weights @ rows for name, rows in self._encode(traffic).items()}
        drawn = self._drawn(RESAMPLES, seed=0)
        self._null = np.sort(drawn, axis=0)
        smallest = np.sort(self._p_values(drawn).min(axis=1))
        at_most = np.searchsorted(smallest, smallest, side="right") / len(smallest)
        error = 1.64 * np.sqrt(false_alarms * (1 - false_alarms) / RESAMPLES)  # the rate holds with a confidence of 95%
        self.level = float(smallest[at_most <= false_alarms - error].max(initial=0.0))

    def check(self, live: Traffic) -> Check:
        """Compare a window of `window` texts."""
        assert len(live) == self.window, f"{len(live)} texts in a window of {self.window}"
        statistics = self._statistics(self._encode(live), np.arange(len(live))[None])
        p_values = dict(zip(self.signals, self._p_values(statistics)[0].tolist(), strict=True))
        alarms = [name for name, p in p_values.items() if p <= self.level]
        return Check(p_values, alarms, [self._describe(name, live) for name in alarms])

    def false_alarm_rate(self, windows: int, seed: int) -> float:
        """The fraction of further windows of the reference that raise an alarm."""
        return float((self._p_values(self._drawn(windows, seed)).min(axis=1) <= self.level).mean())

    def _encode(self, traffic: Traffic) -> dict[str, Floats]:
        """Texts in the terms of the reference, by signal, a row for each.

        Of scores and lengths the fractions of the reference up to them and below them, of the others indicators.
        """
        rows = {"words": traffic.words.astype(np.float64)}
        for name, (ordered, cumulated) in self._sorted.items():
            values = getattr(traffic, name)
            rows[name] = np.column_stack([cumulated[np.searchsorted(ordered, values, s)] for s in ("right", "left")])
        for name, names in self._names.items():
            known = getattr(traffic, name)[:, None] == names
            rows[name] = np.column_stack([known, ~known.any(1)]).astype(np.float64)
        return rows

    def _drawn(self, windows: int, seed: int) -> Floats:
        """The statistics of windows drawn from the reference."""
        rng, rows, n = np.random.default_rng(seed), self._encode(self.traffic), len(self.traffic)
        sizes = ((min(_CHUNK, windows - start), self.window) for start in range(0, windows, _CHUNK))
        return np.concatenate([self._statistics(rows, rng.choice(n, size, p=self.traffic.weights)) for size in sizes])

    def _statistics(self, rows: Mapping[str, Floats], windows: NDArray[np.int64]) -> Floats:
        """How much windows, given by the texts in each, differ from the reference, shape (windows, signals).

        Kolmogorov and Smirnov's distance of scores and of lengths, and the sum of the absolute differences of the
        frequencies of the others.
        """
        number, n = windows.shape
        ends, steps = np.arange(number + 1) * n, np.arange(1, n + 1) / n
        means = csr_array((np.full(windows.size, 1 / n), windows.ravel(), ends), shape=(number, len(rows["scores"])))
        columns = []
        for name in self.signals:
            if name in self._sorted:
                up_to, below = (np.sort(fractions[windows], axis=1) for fractions in rows[name].T)
                columns.append(np.maximum((steps - up_to).max(1), (below - steps + 1 / n).max(1)))
            else:
                columns.append(np.abs(means @ rows[name] - self._expected[name]).sum(1))
        return np.column_stack(columns)

    def _p_values(self, statistics: Floats) -> Floats:
        reached = [
            len(null) - np.searchsorted(null, own - 1e-12, side="left")
            for null, own in zip(self._null.T, statistics.T, strict=True)
        ]
        return (1 + np.column_stack(reached)) / (1 + len(self._null))

    def _describe(self, signal: str, live: Traffic) -> str:
        """What has changed, in words."""
        if signal == "words":
            return "The words differ from those of the reference: another topic, kind of writing or language."
        values = getattr(live, signal)
        if signal in self._sorted:
            ordered, cumulated = self._sorted[signal]
            before, unit = ordered[np.searchsorted(cumulated[1:], 0.5)], "tokens" if signal == "lengths" else "log-odds"
            return f"The median of the {signal} is {np.median(values):.4g} {unit}, in the reference {before:.4g}."
        usual = dict(zip(self._names[signal].tolist(), self._expected[signal].tolist(), strict=False))
        now = {name: float(np.mean(values == name)) for name in [*usual, *values.tolist()]}
        name = max(now, key=lambda name: abs(now[name] - usual.get(name, 0.0)))
        what = f"have the outcome {name}" if signal == "abstentions" else f"are most like {name}"
        return f"{100 * now[name]:.0f}% of the texts {what}, in the reference {100 * usual.get(name, 0.0):.0f}%."
