"""Figures of the evaluation report and of the comparison report; "" where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from detect_ai.evaluation.summary import key_of_target
from detect_ai.reports.html import range_of_tokens
from detect_ai.reports.plots import COLOURS, LINE, MAX_BARS, name_bars, panels, part_columns, short, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_TEXTS = 20  # of a class in a slice, to draw its rate
MAX_SLICES = 2 * MAX_BARS
LOWEST_FPR = 0.001
_DASHED = (0, (4, 3))


def roc(
    detector: Mapping[str, Any] | None,
    baseline: Mapping[str, Any] | None,
    overall: Mapping[str, Any],
    targets: list[float],
) -> str:
    """TPR over FPR on a logarithmic scale; dots are the thresholds of the targets, with their 95% intervals."""
    if not (detector and detector["fpr"]):
        return ""

    def draw(axes: Axes) -> None:
        _curve(axes, detector, COLOURS["ai"], "detector", linewidth=1.8)
        if baseline and baseline["fpr"]:
            _curve(axes, baseline, COLOURS["ink"], "baseline", linewidth=1.2, linestyle=_DASHED)
        at = np.geomspace(LOWEST_FPR, 1, 100)
        axes.plot(at, at, color=COLOURS["muted"], linewidth=0.8, linestyle=":", label="chance")
        for target in targets:
            _operating_point(axes, overall, target)
        axes.set_xscale("log")
        axes.set_xlim(LOWEST_FPR, 1)
        axes.set_ylim(0, 1.01)
        axes.set_xticks([0.001, 0.01, 0.05, 0.2, 1], ["0.1%", "1%", "5%", "20%", "100%"])
        axes.set_xticks([], minor=True)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        axes.set_xlabel("human texts called AI (FPR)")
        axes.set_ylabel("AI texts found (TPR)")
        axes.grid()
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3)

    return svg("roc", 290, draw)


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """Share of AI texts by stated probability with 95% intervals, and below it the texts of each bin."""
    shown = [each for each in bins if each["count"]]
    if not shown:
        return ""

    def draw(figure: Figure) -> None:
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        stated, found = ([each[name] for each in shown] for name in ("mean_probability", "share_ai"))
        axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=0.9, linestyle=_DASHED)
        barred = [
            each for each in shown if None not in (each["mean_probability"], each["share_low"], each["share_high"])
        ]
        axes.vlines(
            [each["mean_probability"] for each in barred],
            [each["share_low"] for each in barred],
            [each["share_high"] for each in barred],
            color=COLOURS["ai"],
            linewidth=1.3,
        )
        axes.plot(stated, found, color=COLOURS["ai"], linewidth=1, marker="o", markersize=4.5, clip_on=False, zorder=3)
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        axes.set_ylabel("AI texts among them")
        axes.grid()
        widths = [0.86 * (each["high"] - each["low"]) for each in shown]
        places = [(each["low"] + each["high"]) / 2 for each in shown]
        bars = counts.bar(places, [each["count"] for each in shown], widths, color=COLOURS["bar"])
        counts.bar_label(bars, [_compact(each["count"]) for each in shown], padding=2, fontsize=8.5)
        counts.margins(y=0.35)
        counts.set_yticks([])
        counts.set_ylabel("texts")
        counts.spines["left"].set_visible(False)
        counts.set_xlim(0, 1)
        counts.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        counts.set_xlabel("stated probability of AI")

    return panels("reliability", 330, draw)


def histogram(counts: Mapping[str, Any] | None) -> str:
    """Two outlines on a logarithmic scale: the share of each class's texts by probability."""
    classes = [(name, word) for name, word in (("human", "human"), ("ai", "AI")) if counts and sum(counts[name])]
    if not (counts and classes):
        return ""

    def draw(axes: Axes) -> None:
        shares = {name: [100 * count / sum(counts[name]) for count in counts[name]] for name, _ in classes}
        bottom = min(share for values in shares.values() for share in values if share) / 2
        for name, word in classes:
            kept = np.maximum(shares[name], bottom)
            axes.stairs(kept, counts["edges"], baseline=bottom, fill=True, alpha=0.22, color=COLOURS[name])
            label = f"{word} ({sum(counts[name]):,})"
            axes.stairs(kept, counts["edges"], baseline=bottom, linewidth=1.4, color=COLOURS[name], label=label)
        axes.set_yscale("log")
        axes.set_ylim(bottom, 100)
        ticks = [tick for tick in (0.01, 0.1, 1, 10, 100) if tick > bottom]
        axes.set_yticks(ticks, [f"{tick:g}%" for tick in ticks])
        axes.set_yticks([], minor=True)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        axes.set_xlabel("stated probability of AI")
        axes.set_ylabel("of the class's texts")
        axes.grid(axis="y")
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2)

    return svg("histogram", 330, draw)


def rates_by_slice(
    kind: str, overall: Mapping[str, Any], slices: Sequence[Mapping[str, Any]], targets: list[float]
) -> str:
    """A dot and a 95% interval for each slice and target: of slices with enough texts, in their order.

    Args:
        kind: `fpr`, with a line at each target and in red what lies above it beyond chance, or `tpr`.
        overall: figures of all texts, drawn first.
        slices: with `column` and `value`.
        targets: one or two, the first one filled.
    """
    size, colour = ("n_human", "human") if kind == "fpr" else ("n_ai", "ai")
    enough = [each for each in slices if (each[size] or 0) >= MIN_TEXTS and _rate(each, kind, targets[:1])]
    largest = sorted(enough, key=lambda each: -each[size])[:MAX_SLICES]
    shown = [each for each in enough if each in largest]
    if not shown:
        return ""
    rows = [{"column": "", "value": "all texts", **overall}, *shown]

    def draw(axes: Axes) -> None:
        for target, place in _places(targets):
            _dots(
                axes, rows, f"{kind}_at_target_{key_of_target(target)}", place, colour, target if kind == "fpr" else 1
            )
            if kind == "fpr":
                axes.axvline(target, color=COLOURS["muted"], linewidth=0.9, linestyle=_DASHED)
        name_bars(axes, [each["value"] or "(none)" for each in rows])
        part_columns(axes, [each["column"] for each in rows])
        axes.set_xlim(0, None if kind == "fpr" else 1)
        axes.xaxis.set_major_formatter(_percents)
        axes.set_xlabel("human texts called AI (FPR)" if kind == "fpr" else "AI texts found (TPR)")
        _target_legend(axes, targets, colour)

    return svg(kind, 70 + (LINE if len(targets) == 1 else LINE + 3) * len(rows), draw)


def rates_by_length(lengths: Sequence[Mapping[str, Any]], targets: list[float]) -> str:
    """By length in tokens: a dot and a 95% interval for the TPR at each target, a bar for the share without verdict."""
    shown = [each for each in lengths if each["n_ai"] or each["n_human"]]
    if not shown:
        return ""

    def draw(axes: Axes) -> None:
        unsure = [each["uncertain_share"] or 0.0 for each in shown]
        axes.barh(range(len(shown)), unsure, height=0.7, color=COLOURS["bar"], alpha=0.4)
        for target, place in _places(targets):
            _dots(axes, shown, f"tpr_at_target_{key_of_target(target)}", place, "ai", 1)
        name_bars(axes, [range_of_tokens(each) for each in shown])
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(_percents)
        axes.set_ylabel("tokens")
        _target_legend(axes, targets, "ai", bar="no verdict")

    return svg("by-length", 64 + (LINE + 5) * len(shown), draw)


def differences(pairs: Sequence[Mapping[str, Any]]) -> str:
    """A dot and a 95% interval for each pair; filled where 0 lies outside."""
    shown = [each for each in pairs if each["auroc_difference"] is not None][:MAX_SLICES]
    if not shown:
        return ""

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=COLOURS["muted"], linewidth=0.9, linestyle=_DASHED)
        for place, pair in enumerate(shown):
            low, high = pair["low"], pair["high"]
            known = None not in (low, high)
            if known:
                axes.hlines(place, low, high, color=COLOURS["human"], linewidth=1.6)
            sure = known and not low <= 0 <= high
            _dot(axes, pair["auroc_difference"], place, "human", filled=sure)
        name_bars(axes, [f"{short(each['a'], 12)} − {short(each['b'], 12)}" for each in shown])
        axes.margins(x=0.08)
        axes.set_xlabel("difference in AUROC")

    return svg("differences", 44 + (LINE + 5) * len(shown), draw)


def _curve(axes: Axes, curve: Mapping[str, Any], colour: str, label: str, **style: Any) -> None:
    """A step for each threshold: nothing is interpolated, and a long curve is read at few places."""
    at = np.geomspace(LOWEST_FPR, 1, 400)
    before = np.searchsorted(curve["fpr"], at, side="right") - 1
    tpr = np.where(before < 0, 0.0, np.asarray(curve["tpr"], dtype=float)[np.maximum(before, 0)])
    axes.plot(at, tpr, drawstyle="steps-post", color=colour, label=label, **style)


def _operating_point(axes: Axes, figures: Mapping[str, Any], target: float) -> None:
    names = [f"{kind}_at_target_{key_of_target(target)}" for kind in ("fpr", "tpr")]
    fpr, tpr = (figures.get(name) for name in names)
    if fpr is None or tpr is None:
        return
    place = max(fpr, LOWEST_FPR)
    across, along = (_interval(figures, name) for name in names)
    if across:
        axes.hlines(tpr, max(across[0], LOWEST_FPR), across[1], color=COLOURS["ai"], linewidth=1.2)
    if along:
        axes.vlines(place, *along, color=COLOURS["ai"], linewidth=1.2)
    _dot(axes, place, tpr, "ai")
    label = f"{100 * target:g}% target"
    axes.annotate(label, (place, tpr), (-7, 6), textcoords="offset points", ha="right", color=COLOURS["ink"])


def _dots(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, shift: float, colour: str, most: float) -> None:
    """A rate of every row with its interval; red where the interval begins above `most`. Unfilled below the middle."""
    for place, row in enumerate(rows):
        if row.get(name) is None:
            continue
        interval = _interval(row, name)
        shade = "warn" if interval and interval[0] > most else colour
        if interval:
            axes.hlines(place + shift, *interval, color=COLOURS[shade], linewidth=1.4)
        _dot(axes, row[name], place + shift, shade, filled=shift <= 0)


def _interval(figures: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    return None if low is None or high is None else (low, high)


def _dot(axes: Axes, x: float, y: float, colour: str, filled: bool = True) -> None:
    # An unfilled one covers the line through it in the colour of the page, which a figure stands on.
    dot = axes.scatter([x], [y], s=24, zorder=3, clip_on=False, linewidths=1.3, edgecolors=COLOURS[colour])
    dot.set_facecolor(COLOURS[colour if filled else "page"])


def _places(targets: list[float]) -> list[tuple[float, float]]:
    """Targets and how far from the middle of its line each one's dot stands."""
    return [(targets[0], 0.0)] if len(targets) == 1 else list(zip(targets, (-0.19, 0.19), strict=True))


def _target_legend(axes: Axes, targets: list[float], colour: str, bar: str = "") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for target, place in _places(targets):
        style: dict[str, Any] = {"color": COLOURS[colour], "markerfacecolor": COLOURS[colour if place <= 0 else "page"]}
        handles.append(Line2D([], [], marker="o", markersize=5, label=f"at the {100 * target:g}% target", **style))
    if bar:
        handles.append(Patch(facecolor=COLOURS["bar"], alpha=0.4, label=bar))
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=len(handles), columnspacing=1.2)


def _rate(row: Mapping[str, Any], kind: str, targets: list[float]) -> bool:
    return any(row.get(f"{kind}_at_target_{key_of_target(target)}") is not None for target in targets)


def _percents(value: float, _: float) -> str:
    return f"{100 * value:g}%"


def _compact(count: int) -> str:
    return str(count) if count < 1000 else f"{count / 1000:.1f}k" if count < 10_000 else f"{count / 1000:.0f}k"
