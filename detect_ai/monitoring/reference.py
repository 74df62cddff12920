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
from detect_ai.metrics import Floats, Labels
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
    """Scored texts; arrays have one entry for each, `bits` one row.

    Attributes:
        scores: log-odds of AI.
        num_tokens: their lengths.
        outcomes: first reason of an uncertain verdict, or `DECIDED`.
        domains: nearest domain of calibration, "" without one.
        bits: signs of their sketches, of no column where there are none.
        weights: probabilities with which they are drawn for a window.
    """

    scores: Floats
    num_tokens: Labels
    outcomes: NDArray[np.str_]
    domains: NDArray[np.str_]
    bits: NDArray[np.uint8]
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
        bits = np.empty((len(rows), 0), np.uint8)
        if packed and None not in packed:
            bits = sketch_bits(np.asarray(packed, np.uint64))
        return cls(
            np.asarray([row["score"] for row in rows], np.float64),
            np.asarray([row["num_tokens"] for row in rows], np.int64),
            np.asarray([(row["reasons"] or [DECIDED])[0] for row in rows], np.str_),
            np.asarray([row["nearest_domain"] or "" for row in rows], np.str_),
            bits,
            np.full(len(rows), 1 / max(1, len(rows))),
        )

    @classmethod
    def of_calibration(cls, spec: DetectorSpec, secret: bytes) -> Traffic:
        """The calibration texts of a bundle: classes by its prevalence, domains alike within a class."""
        calibration, target = spec.calibration, spec.default_target_fpr
        share = {0: 1 - calibration.prevalence, 1: calibration.prevalence}
        classes = [
            (label, own) for domain in calibration.domains for label, own in enumerate((domain.human, domain.ai))
        ]
        classes = [(label, own) for label, own in classes if len(own)]
        counts = np.bincount([label for label, _ in classes], minlength=2)
        scores, tokens, styles, outcomes, weights = [], [], [], [], []
        for label, own in classes:
            lengths = np.asarray(own.num_tokens)
            required = calibration.required_scores(own.styles)
            decisions = calibration.decide(own.scores, lengths, required, target)
            outcome = np.select(
                [lengths < spec.min_tokens_at(target), decisions == BOTH, decisions == NEITHER],
                [Reason.TOO_SHORT.value, Reason.BETWEEN_THRESHOLDS.value, Reason.UNLIKE_CALIBRATION.value],
                DECIDED,
            )
            scores.append(np.asarray(own.scores))
            tokens.append(lengths)
            styles.append(own.styles)
            outcomes.append(outcome)
            weights.append(np.full(len(own), share[label] / counts[label] / len(own)))
        style = np.concatenate(styles)
        bits = sketch_bits(sketches(style, secret)) if style.shape[1] else None
        total = np.concatenate(weights)
        return cls(
            np.concatenate(scores),
            np.concatenate(tokens),
            np.concatenate(outcomes).astype(np.str_),
            np.asarray([calibration.nearest(row) or "" for row in style], np.str_),
            np.empty((len(style), 0), np.uint8) if bits is None else bits,
            total / total.sum(),
        )


class Check(NamedTuple):
    """The comparison of one window with the reference."""

    p_values: dict[str, float]  # by signal: how often a window without drift differs as much
    alarms: list[str]  # signals beyond the level
    sentences: list[str]  # what has changed, for each alarm

    @property
    def is_alarm(self) -> bool:
        """Whether any signal is beyond the level."""
        return bool(self.alarms)


class _Encoded(NamedTuple):
    """Texts in the terms of the reference, (n, …): positions in its distributions, and indicators."""

    positions: tuple[tuple[Floats, Floats], ...]  # of scores and lengths: fractions of the reference up to, and below
    indicators: dict[str, Floats]  # of outcomes, domains and bits


class Reference:
    """A reference and the distribution of windows of `window` texts without drift.

    A window without drift raises an alarm with probability `false_alarms`, over all signals together. Raises InputError
    for fewer reference texts than a window.
    """

    def __init__(self, traffic: Traffic, window: int, false_alarms: float, seed: int = 0) -> None:
        if len(traffic) < window:
            raise InputError(
                f"monitoring.drift.window={window}: expected at most the {len(traffic)} texts of the reference: give a "
                "smaller window, or more days of the log"
            )
        self.traffic, self.window = traffic, window
        self.signals = [name for name in SIGNALS if name != "words" or traffic.bits.shape[1]]
        if len(set(traffic.domains.tolist())) < 2:
            self.signals.remove("domains")
        self._sorted = [
            self._distribution(values) for values in (traffic.scores, traffic.num_tokens.astype(np.float64))
        ]
        self._names = {"abstentions": np.unique(traffic.outcomes), "domains": np.unique(traffic.domains)}
        own = self._encode(traffic)
        self._expected = {name: traffic.weights @ rows for name, rows in own.indicators.items()}
        rng = np.random.default_rng(seed)
        parts = [
            self._statistics(own, rng.choice(len(traffic), (_CHUNK, window), p=traffic.weights))
            for _ in range(RESAMPLES // _CHUNK)
        ]
        self._null = np.sort(np.concatenate(parts), axis=0)
        smallest = np.sort(np.min(self._p_values(np.concatenate(parts)), axis=1))
        at_most = np.searchsorted(smallest, smallest, side="right") / len(smallest)
        error = 1.64 * np.sqrt(false_alarms * (1 - false_alarms) / RESAMPLES)  # the rate holds with a confidence of 95%
        allowed = smallest[at_most <= false_alarms - error]
        self.level = float(allowed[-1]) if allowed.size else 0.0

    def check(self, live: Traffic) -> Check:
        """Compare a window of `window` texts."""
        assert len(live) == self.window, f"{len(live)} texts in a window of {self.window}"
        statistics = self._statistics(self._encode(live), np.arange(len(live))[None])
        p_values = dict(zip(self.signals, self._p_values(statistics)[0].tolist(), strict=True))
        alarms = [name for name, p in p_values.items() if p <= self.level]
        return Check(p_values, alarms, [self._describe(name, live) for name in alarms])

    def false_alarm_rate(self, windows: int, seed: int) -> float:
        """The fraction of further windows of the reference that raise an alarm."""
        rng, own = np.random.default_rng(seed), self._encode(self.traffic)
        drawn = [rng.choice(len(self.traffic), (1, self.window), p=self.traffic.weights) for _ in range(windows)]
        smallest = np.min(self._p_values(np.concatenate([self._statistics(own, one) for one in drawn])), axis=1)
        return float(np.mean(smallest <= self.level))

    def _distribution(self, values: Floats) -> tuple[Floats, Floats]:
        order = np.argsort(values, kind="stable")
        return values[order], np.concatenate([[0.0], np.cumsum(self.traffic.weights[order])])

    def _encode(self, traffic: Traffic) -> _Encoded:
        positions = []
        values = (traffic.scores, traffic.num_tokens.astype(np.float64))
        for own, (ordered, cumulated) in zip(values, self._sorted, strict=True):
            up_to, below = (cumulated[np.searchsorted(ordered, own, side=side)] for side in ("right", "left"))
            positions.append((up_to, below))
        indicators = {"words": traffic.bits.astype(np.float64)}
        for name, values_of in (("abstentions", traffic.outcomes), ("domains", traffic.domains)):
            known = values_of[:, None] == self._names[name]
            indicators[name] = np.column_stack([known, ~known.any(1)]).astype(np.float64)
        return _Encoded(tuple(positions), indicators)

    def _statistics(self, texts: _Encoded, windows: NDArray[np.int64]) -> Floats:
        """How much windows, given by the texts in each, differ from the reference, shape (windows, signals).

        Kolmogorov and Smirnov's distance of scores and of lengths, the total variation of outcomes and of domains, and
        the mean difference of the frequencies of the signs of the sketches.
        """
        n, values = windows.shape[1], {}
        steps = np.arange(1, n + 1) / n
        for name, (up_to, below) in zip(("scores", "lengths"), texts.positions, strict=True):
            above = steps - np.sort(up_to[windows], axis=1)
            beneath = np.sort(below[windows], axis=1) - (steps - 1 / n)
            values[name] = np.maximum(above.max(1), beneath.max(1))
        number = len(windows)
        members = csr_array(
            (np.full(windows.size, 1 / n), windows.ravel(), np.arange(number + 1) * n),
            shape=(number, len(texts.positions[0][0])),
        )
        for name, rows in texts.indicators.items():
            if name in self.signals:
                differences = np.abs(members @ rows - self._expected[name])
                values[name] = differences.mean(1) if name == "words" else differences.sum(1) / 2
        return np.column_stack([values[name] for name in self.signals])

    def _p_values(self, statistics: Floats) -> Floats:
        reached = [
            len(null) - np.searchsorted(null, own - 1e-12, side="left")
            for null, own in zip(self._null.T, statistics.T, strict=True)
        ]
        return (1 + np.column_stack(reached)) / (1 + len(self._null))

    def _describe(self, signal: str, live: Traffic) -> str:
        """What has changed, in words."""
        if signal in ("scores", "lengths"):
            ordered, cumulated = self._sorted[SIGNALS.index(signal)]
            before = float(ordered[np.searchsorted(cumulated[1:], 0.5).clip(max=len(ordered) - 1)])
            after = float(np.median(live.scores if signal == "scores" else live.num_tokens))
            if signal == "scores":
                moved = "up" if after > before else "down"
                return (
                    f"Scores moved {moved}: the median log-odds of AI are {after:.2f}, in the reference {before:.2f}."
                )
            ratio, kind = (after / before, "longer") if after > before else (before / max(after, 1), "shorter")
            return f"Texts are {ratio:.1f} times {kind}: a median of {after:.0f} tokens, in the reference {before:.0f}."
        if signal == "words":
            return "The words differ from those of the reference: another topic, kind of writing or language."
        values = live.outcomes if signal == "abstentions" else live.domains
        usual = dict(zip(self._names[signal].tolist(), self._expected[signal].tolist(), strict=False))
        now = {name: float(np.mean(values == name)) for name in [*usual, *values.tolist()]}
        name = max(now, key=lambda name: abs(now[name] - usual.get(name, 0.0)))
        what = f"have the outcome {name}" if signal == "abstentions" else f"are most like {name}"
        return f"{100 * now[name]:.0f}% of the texts {what}, in the reference {100 * usual.get(name, 0.0):.0f}%."
