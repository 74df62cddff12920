"""What a detector keeps of its calibration set: probabilities, p-values and decisions that hold a false positive rate.

Scores are log-odds: higher = more AI. What holds, and for which texts, is said in `detect_ai.calibration.conformal`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from detect_ai.calibration import scaling
from detect_ai.calibration.conformal import Threshold, p_value, threshold_of
from detect_ai.core.errors import CalibrationError
from detect_ai.metrics import Floats


@dataclass(frozen=True)
class Reference:
    """Human texts that a text is compared with, and what scores mean among their like.

    Attributes:
        temperature: divides the distance of the raw score from the midpoint, before the sigmoid.
        midpoint: the raw score with a probability of one half.
        human_scores: raw scores of the human texts, ascending.
        thresholds: by target FPR.
        knots: (score, probability) of an isotonic calibration, ascending; empty: the sigmoid holds.
    """

    temperature: float
    midpoint: float
    human_scores: tuple[float, ...]
    thresholds: dict[float, Threshold]

    knots: scaling.Knots = ()

    def probability(self, scores: ArrayLike) -> Floats:
        """Calibrated P(AI) of raw scores, of their shape."""
        if not self.knots:
            return scaling.probability(scores, self.temperature, self.midpoint)
        at, values = np.asarray(self.knots).T
        return np.asarray(np.interp(np.asarray(scores, dtype=np.float64), at, values), dtype=np.float64)

    def bounds(self, target_fpr: float) -> tuple[float, float]:
        """Raw scores below the first are `human`, from the second on `ai`, between them `uncertain`.

        `ai` needs both the conformal threshold and a probability of at least one half; so does `human` the opposite.
        """
        threshold = self.thresholds[target_fpr].score
        return min(threshold, self.midpoint), max(threshold, self.midpoint)

    def p_value(self, score: float) -> float:
        """The conformal p-value of a raw score against the human texts."""
        return p_value(self._sorted, score)

    @cached_property
    def _sorted(self) -> Floats:
        return np.asarray(self.human_scores)


@dataclass(frozen=True)
class Category(Reference):
    """Texts of one register and of like length.

    A text is judged by the human calibration texts of its own category, and the target FPR holds within each
    (Mondrian conformal prediction: Vovk, Gammerman and Shafer 2005, section 4.5).

    Attributes:
        register: as `detect_ai.calibration.domain_classifier` names it; "" where registers are not told apart.
        min_tokens: the shortest texts of it.
        max_tokens: all texts are shorter than this; None: no bound.
        tprs: by target FPR, the share of its AI calibration texts called AI; empty when it had none.
    """

    register: str = ""
    min_tokens: int = 0
    max_tokens: int | None = None
    tprs: dict[float, float] = field(default_factory=dict)

    def holds(self, num_tokens: int) -> bool:
        """Whether a text of this length belongs to it."""
        return self.min_tokens <= num_tokens and (self.max_tokens is None or num_tokens < self.max_tokens)


@dataclass(frozen=True)
class Calibration(Reference):
    """All that a detector keeps of its calibration set: the reference of all its texts, and categories of them.

    Attributes:
        prevalence: share of AI texts that the probabilities assume.
        num_human: number of human texts.
        num_ai: number of AI texts.
        categories: none where texts are not told apart by register and length.
        min_tokens: by target FPR, the length from which AI texts are found often enough for a verdict.
    """

    prevalence: float = 0.5
    num_human: int = 0
    num_ai: int = 0
    categories: tuple[Category, ...] = ()
    min_tokens: dict[float, int] = field(default_factory=dict)

    def reference(self, register: str, num_tokens: int, target_fpr: float | None = None) -> Reference:
        """What a text is compared with: its category, or of an unknown register the strictest one of its length.

        Args:
            register: of the text; "" where it is not known.
            num_tokens: its length.
            target_fpr: at which categories are compared; the smallest when None.
        """
        found = [each for each in self.categories if each.holds(num_tokens)]
        own = [each for each in found if each.register == register] or found
        target = min(self.thresholds, default=None) if target_fpr is None else target_fpr
        if not own or target is None:
            return self
        return max(own, key=lambda each: each.bounds(target)[1])

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON that `from_dict` reads back to an equal calibration."""
        categories = [_plain(asdict(each)) for each in self.categories]
        return _plain({**asdict(self), "categories": ()}) | {"categories": categories}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            CalibrationError: a field is missing or unknown, or the human scores are not ascending.
        """
        read = _read(cls, values)
        return cls(**{**read, "categories": tuple(Category(**_read(Category, each)) for each in read["categories"])})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Keys that JSON has, and lists where there were tuples."""
    by_target = {name: {repr(k): v for k, v in found.items()} for name, found in values.items() if _is_dict(found)}
    lists = {"human_scores": list(values["human_scores"]), "knots": [list(knot) for knot in values["knots"]]}
    return values | by_target | lists


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _read(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    _check_fields(cls, values)
    human_scores = tuple(values["human_scores"])
    if not np.all(np.diff(human_scores) >= 0):
        raise CalibrationError("human scores of a calibration must be ascending")
    by_target = {name: {float(k): v for k, v in found.items()} for name, found in values.items() if _is_dict(found)}
    thresholds = {target: _read_threshold(value) for target, value in by_target["thresholds"].items()}
    knots = tuple((float(at), float(value)) for at, value in values["knots"])
    return {**values, **by_target, "human_scores": human_scores, "thresholds": thresholds, "knots": knots}


def calibrate(
    labels: ArrayLike,
    logits: ArrayLike,
    target_fprs: Iterable[float],
    method: str = "platt",
    prevalence: float = 0.5,
) -> Calibration:
    """Fits the scaling and one threshold for each target FPR.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        logits: raw document scores of a split used for nothing else, shape (n,).
        target_fprs: each in (0, 1).
        method: of the probabilities, `platt` or `isotonic`.
        prevalence: share of AI texts that the probabilities assume, whatever that of `labels` is; in (0, 1).

    Returns:
        The calibration, its thresholds in ascending order of target.

    Raises:
        CalibrationError: one class is missing, or there are too few human texts for a target.
        InputError: labels and logits do not fit (see `metrics.check_binary`).
    """
    truth, scores = scaling.both_classes(labels, logits)
    human = np.sort(scores[truth == 0])
    temperature, midpoint, knots = scaling.fit(truth, scores, method, prevalence)
    return Calibration(
        temperature=temperature,
        midpoint=midpoint,
        knots=knots,
        human_scores=tuple(human.tolist()),
        thresholds={float(target): threshold_of(human, target) for target in sorted(target_fprs)},
        prevalence=prevalence,
        num_human=human.size,
        num_ai=int(truth.sum()),
    )


def _check_fields(cls: type[Any], values: Mapping[str, Any]) -> None:
    expected = sorted(field.name for field in fields(cls))
    if sorted(values) != expected:
        raise CalibrationError(f"{cls.__name__} has the fields {expected}, found {sorted(values)}")


def _read_threshold(values: Mapping[str, Any]) -> Threshold:
    _check_fields(Threshold, values)
    return Threshold(**values)
