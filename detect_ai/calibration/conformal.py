"""Split conformal prediction: thresholds that hold a target false positive rate, p-values and bounds.

Scores are log-odds: higher = more AI. The guarantees hold for texts exchangeable with the human texts of the
calibration set (same sources, topics, writers and lengths) and for no others.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict
from scipy.special import betaincinv

from detect_ai.core.errors import CalibrationError, InputError
from detect_ai.metrics import Floats, largest_count

CONFIDENCE = 0.95
SUGGESTED_TARGETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Threshold:
    """The decision for one target FPR: a text is called AI iff its score is at least `score`.

    Attributes:
        score: the threshold on the raw score. Compare float64 with it: float32 loses the one step above the
            human score below it.
        fpr_bound: upper 95% confidence bound of the FPR that this calibration set realises.
        expected_fpr: expected FPR over calibration sets of this size; at most the target.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    score: float
    fpr_bound: float
    expected_fpr: float


def threshold_of(human_scores: Floats, target_fpr: float) -> Threshold:
    """The conformal threshold with its bounds. Raises CalibrationError as `conformal_threshold`."""
    n = human_scores.size
    return Threshold(
        score=conformal_threshold(human_scores, target_fpr),
        fpr_bound=fpr_bound(n, target_fpr),
        expected_fpr=_rank(n, target_fpr) / (n + 1),
    )


def texts_needed(target_fpr: float) -> int:
    """The smallest number of human calibration texts that can hold a target FPR: ceil(1 / target) - 1.

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
    (Vovk, Gammerman and Shafer 2005, "Algorithmic Learning in a Random World"). A score that
    ties with a human calibration score does not exceed it, so ties only lower the FPR.

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
    """The conformal p-value of the hypothesis "a human wrote it": (1 + #{human score >= score}) / (n + 1).

    Human texts exchangeable with the calibration texts get a value of u or less with probability u at most.
    Ties count against calling a text AI.

    Args:
        sorted_human_scores: ascending, shape (n,). Lookup in an array takes O(log n); a tuple is copied first.
        score: one raw score, or an array of any shape.

    Returns:
        A float for one score, else an array of the shape of `score`; values in [1 / (n + 1), 1].

    Raises:
        InputError: a score is NaN, which would otherwise sort above all human texts.
    """
    human, scores = np.asarray(sorted_human_scores, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if np.isnan(scores).any():
        raise InputError("a score is NaN and has no p-value")
    at_least = human.size - np.searchsorted(human, scores, side="left")
    p = np.asarray((1 + at_least) / (human.size + 1), dtype=np.float64)
    return p if p.ndim else float(p)


def fpr_bound(n: int, target_fpr: float, confidence: float = CONFIDENCE) -> float:
    """The upper confidence bound of the FPR that one calibration set realises.

    The target holds on average over calibration sets; a lucky or unlucky set lies below or above. For
    independent texts with continuous scores the FPR of `conformal_threshold`, given its n human texts, is
    Beta(k, n + 1 - k) distributed with k = floor(target_fpr * (n + 1)); ties only lower it (Vovk 2012,
    "Conditional validity of inductive conformal predictors", PMLR 25; Angelopoulos and Bates 2021,
    "A gentle introduction to conformal prediction", section 3.2).

    Args:
        n: number of human calibration texts.
        target_fpr: in (0, 1).
        confidence: fraction of calibration sets for which the bound holds, in (0, 1).

    Returns:
        The `confidence` quantile of that distribution.

    Raises:
        CalibrationError: fewer than `texts_needed` texts, or a target outside (0, 1).
    """
    rank = _rank(n, target_fpr)
    return float(betaincinv(rank, n + 1 - rank, confidence))


def _rank(n: int, target_fpr: float) -> int:
    """Number of n + 1 exchangeable human texts that may be called AI; at least 1, else CalibrationError."""
    require_texts(n, target_fpr)
    return largest_count(target_fpr, n + 1)


def require_texts(n: int, target_fpr: float) -> None:
    """Raise CalibrationError when n human calibration texts are too few for a target FPR, with the number needed."""
    needed = texts_needed(target_fpr)
    if n >= needed:
        return
    advice = "add human texts to the calibration split"
    feasible = next((target for target in SUGGESTED_TARGETS if texts_needed(target) <= n), None)
    if feasible is not None:
        advice += f", or choose a larger target: calibration.target_fprs=[{feasible}] "
        advice += f"calibration.default_target_fpr={feasible}"
    raise CalibrationError(
        f"target FPR {target_fpr} needs at least {needed} human calibration texts, found {n}: {advice}"
    )
