"""Calibration of a detector: probabilities, p-values and decisions at a target false positive rate.

Scores are log-odds: higher = more AI. Decisions use scores standardised by length (`calibration.length`): `ai` compares
a text with human texts, `human` compares it with AI texts.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict
from scipy.special import logit

from detect_ai.calibration.conformal import Threshold, p_value
from detect_ai.calibration.length import LengthModel
from detect_ai.calibration.new_domain import DomainEffects
from detect_ai.calibration.scaling import Scaling
from detect_ai.metrics import Floats, Labels
from detect_ai.schemas import Reference

HUMAN, AI, BOTH, NEITHER = 0, 1, -1, -2


@dataclass(frozen=True)
class Scores:
    """Document scores of texts of one class, their lengths in tokens, and their styles.

    `packed_styles` are the styles of `models.style` in half precision; empty: none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    scores: tuple[float, ...]
    num_tokens: tuple[int, ...]
    packed_styles: str = ""

    @classmethod
    def of(cls, scores: ArrayLike, num_tokens: ArrayLike, styles: ArrayLike) -> Scores:
        """Scores from arrays of shape (n,), and of shape (n, dimensions) for the styles."""
        packed = base64.b64encode(np.asarray(styles, "<f2").tobytes()).decode()
        return cls(tuple(np.asarray(scores).tolist()), tuple(np.asarray(num_tokens).tolist()), packed)

    @cached_property
    def styles(self) -> Floats:
        """The styles, shape (n, dimensions); zero dimensions if there are none."""
        packed = np.frombuffer(base64.b64decode(self.packed_styles), "<f2")
        return packed.astype(np.float64).reshape(len(self), packed.size // max(1, len(self)))

    def __len__(self) -> int:
        return len(self.scores)

    def standardised(self, length: LengthModel) -> Floats:
        """The scores, standardised by length."""
        return length.standardise(self.scores, self.num_tokens)


@dataclass(frozen=True)
class Domain:
    """Scores of the calibration texts of one kind of writing."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    human: Scores
    ai: Scores


@dataclass(frozen=True)
class Population:
    """The writers for whose texts the thresholds hold.

    Attributes:
        name: given by the operator.
        style: mean style of their texts, a unit vector; zero dimensions in a bundle without styles.
        reach: cosine similarity to `style` below which a text is unlike theirs; -1: all texts are within reach.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    style: tuple[float, ...]
    reach: float

    def is_unlike(self, styles: ArrayLike) -> NDArray[np.bool_]:
        """Whether texts with these styles, shape (n, dimensions), are out of reach; shape (n,)."""
        return np.asarray(np.asarray(styles, np.float64) @ np.asarray(self.style, np.float64) < self.reach)


@dataclass(frozen=True)
class LengthRates:
    """Verdicts on calibration texts and spans of them, with at least `low` and fewer than `high` tokens.

    Attributes:
        num_human, accused: number of human texts, and how many of them are labelled AI.
        num_ai, found, cleared: number of AI texts, how many are labelled AI, and how many human.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    low: int
    high: int | None
    num_human: int
    accused: int
    num_ai: int
    found: int
    cleared: int


@dataclass(frozen=True)
class Calibration(Scaling):
    """Scaling, thresholds and reference scores.

    With enough domains, the thresholds depend on the style of a text and hold for a domain that calibration never saw
    (`calibration.new_domain`). Otherwise they hold only for texts like those of the calibration split
    (`calibration.conformal`), or of one population of writers.

    Attributes:
        thresholds: by target FPR, on standardised scores, for a style unlike all domains.
        cleared_below: a text is `human` only below this score, standardised as for an AI text.
        unlike_below: a text is `ai` only from this score on, standardised as for an AI text.
        human_length, ai_length: how the scores of the classes change with length.
        domains: all calibration texts.
        domain_effects: how the tails of human scores differ between domains; None with too few domains.
        prevalence: fraction of AI texts that the probabilities assume.
        min_tokens: by target, the length from which the error rates hold.
        by_length: by target, the verdicts that `min_tokens` is based on.
        span_scaling: scaling of sentence scores, fitted on spans of documents; None without span scores.
        population: the writers of all human texts in `domains`; None unless recalibrated.
    """

    thresholds: dict[float, Threshold]
    cleared_below: float
    unlike_below: float
    human_length: LengthModel
    ai_length: LengthModel
    domains: tuple[Domain, ...]
    domain_effects: DomainEffects | None
    prevalence: float
    min_tokens: dict[float, int] = field(default_factory=dict)
    by_length: dict[float, tuple[LengthRates, ...]] = field(default_factory=dict)
    span_scaling: Scaling | None = None
    population: Population | None = None

    @property
    def compared_with(self) -> Reference:
        """The kind of texts for which the thresholds hold."""
        if self.population:
            return Reference.POPULATION
        return Reference.NEW_DOMAIN if self.domain_effects else Reference.CALIBRATION_TEXTS

    @property
    def named_domains(self) -> tuple[str, ...]:
        """All names that `nearest` may return."""
        if self.population:
            return (self.population.name,)
        return self.domain_effects.domains if self.domain_effects else ()

    def nearest(self, style: ArrayLike) -> str | None:
        """The domain with the most similar style, or the population; None if there is neither."""
        if self.population:
            return self.population.name
        return self.domain_effects.nearest(style) if self.domain_effects else None

    @property
    def num_human(self) -> int:
        """Number of human calibration texts."""
        return sum(len(domain.human) for domain in self.domains)

    @property
    def num_ai(self) -> int:
        """Number of AI calibration texts."""
        return sum(len(domain.ai) for domain in self.domains)

    def prior_shift(self, prevalence: float | None) -> float:
        """Shift of the log-odds of AI from the calibration's prevalence to `prevalence` (None: no shift)."""
        return 0.0 if prevalence is None else float(logit(prevalence) - logit(self.prevalence))

    def required_scores(self, styles: ArrayLike) -> Floats:
        """The standardised scores that texts with these styles must reach to be labelled AI, by false positive rate.

        Shape (n, rates) for styles of shape (n, dimensions); the rates are those of `domain_effects`, or the targets.
        """
        if self.domain_effects:
            return self.domain_effects.thresholds(styles)
        row = [threshold.score for _, threshold in sorted(self.thresholds.items())]
        required = np.tile(row, (len(np.asarray(styles)), 1))
        if self.population:
            required[self.population.is_unlike(styles)] = np.inf
        return required

    def decide(self, scores: ArrayLike, num_tokens: ArrayLike, required: Floats, target_fpr: float) -> Labels:
        """`HUMAN` or `AI` if only this class is plausible by score, length and style, else `BOTH` or `NEITHER`.

        `required` comes from `required_scores`; a text out of reach is `NEITHER`. `AI` also needs a probability of at
        least one half at the calibration's prevalence. Shape (n,).
        """
        values, least = np.asarray(scores, np.float64), required[:, self._column(target_fpr)]
        human = (self.human_length.standardise(values, num_tokens) < least) | (values < self.midpoint)
        as_ai = self.ai_length.standardise(values, num_tokens)
        decided = np.where(human, HUMAN, AI)
        decided[human & (as_ai >= self.cleared_below)] = BOTH
        decided[np.isinf(least) | (~human & (as_ai < self.unlike_below))] = NEITHER
        return decided.astype(np.int64)

    def predictions(self, scores: ArrayLike, num_tokens: ArrayLike, required: Floats, target_fpr: float) -> Labels:
        """0 human, 1 ai, -1 uncertain, shape (n,); arguments as `decide`."""
        return np.maximum(self.decide(scores, num_tokens, required, target_fpr), -1)

    def predictions_of(self, texts: Scores, target_fpr: float) -> Labels:
        """Predictions for calibration texts."""
        if not len(texts):
            return np.empty(0, np.int64)
        return self.predictions(texts.scores, texts.num_tokens, self.required_scores(texts.styles), target_fpr)

    def ai_from(self, num_tokens: int, required: Floats, target_fpr: float) -> float:
        """The lowest score at which a text of this length is labelled AI; `required` is its row, shape (rates,)."""
        return self._ai_from(num_tokens, float(required[self._column(target_fpr)]))

    def ai_from_unlike(self, target_fpr: float) -> float:
        """`ai_from` for a text of one window that is unlike all domains."""
        return self._ai_from(self.human_length.window, self.thresholds[target_fpr].score)

    def _ai_from(self, num_tokens: int, required: float) -> float:
        threshold = self.human_length.score(required, num_tokens)
        return max(threshold, self.ai_length.score(self.unlike_below, num_tokens), self.midpoint)

    def p_value(self, score: float, num_tokens: int, required: Floats) -> float:
        """The smallest false positive rate whose threshold labels the text AI; arguments as `ai_from`.

        Without domain effects this is the conformal p-value.
        """
        standardised = self.human_length.standardise(score, num_tokens)
        if not self.domain_effects:
            return 1.0 if np.isinf(required).any() else float(p_value(self._human, standardised))
        reached = np.flatnonzero(required <= standardised)
        return self.domain_effects.rates[reached[0]] if reached.size else 1.0

    def _column(self, target_fpr: float) -> int:
        rates = self.domain_effects.rates if self.domain_effects else sorted(self.thresholds)
        return list(rates).index(target_fpr)

    @cached_property
    def _human(self) -> Floats:
        return np.sort(np.concatenate([domain.human.standardised(self.human_length) for domain in self.domains]))
