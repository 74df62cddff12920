"""Split conformal prediction: thresholds that hold a target false positive rate, p-values and bounds.

Scores are log-odds: higher = more AI. The guarantees hold for texts exchangeable with the human texts of the
calibration set (same sources, topics, writers and lengths) and for no others.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ConfigDict
from scipy.special import betaincinv

from detect_ai.core.errors import CalibrationError, InputError
from detect_ai.metrics import Floats, largest_count

CONFIDENCE = 0.95
SUGGESTED_TARGETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Threshold:
    """The decision for one target FPR: a text is labelled AI iff its score is at least `score`.

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


def texts_needed(target_fpr: float) -> int:
    """The smallest number of human calibration texts that can hold a target FPR: ceil(1 / target) - 1.

    With n texts the smallest p-value is 1 / (n + 1); below this number it exceeds the target for every text.
    99 for 1%, 19 for 5%, 999 for 0.1%. Raises CalibrationError for a target outside (0, 1).
    """
    if not 0.0 < target_fpr < 1.0:
        raise CalibrationError(f"target FPR must be in (0, 1), found {target_fpr}")
    nearest = round(1 / target_fpr)
    return nearest - 1 if 1 / nearest <= target_fpr else nearest


def require_texts(n: int, target_fpr: float, domain: str = "") -> None:
    """Raise CalibrationError when n human texts (of a domain) are too few for a target, with the number needed."""
    needed = texts_needed(target_fpr)
    if n >= needed:
        return
    advice = "add human texts to the calibration split"
    feasible = next((target for target in SUGGESTED_TARGETS if texts_needed(target) <= n), None)
    if feasible is not None:
        advice += f", or choose a larger target: calibration.target_fprs=[{feasible}] "
        advice += f"calibration.default_target_fpr={feasible}"
    prefix = f"domain {domain!r}: " if domain else ""
    raise CalibrationError(
        f"{prefix}target FPR {target_fpr} needs at least {needed} human calibration texts, found {n}: {advice}"
    )


def conformal_threshold(human_scores: ArrayLike, target_fpr: float) -> Threshold:
    """The smallest float64 threshold that holds a target FPR by split conformal prediction, with its bounds.

    A score is at least the threshold iff its `p_value` is at most the target. For a human text exchangeable with the
    calibration texts that happens with probability `target_fpr` at most, over the draw of both (Vovk, Gammerman and
    Shafer 2005, "Algorithmic Learning in a Random World"). Ties only lower the FPR.

    The target holds on average over calibration sets. For independent texts with continuous scores the FPR, given n
    human texts, is Beta(k, n + 1 - k) distributed; the bound is its 95% quantile (Vovk 2012, "Conditional validity of
    inductive conformal predictors", PMLR 25; Angelopoulos and Bates 2021, "A gentle introduction to conformal
    prediction", section 3.2).

    The score is one step of float64 above the k-th largest, k = floor(target_fpr * (n + 1)). Raises CalibrationError
    for fewer than `texts_needed` scores, a score that is not finite, or a target outside (0, 1).
    """
    scores = np.sort(np.asarray(human_scores, dtype=np.float64))
    n = scores.size
    require_texts(n, target_fpr)
    if not np.isfinite(scores).all():
        raise CalibrationError("human scores must be finite")
    rank = largest_count(target_fpr, n + 1)  # of n + 1 exchangeable human texts so many may be labelled AI
    return Threshold(
        score=float(np.nextafter(scores[-rank], np.inf)),
        fpr_bound=float(betaincinv(rank, n + 1 - rank, CONFIDENCE)),
        expected_fpr=rank / (n + 1),
    )


def p_value(sorted_human_scores: ArrayLike, scores: ArrayLike) -> Floats:
    """The conformal p-value of the hypothesis "a human wrote it": (1 + #{human score >= score}) / (n + 1).

    Human texts exchangeable with the calibration texts get a value of u or less with probability u at most.
    Ties count against calling a text AI. Human scores are ascending, shape (n,); values in [1 / (n + 1), 1] have the
    shape of `scores`. Raises InputError for NaN, which would sort above all human texts.
    """
    human, values = np.asarray(sorted_human_scores, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if np.isnan(values).any():
        raise InputError("a score is NaN and has no p-value")
    at_least = human.size - np.searchsorted(human, values, side="left")
    return np.asarray((1 + at_least) / (human.size + 1), dtype=np.float64)
