"""Fits the calibration of a detector to the scores of its calibration texts, by domain.

Scored texts are a data frame with the columns `label` (0 human, 1 AI), `score` (log-odds), `num_tokens`, `domain`,
`document` (its number), `is_whole` (the whole document or a span of it) and optionally `style` (`models.style`).
Without `style`, all domains are treated as equally similar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from detect_ai.calibration.calibration import Calibration, Domain, LengthRates, Population, Scores
from detect_ai.calibration.conformal import Threshold, conformal_threshold
from detect_ai.calibration.length import LengthModel, fit_length_model
from detect_ai.calibration.new_domain import MIN_DOMAINS, DomainEffects, fit_domain_effects, mean_style
from detect_ai.calibration.scaling import Scaling, fit_scaling
from detect_ai.metrics import Floats

if TYPE_CHECKING:
    import pandas as pd

    from detect_ai.core.config import CalibrationConfig

# False positive rates at which the tail of a new domain is predicted, for p-values.
GRID = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5)
MIN_TEXTS = 50  # human texts of a domain, to use its tail
UNLIKE_FRACTION = 0.01  # of the AI texts score too low to be labelled AI
FAR_FRACTION = 0.005  # of the texts of a new domain are unlike all other domains
MIN_SCALED = 30  # texts of each class, to fit the scaling of spans
MAX_CHANCE = 0.05  # a length range whose FPR exceeds the target with a lower p-value is too short


def whole_documents(labels: ArrayLike, scores: ArrayLike, num_tokens: ArrayLike, domains: ArrayLike) -> pd.DataFrame:
    """Scored documents without spans; arguments are arrays of shape (n,), or one value for all."""
    import pandas as pd

    frame = pd.DataFrame({"label": labels, "score": scores, "num_tokens": num_tokens, "domain": domains})
    return frame.assign(document=np.arange(len(frame)), is_whole=True)


def calibrate(scored: pd.DataFrame, config: CalibrationConfig, window: int) -> Calibration:
    """Fit scaling, length models and thresholds to documents and their spans; a window has `window` tokens of a text.

    Raises CalibrationError for too few texts.
    """
    whole = scored[scored["is_whole"]]
    human_length, ai_length = (_length_model(scored[scored["label"] == label], window) for label in (0, 1))
    domains = tuple(
        Domain(str(name), scores_of(own[own["label"] == 0]), scores_of(own[own["label"] == 1]))
        for name, own in whole.groupby("domain")
    )
    ai = [domain.ai.standardised(ai_length) for domain in domains]
    thresholds, effects = _human_thresholds(domains, human_length, config)
    calibration = Calibration(
        **vars(fit_scaling(whole["label"], whole["score"], config.prevalence)),
        thresholds=thresholds,
        cleared_below=lower_quantile(ai, config.max_cleared),
        unlike_below=lower_quantile(ai, UNLIKE_FRACTION),
        human_length=human_length,
        ai_length=ai_length,
        domains=domains,
        domain_effects=effects,
        prevalence=config.prevalence,
        span_scaling=_span_scaling(scored[~scored["is_whole"]], config.prevalence),
    )
    by_length = {target: _rates_by_length(calibration, scored, config.verdict_lengths, target) for target in thresholds}
    min_tokens = {target: _min_tokens(rows, target) for target, rows in by_length.items()}
    return replace(calibration, by_length=by_length, min_tokens=min_tokens)


def calibrate_population(parent: Calibration, human: Scores, name: str, targets: Sequence[float]) -> Calibration:
    """The calibration of a parent with thresholds for one population, from its human texts.

    The thresholds hold in expectation (`calibration.conformal`). The length models are those of the parent, which were
    fitted to other texts: with models fitted to these texts, their scores would not be exchangeable with scores of new
    texts. Raises CalibrationError for too few texts.
    """
    standardised, ai = human.standardised(parent.human_length), [d for d in parent.domains if len(d.ai)]
    scores = np.concatenate([human.scores, *(domain.ai.scores for domain in ai)])
    return replace(
        parent,
        **vars(fit_scaling(np.arange(len(scores)) >= len(human), scores, parent.prevalence)),
        thresholds={target: conformal_threshold(standardised, target, "expectation") for target in targets},
        domains=(Domain(name, human, Scores((), ())), *(replace(domain, human=Scores((), ())) for domain in ai)),
        domain_effects=None,
        min_tokens={target: parent.min_tokens[target] for target in targets},
        by_length={},
        population=_population(name, human.styles),
    )


def _population(name: str, styles: Floats) -> Population:
    """A population; all but `FAR_FRACTION` of its texts, compared with the mean style of the others, are in reach."""
    if not styles.shape[1]:
        return Population(name, (), -1.0)
    others = styles.sum(axis=0) - styles
    others /= np.maximum(np.linalg.norm(others, axis=1, keepdims=True), 1e-12)
    reach = lower_quantile([(styles * others).sum(axis=1)], FAR_FRACTION)
    return Population(name, tuple(mean_style(styles).tolist()), reach)


def _human_thresholds(
    domains: Sequence[Domain], length: LengthModel, config: CalibrationConfig
) -> tuple[dict[float, Threshold], DomainEffects | None]:
    """`Calibration.thresholds` and `Calibration.domain_effects`. Raises CalibrationError for too few texts."""
    own = {domain.name: domain.human for domain in domains if len(domain.human) >= MIN_TEXTS}
    if len(own) < MIN_DOMAINS:
        human = np.concatenate([domain.human.standardised(length) for domain in domains])
        return {target: conformal_threshold(human, target, config.guarantee) for target in config.target_fprs}, None
    effects = fit_domain_effects(
        {name: human.standardised(length) for name, human in own.items()},
        {name: human.styles for name, human in own.items()},
        sorted({*GRID, *config.target_fprs}),
        config.new_domain_confidence,
    )
    effects = replace(effects, reach=_reach(effects, domains))
    highest = dict(zip(effects.rates, effects.highest_thresholds.tolist(), strict=True))
    return {rate: Threshold(highest[rate], rate, effects.confidence) for rate in config.target_fprs}, effects


def _reach(effects: DomainEffects, domains: Sequence[Domain]) -> float:
    """`DomainEffects.reach`: all but `FAR_FRACTION` of the texts are this similar to a domain other than their own."""
    of_class = [(domain.name, texts.styles) for domain in domains for texts in (domain.human, domain.ai) if len(texts)]
    return lower_quantile([effects.similarity_to_nearest(styles, name) for name, styles in of_class], FAR_FRACTION)


def _length_model(own: pd.DataFrame, window: int) -> LengthModel:
    return fit_length_model(own["score"], own["num_tokens"], own["domain"], window)


def scores_of(own: pd.DataFrame) -> Scores:
    """Scores of the documents of one class."""
    return Scores.of(own["score"], own["num_tokens"], _styles(own))


def _styles(own: pd.DataFrame) -> Floats:
    return np.stack(own["style"].to_list()) if "style" in own and len(own) else np.empty((len(own), 0))


def lower_quantile(domains: Sequence[Floats], fraction: float) -> float:
    """The largest value that at most a fraction of the texts do not reach, with equal weight for all domains.

    `domains` are the values of the texts of each domain. With too few texts for the fraction it is the lowest value.
    """
    domains = [scores for scores in domains if len(scores)]
    scores = np.concatenate(domains)
    weights = np.concatenate([np.full(len(own), 1 / (len(own) + 1) / len(domains)) for own in domains])
    order = np.argsort(scores, kind="stable")
    number = np.searchsorted(np.cumsum(weights[order]), fraction, side="right")  # of texts that may be below
    return float(scores[order][number])


def _span_scaling(spans: pd.DataFrame, prevalence: float) -> Scaling | None:
    num_ai = int(spans["label"].sum())
    if min(num_ai, len(spans) - num_ai) < MIN_SCALED:
        return None
    return fit_scaling(spans["label"], spans["score"], prevalence)


def _rates_by_length(
    calibration: Calibration, scored: pd.DataFrame, lengths: Sequence[int], target_fpr: float
) -> tuple[LengthRates, ...]:
    """Rates in each range between `lengths`, from one span per document: spans of a document are not independent."""
    required = calibration.required_scores(_styles(scored))
    decisions = calibration.predictions(scored["score"], scored["num_tokens"], required, target_fpr)
    longest_first = scored.assign(decision=decisions).sort_values("num_tokens", ascending=False, kind="stable")
    rows = []
    for low, high in zip([0, *lengths], [*lengths, None], strict=True):
        spans = longest_first[longest_first["num_tokens"] >= low]
        spans = (spans[spans["num_tokens"] < high] if high else spans).drop_duplicates("document")
        human, ai = (spans.loc[spans["label"] == label, "decision"] for label in (0, 1))
        accused, found, cleared = (int(decided.sum()) for decided in (human == 1, ai == 1, ai == 0))
        rows.append(LengthRates(low, high, len(human), accused, len(ai), found, cleared))
    return tuple(rows)


def _min_tokens(rows: Sequence[LengthRates], target_fpr: float) -> int:
    """The length from which no range has a false positive rate significantly above the target."""
    for row in reversed(rows):
        test = binomtest(row.accused, max(1, row.num_human), target_fpr, alternative="greater")
        if test.pvalue < MAX_CHANCE:
            return row.high or row.low
    return 0
