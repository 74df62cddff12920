"""Calibration of a detector: probabilities, p-values and decisions at a target false positive rate.

Scores are log-odds: higher = more AI. `detect_ai.calibration.conformal` states what holds, and for which texts.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from detect_ai.calibration.conformal import Threshold, conformal_threshold, p_value
from detect_ai.calibration.scaling import Scaling, fit_scaling
from detect_ai.metrics import Floats, check_binary


@dataclass(frozen=True)
class GroupCalibration(Scaling):
    """Scaling, thresholds and human reference scores of one group of texts.

    Attributes:
        human_scores: raw scores of the human calibration texts, ascending, else ValueError.
        thresholds: by target FPR.
        domain: as `detect_ai.calibration.domain_classifier` names it; "" for the group of all texts.
        min_tokens: by target FPR, the length from which AI texts are found often enough for a verdict.
    """

    human_scores: tuple[float, ...]
    thresholds: dict[float, Threshold]
    domain: str = ""
    min_tokens: dict[float, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (np.diff(self.human_scores) < 0).any():
            raise ValueError("human scores must be ascending")

    @property
    def num_human(self) -> int:
        """Number of human calibration texts."""
        return len(self.human_scores)

    def bounds(self, target_fpr: float) -> tuple[float, float]:
        """Raw scores below the first are `human`, from the second on `ai`, between them `uncertain`.

        `ai` needs both the conformal threshold and a probability of at least one half, and `human` neither.
        """
        threshold = self.thresholds[target_fpr].score
        return min(threshold, self.midpoint), max(threshold, self.midpoint)

    def p_value(self, score: float) -> float:
        """The conformal p-value of a raw score against the human texts."""
        return float(p_value(self._sorted_scores, score))

    @cached_property
    def _sorted_scores(self) -> Floats:
        return np.asarray(self.human_scores)


@dataclass(frozen=True)
class UnknownDomain:
    """Calibration of texts of no known domain: the most cautious answer over all domains.

    `ai` needs the strictest threshold of any domain, `human` a score below the lower bound of every domain. The
    probability is the lowest and the p-value the highest over the domains, so that neither depends on the target. No
    bound of the false positive rate holds for such a text.

    Attributes:
        groups: the domains; at least one.
    """

    groups: tuple[GroupCalibration, ...]
    domain: ClassVar[str] = ""

    @property
    def num_human(self) -> int:
        """Number of human calibration texts of all domains."""
        return sum(group.num_human for group in self.groups)

    @property
    def min_tokens(self) -> dict[float, int]:
        """By target FPR, the highest minimum length over the domains."""
        targets = self.groups[0].thresholds
        return {target: max(group.min_tokens.get(target, 0) for group in self.groups) for target in targets}

    def probability(self, scores: ArrayLike) -> Floats:
        """The lowest calibrated P(AI) over the domains, of the shape of `scores`."""
        return np.asarray(np.min([group.probability(scores) for group in self.groups], axis=0), dtype=np.float64)

    def bounds(self, target_fpr: float) -> tuple[float, float]:
        """The lowest lower and the highest upper bound, as `GroupCalibration.bounds`."""
        lower, upper = zip(*(group.bounds(target_fpr) for group in self.groups), strict=True)
        return min(lower), max(upper)

    def p_value(self, score: float) -> float:
        """The highest p-value over the domains."""
        return max(group.p_value(score) for group in self.groups)


@dataclass(frozen=True)
class Calibration(GroupCalibration):
    """The group of all calibration texts, and one group for each domain that the classifier distinguishes.

    Thresholds by domain are Mondrian conformal prediction (Vovk, Gammerman and Shafer 2005, section 4.5): the target
    FPR holds within each domain.

    Attributes:
        prevalence: fraction of AI texts that the probabilities assume.
        num_ai: number of AI calibration texts.
        domains: empty without a domain classifier.
        span_scaling: of spans of a document, for the scores of sentences; None where calibration scored no spans.
    """

    prevalence: float = 0.5
    num_ai: int = 0
    domains: tuple[GroupCalibration, ...] = ()
    span_scaling: Scaling | None = None

    def select_group(self, domain: str) -> GroupCalibration | UnknownDomain:
        """The calibration group of a domain; "" where it is not known."""
        if not self.domains:
            return self
        return next((group for group in self.domains if group.domain == domain), UnknownDomain(self.domains))


def calibrate(
    labels: ArrayLike, scores: ArrayLike, target_fprs: Iterable[float], prevalence: float = 0.5
) -> Calibration:
    """Fit the scaling, and one threshold for each target FPR in ascending order.

    Labels (0 human, 1 AI) and raw document scores, of a split used for nothing else, have shape (n,); `prevalence` as
    in `fit_scaling`. Raises CalibrationError for too few human texts, InputError as `metrics.check_binary`.
    """
    truth, values = check_binary(labels, scores, both_classes=True)
    human = np.sort(values[truth == 0])
    return Calibration(
        **vars(fit_scaling(truth, values, prevalence)),
        human_scores=tuple(human.tolist()),
        thresholds={float(target): conformal_threshold(human, target) for target in sorted(target_fprs)},
        prevalence=prevalence,
        num_ai=int(truth.sum()),
    )
