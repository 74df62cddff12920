"""Drift tests: whether served texts match a reference, with one test for each signal. Pure.

The reference is days of the prediction log, or the calibration texts of the bundle with equal weight of all domains in
a class. The fraction of AI texts in the traffic is unknown, and its change is not drift: calibration texts are used as
several mixtures of the classes, and a window raises an alarm only if it differs from every mixture.

A window is compared on `SIGNALS`. The null distribution of their statistics comes from resampled windows and
references, because a reference is a sample too (Bayesian bootstrap, Rubin 1981). That of the smallest p-value gives one
false alarm probability over all signals (Westfall and Young 1993, "Resampling-based multiple testing").

The resampled texts of a window are independent. Real texts come in groups, such as a school class or a newsroom: a
window of them differs more often than by chance, and the alarm then reports that difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array

from detect_ai.calibration.calibration import BOTH, NEITHER
from detect_ai.core.errors import InputError
from detect_ai.metrics import Floats, Labels
from detect_ai.monitoring.log_files import PREDICTIONS
from detect_ai.monitoring.prediction_log import sketch_bits, sketches
from detect_ai.schemas import Reason

if TYPE_CHECKING:
    from detect_ai.detector.bundle import DetectorSpec

SIGNALS = ("scores", "lengths", "abstentions", "domains", "words")
RESAMPLES = 5_000  # windows drawn from a mixture; fewer give no level for `monitoring.drift.false_alarms=0.001`
DECIDED = "decided"  # not abstained
QUANTILES = (0.1, 0.5, 0.9)  # of scores and lengths, in the sentences of an alarm
COLUMNS = ("score", "num_tokens", "reasons", "nearest_domain", "sketch")  # of the log, to compare
SPACING = 6.0  # between the mixtures, in standard deviations of the fraction of AI texts in a window
_PER_REFERENCE = 100  # windows per resampled reference


@dataclass(frozen=True)
class Traffic:
    """Scored texts; arrays have one entry per text, `bits` one row per text.

    Attributes:
        scores: log-odds of AI.
        num_tokens: lengths.
        outcomes: first reason of an uncertain verdict other than a pause by the operator, or `DECIDED`.
        domains: nearest domain of calibration, "" for none.
        bits: signs of the sketches; no columns if any sketch is missing.
    """

    scores: Floats
    num_tokens: Labels
    outcomes: NDArray[np.str_]
    domains: NDArray[np.str_]
    bits: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Traffic:
        """The selected texts."""
        return Traffic(**{name: values[rows] for name, values in vars(self).items()})

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]]) -> Traffic:
        """Traffic from rows of the prediction log."""
        schema = pa.schema([PREDICTIONS.field(name) for name in COLUMNS])
        return cls.of_log(pa.Table.from_pylist(list(rows), schema))

    @classmethod
    def of_log(cls, rows: pa.Table) -> Traffic:
        """Traffic from a table of the prediction log with `COLUMNS`."""
        reasons = rows["reasons"].combine_chunks()
        texts, names = pc.list_parent_indices(reasons).to_numpy(), reasons.flatten().to_numpy(zero_copy_only=False)
        is_own = names != Reason.ABSTAINING.value  # the operator's decision, not a property of the text
        first, positions = np.unique(texts[is_own], return_index=True)
        outcomes = np.full(rows.num_rows, DECIDED, object)
        outcomes[first] = names[is_own][positions]
        sketch = rows["sketch"].combine_chunks()
        return cls(
            rows["score"].to_numpy().astype(np.float64),
            rows["num_tokens"].to_numpy().astype(np.int64),
            outcomes.astype(np.str_),
            rows["nearest_domain"].fill_null("").to_numpy().astype(np.str_),
            np.empty((len(sketch), 0), np.uint8) if sketch.null_count else sketch_bits(sketch.to_numpy()),
        )

    @classmethod
    def of_calibration(cls, spec: DetectorSpec, secret: bytes) -> tuple[Traffic, Floats]:
        """The calibration texts of a bundle, and the probabilities of the human and the AI texts, shape (2, texts)."""
        calibration, target = spec.calibration, spec.default_target_fpr
        cells = [(label, own) for domain in calibration.domains for label, own in enumerate((domain.human, domain.ai))]
        cells = [(label, own) for label, own in cells if len(own)]
        lengths = np.concatenate([own.num_tokens for _, own in cells])
        scores = np.concatenate([own.scores for _, own in cells])
        styles = np.concatenate([own.styles for _, own in cells])
        decisions = np.concatenate(
            [
                calibration.decide(o.scores, o.num_tokens, calibration.required_scores(o.styles), target)
                for _, o in cells
            ]
        )
        outcomes = np.select(
            [lengths < spec.min_tokens_at(target), decisions == BOTH, decisions == NEITHER],
            [Reason.TOO_SHORT.value, Reason.BETWEEN_THRESHOLDS.value, Reason.UNLIKE_CALIBRATION.value],
            DECIDED,
        )
        bits = sketch_bits(sketches(styles, secret)) if styles.shape[1] else np.empty(styles.shape, np.uint8)
        domains = np.asarray([calibration.nearest(style) or "" for style in styles], np.str_)
        weights = np.concatenate(
            [np.outer((label == 0, label == 1), np.full(len(own), 1 / len(own))) for label, own in cells], axis=1
        )
        return cls(scores, lengths, outcomes, domains, bits), weights / weights.sum(axis=1, keepdims=True)


class Check(NamedTuple):
    """The comparison of one window with the reference."""

    p_values: dict[str, float]  # by signal: probability that a window without drift differs at least as much
    alarms: list[str]  # signals with a p-value up to the level
    sentences: list[str]  # description of the change, one per alarm
    ai_fraction: float | None  # of the best-fitting mixture of calibration texts, to which all fields refer


class _Encoded(NamedTuple):
    """Texts encoded relative to the reference."""

    ranks: list[list[Labels]]  # for scores and lengths: numbers of reference values <= and < each; shape (n,) each
    indicators: Floats  # of outcomes, domains and bits, shape (n, …)


class _Mixture(NamedTuple):
    """Texts of a reference with the probabilities `weights`, and the statistics of windows drawn from them."""

    ai_fraction: float | None
    weights: Floats
    expected: Floats  # means of the indicators
    null: Floats  # statistics of windows without drift, sorted within each signal, shape (windows, signals)
    level: float  # a p-value up to this level is an alarm


class Reference:
    """A reference, and the distribution of windows of `window` texts without drift.

    A window without drift raises an alarm with a probability of at most `false_alarms`, over all signals together.
    `class_weights`, shape (2, texts), are the probabilities of the human and the AI texts; without them all texts have
    the same weight and the reference has a fixed fraction of AI texts. Raises InputError for fewer texts than a window.
    """

    def __init__(
        self, traffic: Traffic, window: int, false_alarms: float, class_weights: Floats | None = None, seed: int = 0
    ) -> None:
        if len(traffic) < window:
            raise InputError(
                f"monitoring.drift.window={window}: expected at most the {len(traffic)} texts of the reference: give a "
                "smaller window, or more days of the log"
            )
        self.traffic, self.window, self.false_alarms = traffic, window, false_alarms
        self._order = [np.argsort(values, kind="stable") for values in (traffic.scores, traffic.num_tokens)]
        self._sorted = [traffic.scores[self._order[0]], traffic.num_tokens[self._order[1]]]
        self._names = {"abstentions": np.unique(traffic.outcomes), "domains": np.unique(traffic.domains)}
        ends = np.cumsum([0, *[len(names) + 1 for names in self._names.values()], traffic.bits.shape[1]])
        self._columns = dict(zip(SIGNALS[2:], map(slice, ends[:-1], ends[1:]), strict=True))
        for name, number in (("domains", len(self._names["domains"]) - 1), ("words", traffic.bits.shape[1])):
            if not number:
                del self._columns[name]
        self.signals = ["scores", "lengths", *self._columns]
        own, rng = self._encode(traffic), np.random.default_rng(seed)
        mixtures: dict[float | None, Floats] = {None: np.full(len(traffic), 1 / len(traffic))}
        if class_weights is not None:
            mixtures = {ai: np.asarray([1 - ai, ai]) @ class_weights for ai in ai_fractions(window)}
        self._mixtures = [self._mixture(own, ai, weights, rng) for ai, weights in mixtures.items()]
        self._levels = np.asarray([mixture.level for mixture in self._mixtures])
        self.level = float(self._levels.min())

    def check(self, live: Traffic) -> Check:
        """Compare a window of `window` texts with the best-fitting mixture."""
        assert len(live) == self.window, f"{len(live)} texts in a window of {self.window}"
        each = self._p_values(self._encode(live), np.arange(len(live))[None])[:, 0]
        best = max(range(len(each)), key=lambda i: (each[i].min() > self._levels[i], *np.sort(each[i])))
        p_values, mixture = dict(zip(self.signals, each[best].tolist(), strict=True)), self._mixtures[best]
        alarms = [name for name, p in p_values.items() if p <= mixture.level]
        return Check(p_values, alarms, [self._describe(name, live, mixture) for name in alarms], mixture.ai_fraction)

    def sample(self, ai_fraction: float | None, number: int, seed: int = 0) -> Traffic:
        """Texts drawn from the mixture of a `Check`."""
        (weights,) = (mixture.weights for mixture in self._mixtures if mixture.ai_fraction == ai_fraction)
        return self.traffic[np.random.default_rng(seed).choice(len(weights), number, p=weights)]

    def alarm_rate(self, texts: Traffic, windows: int, seed: int, weights: Floats | None = None) -> float:
        """The fraction of windows that raise an alarm, drawn from texts uniformly or with probabilities `weights`."""
        rng, encoded, alarms = np.random.default_rng(seed), self._encode(texts), 0
        for start in range(0, windows, 1000):
            drawn = rng.choice(len(texts), (min(1000, windows - start), self.window), p=weights)
            smallest = self._p_values(encoded, drawn).min(axis=2)
            alarms += int((smallest <= self._levels[:, None]).all(axis=0).sum())
        return alarms / windows

    def _mixture(self, own: _Encoded, ai_fraction: float | None, weights: Floats, rng: np.random.Generator) -> _Mixture:
        windows = rng.choice(len(weights), (RESAMPLES // _PER_REFERENCE, _PER_REFERENCE, self.window), p=weights)
        resampled = weights * rng.standard_exponential((len(windows), len(weights)))
        resampled /= resampled.sum(axis=1, keepdims=True)
        references = zip(windows, resampled, resampled.astype(np.float32) @ own.indicators, strict=True)
        null = np.concatenate([self._statistics(own, *reference) for reference in references])
        ordered = np.sort(null, axis=0)
        smallest = np.sort(_reached(ordered, null).min(axis=1)) / RESAMPLES
        at_most = np.searchsorted(smallest, smallest, side="right") / RESAMPLES
        allowed = self.false_alarms - 1.64 * math.sqrt(self.false_alarms * (1 - self.false_alarms) / RESAMPLES)
        level = float(max(smallest[at_most <= allowed], default=1 / (1 + RESAMPLES)))  # with a confidence of 95%
        return _Mixture(ai_fraction, weights, weights.astype(np.float32) @ own.indicators, ordered, level)

    def _encode(self, traffic: Traffic) -> _Encoded:
        ranks = [
            [np.searchsorted(ordered, own, side="right"), np.searchsorted(ordered, own, side="left")]
            for own, ordered in zip((traffic.scores, traffic.num_tokens), self._sorted, strict=True)
        ]
        columns = [traffic.bits]
        for own, names in zip((traffic.domains, traffic.outcomes), reversed(self._names.values()), strict=True):
            known = own[:, None] == names
            columns = [known, ~known.any(1, keepdims=True), *columns]
        return _Encoded(ranks, np.column_stack(columns).astype(np.float32))

    def _statistics(self, texts: _Encoded, windows: NDArray[np.int64], weights: Floats, expected: Floats) -> Floats:
        """Differences of windows, given as positions of their texts, from a reference; shape (windows, signals).

        Kolmogorov-Smirnov distance for scores and lengths, total variation distance for outcomes and domains, and mean
        absolute difference of the sign frequencies for sketches.
        """
        number, n = windows.shape
        steps, values = np.arange(1, n + 1) / n, []
        for order, (up_to, below) in zip(self._order, texts.ranks, strict=True):
            cumulated = np.concatenate([[0.0], np.cumsum(weights[order])])
            above = steps - cumulated[np.sort(up_to[windows], axis=1)]
            beneath = cumulated[np.sort(below[windows], axis=1)] - (steps - 1 / n)
            values.append(np.maximum(above.max(1), beneath.max(1)))
        members = csr_array(
            (np.full(windows.size, 1 / n, np.float32), windows.ravel(), np.arange(number + 1) * n),
            shape=(number, len(texts.indicators)),
        )
        differences = np.abs(members @ texts.indicators - expected)
        for name, own in self._columns.items():
            values.append(differences[:, own].mean(1) if name == "words" else differences[:, own].sum(1) / 2)
        return np.column_stack(values)

    def _p_values(self, texts: _Encoded, windows: NDArray[np.int64]) -> Floats:
        """p-values of windows, given as positions of their texts; shape (mixtures, windows, signals)."""
        each = [
            _reached(mixture.null, self._statistics(texts, windows, mixture.weights, mixture.expected))
            for mixture in self._mixtures
        ]
        return (1 + np.stack(each)) / (1 + RESAMPLES)

    def _describe(self, signal: str, live: Traffic, mixture: _Mixture) -> str:
        """A sentence that describes the change."""
        reference = "the reference"
        if mixture.ai_fraction is not None:
            reference = f"calibration texts with {100 * mixture.ai_fraction:.0f}% AI"
        if signal in ("scores", "lengths"):
            i = SIGNALS.index(signal)
            before = self._sorted[i][np.searchsorted(np.cumsum(mixture.weights[self._order[i]]), QUANTILES)]
            after = np.quantile((live.scores, live.num_tokens)[i], QUANTILES, method="inverted_cdf")
            what, more, less, unit = (
                ("Scores", "higher", "lower", "log-odds of AI"),
                ("Texts", "longer", "shorter", "tokens"),
            )[i]
            how = more if (after >= before).all() else less if (after <= before).all() else "distributed differently"
            now, usual = (", ".join(f"{round(value, 1):g}" for value in values.tolist()) for values in (after, before))
            return f"{what} are {how}: {now} {unit} (10%, 50% and 90% quantiles), in {reference} {usual}."
        if signal == "words":
            return f"The words differ from those of {reference}: another topic, kind of writing or language."
        values = live.outcomes if signal == "abstentions" else live.domains
        rates = dict(zip(self._names[signal].tolist(), mixture.expected[self._columns[signal]].tolist(), strict=False))
        changes = {name: float(np.mean(values == name)) - rates.get(name, 0.0) for name in [*rates, *values.tolist()]}
        name = max(changes, key=lambda name: abs(changes[name]))
        rate, what = rates.get(name, 0.0), "have the outcome" if signal == "abstentions" else "are most like"
        return f"{100 * (rate + changes[name]):.0f}% of the texts {what} {name}, in {reference} {100 * rate:.0f}%."


def ai_fractions(window: int) -> list[float]:
    """Fractions of AI texts in [0, 1], dense enough that a window with any fraction matches one of them.

    On the scale of arcsin √fraction, the standard deviation of a window's fraction is 1 / (2 √window) everywhere.
    """
    number = 1 + math.ceil(math.pi * math.sqrt(window) / SPACING)
    return [float(value) for value in np.sin(np.linspace(0, np.pi / 2, number)) ** 2]


def _reached(ordered: Floats, statistics: Floats) -> Labels:
    """Numbers of windows without drift that differ at least as much, by column."""
    counts = [len(null) - np.searchsorted(null, own - 1e-5) for null, own in zip(ordered.T, statistics.T, strict=True)]
    return np.column_stack(counts)
