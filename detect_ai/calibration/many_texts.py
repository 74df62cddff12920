"""Statistics for a list of texts as a whole: false discoveries, prevalence, and whether calibration fits it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import ks_2samp

from detect_ai.metrics import Floats, exact_rate_interval

PREVALENCES = (0.01, 0.05, 0.2, 0.5)  # in the tables of reports
CLASS_SIZE = 30


def false_discovery_flags(p_values: ArrayLike, rate: float) -> np.ndarray:
    """Mask, shape (n,), of texts to flag as AI so that on average at most a fraction `rate` of them is human.

    Benjamini and Hochberg (1995), valid for conformal p-values (Bates et al. 2023, "Testing for outliers with
    conformal p-values"). Requires valid p-values for human texts: no guarantee beyond that of the thresholds.
    """
    values = np.asarray(p_values, np.float64)
    ranks = np.arange(1, values.size + 1)
    passing = np.flatnonzero(np.sort(values) <= rate * ranks / max(1, values.size))
    cutoff = np.sort(values)[passing[-1]] if passing.size else -np.inf
    return values <= cutoff


def prevalence_interval(labelled_ai: int, texts: int, max_fpr: float, min_tpr: float) -> tuple[float, float]:
    """Bounds of the fraction of AI texts in a list, from the number of texts labelled AI.

    Lower bound: the labelled texts that `max_fpr` does not explain; upper bound: the labelled texts divided by the
    detection rate `min_tpr`. Both use 95% Clopper-Pearson bounds of the labelled fraction (Rogan and Gladen 1978).
    """
    low, high = exact_rate_interval(labelled_ai, texts)
    return max(0.0, (low - max_fpr) / (1 - max_fpr)), min(1.0, high / min_tpr) if min_tpr > 0 else 1.0


def precision(prevalence: float, fpr: float | None, tpr: float | None) -> float | None:
    """The fraction of AI texts among texts labelled AI (PPV); None if a rate is unknown or both are 0."""
    if fpr is None or tpr is None or fpr + tpr == 0:
        return None
    return prevalence * tpr / (prevalence * tpr + (1 - prevalence) * fpr)


def precision_table(fpr: float, tpr: float | None) -> list[dict[str, float | None]]:
    """Rows of `prevalence` and `ppv` at that prevalence."""
    return [{"prevalence": prevalence, "ppv": precision(prevalence, fpr, tpr)} for prevalence in PREVALENCES]


def any_false_accusation(humans: int, fpr: float) -> float:
    """The probability that at least one of `humans` independent human texts is labelled AI."""
    return float(1 - (1 - fpr) ** humans)


def unlike_all(scores: Floats, domains: Sequence[Floats]) -> float | None:
    """Distance of human scores from those of calibration, relative to the largest distance of a domain.

    Distances are Kolmogorov-Smirnov statistics: of the scores against all domains, and of each domain against the
    others. Above 1, the texts are unlike every domain. None with fewer than two domains or without scores.
    """
    if len(domains) < 2 or not len(scores):
        return None
    others = [np.concatenate([own for own in domains if own is not left_out]) for left_out in domains]
    largest = max(ks_2samp(own, rest).statistic for own, rest in zip(domains, others, strict=True))
    return float(ks_2samp(scores, np.concatenate(domains)).statistic / max(largest, 1e-12))
