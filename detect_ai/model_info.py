"""What is to be known of a detector before one relies on it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from detect_ai.conformal import CONFIDENCE, fpr_bound
from detect_ai.schemas import ModelInfo, ThresholdInfo

if TYPE_CHECKING:
    from detect_ai.bundle import DetectorSpec

GUARANTEE = (
    "The false positive rate holds on average for human texts exchangeable with the calibration set: the same sources, "
    "topics, writers and lengths. For other texts there is no guarantee. Never judge a person by a score alone."
)


def model_info(spec: DetectorSpec, limits: Mapping[str, int]) -> ModelInfo:
    """A bundle's thresholds and origins, and the limits of what answers with it."""
    calibration = spec.calibration
    thresholds = [
        ThresholdInfo(
            target_fpr=target,
            probability=float(calibration.probability(calibration.bounds(target)[1])),
            expected_fpr=calibration.thresholds[target].expected_fpr,
            fpr_lower_bound=fpr_bound(calibration.num_human, target, 1 - CONFIDENCE),
            fpr_upper_bound=calibration.thresholds[target].fpr_bound,
            min_tokens=spec.min_tokens_at(target),
        )
        for target in sorted(calibration.thresholds)
    ]
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
