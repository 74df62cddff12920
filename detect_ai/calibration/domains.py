"""Thresholds by register and length: Mondrian conformal prediction over spans of the calibration texts. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from detect_ai.calibration import scaling
from detect_ai.calibration.calibration import Calibration, Category
from detect_ai.calibration.conformal import texts_needed, threshold_of
from detect_ai.core.errors import CalibrationError
from detect_ai.metrics import Floats, Labels

MIN_SCALED = 30  # texts of each class, for a category to have a scaling of its own


@dataclass(frozen=True)
class Spans:
    """Scored spans of calibration texts: what a detector makes of shorter texts of the same writers.

    Attributes:
        labels: 0 human, 1 AI, shape (n,).
        scores: raw scores, shape (n,).
        num_tokens: their lengths, shape (n,).
        registers: as `detect_ai.calibration.domain_classifier` names them, shape (n,).
        documents: number of the text that each is of, shape (n,).
    """

    labels: Labels
    scores: Floats
    num_tokens: NDArray[np.int64]
    registers: NDArray[np.str_]
    documents: NDArray[np.int64]

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Self:
        return type(self)(*(getattr(self, each.name)[chosen] for each in fields(self)))

    def one_each(self) -> Self:
        """The longest of each text: two of one text are no two draws."""
        order = np.lexsort((self.num_tokens, self.documents))
        last = np.diff(self.documents[order], append=self.documents.max(initial=0) + 1) != 0
        return self[np.sort(order[last])]


def with_categories(
    whole: Calibration,
    spans: Spans,
    edges: Sequence[int],
    min_tpr: float,
    method: str = "platt",
    lengths: Sequence[int] | None = None,
) -> Calibration:
    """Adds thresholds by register and length, and the length from which a verdict is worth giving.

    A range of lengths with fewer human spans than the strictest target needs is joined with the next longer one; so is
    what remains at the end with the one before. Of a text with several spans in a range the longest one counts.

    Args:
        whole: calibration of the whole texts; what a category lacks AI texts for is taken from it.
        spans: of the calibration texts, one of each in every range of lengths that it fills.
        edges: lengths in tokens that part the ranges, ascending.
        min_tpr: in (0, 1): a verdict at a target needs this share of AI texts found at its length.
        method: of the probabilities, as `calibrate`.
        lengths: in tokens, ascending: those that part the ranges in which the AI texts found are counted; `edges` when
            None.

    Raises:
        CalibrationError: a register has too few human spans for a target.
    """
    compared = spans if edges else spans.one_each()  # a span of a text may seem of another register than the text
    categories = [
        _category(whole, register, low, high, part, method)
        for register in sorted(set(compared.registers.tolist()) - {""}) or [""]
        for low, high, part in _ranges(compared[compared.registers == register], edges, min(whole.thresholds))
    ]
    made = replace(whole, categories=tuple(categories))
    counted = categories if lengths is None else _by_length(made, spans, lengths)
    learnt = {target: _first_length(counted, target, min_tpr) for target in whole.thresholds}
    return replace(made, min_tokens=learnt)


def _by_length(made: Calibration, spans: Spans, lengths: Sequence[int]) -> list[Category]:
    """What each category finds of the AI texts of its register in each range of lengths that has some."""
    found = []
    for register in sorted({each.register for each in made.categories}):
        for low, high in zip((0, *lengths), (*lengths, None), strict=True):
            inside = (spans.registers == register) & (spans.num_tokens >= low)
            part = spans[inside & ((high is None) | (spans.num_tokens < (high or 0)))].one_each()
            ai = part.scores[part.labels == 1]
            if ai.size:
                own = {t: made.reference(register, low, t) for t in made.thresholds}
                tprs = {target: float((ai >= each.bounds(target)[1]).mean()) for target, each in own.items()}
                category = next(each for each in made.categories if each.register == register)
                found.append(replace(category, min_tokens=low, max_tokens=high, tprs=tprs))
    return found


def _ranges(spans: Spans, edges: Sequence[int], strictest: float) -> list[tuple[int, int | None, Spans]]:
    """Ranges of lengths, each with enough human spans for the strictest target."""
    needed = texts_needed(strictest)
    lows, found = [0, *edges], []
    start = humans = 0
    for position, high in enumerate([*edges, None]):
        inside = (spans.num_tokens >= lows[start]) & (high is None or spans.num_tokens < high)
        part = spans[np.asarray(inside)].one_each()
        humans = int((part.labels == 0).sum())
        if humans >= needed:
            found.append((lows[start], high, part))
            start = position + 1
    if not found:
        name = "".join(set(spans.registers.tolist()))
        raise CalibrationError(
            f"register {name!r}: target FPR {strictest} needs at least {needed} human calibration texts of like "
            f"length, found {humans} of any: add some, choose a larger target, or leave out calibration.registers"
        )
    if found[-1][1] is not None:
        low = found[-1][0]
        found[-1] = (low, None, spans[spans.num_tokens >= low].one_each())
    return found


def _category(whole: Calibration, register: str, low: int, high: int | None, spans: Spans, method: str) -> Category:
    human = np.sort(spans.scores[spans.labels == 0])
    ai = spans.scores[spans.labels == 1]
    both = min(human.size, ai.size) >= MIN_SCALED
    temperature, midpoint, knots = (
        scaling.fit(spans.labels, spans.scores, method, whole.prevalence)
        if both
        else (whole.temperature, whole.midpoint, whole.knots)
    )
    made = Category(
        temperature=temperature,
        midpoint=midpoint,
        knots=knots,
        human_scores=tuple(human.tolist()),
        thresholds={target: threshold_of(human, target) for target in whole.thresholds},
        register=register,
        min_tokens=low,
        max_tokens=high,
    )
    found = {target: float((ai >= made.bounds(target)[1]).mean()) for target in whole.thresholds} if ai.size else {}
    return replace(made, tprs=found)


def _first_length(categories: Sequence[Category], target: float, min_tpr: float) -> int:
    """The length from which every range finds enough AI texts in some register; 0 where not even the longest does."""
    lengths = []
    for register in {each.register for each in categories}:
        own = [each for each in categories if each.register == register and each.tprs]
        # A register whose longest texts are hard to tell is hard at any length; its length is not why.
        if own and own[-1].tprs[target] >= min_tpr:
            lengths.append(max((each.max_tokens or 0 for each in own if each.tprs[target] < min_tpr), default=0))
    return min(lengths, default=0)
