"""What turns raw scores into probabilities, p-values and decisions that hold a false positive rate.

Scores are log-odds: higher = more AI. The guarantees hold for texts exchangeable with the human texts of the
calibration set (same sources, topics, writers and lengths) and for no others.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import betaincinv, expit

from detect_ai.errors import CalibrationError, InputError
from detect_ai.metrics import Floats, Labels, check_binary, largest_count

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
SUGGESTED_TARGETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Threshold:
    """The decision for one target FPR: a text is called AI iff its score is at least `score`.

    Attributes:
        score: the threshold on the raw score. Compare float64 with it: in float32 the one step above the
            human score beneath it is lost.
        fpr_bound: upper 95% confidence bound of the FPR that this very calibration set realises.
        expected_fpr: the FPR expected over calibration sets of this size; at most the target.
    """

    score: float
    fpr_bound: float
    expected_fpr: float


@dataclass(frozen=True)
class Calibration:
    """All that a detector keeps of its calibration set.

    Attributes:
        temperature: divides the distance of the raw score from the midpoint, before the sigmoid.
        midpoint: the raw score with a probability of one half.
        human_scores: raw scores of the human texts, ascending.
        thresholds: by target FPR.
        prevalence: share of AI texts in the set; the probabilities assume it.
        num_human: number of human texts.
        num_ai: number of AI texts.
    """

    temperature: float
    midpoint: float
    human_scores: tuple[float, ...]
    thresholds: dict[float, Threshold]
    prevalence: float
    num_human: int
    num_ai: int

    def probability(self, scores: ArrayLike) -> Floats:
        """Calibrated P(AI) of raw scores, of their shape."""
        return probability(scores, self.temperature, self.midpoint)

    def bounds(self, target_fpr: float) -> tuple[float, float]:
        """Raw scores below the first are `human`, from the second on `ai`, between them `uncertain`.

        `ai` needs both the conformal threshold and a probability of at least one half; so does `human` the opposite.
        """
        threshold = self.thresholds[target_fpr].score
        return min(threshold, self.midpoint), max(threshold, self.midpoint)

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON that `from_dict` reads back to an equal calibration."""
        thresholds = {repr(target): asdict(threshold) for target, threshold in self.thresholds.items()}
        return asdict(self) | {"human_scores": list(self.human_scores), "thresholds": thresholds}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            CalibrationError: a field is missing or unknown, or the human scores are not ascending.
        """
        _check_fields(cls, values)
        human_scores = tuple(values["human_scores"])
        if not np.all(np.diff(human_scores) >= 0):
            raise CalibrationError("human scores of a calibration must be ascending")
        thresholds = {float(target): _read_threshold(value) for target, value in values["thresholds"].items()}
        return cls(**{**values, "human_scores": human_scores, "thresholds": thresholds})


def calibrate(labels: ArrayLike, logits: ArrayLike, target_fprs: Iterable[float]) -> Calibration:
    """Fits the scaling and one threshold for each target FPR.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        logits: raw document scores of a split used for nothing else, shape (n,).
        target_fprs: each in (0, 1).

    Returns:
        The calibration, its thresholds in ascending order of target.

    Raises:
        CalibrationError: one class is missing, or there are too few human texts for a target.
        InputError: labels and logits do not fit (see `metrics.check_binary`).
    """
    truth, scores = _check_both_classes(labels, logits)
    human = np.sort(scores[truth == 0])
    temperature, midpoint = fit_scaling(truth, scores)
    return Calibration(
        temperature=temperature,
        midpoint=midpoint,
        human_scores=tuple(human.tolist()),
        thresholds={float(target): _threshold(human, target) for target in sorted(target_fprs)},
        prevalence=float(truth.mean()),
        num_human=human.size,
        num_ai=int(truth.sum()),
    )


def fit_scaling(labels: ArrayLike, logits: ArrayLike) -> tuple[float, float]:
    """Platt scaling: the temperature T and the midpoint m of P(AI) = sigmoid((logit - m) / T).

    Temperature scaling (Guo et al. 2017) is the case m = 0. A fine-tuned encoder on few texts is often right in order
    and wrong in level, which no temperature can mend. The targets are smoothed as by Platt (1999), so that perfectly
    separated classes have a finite solution; T stays in [0.05, 20].

    Args:
        labels: 0 human, 1 AI, shape (n,).
        logits: raw document scores, shape (n,).

    Returns:
        Temperature and midpoint.

    Raises:
        CalibrationError: one class is missing.
        InputError: labels and logits do not fit (see `metrics.check_binary`).
    """
    truth, scores = _check_both_classes(labels, logits)
    num_ai = int(truth.sum())
    num_human = truth.size - num_ai
    targets = np.where(truth == 1, (num_ai + 1) / (num_ai + 2), 1 / (num_human + 2))

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slope, intercept = parameters
        z = slope * scores + intercept
        error = expit(z) - targets
        value = float((np.logaddexp(0.0, z) - targets * z).mean())
        return value, np.asarray([(error * scores).mean(), error.mean()])

    bounds = [(1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE), (None, None)]
    start = np.asarray([1.0, -float(np.median(scores))])
    slope, intercept = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(1 / slope), float(-intercept / slope)


def probability(logits: ArrayLike, temperature: float, midpoint: float = 0.0) -> Floats:
    """P(AI) = sigmoid((logit - midpoint) / temperature), of the shape of `logits`, without overflow.

    It is calibrated for the prevalence of the set that the scaling was fitted on.
    """
    scaled = (np.asarray(logits, dtype=np.float64) - midpoint) / temperature
    return np.asarray(expit(scaled), dtype=np.float64)


def texts_needed(target_fpr: float) -> int:
    """The least number of human calibration texts that can hold a target FPR: ceil(1 / target) - 1.

    With n texts the smallest p-value is 1 / (n + 1); below this number it exceeds the target for every text.
    99 for 1%, 19 for 5%, 999 for 0.1%.

    Raises:
        CalibrationError: the target is outside (0, 1).
    """
    if not 0.0 < target_fpr < 1.0:
        raise CalibrationError(f"target FPR must be in (0, 1), found {target_fpr}")
    nearest = round(1 / target_fpr)
    return nearest - 1 if 1 / nearest <= target_fpr else nearest


def conformal_threshold(human_scores: ArrayLike, target_fpr: float) -> float:
    """The smallest float64 threshold that holds a target FPR by split conformal prediction.

    A score is at least the threshold iff its `p_value` is at most the target. For a human text exchangeable
    with the calibration texts that happens with probability `target_fpr` at most, over the draw of both
    (Vovk, Gammerman and Shafer 2005, "Algorithmic Learning in a Random World"). A text that
    ties with a human calibration score counts as no higher than it, so ties only lower the FPR.

    Args:
        human_scores: raw scores of human calibration texts in any order, shape (n,).
        target_fpr: in (0, 1).

    Returns:
        One step of float64 above the k-th largest score, k = floor(target_fpr * (n + 1)).

    Raises:
        CalibrationError: fewer than `texts_needed` scores, a score that is not finite, or a target outside
            (0, 1).
    """
    scores = np.sort(np.asarray(human_scores, dtype=np.float64))
    rank = _rank(scores.size, target_fpr)
    if not np.isfinite(scores).all():
        raise CalibrationError("human scores must be finite")
    return float(np.nextafter(scores[-rank], np.inf))


@overload
def p_value(sorted_human_scores: ArrayLike, score: float) -> float: ...
@overload
def p_value(sorted_human_scores: ArrayLike, score: NDArray[np.floating[Any]]) -> Floats: ...
def p_value(sorted_human_scores: ArrayLike, score: float | NDArray[np.floating[Any]]) -> float | Floats:
    """The conformal p-value against "a human wrote it": (1 + #{human score >= score}) / (n + 1).

    Human texts exchangeable with the calibration texts get a value of u or less with probability u at most.
    Ties count against calling a text AI.

    Args:
        sorted_human_scores: ascending, shape (n,). An array is read in O(log n); a tuple is copied first.
        score: one raw score, or an array of any shape.

    Returns:
        A float for one score, else an array of the shape of `score`; each in [1 / (n + 1), 1].

    Raises:
        InputError: a score is NaN, which would otherwise sort above all human texts.
    """
    human, scores = np.asarray(sorted_human_scores, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if np.isnan(scores).any():
        raise InputError("a score is NaN and has no p-value")
    at_least = human.size - np.searchsorted(human, scores, side="left")
    p = np.asarray((1 + at_least) / (human.size + 1), dtype=np.float64)
    return p if p.ndim else float(p)


def fpr_bound(n: int, target_fpr: float, confidence: float = 0.95) -> float:
    """The upper confidence bound of the FPR that one given calibration set realises.

    The target holds on average over calibration sets; a lucky or unlucky set lies below or above. For
    independent texts with continuous scores the FPR of `conformal_threshold`, given its n human texts, is
    Beta(k, n + 1 - k) distributed with k = floor(target_fpr * (n + 1)); ties only lower it (Vovk 2012,
    "Conditional validity of inductive conformal predictors", PMLR 25; Angelopoulos and Bates 2021,
    "A gentle introduction to conformal prediction", section 3.2).

    Args:
        n: number of human calibration texts.
        target_fpr: in (0, 1).
        confidence: share of calibration sets for which the bound holds, in (0, 1).

    Returns:
        The `confidence` quantile of that distribution.

    Raises:
        CalibrationError: fewer than `texts_needed` texts, or a target outside (0, 1).
    """
    rank = _rank(n, target_fpr)
    return float(betaincinv(rank, n + 1 - rank, confidence))


def _check_fields(cls: type[Calibration | Threshold], values: Mapping[str, Any]) -> None:
    expected = sorted(field.name for field in fields(cls))
    if sorted(values) != expected:
        raise CalibrationError(f"{cls.__name__} has the fields {expected}, found {sorted(values)}")


def _read_threshold(values: Mapping[str, Any]) -> Threshold:
    _check_fields(Threshold, values)
    return Threshold(**values)


def _threshold(human_scores: Floats, target_fpr: float) -> Threshold:
    n = human_scores.size
    return Threshold(
        score=conformal_threshold(human_scores, target_fpr),
        fpr_bound=fpr_bound(n, target_fpr),
        expected_fpr=_rank(n, target_fpr) / (n + 1),
    )


def _rank(n: int, target_fpr: float) -> int:
    """How many of n + 1 exchangeable human texts may be called AI; at least 1, else the target is refused."""
    require_texts(n, target_fpr)
    return largest_count(target_fpr, n + 1)


def require_texts(n: int, target_fpr: float) -> None:
    """Raise CalibrationError when n human calibration texts are too few for a target FPR, with the number needed."""
    needed = texts_needed(target_fpr)
    if n >= needed:
        return
    mend = "add human texts to the calibration split"
    held = next((target for target in SUGGESTED_TARGETS if texts_needed(target) <= n), None)
    if held is not None:
        mend += f", or choose a larger target: calibration.target_fprs=[{held}] calibration.default_target_fpr={held}"
    raise CalibrationError(
        f"target FPR {target_fpr} needs at least {needed} human calibration texts, found {n}: {mend}"
    )


def _check_both_classes(labels: ArrayLike, logits: ArrayLike) -> tuple[Labels, Floats]:
    truth, scores = check_binary(labels, logits, "logits")
    num_ai = int(truth.sum())
    if not 0 < num_ai < truth.size:
        raise CalibrationError(
            f"calibration needs texts of both classes, found {truth.size - num_ai} human and {num_ai} ai"
        )
    return truth, scores
