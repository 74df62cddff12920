"""Facts about a detector for its users: thresholds with their bounds, training corpus and limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from detect_ai.calibration.many_texts import CLASS_SIZE, any_false_accusation, precision_table
from detect_ai.schemas import ModelInfo, Reference, ThresholdInfo

if TYPE_CHECKING:
    from detect_ai.detector.bundle import DetectorSpec

GUARANTEE = {
    Reference.NEW_DOMAIN: "False positive rates and bounds hold with the stated confidence in a kind of writing that "
    "calibration never saw, if it differs from those of calibration as they differ from one another. Do not use a "
    "score as the only evidence against a person.",
    Reference.CALIBRATION_TEXTS: "False positive rates and bounds hold for human texts exchangeable with the "
    "calibration set: the same sources, topics, writers and lengths. For other texts there is no guarantee. Do not use "
    "a score as the only evidence against a person.",
    Reference.POPULATION: "False positive rates hold on average, and bounds with the stated confidence, for human "
    "texts exchangeable with those of one population: {population}. Texts unlike theirs get no verdict. For other "
    "writers there is no guarantee. Do not use a score as the only evidence against a person.",
}


def model_info(spec: DetectorSpec, limits: Mapping[str, int]) -> ModelInfo:
    """A bundle's thresholds and origin, and the request limits of its service."""
    calibration = spec.calibration
    population = calibration.population.name if calibration.population else None
    return ModelInfo(
        model_version=spec.version,
        base_model=spec.base_model,
        corpus=spec.corpus,
        language=str(spec.corpus.get("language", "")),
        prevalence=calibration.prevalence,
        default_target_fpr=spec.default_target_fpr,
        thresholds=_thresholds(spec),
        compared_with=calibration.compared_with,
        population=population,
        num_human=calibration.num_human,
        num_domains=len(calibration.domains),
        min_tokens=spec.min_tokens,
        window=spec.window,
        normaliser_version=spec.normaliser_version,
        limits=dict(limits),
        guarantee=GUARANTEE[calibration.compared_with].format(population=population),
    )


def card_info(spec: DetectorSpec) -> dict[str, Any]:
    """Values of a bundle for the model card."""
    fields = ("base_model", "corpus", "window", "stride", "parent", "backend", "precision")
    return {
        **{name: getattr(spec, name) for name in fields},
        **{name: spec.provenance[name] for name in ("model_licence", "run", "git_revision")},
        "prevalence": spec.calibration.prevalence,
        "compared_with": spec.calibration.compared_with.value,
        "population": spec.calibration.population and spec.calibration.population.name,
        "num_human": spec.calibration.num_human,
        "domains": [domain.name for domain in spec.calibration.domains],
        "class_size": CLASS_SIZE,
        "thresholds": [
            {
                **row.model_dump(),
                "precision": precision_table(row.fpr_upper_bound, row.detection_rate),
                "any_false_accusation": any_false_accusation(CLASS_SIZE, row.fpr_upper_bound),
            }
            for row in _thresholds(spec)
        ],
    }


def _thresholds(spec: DetectorSpec) -> list[ThresholdInfo]:
    """Threshold and error rates at each target."""
    calibration = spec.calibration
    return [
        ThresholdInfo(
            target_fpr=target,
            probability=float(calibration.probability(calibration.ai_from_unlike(target))),
            fpr_upper_bound=threshold.fpr_bound,
            confidence=threshold.confidence,
            detection_rate=spec.detection_rates[target],
            min_tokens=spec.min_tokens_at(target),
        )
        for target, threshold in sorted(calibration.thresholds.items())
    ]
