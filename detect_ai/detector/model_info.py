"""What is to be known of a detector before one relies on it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from detect_ai.calibration.calibration import Reference
from detect_ai.calibration.conformal import CONFIDENCE, fpr_bound
from detect_ai.schemas import CategoryInfo, ModelInfo, ThresholdInfo

if TYPE_CHECKING:
    from detect_ai.detector.bundle import DetectorSpec

GUARANTEE = (
    "The false positive rate holds on average for human texts exchangeable with the calibration set: the same sources, "
    "topics, writers and lengths. For other texts there is no guarantee. Never judge a person by a score alone."
)


def model_info(spec: DetectorSpec, limits: Mapping[str, int]) -> ModelInfo:
    """A bundle's thresholds and origins, and the limits of what answers with it."""
    calibration = spec.calibration
    thresholds = [_threshold(spec, target) for target in sorted(calibration.thresholds)]
    return ModelInfo(
        model_version=spec.version,
        base_model=spec.base_model,
        corpus=spec.corpus,
        language=str(spec.corpus.get("language", "")),
        prevalence=calibration.prevalence,
        default_target_fpr=spec.default_target_fpr,
        thresholds=thresholds,
        num_human=calibration.num_human,
        min_tokens=spec.min_tokens,
        window=spec.window,
        normaliser_version=spec.normaliser_version,
        limits=dict(limits),
        guarantee=GUARANTEE,
    )


def _threshold(spec: DetectorSpec, target: float) -> ThresholdInfo:
    calibration = spec.calibration
    categories = [
        CategoryInfo(
            compared_with=each.register,
            min_tokens=each.min_tokens,
            max_tokens=each.max_tokens,
            num_human=len(each.human_scores),
            **_held(each, target),
        )
        for each in calibration.categories
    ]
    every = [_held(each, target) for each in calibration.categories or (calibration,)]
    worst = {name: max(held[name] for held in every) for name in every[0]}
    return ThresholdInfo(target_fpr=target, min_tokens=spec.min_tokens_at(target), categories=categories, **worst)


def _held(reference: Reference, target: float) -> dict[str, float]:
    """What the human texts of a reference say about the false positive rate at a target."""
    threshold = reference.thresholds[target]
    return {
        "probability": float(reference.probability(reference.bounds(target)[1])),
        "expected_fpr": threshold.expected_fpr,
        "fpr_lower_bound": fpr_bound(len(reference.human_scores), target, 1 - CONFIDENCE),
        "fpr_upper_bound": threshold.fpr_bound,
    }
