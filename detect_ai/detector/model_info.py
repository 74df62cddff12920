"""Facts about a detector for its users: thresholds with their bounds, training corpus and limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from detect_ai.calibration.conformal import CONFIDENCE, fpr_bound
from detect_ai.schemas import CategoryInfo, ModelInfo, ThresholdInfo

if TYPE_CHECKING:
    from detect_ai.calibration.calibration import GroupCalibration
    from detect_ai.detector.bundle import DetectorSpec

GUARANTEE = (
    "The false positive rate holds on average for human texts exchangeable with the calibration set: the same sources, "
    "topics, writers and lengths. For other texts there is no guarantee. Do not use a score as the only evidence "
    "against a person."
)


def model_info(spec: DetectorSpec, limits: Mapping[str, int]) -> ModelInfo:
    """A bundle's thresholds and origin, and the request limits of the service that runs it."""
    calibration = spec.calibration
    return ModelInfo(
        model_version=spec.version,
        base_model=spec.base_model,
        corpus=spec.corpus,
        language=str(spec.corpus.get("language", "")),
        prevalence=calibration.prevalence,
        default_target_fpr=spec.default_target_fpr,
        thresholds=[_threshold(spec, target) for target in sorted(calibration.thresholds)],
        num_human=calibration.num_human,
        min_tokens=spec.min_tokens,
        window=spec.window,
        normaliser_version=spec.normaliser_version,
        limits=dict(limits),
        guarantee=GUARANTEE,
    )


def card_info(spec: DetectorSpec) -> dict[str, Any]:
    """Values of a bundle for its model card, see `reports.model_card.model_card`."""
    return {
        "base_model": spec.base_model,
        "model_licence": spec.provenance["model_licence"],
        "corpus": spec.corpus,
        "window": spec.window,
        "stride": spec.stride,
        "domains": spec.domains,
        "parent": spec.parent,
        "backend": spec.backend,
        "precision": spec.precision,
        "run": spec.provenance["run"],
        "git_revision": spec.provenance["git_revision"],
        "prevalence": spec.calibration.prevalence,
        "num_human": spec.calibration.num_human,
        "thresholds": [
            {**row.model_dump(), "domains": [{"name": c.compared_with, **c.model_dump()} for c in row.categories]}
            for row in (_threshold(spec, target) for target in sorted(spec.calibration.thresholds))
        ],
    }


def _threshold(spec: DetectorSpec, target: float) -> ThresholdInfo:
    """Threshold and error rates at a target, the highest values over all domains."""
    domains = [
        CategoryInfo(
            compared_with=group.domain,
            min_tokens=spec.min_tokens_at(target, group.domain),
            num_human=group.num_human,
            **_error_rates(group, target),
        )
        for group in spec.calibration.domains
    ]
    groups = [_error_rates(group, target) for group in spec.calibration.domains or (spec.calibration,)]
    highest = {name: max(rates[name] for rates in groups) for name in groups[0]}
    return ThresholdInfo(target_fpr=target, min_tokens=spec.min_tokens_at(target), categories=domains, **highest)


def _error_rates(group: GroupCalibration, target: float) -> dict[str, float]:
    threshold = group.thresholds[target]
    return {
        "probability": float(group.probability(group.bounds(target)[1])),
        "expected_fpr": threshold.expected_fpr,
        "fpr_lower_bound": fpr_bound(group.num_human, target, 1 - CONFIDENCE),
        "fpr_upper_bound": threshold.fpr_bound,
    }
