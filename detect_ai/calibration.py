"""What turns raw scores into probabilities, p-values and decisions that hold a false positive rate.

Scores are log-odds: higher = more AI. The guarantees hold for texts exchangeable with the human texts of the
calibration set (same sources, topics, writers and lengths) and for no others.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import betaincinv, expit

from detect_ai.errors import CalibrationError, InputError
from detect_ai.metrics import Floats, Labels, check_binary, largest_count

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
MIN_SCALED = 30  # texts of each class, for a category to have a scaling of its own
SUGGESTED_TARGETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Threshold:
    """The decision for one target FPR: a text is called AI iff its score is at least `score`.

    Attributes:
        score: the threshold on the raw score. Compare float64 with it: in float32 the one step above the
            human score beneath it is lost.
        fpr_bound: upper 95% confidence bound of the FPR that this very calibration set realises.
        expected_fpr: the FPR expected over calibration sets of this size; at most the target.
    """

    score: float
    fpr_bound: float
    expected_fpr: float


@dataclass(frozen=True)
class Reference:
    """Human texts that a text is compared with, and what scores mean among their like.

    Attributes:
        temperature: divides the distance of the raw score from the midpoint, before the sigmoid.
        midpoint: the raw score with a probability of one half.
        human_scores: raw scores of the human texts, ascending.
        thresholds: by target FPR.
        knots: (score, probability) of an isotonic calibration, ascending; empty: the sigmoid holds.
    """

    temperature: float
    midpoint: float
    human_scores: tuple[float, ...]
    thresholds: dict[float, Threshold]

    knots: tuple[tuple[float, float], ...] = ()

    def probability(self, scores: ArrayLike) -> Floats:
        """Calibrated P(AI) of raw scores, of their shape."""
        if not self.knots:
            return probability(scores, self.temperature, self.midpoint)
        at, values = np.asarray(self.knots).T
        return np.asarray(np.interp(np.asarray(scores, dtype=np.float64), at, values), dtype=np.float64)

    def bounds(self, target_fpr: float) -> tuple[float, float]:
        """Raw scores below the first are `human`, from the second on `ai`, between them `uncertain`.

        `ai` needs both the conformal threshold and a probability of at least one half; so does `human` the opposite.
        """
        threshold = self.thresholds[target_fpr].score
        return min(threshold, self.midpoint), max(threshold, self.midpoint)

    def p_value(self, score: float) -> float:
        """The conformal p-value of a raw score against the human texts."""
        return p_value(self._sorted, score)

    @cached_property
    def _sorted(self) -> Floats:
        return np.asarray(self.human_scores)


@dataclass(frozen=True)
class Category(Reference):
    """Texts of one register and of like length.

    A text is judged by the human calibration texts of its own category, and the target FPR holds within each
    (Mondrian conformal prediction: Vovk, Gammerman and Shafer 2005, section 4.5).

    Attributes:
        register: as `detect_ai.registers` names it; "" where registers are not told apart.
        min_tokens: the shortest texts of it.
        max_tokens: all texts are shorter than this; None: no bound.
        tprs: by target FPR, the share of its AI calibration texts called AI; empty when it had none.
    """

    register: str = ""
    min_tokens: int = 0
    max_tokens: int | None = None
    tprs: dict[float, float] = field(default_factory=dict)

    def holds(self, num_tokens: int) -> bool:
        """Whether a text of this length belongs to it."""
        return self.min_tokens <= num_tokens and (self.max_tokens is None or num_tokens < self.max_tokens)


@dataclass(frozen=True)
class Calibration(Reference):
    """All that a detector keeps of its calibration set: the reference of all its texts, and categories of them.

    Attributes:
        prevalence: share of AI texts in the set; the probabilities assume it.
        num_human: number of human texts.
        num_ai: number of AI texts.
        categories: none where texts are not told apart by register and length.
        min_tokens: by target FPR, the length from which AI texts are found often enough for a verdict.
    """

    prevalence: float = 0.5
    num_human: int = 0
    num_ai: int = 0
    categories: tuple[Category, ...] = ()
    min_tokens: dict[float, int] = field(default_factory=dict)

    def reference(self, register: str, num_tokens: int, target_fpr: float | None = None) -> Reference:
        """What a text is compared with: its category, or of an unknown register the strictest one of its length.

        Args:
            register: of the text; "" where it is not known.
            num_tokens: its length.
            target_fpr: at which categories are compared; the smallest when None.
        """
        found = [each for each in self.categories if each.holds(num_tokens)]
        own = [each for each in found if each.register == register] or found
        target = min(self.thresholds, default=None) if target_fpr is None else target_fpr
        if not own or target is None:
            return self
        return max(own, key=lambda each: each.bounds(target)[1])

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON that `from_dict` reads back to an equal calibration."""
        categories = [_plain(asdict(each)) for each in self.categories]
        return _plain({**asdict(self), "categories": ()}) | {"categories": categories}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            CalibrationError: a field is missing or unknown, or the human scores are not ascending.
        """
        read = _read(cls, values)
        return cls(**{**read, "categories": tuple(Category(**_read(Category, each)) for each in read["categories"])})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Keys that JSON has, and lists where there were tuples."""
    by_target = {name: {repr(k): v for k, v in found.items()} for name, found in values.items() if _is_dict(found)}
    lists = {"human_scores": list(values["human_scores"]), "knots": [list(knot) for knot in values["knots"]]}
    return values | by_target | lists


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _read(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    _check_fields(cls, values)
    human_scores = tuple(values["human_scores"])
    if not np.all(np.diff(human_scores) >= 0):
        raise CalibrationError("human scores of a calibration must be ascending")
    by_target = {name: {float(k): v for k, v in found.items()} for name, found in values.items() if _is_dict(found)}
    thresholds = {target: _read_threshold(value) for target, value in by_target["thresholds"].items()}
    knots = tuple((float(at), float(value)) for at, value in values["knots"])
    return {**values, **by_target, "human_scores": human_scores, "thresholds": thresholds, "knots": knots}


def calibrate(labels: ArrayLike, logits: ArrayLike, target_fprs: Iterable[float], method: str = "platt") -> Calibration:
    """Fits the scaling and one threshold for each target FPR.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        logits: raw document scores of a split used for nothing else, shape (n,).
        target_fprs: each in (0, 1).
        method: of the probabilities, `platt` or `isotonic`.

    Returns:
        The calibration, its thresholds in ascending order of target.

    Raises:
        CalibrationError: one class is missing, or there are too few human texts for a target.
        InputError: labels and logits do not fit (see `metrics.check_binary`).
    """
    truth, scores = _check_both_classes(labels, logits)
    human = np.sort(scores[truth == 0])
    temperature, midpoint, knots = _scaling(truth, scores, method)
    return Calibration(
        temperature=temperature,
        midpoint=midpoint,
        knots=knots,
        human_scores=tuple(human.tolist()),
        thresholds={float(target): _threshold(human, target) for target in sorted(target_fprs)},
        prevalence=float(truth.mean()),
        num_human=human.size,
        num_ai=int(truth.sum()),
    )


@dataclass(frozen=True)
class Spans:
    """Scored spans of calibration texts: what a detector makes of shorter texts of the same writers.

    Attributes:
        labels: 0 human, 1 AI, shape (n,).
        scores: raw scores, shape (n,).
        num_tokens: their lengths, shape (n,).
        registers: as `detect_ai.registers` names them, shape (n,).
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
    whole: Calibration, spans: Spans, edges: Sequence[int], min_tpr: float, method: str = "platt"
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

    Raises:
        CalibrationError: a register has too few human spans for a target.
    """
    categories = [
        _category(whole, register, low, high, part, method)
        for register in sorted(set(spans.registers.tolist()) - {""}) or [""]
        for low, high, part in _ranges(spans[spans.registers == register], edges, min(whole.thresholds))
    ]
    learnt = {target: _first_length(categories, target, min_tpr) for target in whole.thresholds}
    return replace(whole, categories=tuple(categories), min_tokens=learnt)


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
        _scaling(spans.labels, spans.scores, method) if both else (whole.temperature, whole.midpoint, whole.knots)
    )
    made = Category(
        temperature=temperature,
        midpoint=midpoint,
        knots=knots,
        human_scores=tuple(human.tolist()),
        thresholds={target: _threshold(human, target) for target in whole.thresholds},
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


def _scaling(truth: Labels, scores: Floats, method: str) -> tuple[float, float, tuple[tuple[float, float], ...]]:
    """Temperature, midpoint and knots."""
    temperature, midpoint = fit_scaling(truth, scores)
    if method == "platt":
        return temperature, midpoint, ()
    knots = fit_isotonic(truth, scores)
    return temperature, _halfway(knots), knots


def _halfway(knots: Sequence[tuple[float, float]]) -> float:
    """The score with a probability of one half; an end where there is none."""
    at, values = np.asarray(knots).T
    i = int(np.searchsorted(values, 0.5))
    if i in (0, len(at)):
        return float(at[min(i, len(at) - 1)])
    return float(at[i - 1] + (0.5 - values[i - 1]) / (values[i] - values[i - 1]) * (at[i] - at[i - 1]))


def fit_isotonic(labels: ArrayLike, logits: ArrayLike) -> tuple[tuple[float, float], ...]:
    """Isotonic regression (Zadrozny and Elkan 2002): the knots (score, probability) between which it is linear.

    Probabilities stay a step away from 0 and 1, by Laplace's rule over the texts of each class.

    Raises:
        CalibrationError: one class is missing.
        InputError: labels and logits do not fit (see `metrics.check_binary`).
    """
    from sklearn.isotonic import IsotonicRegression

    truth, scores = _check_both_classes(labels, logits)
    num_ai = int(truth.sum())
    low, high = 1 / (truth.size - num_ai + 2), 1 - 1 / (num_ai + 2)
    model = IsotonicRegression(y_min=low, y_max=high, out_of_bounds="clip").fit(scores, truth)
    return tuple(zip(model.X_thresholds_.tolist(), model.y_thresholds_.tolist(), strict=True))


def fit_scaling(labels: ArrayLike, logits: ArrayLike) -> tuple[float, float]:
    """Platt scaling: the temperature T and the midpoint m of P(AI) = sigmoid((logit - m) / T).

    Temperature scaling (Guo et al. 2017) is the case m = 0. A fine-tuned encoder on few texts is often right in order
    and wrong in level, which no temperature can mend. The targets are smoothed as by Platt (1999), so that perfectly
    separated classes have a finite solution; T stays in [0.05, 20].

    Args:
        labels: 0 human, 1 AI, shape (n,).
        logits: raw document scores, shape (n,).

    Returns:
        Temperature and midpoint.

    Raises:
        CalibrationError: one class is missing.
        InputError: labels and logits do not fit (see `metrics.check_binary`).
    """
    truth, scores = _check_both_classes(labels, logits)
    num_ai = int(truth.sum())
    num_human = truth.size - num_ai
    targets = np.where(truth == 1, (num_ai + 1) / (num_ai + 2), 1 / (num_human + 2))

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slope, intercept = parameters
        z = slope * scores + intercept
        error = expit(z) - targets
        value = float((np.logaddexp(0.0, z) - targets * z).mean())
        return value, np.asarray([(error * scores).mean(), error.mean()])

    bounds = [(1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE), (None, None)]
    start = np.asarray([1.0, -float(np.median(scores))])
    slope, intercept = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(1 / slope), float(-intercept / slope)


def probability(logits: ArrayLike, temperature: float, midpoint: float = 0.0) -> Floats:
    """P(AI) = sigmoid((logit - midpoint) / temperature), of the shape of `logits`, without overflow.

    It is calibrated for the prevalence of the set that the scaling was fitted on.
    """
    scaled = (np.asarray(logits, dtype=np.float64) - midpoint) / temperature
    return np.asarray(expit(scaled), dtype=np.float64)


def texts_needed(target_fpr: float) -> int:
    """The least number of human calibration texts that can hold a target FPR: ceil(1 / target) - 1.

    With n texts the smallest p-value is 1 / (n + 1); below this number it exceeds the target for every text.
    99 for 1%, 19 for 5%, 999 for 0.1%.

    Raises:
        CalibrationError: the target is outside (0, 1).
    """
    if not 0.0 < target_fpr < 1.0:
        raise CalibrationError(f"target FPR must be in (0, 1), found {target_fpr}")
    nearest = round(1 / target_fpr)
    return nearest - 1 if 1 / nearest <= target_fpr else nearest


def conformal_threshold(human_scores: ArrayLike, target_fpr: float) -> float:
    """The smallest float64 threshold that holds a target FPR by split conformal prediction.

    A score is at least the threshold iff its `p_value` is at most the target. For a human text exchangeable
    with the calibration texts that happens with probability `target_fpr` at most, over the draw of both
    (Vovk, Gammerman and Shafer 2005, "Algorithmic Learning in a Random World"). A text that
    ties with a human calibration score counts as no higher than it, so ties only lower the FPR.

    Args:
        human_scores: raw scores of human calibration texts in any order, shape (n,).
        target_fpr: in (0, 1).

    Returns:
        One step of float64 above the k-th largest score, k = floor(target_fpr * (n + 1)).

    Raises:
        CalibrationError: fewer than `texts_needed` scores, a score that is not finite, or a target outside
            (0, 1).
    """
    scores = np.sort(np.asarray(human_scores, dtype=np.float64))
    rank = _rank(scores.size, target_fpr)
    if not np.isfinite(scores).all():
        raise CalibrationError("human scores must be finite")
    return float(np.nextafter(scores[-rank], np.inf))


@overload
def p_value(sorted_human_scores: ArrayLike, score: float) -> float: ...
@overload
def p_value(sorted_human_scores: ArrayLike, score: NDArray[np.floating[Any]]) -> Floats: ...
def p_value(sorted_human_scores: ArrayLike, score: float | NDArray[np.floating[Any]]) -> float | Floats:
    """The conformal p-value against "a human wrote it": (1 + #{human score >= score}) / (n + 1).

    Human texts exchangeable with the calibration texts get a value of u or less with probability u at most.
    Ties count against calling a text AI.

    Args:
        sorted_human_scores: ascending, shape (n,). An array is read in O(log n); a tuple is copied first.
        score: one raw score, or an array of any shape.

    Returns:
        A float for one score, else an array of the shape of `score`; each in [1 / (n + 1), 1].

    Raises:
        InputError: a score is NaN, which would otherwise sort above all human texts.
    """
    human, scores = np.asarray(sorted_human_scores, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if np.isnan(scores).any():
        raise InputError("a score is NaN and has no p-value")
    at_least = human.size - np.searchsorted(human, scores, side="left")
    p = np.asarray((1 + at_least) / (human.size + 1), dtype=np.float64)
    return p if p.ndim else float(p)


def fpr_bound(n: int, target_fpr: float, confidence: float = 0.95) -> float:
    """The upper confidence bound of the FPR that one given calibration set realises.

    The target holds on average over calibration sets; a lucky or unlucky set lies below or above. For
    independent texts with continuous scores the FPR of `conformal_threshold`, given its n human texts, is
    Beta(k, n + 1 - k) distributed with k = floor(target_fpr * (n + 1)); ties only lower it (Vovk 2012,
    "Conditional validity of inductive conformal predictors", PMLR 25; Angelopoulos and Bates 2021,
    "A gentle introduction to conformal prediction", section 3.2).

    Args:
        n: number of human calibration texts.
        target_fpr: in (0, 1).
        confidence: share of calibration sets for which the bound holds, in (0, 1).

    Returns:
        The `confidence` quantile of that distribution.

    Raises:
        CalibrationError: fewer than `texts_needed` texts, or a target outside (0, 1).
    """
    rank = _rank(n, target_fpr)
    return float(betaincinv(rank, n + 1 - rank, confidence))


def _check_fields(cls: type[Any], values: Mapping[str, Any]) -> None:
    expected = sorted(field.name for field in fields(cls))
    if sorted(values) != expected:
        raise CalibrationError(f"{cls.__name__} has the fields {expected}, found {sorted(values)}")


def _read_threshold(values: Mapping[str, Any]) -> Threshold:
    _check_fields(Threshold, values)
    return Threshold(**values)


def _threshold(human_scores: Floats, target_fpr: float) -> Threshold:
    n = human_scores.size
    return Threshold(
        score=conformal_threshold(human_scores, target_fpr),
        fpr_bound=fpr_bound(n, target_fpr),
        expected_fpr=_rank(n, target_fpr) / (n + 1),
    )


def _rank(n: int, target_fpr: float) -> int:
    """How many of n + 1 exchangeable human texts may be called AI; at least 1, else the target is refused."""
    require_texts(n, target_fpr)
    return largest_count(target_fpr, n + 1)


def require_texts(n: int, target_fpr: float) -> None:
    """Raise CalibrationError when n human calibration texts are too few for a target FPR, with the number needed."""
    needed = texts_needed(target_fpr)
    if n >= needed:
        return
    mend = "add human texts to the calibration split"
    held = next((target for target in SUGGESTED_TARGETS if texts_needed(target) <= n), None)
    if held is not None:
        mend += f", or choose a larger target: calibration.target_fprs=[{held}] calibration.default_target_fpr={held}"
    raise CalibrationError(
        f"target FPR {target_fpr} needs at least {needed} human calibration texts, found {n}: {mend}"
    )


def _check_both_classes(labels: ArrayLike, logits: ArrayLike) -> tuple[Labels, Floats]:
    truth, scores = check_binary(labels, logits, "logits")
    num_ai = int(truth.sum())
    if not 0 < num_ai < truth.size:
        raise CalibrationError(
            f"calibration needs texts of both classes, found {truth.size - num_ai} human and {num_ai} ai"
        )
    return truth, scores
