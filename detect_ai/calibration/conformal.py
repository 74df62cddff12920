"""Split conformal prediction: thresholds that guarantee a target false positive rate, p-values and bounds.

Scores are log-odds: higher = more AI. The guarantees hold only for texts exchangeable with the human texts of the
calibration set (same sources, topics, writers and lengths).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ConfigDict
from scipy.special import betaincinv

from detect_ai.core.errors import CalibrationError, InputError
from detect_ai.metrics import Floats, largest_count

Guarantee = Literal["confidence", "expectation"]
CONFIDENCE = 0.95
SUGGESTED_TARGETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Threshold:
    """The decision for one target FPR: a text is not human if its standardised score is at least `score`.

    Attributes:
        score: compare it in float64: it is one step above a human score, which float32 cannot resolve.
        fpr_bound: upper confidence bound of the realised FPR.
        confidence: confidence level of the bound.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    score: float
    fpr_bound: float
    confidence: float


def texts_needed(target_fpr: float, guarantee: Guarantee) -> int:
    """The smallest number of human calibration texts that can guarantee a target FPR.

    `expectation`: ceil(1 / target) - 1, because the smallest p-value of n texts is 1 / (n + 1): 99 for 1%, 19 for 5%.
    `confidence`: the smallest n with (1 - target)^n <= 0.05: 299 for 1%, 59 for 5%. Raises CalibrationError for a
    target outside (0, 1).
    """
    if not 0.0 < target_fpr < 1.0:
        raise CalibrationError(f"target FPR must be in (0, 1), found {target_fpr}")
    if guarantee == "confidence":
        needed = math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-target_fpr))
        return next(n for n in (needed - 1, needed, needed + 1) if n and _rank(n, target_fpr, guarantee))
    nearest = round(1 / target_fpr)
    return nearest - 1 if 1 / nearest <= target_fpr else nearest


def require_texts(n: int, target_fpr: float, guarantee: Guarantee) -> None:
    """Raise CalibrationError, with the number needed, if n human texts are too few for a target."""
    needed = texts_needed(target_fpr, guarantee)
    if n >= needed:
        return
    advice = "add human texts to the calibration split"
    feasible = next((target for target in SUGGESTED_TARGETS if texts_needed(target, guarantee) <= n), None)
    if feasible is not None:
        advice += f", or choose a larger target: calibration.target_fprs=[{feasible}] "
        advice += f"calibration.default_target_fpr={feasible}"
    if guarantee == "confidence" and texts_needed(target_fpr, "expectation") <= n:
        advice += ", or hold the target on average only: calibration.guarantee=expectation"
    raise CalibrationError(
        f"target FPR {target_fpr} needs at least {needed} human calibration texts, found {n}: {advice}"
    )


def _rank(n: int, target_fpr: float, guarantee: Guarantee) -> int:
    """How many texts, of n human calibration texts and a text labelled AI, may score at least as high as that text."""
    rank = largest_count(target_fpr, n + 1)
    if guarantee == "expectation" or not rank:
        return rank
    ranks = np.arange(1, rank + 1)
    return int((betaincinv(ranks, n + 1 - ranks, CONFIDENCE) <= target_fpr).sum())


def conformal_threshold(human_scores: ArrayLike, target_fpr: float, guarantee: Guarantee) -> Threshold:
    """The smallest float64 threshold that guarantees a target FPR by split conformal prediction, with its bound.

    A score is at least the threshold iff at most k - 1 of n human calibration texts reach it. For a human text
    exchangeable with them, this has a probability of at most k / (n + 1), over the draw of both (Vovk, Gammerman and
    Shafer 2005, "Algorithmic Learning in a Random World"). Ties only lower the FPR. For independent texts with
    continuous scores the FPR, given the calibration texts, is Beta(k, n + 1 - k) distributed; the bound is its 95%
    quantile (Vovk 2012, "Conditional validity of inductive conformal predictors", PMLR 25; Angelopoulos and Bates 2021,
    "A gentle introduction to conformal prediction", section 3.2).

    k is the largest for which the target holds: `expectation`, on average over calibration sets, so that exactly the
    texts with a `p_value` up to the target reach the threshold; `confidence`, for 95% of calibration sets.
    Raises CalibrationError for too few scores, a score that is not finite, or a target outside (0, 1).
    """
    scores = np.sort(np.asarray(human_scores, dtype=np.float64))
    n = scores.size
    require_texts(n, target_fpr, guarantee)
    if not np.isfinite(scores).all():
        raise CalibrationError("human scores must be finite")
    rank = _rank(n, target_fpr, guarantee)
    return Threshold(
        score=float(np.nextafter(scores[-rank], np.inf)),
        fpr_bound=float(betaincinv(rank, n + 1 - rank, CONFIDENCE)),
        confidence=CONFIDENCE,
    )


def p_value(sorted_human_scores: ArrayLike, scores: ArrayLike) -> Floats:
    """The conformal p-value of the hypothesis "a human wrote it": (1 + #{human score >= score}) / (n + 1).

    Human texts exchangeable with the calibration texts get a value of u or less with probability at most u.
    Ties count against labelling a text AI. Human scores are ascending, shape (n,); values in [1 / (n + 1), 1] have the
    shape of `scores`. Raises InputError for NaN, which would sort above all human texts.
    """
    human, values = np.asarray(sorted_human_scores, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if np.isnan(values).any():
        raise InputError("a score is NaN and has no p-value")
    at_least = human.size - np.searchsorted(human, values, side="left")
    return np.asarray((1 + at_least) / (human.size + 1), dtype=np.float64)
