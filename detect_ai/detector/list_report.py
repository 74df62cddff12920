"""The report on a scored list of texts: how many are AI, which ones, and how reliable that is. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from detect_ai.calibration.many_texts import (
    CLASS_SIZE,
    any_false_accusation,
    false_discovery_flags,
    precision_table,
    prevalence_interval,
    unlike_all,
)
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.verdict_table import PREDICTIONS, Verdicts
from detect_ai.schemas import Reason

MAX_LISTED = 1000  # texts that the page lists
OUT_OF_SCOPE_WARNING = 0.3  # fraction of the texts
_BY_SCORE = {Reason.BETWEEN_THRESHOLDS, Reason.UNLIKE_CALIBRATION}  # reasons of texts that are in scope


def list_report(verdicts: Verdicts, spec: DetectorSpec, max_false_discoveries: float) -> dict[str, Any]:
    """Statements about the texts decided by score; texts that are out of scope or too short are only counted.

    Returns plain values for JSON and for `reports/templates/list.html.jinja`.
    """
    calibration, target = spec.calibration, spec.default_target_fpr
    threshold = calibration.thresholds[target]
    is_scored = np.asarray([set(reasons) <= _BY_SCORE for reasons in verdicts.reasons], np.bool_)
    if calibration.population:  # texts out of its reach are uncertain because of their style, with any score
        is_unlike = np.asarray([Reason.UNLIKE_CALIBRATION in reasons for reasons in verdicts.reasons], np.bool_)
        is_scored &= ~(is_unlike & (verdicts.p_values == 1))
    predictions, p_values = verdicts.predictions[target], np.where(is_scored, verdicts.p_values, 1.0)
    flags = np.zeros(len(verdicts), np.bool_)
    flags[is_scored] = false_discovery_flags(p_values[is_scored], max_false_discoveries)
    tpr = spec.detection_rates[target]
    texts, labelled = int(is_scored.sum()), int((predictions[is_scored] == 1).sum())
    low, high = prevalence_interval(labelled, texts, threshold.fpr_bound, tpr or 0.0) if texts else (0.0, 1.0)
    human = is_scored & (predictions != 1)
    distance = unlike_all(
        calibration.human_length.standardise(verdicts.scores[human], verdicts.num_tokens[human]),
        [domain.human.standardised(calibration.human_length) for domain in calibration.domains if len(domain.human)],
    )
    order, names = np.argsort(p_values, kind="stable"), {value: name for name, value in PREDICTIONS.items()}
    return {
        "version": spec.version,
        "target_fpr": target,
        "fpr_bound": threshold.fpr_bound,
        "confidence": threshold.confidence,
        "compared_with": calibration.compared_with.value,
        "population": calibration.population and calibration.population.name,
        "texts": len(verdicts),
        "scored": texts,
        "labels": {name: int((predictions[is_scored] == value).sum()) for name, value in PREDICTIONS.items()},
        "reasons": dict(Counter(reason for own in verdicts.reasons for reason in own).most_common()),
        "max_false_discoveries": max_false_discoveries,
        "flagged": int(flags.sum()),
        "listed": [
            {
                "row": verdicts.rows[i],
                "id": verdicts.ids[i],
                "label": names[int(predictions[i])],
                "p_value": float(p_values[i]),
            }
            for i in order[: int(flags.sum())][:MAX_LISTED].tolist()
        ],
        "prevalence": [low, high],
        "tpr": tpr,
        "precision": precision_table(threshold.fpr_bound, tpr),
        "class_size": CLASS_SIZE,
        "any_false_accusation": any_false_accusation(CLASS_SIZE, threshold.fpr_bound),
        "distance": distance,
        "warnings": _warnings(len(verdicts), texts, distance, calibration.population is not None),
    }


def _warnings(texts: int, scored: int, distance: float | None, population: bool) -> list[str]:
    warnings = []
    if texts - scored > OUT_OF_SCOPE_WARNING * texts:
        what = "too short, out of scope or unlike the population" if population else "too short or out of scope"
        warnings.append(f"{texts - scored} of {texts} texts are {what}: nothing is said about them.")
    if distance is not None and distance > 1:
        warnings.append(
            "The texts that are not labelled AI score unlike every kind of human writing in the calibration set: the "
            "error rates may not hold for them."
        )
    return warnings
