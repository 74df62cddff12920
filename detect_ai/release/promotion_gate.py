"""Promotion gate: whether a candidate may become champion, and whether an export is as good as its parent."""

from collections.abc import Mapping
from typing import Any

from detect_ai.core.config import ExportConfig, GateConfig

Metrics = Mapping[str, Any]
TEST = "test split"  # name of that evaluation; the space distinguishes it from names of other data
# Metric, its name in messages, the sign of a change for the worse, the key of the largest allowed change.
_CHANGES = (
    ("auroc", "AUROC", -1, "max_auroc_drop"),
    ("fpr_at_target", "FPR at the default target", 1, "max_fpr_increase"),
    ("cleared_ai_fraction", "the fraction of AI texts labelled human", 1, "max_cleared_increase"),
)
COMPARED = [metric for metric, *_ in _CHANGES]
# Default bounds on the FPR, as multiples of the candidate's default target.
_MULTIPLES = {"max_fpr": 3, "max_fpr_increase": 0.5, "max_new_domain_fpr": 1}
_CAPS = (
    ("fpr_at_target", "FPR at the default target", "max_fpr"),
    ("abstained_fraction", "the abstained fraction", "max_abstained"),
    ("cleared_ai_fraction", "the fraction of AI texts labelled human", "max_cleared"),
)


def gate(
    candidate: Mapping[str, Metrics], champion: Mapping[str, Metrics] | None, config: GateConfig
) -> tuple[list[str], list[str]]:
    """Check a candidate against absolute bounds and, on the same texts, against the champion, if there is one.

    Metrics are those of the stage `evaluate`, by name of the data; `TEST` is the test split, "test_fingerprint"
    identifies the texts. Bounds that are None are multiples of "default_target".

    Returns:
        The reasons to reject the candidate (empty if it passes), and warnings about missing comparisons.
    """
    reasons: list[str] = []
    warnings: list[str] = []
    auroc = candidate[TEST].get("auroc")
    if auroc is None or not auroc >= config.min_auroc:  # NaN does not pass
        reasons.append(f"AUROC is {auroc} on {TEST}; at least {config.min_auroc:g} is required.")
    for name, metrics in candidate.items():
        for metric, label, key in _CAPS:
            value, bound = metrics.get(metric), _bound(config, key, metrics)
            # Texts of one class have no rate for the other class.
            if value is None and (metric not in metrics or name == TEST):
                reasons.append(f"{label} is missing on {name}: run jobs/evaluate.py again.")
            elif value is not None and not value <= bound:
                reasons.append(f"{label} is {value:.4g} on {name}; {key}={bound:g}.")
    reasons += _unseen_domains(candidate[TEST], config)
    if champion is not None:
        by_texts = {metrics.get("test_fingerprint"): metrics for metrics in champion.values()}
        for name, metrics in candidate.items():
            if metrics["test_fingerprint"] in by_texts:
                _compare(name, metrics, by_texts[metrics["test_fingerprint"]], config, reasons, warnings)
            else:
                warnings.append(f"not compared with the champion on {name}: it was not evaluated on the same texts.")
    return reasons, warnings


def _unseen_domains(metrics: Metrics, config: GateConfig) -> list[str]:
    """Reasons from the domains left out of calibration; none if there are too few domains to leave one out."""
    reasons = []
    if new := metrics.get("new_domains"):
        bound, fpr, tpr = _bound(config, "max_new_domain_fpr", metrics), new["mean_fpr"], new["macro_tpr"] or 0.0
        cleared = new["macro_cleared"]
        if not fpr <= bound:
            reasons.append(f"mean FPR in domains left out of calibration is {fpr:.4g}; max_new_domain_fpr={bound:g}.")
        if not tpr >= config.min_macro_tpr:
            reasons.append(
                f"mean detection rate in domains left out of calibration is {tpr:.4g}; "
                f"min_macro_tpr={config.min_macro_tpr:g}."
            )
        if cleared is not None and not cleared <= config.max_cleared:
            reasons.append(
                f"mean fraction of AI texts labelled human in domains left out of calibration is {cleared:.4g}; "
                f"max_cleared={config.max_cleared:g}."
            )
    return reasons


def _compare(
    name: str, candidate: Metrics, champion: Metrics, config: GateConfig, reasons: list[str], warnings: list[str]
) -> None:
    for metric, label, sign, key in _CHANGES:
        if metric == "fpr_at_target" and "parent" in candidate:
            continue  # recalibration sets the FPR on these texts to the target, even if the parent's is lower
        value, before, bound = candidate.get(metric), champion.get(metric), _bound(config, key, candidate)
        if value is None or before is None:
            if not (metric in candidate and metric in champion and value is before):
                warnings.append(f"{label} not compared with the champion on {name}: it is missing.")
        # Rounded, because 0.95 - 0.94 is slightly more than 0.01 in floating point.
        elif not round(sign * (value - before), 12) <= bound:
            change = f"changed from the champion's {before:.4g} to {value:.4g}"
            reasons.append(f"{label} {change} on {name}; {key}={bound:g}.")


def _bound(config: GateConfig, key: str, metrics: Metrics) -> float:
    bound = getattr(config, key)
    return float(_MULTIPLES[key] * metrics["default_target"] if bound is None else bound)


def export_reasons(export: Metrics, parent: Metrics, config: ExportConfig) -> list[str]:
    """The reasons why an export is not as good as its parent on the same texts, by "auroc" and "tpr_at_fpr_1"."""
    # Rounded, because 0.95 - 0.949 is slightly more than 0.001 in floating point.
    auroc_change = round(abs(export["auroc"] - parent["auroc"]), 12)
    tpr_drop = round(parent["tpr_at_fpr_1"] - export["tpr_at_fpr_1"], 12)
    reasons = []
    if not auroc_change <= config.max_auroc_change:  # NaN does not pass
        reasons.append(f"AUROC changed by {auroc_change:.4f}; {config.max_auroc_change:g} is allowed.")
    if not tpr_drop <= config.max_tpr_drop:
        reasons.append(f"TPR at 1% FPR fell by {100 * tpr_drop:.2f} points; {100 * config.max_tpr_drop:g} are allowed.")
    return reasons
