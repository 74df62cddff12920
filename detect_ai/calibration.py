"""What turns raw scores into probabilities, p-values and decisions that hold a false positive rate.

Scores are log-odds: higher = more AI. The guarantees hold for texts exchangeable with the human texts of the
calibration set (same sources, topics, writers and lengths) and for no others.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from scipy.special import betaincinv, expit  # type: ignore[import-untyped]

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
        temperature: divides the raw score before the sigmoid.
        human_scores: raw scores of the human texts, ascending.
        thresholds: by target FPR.
        prevalence: share of AI texts in the set; the probabilities assume it.
        num_human: number of human texts.
        num_ai: number of AI texts.
    """

    temperature: float
    human_scores: tuple[float, ...]
    thresholds: dict[float, Threshold]
    prevalence: float
    num_human: int
    num_ai: int

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
    """Fits the temperature and one threshold for each target FPR.

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
    return Calibration(
        temperature=fit_temperature(truth, scores),
        human_scores=tuple(human.tolist()),
        thresholds={float(target): _threshold(human, target) for target in sorted(target_fprs)},
        prevalence=float(truth.mean()),
        num_human=human.size,
        num_ai=int(truth.sum()),
    )


def fit_temperature(labels: ArrayLike, logits: ArrayLike) -> float:
    """The T that minimises the negative log-likelihood of sigmoid(logit / T) (Guo et al. 2017).

    T stays in [0.05, 20]. Where the likelihood has no maximum inside, the bound is returned: 0.05 for classes
    that the sign of the logit separates perfectly, 20 for logits no better than chance.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        logits: raw document scores, shape (n,).

    Returns:
        The temperature.

    Raises:
        CalibrationError: one class is missing.
        InputError: labels and logits do not fit (see `metrics.check_binary`).
    """
    truth, scores = _check_both_classes(labels, logits)
    margins = np.where(truth == 1, scores, -scores)

    def loss(temperature: float) -> float:
        return float(np.logaddexp(0.0, -margins / temperature).mean())

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    inside = minimize_scalar(
        lambda log_t: loss(np.exp(log_t)), bounds=bounds, method="bounded", options={"xatol": 1e-7}
    )
    # The bounded search comes near its bounds and never reaches them.
    return min((MIN_TEMPERATURE, float(np.exp(inside.x)), MAX_TEMPERATURE), key=loss)


def probability(logits: ArrayLike, temperature: float) -> Floats:
    """P(AI) = sigmoid(logit / temperature), of the shape of `logits`, without overflow.

    It is calibrated for the prevalence of the set that the temperature was fitted on.
    """
    return np.asarray(expit(np.asarray(logits, dtype=np.float64) / temperature), dtype=np.float64)


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
    needed = texts_needed(target_fpr)
    if n >= needed:
        return largest_count(target_fpr, n + 1)
    mend = "add human texts to the calibration split"
    held = next((target for target in SUGGESTED_TARGETS if texts_needed(target) <= n), None)
    if held is not None:
        mend += f" or choose a larger target such as {held}"
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
