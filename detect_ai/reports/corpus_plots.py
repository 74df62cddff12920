"""Figures of the corpus report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from detect_ai.corpus.baseline import MIN_TEXTS
from detect_ai.corpus.findings import MORE_ACCUSED, TELLING_AUROC
from detect_ai.reports.plots import COLOURS, LINE, MAX_BARS, name_bars, part_columns, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def length_by_class(lengths: Mapping[str, Any]) -> str:
    """Two outlines: the share of each class's texts by number of tokens.

    Args:
        lengths: `edges` of the bins, and under `human` and `ai` their `counts` and the median `p50`.
    """

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import NullLocator, ScalarFormatter

        edges = lengths["edges"]
        for name, word in (("human", "human"), ("ai", "AI")):
            counts = lengths[name]["counts"]
            shares = [100 * count / max(1, sum(counts)) for count in counts]
            label = f"{word} (median {lengths[name]['p50']:,.0f})"
            axes.stairs(shares, edges, fill=True, alpha=0.22, color=COLOURS[name])
            axes.stairs(shares, edges, linewidth=1.4, color=COLOURS[name], label=label)
        axes.set_xscale("log")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xticks(_round_numbers(edges[0], edges[-1]))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("tokens")
        axes.set_ylabel("% of the class's texts")
        axes.grid(axis="y")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

    return svg("lengths", 220, draw)


def feature_aurocs(features: Sequence[Mapping[str, Any]]) -> str:
    """Bars from 0.5 to 1, best feature first, with 95% intervals; a ring is what the normaliser leaves."""
    shown = features[:MAX_BARS]

    def draw(axes: Axes) -> None:
        values = [feature["auroc"] for feature in shown]
        places = range(len(shown))
        colours = [COLOURS["warn" if value >= TELLING_AUROC else "bar"] for value in values]
        axes.barh(places, [value - 0.5 for value in values], left=0.5, height=0.62, color=colours)
        axes.hlines(places, [f["low"] for f in shown], [f["high"] for f in shown], color=COLOURS["ink"], linewidth=1)
        left = [(place, f["normalised"]) for place, f in enumerate(shown) if f["normalised"] is not None]
        rings = axes.scatter(
            [x for _, x in left], [y for y, _ in left], s=22, facecolors="none", label="after the normaliser"
        )
        rings.set(edgecolor=COLOURS["ink"], linewidth=1, zorder=3, clip_on=False)
        axes.axvline(TELLING_AUROC, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
        name_bars(axes, [feature["name"] for feature in shown])
        axes.set_xlim(0.48, 1.0)
        axes.set_xlabel("AUROC (0.5 tells nothing)")
        axes.legend(loc="lower right")

    return svg("features", 60 + LINE * len(shown), draw)


def baseline_by_slice(baseline: Mapping[str, Any], slices: Sequence[Mapping[str, Any]]) -> str:
    """A dot for the AUROC and a bar for the TPR at 5% FPR of each slice that has AI texts, in their order."""
    shown = [each for each in (baseline, *slices) if each["auroc"] is not None][: 2 * MAX_BARS]

    def draw(axes: Axes) -> None:
        places = range(len(shown))
        rates = [each["tpr_at_fpr_5"] or 0.0 for each in shown]
        axes.barh(places, rates, height=0.62, color=COLOURS["ai"], alpha=0.55, label="TPR at 5% FPR")
        aurocs = [each["auroc"] for each in shown]
        axes.scatter(aurocs, places, s=20, color=COLOURS["ink"], zorder=3, clip_on=False, label="AUROC")
        name_bars(axes, [each["value"] or "all held-out texts" for each in shown])
        part_columns(axes, [each["column"] for each in shown])
        axes.set_xlim(0, 1)
        axes.legend(loc="lower center", bbox_to_anchor=(0.35, 1.0), ncols=2)

    return svg("baseline", 70 + LINE * len(shown), draw)


def accused_by_slice(baseline: Mapping[str, Any], slices: Sequence[Mapping[str, Any]]) -> str:
    """Bars of the share of human texts called AI, of slices with enough of them, in their order."""
    shown = [each for each in (baseline, *slices) if each["n_human"] >= MIN_TEXTS][: 2 * MAX_BARS]

    def draw(axes: Axes) -> None:
        shares = [100 * each["called_ai"] for each in shown]
        colours = [COLOURS["warn" if share >= 100 * MORE_ACCUSED else "human"] for share in shares]
        axes.barh(range(len(shown)), shares, height=0.62, color=colours)
        axes.axvline(5, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
        name_bars(axes, [each["value"] or "all held-out texts" for each in shown])
        part_columns(axes, [each["column"] for each in shown])
        axes.set_xlim(0, max(20, *shares) * 1.05)
        axes.set_xlabel("% of human texts called AI")

    return svg("accused", 60 + LINE * len(shown), draw)


def _round_numbers(low: float, high: float) -> list[int]:
    """1, 2 and 5 times powers of ten within a range; powers alone where there would be many."""
    found = [digit * 10**power for power in range(7) for digit in (1, 2, 5) if low <= digit * 10**power <= high]
    return found if len(found) <= 6 else [number for number in found if str(number)[0] == "1"]
