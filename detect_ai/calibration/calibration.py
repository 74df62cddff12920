"""Calibration of a detector: probabilities, p-values and decisions at a target false positive rate.

Scores are log-odds: higher = more AI. Decisions compare scores standardised by length (`calibration.length`): `ai` with
those of human texts, `human` with those of AI texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ConfigDict

from detect_ai.calibration.conformal import Threshold, p_value
from detect_ai.calibration.length import LengthModel
from detect_ai.calibration.scaling import Scaling
from detect_ai.metrics import Floats, Labels
from detect_ai.schemas import Reference

HUMAN, AI, BOTH, NEITHER = 0, 1, -1, -2


@dataclass(frozen=True)
class Scores:
    """Document scores of texts of one class, and their lengths in tokens."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    scores: tuple[float, ...]
    num_tokens: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def standardised(self, length: LengthModel) -> Floats:
        """The scores in ascending order, standardised by length."""
        return np.sort(length.standardise(self.scores, self.num_tokens))


@dataclass(frozen=True)
class Domain:
    """Scores of the calibration texts of one kind of writing."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    human: Scores
    ai: Scores


@dataclass(frozen=True)
class Calibration(Scaling):
    """Scaling, thresholds and reference scores.

    With enough domains the thresholds hold for a domain that calibration never saw (`calibration.new_domain`),
    otherwise only for texts like those of the calibration split (`calibration.conformal`).

    Attributes:
        thresholds: by target FPR, on standardised scores.
        cleared_below: a text is `human` only below this score, standardised as that of an AI text.
        unlike_below: and `ai` only from this one on.
        human_length, ai_length: how the scores of the classes change with the length.
        domains: all calibration texts.
        new_domain_curve: false positive rates, ascending, and the standardised score that predicts each of them for a
            new domain; empty with too few domains.
        prevalence: fraction of AI texts that the probabilities assume.
        min_tokens: by target, the length from which the error rates hold.
        span_scaling: of spans of a document, for the scores of sentences; None where calibration scored no spans.
    """

    thresholds: dict[float, Threshold]
    cleared_below: float
    unlike_below: float
    human_length: LengthModel
    ai_length: LengthModel
    domains: tuple[Domain, ...]
    new_domain_curve: tuple[tuple[float, float], ...]
    prevalence: float
    min_tokens: dict[float, int] = field(default_factory=dict)
    span_scaling: Scaling | None = None

    @property
    def compared_with(self) -> Reference:
        """The kind of texts for which the thresholds hold."""
        return Reference.NEW_DOMAIN if self.new_domain_curve else Reference.CALIBRATION_TEXTS

    @property
    def num_human(self) -> int:
        """Number of human calibration texts."""
        return sum(len(domain.human) for domain in self.domains)

    @property
    def num_ai(self) -> int:
        """Number of AI calibration texts."""
        return sum(len(domain.ai) for domain in self.domains)

    def decide(self, scores: ArrayLike, num_tokens: ArrayLike, target_fpr: float) -> Labels:
        """`HUMAN` or `AI` where only that is plausible by score and length, else `BOTH` or `NEITHER`; shape (n,).

        `AI` also needs a probability of at least one half.
        """
        values = np.asarray(scores, np.float64)
        human = self.human_length.standardise(values, num_tokens) < self.thresholds[target_fpr].score
        human |= values < self.midpoint
        as_ai = self.ai_length.standardise(values, num_tokens)
        is_human = np.where(as_ai < self.cleared_below, HUMAN, BOTH)
        return np.where(human, is_human, np.where(as_ai < self.unlike_below, NEITHER, AI)).astype(np.int64)

    def predictions(self, scores: ArrayLike, num_tokens: ArrayLike, target_fpr: float) -> Labels:
        """0 human, 1 ai, -1 uncertain, shape (n,)."""
        return np.maximum(self.decide(scores, num_tokens, target_fpr), -1)

    def ai_from(self, num_tokens: int, target_fpr: float) -> float:
        """The lowest score of a text of this length that is labelled AI."""
        threshold = self.human_length.score(self.thresholds[target_fpr].score, num_tokens)
        return max(threshold, self.ai_length.score(self.unlike_below, num_tokens), self.midpoint)

    def p_values(self, scores: ArrayLike, num_tokens: ArrayLike) -> Floats:
        """The smallest false positive rate at which the threshold would label each text AI, shape (n,).

        Without a curve for new domains it is the conformal p-value.
        """
        standardised = self.human_length.standardise(scores, num_tokens)
        if not self.new_domain_curve:
            return p_value(self._human, standardised)
        rates, thresholds = np.asarray(self.new_domain_curve).T
        below = np.searchsorted(thresholds[::-1], standardised, side="right")  # thresholds that a text reaches
        return np.append(rates, 1.0)[len(rates) - below]

    @cached_property
    def _human(self) -> Floats:
        return np.sort(np.concatenate([domain.human.standardised(self.human_length) for domain in self.domains]))
