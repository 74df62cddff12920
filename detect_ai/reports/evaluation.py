"""The evaluation report and the comparison report: pages that stand alone, like the corpus report.

Both are made of plain JSON values. A figure is known by its name in `summary.report`; one that is None or absent is
shown as "–".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detect_ai.evaluation.summary import key_of_target
from detect_ai.reports.html import area, number, percent, range_of_tokens, render

MAX_ROWS = 40  # of a column in a table of slices
MAX_SENTENCES = 40  # of a text
MAX_TINT = 55  # percent of the colour of AI behind a sentence of probability 1: words stay readable on it
# What it means that the data is of another corpus: for one detector, and for several.
ELSEWHERE = "these texts come from elsewhere than those that the thresholds were set on"
DIFFERENT = "the detectors learnt from different corpora: what differs may be those"
FOUND_LESS, ACCUSED_MORE = 0.8, 1.5  # times the rate of the clean texts: from here on an attack is marked
BY_CHANCE = 0.05  # below this probability what an attack makes of human texts is marked, too


@dataclass(frozen=True)
class Figure:
    """A line of the tables of figures."""

    name: str
    label: str
    note: str  # by which the page explains it
    rate: bool = False  # shown in percent
    better: int = 0  # 1: the higher, -1: the lower, 0: neither alone


_BY_SCORE = (
    Figure("auroc", "AUROC", "auroc", better=1),
    Figure("tpr_at_fpr_0_1", "TPR at 0.1% FPR", "tpr", rate=True, better=1),
    Figure("tpr_at_fpr_1", "TPR at 1% FPR", "tpr", rate=True, better=1),
    Figure("tpr_at_fpr_5", "TPR at 5% FPR", "tpr", rate=True, better=1),
)
_BY_PROBABILITY = (
    Figure("accuracy", "Accuracy", "half", rate=True, better=1),
    Figure("balanced_accuracy", "Balanced accuracy", "half", rate=True, better=1),
    Figure("precision", "Precision", "half", rate=True, better=1),
    Figure("recall", "Recall", "half", rate=True, better=1),
    Figure("f1", "F1", "half", better=1),
    Figure("ece", "Calibration error (ECE)", "ece", better=-1),
    Figure("brier", "Brier score", "brier", better=-1),
    Figure("brier_complement", "1 − Brier score", "pan", better=1),
    Figure("c_at_1", "C@1", "pan", better=1),
    Figure("f05u", "F0.5u", "pan", better=1),
    Figure("pan_mean", "Mean of PAN", "pan", better=1),
)


def evaluation_report(report: Mapping[str, Any]) -> str:
    """The page for the figures of one bundle on one data set, as HTML."""
    from detect_ai.reports import evaluation_plots, plots

    bundle, overall, curves = report["bundle"], report["overall"], report["curves"]
    targets = sorted(bundle["targets"])
    shown = _shown_targets(targets, bundle["default_target"])
    baseline = report["baseline"]
    uncertain = dict(sorted(report["uncertain"].items(), key=lambda item: -item[1]))
    figures = {
        "roc": evaluation_plots.roc(curves["roc"], curves["baseline_roc"], overall, targets),
        "reliability": evaluation_plots.reliability(curves["reliability"]),
        "histogram": evaluation_plots.histogram(curves["histogram"]),
        "fpr": evaluation_plots.rates_by_slice("fpr", overall, report["slices"], shown),
        "tpr": evaluation_plots.rates_by_slice("tpr", overall, report["slices"], shown),
        "lengths": evaluation_plots.rates_by_length(report["lengths"], shown),
        "uncertain": plots.count_bars("uncertain", {name.replace("_", " "): n for name, n in uncertain.items()}),
    }
    return render(
        "evaluation.html.jinja",
        report=report,
        figures=figures,
        verdicts=_verdicts(overall, shown, bundle["default_target"]),
        baseline_verdicts=_verdicts(baseline, shown, bundle["default_target"]) if baseline else [],
        warnings=[*_about_baseline(overall, baseline), *_about_data(report, ELSEWHERE)],
        rows=[
            {"label": each.label, "note": each.note, "cells": [_cell(overall, each), _cell(baseline or {}, each)]}
            for each in _lines(targets)
        ],
        shown=[{"percent": _target(target), "key": key_of_target(target), "target": target} for target in shown],
        slices=list(_by_column(report["slices"])),
        lengths=[{"name": range_of_tokens(row), **row} for row in report["lengths"]],
        attacks=[_attack(row, targets) for row in report["attacks"]],
        default=_target(bundle["default_target"]) if bundle["default_target"] is not None else "",
        smallest=_target(targets[0]) if targets else "",
        minimum=[(_target(float(target)), tokens) for target, tokens in bundle["min_tokens_by_target"].items()],
        worst=[_accusation(text) for text in report["worst"]],
        found_less=FOUND_LESS,
    )


def comparison_report(report: Mapping[str, Any]) -> str:
    """The page for several detectors on the same texts, as HTML.

    The figures of a bundle stand beside its `name`, `version` and `published`; the targets are those that they name.
    """
    from detect_ai.reports import evaluation_plots

    bundles = report["bundles"]
    columns = [*bundles, *([{"name": "baseline", **report["baseline"]}] if report["baseline"] else [])]
    targets = _targets_named(columns)
    lines = _lines(targets)
    return render(
        "compare.html.jinja",
        report=report,
        verdict=_leader(bundles, report["pairs"]),
        warnings=list(_about_data(report, DIFFERENT)),
        columns=columns,
        rows=[{"label": each.label, "note": each.note, "cells": _compared(columns, each)} for each in lines],
        differences=evaluation_plots.differences(report["pairs"]),
        pairs=report["pairs"],
        target=next((_target(pair["target"]) for pair in report["pairs"] if pair.get("target")), ""),
        slice_tables=[
            {"caption": each.label, "rate": each.rate, "slices": list(_by_column(report["slices"])), "name": each.name}
            for each in (_BY_SCORE[0], *_of_target(targets[:1])[:2])
        ],
        texts=next((bundle for bundle in bundles if bundle.get("n_human") is not None), {}),
    )


def _shown_targets(targets: Sequence[float], default: float | None) -> list[float]:
    """The smallest target and the default one: more of them would crowd a figure."""
    return list(dict.fromkeys([*targets[:1], *(target for target in targets if target == default)]))


def _of_target(targets: Sequence[float]) -> list[Figure]:
    figures = []
    for target in targets:
        key, at = key_of_target(target), f"at the {_target(target)} target"
        figures += [
            Figure(f"fpr_at_target_{key}", f"Human texts called AI {at}", "target", rate=True),
            Figure(f"tpr_at_target_{key}", f"AI texts found {at}", "target", rate=True),
            Figure(f"uncertain_share_at_{key}", f"No verdict {at}", "open", rate=True),
        ]
    return figures


def _lines(targets: Sequence[float]) -> list[Figure]:
    return [*_of_target(targets), *_BY_SCORE, *_BY_PROBABILITY]


def _targets_named(bundles: Sequence[Mapping[str, Any]]) -> list[float]:
    found = {re.fullmatch(r"[ft]pr_at_target_(\d+(?:_\d+)?)", name) for bundle in bundles for name in bundle}
    return sorted({float(match[1].replace("_", ".")) / 100 for match in found if match})


def _cell(figures: Mapping[str, Any], line: Figure) -> dict[str, str]:
    value = figures.get(line.name)
    show = percent if line.rate else area
    low, high = figures.get(f"{line.name}_low"), figures.get(f"{line.name}_high")
    known = None not in (value, low, high)
    return {"value": show(value), "interval": f"{show(low).removesuffix('%')}–{show(high)}" if known else ""}


def _compared(columns: Sequence[Mapping[str, Any]], line: Figure) -> list[dict[str, Any]]:
    """A cell for each detector, the best one marked where better and worse are plain."""
    cells = [_cell(column, line) for column in columns]
    values = [line.better * column[line.name] for column in columns if column.get(line.name) is not None]
    best = max(values) if line.better and len(set(values)) > 1 else None
    return [
        {**cell, "best": best is not None and column.get(line.name) == line.better * best}
        for column, cell in zip(columns, cells, strict=True)
    ]


def _verdicts(figures: Mapping[str, Any], targets: Sequence[float], default: float | None) -> list[str]:
    """A sentence for each target: who was accused, what was found, what was left open."""
    sentences = []
    for target in targets:
        key = key_of_target(target)
        called = [
            f"{_rate(figures, f'{kind}_at_target_{key}')} of {number(figures.get(size))} {word} texts"
            for kind, size, word in (("fpr", "n_human", "human"), ("tpr", "n_ai", "AI"))
            if figures.get(f"{kind}_at_target_{key}") is not None
        ]
        unsure = figures.get(f"uncertain_share_at_{key}")
        if unsure is None and target == default:
            unsure = figures.get("uncertain_share")
        said = f"it called {' AI, and '.join(called)}{' AI' if len(called) == 1 else ''}" if called else ""
        left = f"{percent(unsure)} got no verdict" if unsure is not None else ""
        if said or left:
            sentences.append(f"At the {_target(target)} target {'; '.join(part for part in (said, left) if part)}.")
    return sentences


def _rate(figures: Mapping[str, Any], name: str) -> str:
    cell = _cell(figures, Figure(name, "", "", rate=True))
    interval = cell["interval"].replace("–", " to ")
    return f"{cell['value']} (95%: {interval})" if interval else cell["value"]


def _about_baseline(figures: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    ours, theirs = figures.get("auroc"), (baseline or {}).get("auroc")
    if ours is not None and theirs is not None and theirs >= ours:
        yield (
            "baseline",
            f"the baseline tells the classes apart as well or better: AUROC {area(theirs)} to {area(ours)}",
        )


def _about_data(report: Mapping[str, Any], other_corpus: str) -> Iterator[tuple[str, str]]:
    data = report["data"]
    if data["one_class"]:
        yield "one class", "these texts are all human or all AI: what compares the classes cannot be said"
    if data["contaminated"]:
        count, have = number(data["contaminated"]), "has" if data["contaminated"] == 1 else "have"
        learnt = f"{count} of these texts {have} a near duplicate in what the detector learnt from"
        yield "contaminated", f"{learnt}: its figures flatter it"
    if not data["contamination_checked"]:
        yield "not checked", "whether texts of this data stand in what the detector learnt from is not known"
    if data["other_corpus"]:
        yield "other corpus", other_corpus
    for sentence in report.get("exchangeability", []):
        yield "guarantee", sentence.strip().removesuffix(".")


def _by_column(slices: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Slices of each column, in the order of the columns; the largest ones where there are many."""
    for column in dict.fromkeys(each["column"] for each in slices):
        found = [each for each in slices if each["column"] == column]
        largest = sorted(found, key=lambda each: -((each.get("n_human") or 0) + (each.get("n_ai") or 0)))[:MAX_ROWS]
        yield {"column": column, "rows": [each for each in found if each in largest], "more": len(found) - len(largest)}


def _attack(row: Mapping[str, Any], targets: Sequence[float]) -> dict[str, Any]:
    key = key_of_target(targets[0]) if targets else ""
    clean = row["attack"] == "none"
    return {
        **row,
        "name": "none: the same texts clean" if clean else row["attack"].replace("_", " "),
        "tpr": row.get(f"tpr_at_target_{key}"),
        "fpr": row.get(f"fpr_at_target_{key}"),
        "tpr_ratio": None if clean else row["tpr_ratio"],
        "fpr_ratio": None if clean else row["fpr_ratio"],
        "accused": row.get("accused"),
        "accuses": (row["fpr_ratio"] or 0) > ACCUSED_MORE or _accuses(row),
    }


def _accuses(row: Mapping[str, Any]) -> bool:
    """Whether an attack makes more human texts called AI than chance allows."""
    if row.get("accused") is None:
        return False
    return bool(row["accused"] > row["cleared"] and row["accused_p"] < BY_CHANCE)


def _accusation(text: Mapping[str, Any]) -> dict[str, Any]:
    sentences = [
        {**each, "tint": round(MAX_TINT * (each["probability"] or 0))} for each in text["sentences"][:MAX_SENTENCES]
    ]
    return {**text, "sentences": sentences, "more": len(text["sentences"]) - len(sentences)}


def _leader(bundles: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> str:
    """Which detector leads by AUROC, and whether that may be chance."""
    ranked = sorted((each for each in bundles if each.get("auroc") is not None), key=lambda each: -each["auroc"])
    if not ranked:
        return "No detector could be ranked: that needs texts of both classes."
    first = f"{ranked[0]['name']} has the highest AUROC, {area(ranked[0]['auroc'])}"
    if len(ranked) == 1:
        return f"{first}; there is nothing to compare it with."
    second = f"{first}; {ranked[1]['name']} follows with {area(ranked[1]['auroc'])}."
    names = {ranked[0]["name"], ranked[1]["name"]}
    pair = next((each for each in pairs if {each["a"], each["b"]} == names), None)
    if pair is None or None in (pair["low"], pair["high"]):
        return second
    chance = pair["low"] <= 0 <= pair["high"]
    return f"{second} {'That difference may be chance.' if chance else 'That difference is more than chance.'}"


def _target(target: float) -> str:
    return f"{100 * target:g}%"
