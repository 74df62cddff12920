"""Facts about a detector for its users: thresholds with their bounds, training corpus and limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from detect_ai.schemas import DomainInfo, ModelInfo, ThresholdInfo

if TYPE_CHECKING:
    from detect_ai.detector.bundle import DetectorSpec

GUARANTEE = (
    "False positive rates and bounds hold for human texts exchangeable with the calibration set: the same sources, "
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
        thresholds=_thresholds(spec),
        num_human=calibration.num_human,
        min_tokens=spec.min_tokens,
        window=spec.window,
        normaliser_version=spec.normaliser_version,
        limits=dict(limits),
        guarantee=GUARANTEE,
    )


def card_info(spec: DetectorSpec) -> dict[str, Any]:
    """Values of a bundle for its model card."""
    fields = ("base_model", "corpus", "window", "stride", "domains", "parent", "backend", "precision")
    return {
        **{name: getattr(spec, name) for name in fields},
        **{name: spec.provenance[name] for name in ("model_licence", "run", "git_revision")},
        "prevalence": spec.calibration.prevalence,
        "num_human": spec.calibration.num_human,
        "thresholds": [row.model_dump() for row in _thresholds(spec)],
    }


def _thresholds(spec: DetectorSpec) -> list[ThresholdInfo]:
    """Threshold and error rates at each target: of the domains, and the highest values over them."""
    calibration, rows = spec.calibration, []
    for target in sorted(calibration.thresholds):
        domains = [
            DomainInfo(
                name=group.domain,
                num_human=group.num_human,
                probability=float(group.probability(group.bounds(target)[1])),
                expected_fpr=group.thresholds[target].expected_fpr,
                fpr_upper_bound=group.thresholds[target].fpr_bound,
                min_tokens=spec.min_tokens_at(target, group.domain),
            )
            for group in calibration.domains or (calibration,)
        ]
        rows.append(
            ThresholdInfo(
                target_fpr=target,
                probability=max(domain.probability for domain in domains),
                expected_fpr=max(domain.expected_fpr for domain in domains),
                fpr_upper_bound=max(domain.fpr_upper_bound for domain in domains),
                min_tokens=max(domain.min_tokens for domain in domains),
                domains=domains if calibration.domains else [],
            )
        )
    return rows
