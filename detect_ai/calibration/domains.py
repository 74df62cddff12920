"""Thresholds by domain (Mondrian conformal prediction), minimum lengths and the scaling of spans."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

from detect_ai.calibration.calibration import Calibration, GroupCalibration
from detect_ai.calibration.conformal import texts_needed, threshold_of
from detect_ai.calibration.scaling import Scaling, fit_scaling
from detect_ai.core.errors import CalibrationError
from detect_ai.metrics import Floats, Labels

MIN_SCALED = 30  # texts of each class, for a scaling of their own
MIN_TPR = 0.5  # lengths with a lower detection rate are too short for a verdict


@dataclass(frozen=True)
class ScoredSpans:
    """Scores of documents and of spans of them.

    Attributes:
        labels: 0 human, 1 AI; int64, shape (n,).
        scores: log-odds of AI; float64, shape (n,).
        num_tokens: lengths; int64, shape (n,).
        domains: as `detect_ai.calibration.domain_classifier` names them; "" where it is not known, shape (n,).
        documents: number of the document that each belongs to; int64, shape (n,).
        is_whole: whether it is the whole document, shape (n,).
    """

    labels: Labels
    scores: Floats
    num_tokens: NDArray[np.int64]
    domains: NDArray[np.str_]
    documents: NDArray[np.int64]
    is_whole: NDArray[np.bool_]

    def __getitem__(self, selected: NDArray[np.bool_] | NDArray[np.int64]) -> Self:
        """The documents of a mask, or at positions."""
        return type(self)(*(getattr(self, column.name)[selected] for column in fields(self)))

    def longest_per_document(self) -> Self:
        """The longest of each document: two spans of one document are not independent."""
        order = np.lexsort((self.num_tokens, self.documents))
        last = np.diff(self.documents[order], append=self.documents.max(initial=0) + 1) != 0
        return self[np.sort(order[last])]


def calibrate_domains(calibration: Calibration, scored: ScoredSpans, lengths: Sequence[int] = ()) -> Calibration:
    """Add thresholds by domain, minimum lengths for a verdict, and the scaling of spans.

    Domains are those of the documents; without any, all texts stay one group.

    Args:
        calibration: of the whole documents; a domain with few texts of a class takes its scaling.
        scored: the documents and, for minimum lengths and the scaling of spans, one span of each in every range of
            lengths.
        lengths: in tokens, ascending: the edges of the ranges in which the detection rate is measured.

    Raises:
        CalibrationError: a domain has too few human documents for a target.
    """
    documents = scored[scored.is_whole]
    names = sorted(set(documents.domains.tolist()) - {""})
    groups = [_domain_group(calibration, documents[documents.domains == name], name) for name in names]
    fitted = replace(calibration, domains=tuple(groups), span_scaling=_span_scaling(calibration, scored))
    if not lengths:
        return fitted
    if not groups:
        return replace(fitted, min_tokens=_min_tokens(fitted, scored, lengths))
    learned = [
        replace(group, min_tokens=_min_tokens(group, scored[scored.domains == group.domain], lengths))
        for group in groups
    ]
    return replace(fitted, domains=tuple(learned))


def _domain_group(whole: Calibration, documents: ScoredSpans, name: str) -> GroupCalibration:
    human = np.sort(documents.scores[documents.labels == 0])
    strictest = min(whole.thresholds)
    if human.size < texts_needed(strictest):
        raise CalibrationError(
            f"domain {name!r}: target FPR {strictest} needs at least {texts_needed(strictest)} human calibration "
            f"texts, found {human.size}: add some, choose a larger target, or leave out calibration.domains"
        )
    has_own = min(human.size, documents.labels.size - human.size) >= MIN_SCALED
    scaling = fit_scaling(documents.labels, documents.scores, whole.prevalence) if has_own else whole
    return GroupCalibration(
        temperature=scaling.temperature,
        midpoint=scaling.midpoint,
        human_scores=tuple(human.tolist()),
        thresholds={target: threshold_of(human, target) for target in whole.thresholds},
        domain=name,
    )


def _span_scaling(whole: Calibration, scored: ScoredSpans) -> Scaling | None:
    """The scaling of spans shorter than their documents; None where there are too few of a class."""
    spans = scored[~scored.is_whole]
    if min((spans.labels == 0).sum(), (spans.labels == 1).sum()) < MIN_SCALED:
        return None
    return fit_scaling(spans.labels, spans.scores, whole.prevalence)


def _min_tokens(group: GroupCalibration, scored: ScoredSpans, lengths: Sequence[int]) -> dict[float, int]:
    """By target, the length from which every range has the detection rate; 0 where not even the longest has it.

    A domain whose longest texts are hard to detect is hard at any length, so the length is not the reason there.
    """
    rates: list[tuple[int, dict[float, float]]] = []  # upper edge of a range (0: none), detection rate by target
    for low, high in pairwise([0, *lengths, np.inf]):
        part = scored[(scored.num_tokens >= low) & (scored.num_tokens < high)].longest_per_document()
        ai = part.scores[part.labels == 1]
        if ai.size:
            by_target = {target: float((ai >= group.bounds(target)[1]).mean()) for target in group.thresholds}
            rates.append((int(high) if np.isfinite(high) else 0, by_target))
    return {
        target: max((high for high, tprs in rates if tprs[target] < MIN_TPR), default=0)
        if rates and rates[-1][1][target] >= MIN_TPR
        else 0
        for target in group.thresholds
    }
