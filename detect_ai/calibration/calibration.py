"""Calibration of a detector: probabilities, p-values and decisions at a target false positive rate.

Scores are log-odds: higher = more AI. `detect_ai.calibration.conformal` states what holds, and for which texts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import TypeAdapter, ValidationError

from detect_ai.calibration.conformal import Threshold, p_value, threshold_of
from detect_ai.calibration.scaling import Scaling, check_both_classes, fit_scaling
from detect_ai.core.errors import CalibrationError
from detect_ai.metrics import Floats


@dataclass(frozen=True)
class GroupCalibration(Scaling):
    """Scaling, thresholds and human reference scores of one group of texts.

    Attributes:
        human_scores: raw scores of the human calibration texts, ascending.
        thresholds: by target FPR.
        domain: as `detect_ai.calibration.domain_classifier` names it; "" for the group of all texts.
        min_tokens: by target FPR, the length from which AI texts are found often enough for a verdict.
    """

    human_scores: tuple[float, ...]
    thresholds: dict[float, Threshold]
    domain: str = ""
    min_tokens: dict[float, int] = field(default_factory=dict)

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
        return p_value(self._sorted_scores, score)

    def fpr_bound(self, target_fpr: float) -> float | None:
        """The 95% upper bound of the FPR at a target, given these human texts."""
        return self.thresholds[target_fpr].fpr_bound

    def min_tokens_at(self, target_fpr: float) -> int:
        """The learned minimum length for a verdict at a target; 0 where none was learned."""
        return self.min_tokens.get(target_fpr, 0)

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

    def fpr_bound(self, target_fpr: float) -> None:
        """No bound holds for a text that is not known to be like the calibration texts."""
        return

    def min_tokens_at(self, target_fpr: float) -> int:
        """The highest learned minimum length over the domains."""
        return max(group.min_tokens_at(target_fpr) for group in self.groups)


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
        """The calibration group of a domain.

        Args:
            domain: of the text; "" where it is not known.
        """
        if not self.domains:
            return self
        return next((group for group in self.domains if group.domain == domain), UnknownDomain(self.domains))

    def span_probability(self, scores: ArrayLike, domain: str) -> Floats:
        """Calibrated P(AI) of spans of a document of a domain, of the shape of `scores`."""
        return (self.span_scaling or self.select_group(domain)).probability(scores)

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON that `from_dict` reads back to an equal calibration."""
        values: dict[str, Any] = TypeAdapter(Calibration).dump_python(self, mode="json")
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            CalibrationError: a field is missing, unknown or of the wrong type, or human scores are not ascending.
        """
        try:
            calibration = TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise CalibrationError(f"calibration.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        groups: list[GroupCalibration] = [calibration, *calibration.domains]
        if any((np.diff(group.human_scores) < 0).any() for group in groups):
            raise CalibrationError("human scores of a calibration must be ascending")
        return calibration


def calibrate(
    labels: ArrayLike, logits: ArrayLike, target_fprs: Iterable[float], prevalence: float = 0.5
) -> Calibration:
    """Fit the scaling and one threshold for each target FPR.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        logits: raw document scores of a split used for nothing else, shape (n,).
        target_fprs: each in (0, 1).
        prevalence: fraction of AI texts that the probabilities assume, whatever that of `labels` is; in (0, 1).

    Returns:
        The calibration, its thresholds in ascending order of target.

    Raises:
        CalibrationError: one class is missing, or there are too few human texts for a target.
        InputError: labels and logits do not fit (see `metrics.check_binary`).
    """
    truth, scores = check_both_classes(labels, logits)
    human = np.sort(scores[truth == 0])
    scaling = fit_scaling(truth, scores, prevalence)
    return Calibration(
        temperature=scaling.temperature,
        midpoint=scaling.midpoint,
        human_scores=tuple(human.tolist()),
        thresholds={float(target): threshold_of(human, target) for target in sorted(target_fprs)},
        prevalence=prevalence,
        num_ai=int(truth.sum()),
    )
