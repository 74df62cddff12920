"""Figures as inline SVG, in colours that the page around them chooses, for light and for dark.

What comes out is markup: names of sources, domains and generators stand in it escaped, as matplotlib writes them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from detect_ai.corpus.baseline import MIN_TEXTS
from detect_ai.corpus.findings import MORE_ACCUSED, TELLING_AUROC

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 380  # units of the view box: about the width of a phone, so that letters stay readable there
LINE = 17  # units a bar
MAX_BARS = 20
MAX_NAME = 27  # characters
# Stand-ins that nothing else in a figure has: each becomes a variable of the page's style sheet.
_COLOURS = {name: f"#0{i}0{i}0{i}" for i, name in enumerate(("ink", "muted", "line", "human", "ai", "bar", "warn"), 1)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched, and takes the page's font
    "text.parse_math": False,  # a `$` in the name of a source is a `$`
    "font.size": 10.5,
    "text.color": _COLOURS["ink"],
    "axes.labelcolor": _COLOURS["muted"],
    "axes.edgecolor": _COLOURS["line"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": _COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": _COLOURS["line"],
    "ytick.color": _COLOURS["line"],
    "xtick.labelcolor": _COLOURS["muted"],
    "ytick.labelcolor": _COLOURS["ink"],
    "legend.frameon": False,
    "legend.fontsize": 10,
}


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
            axes.stairs(shares, edges, fill=True, alpha=0.22, color=_COLOURS[name])
            axes.stairs(shares, edges, linewidth=1.4, color=_COLOURS[name], label=label)
        axes.set_xscale("log")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xticks(_round_numbers(edges[0], edges[-1]))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("tokens")
        axes.set_ylabel("% of the class's texts")
        axes.grid(axis="y")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

    return _svg("lengths", 220, draw)


def feature_aurocs(features: Sequence[Mapping[str, Any]]) -> str:
    """Bars from 0.5 to 1, best feature first, with 95% intervals; a ring is what the normaliser leaves."""
    shown = features[:MAX_BARS]

    def draw(axes: Axes) -> None:
        values = [feature["auroc"] for feature in shown]
        places = range(len(shown))
        colours = [_COLOURS["warn" if value >= TELLING_AUROC else "bar"] for value in values]
        axes.barh(places, [value - 0.5 for value in values], left=0.5, height=0.62, color=colours)
        axes.hlines(places, [f["low"] for f in shown], [f["high"] for f in shown], color=_COLOURS["ink"], linewidth=1)
        left = [(place, f["normalised"]) for place, f in enumerate(shown) if f["normalised"] is not None]
        rings = axes.scatter(
            [x for _, x in left], [y for y, _ in left], s=22, facecolors="none", label="after the normaliser"
        )
        rings.set(edgecolor=_COLOURS["ink"], linewidth=1, zorder=3, clip_on=False)
        axes.axvline(TELLING_AUROC, color=_COLOURS["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
        _name_bars(axes, [feature["name"] for feature in shown])
        axes.set_xlim(0.48, 1.0)
        axes.set_xlabel("AUROC (0.5 tells nothing)")
        axes.legend(loc="lower right")

    return _svg("features", 60 + LINE * len(shown), draw)


def baseline_by_slice(baseline: Mapping[str, Any], slices: Sequence[Mapping[str, Any]]) -> str:
    """A dot for the AUROC and a bar for the TPR at 5% FPR of each slice that has AI texts, in their order."""
    shown = [each for each in (baseline, *slices) if each["auroc"] is not None][: 2 * MAX_BARS]

    def draw(axes: Axes) -> None:
        places = range(len(shown))
        rates = [each["tpr_at_fpr_5"] or 0.0 for each in shown]
        axes.barh(places, rates, height=0.62, color=_COLOURS["ai"], alpha=0.55, label="TPR at 5% FPR")
        aurocs = [each["auroc"] for each in shown]
        axes.scatter(aurocs, places, s=20, color=_COLOURS["ink"], zorder=3, clip_on=False, label="AUROC")
        _name_bars(axes, [each["value"] or "all held-out texts" for each in shown])
        _part_columns(axes, [each["column"] for each in shown])
        axes.set_xlim(0, 1)
        axes.legend(loc="lower center", bbox_to_anchor=(0.35, 1.0), ncols=2)

    return _svg("baseline", 70 + LINE * len(shown), draw)


def accused_by_slice(baseline: Mapping[str, Any], slices: Sequence[Mapping[str, Any]]) -> str:
    """Bars of the share of human texts called AI, of slices with enough of them, in their order."""
    shown = [each for each in (baseline, *slices) if each["n_human"] >= MIN_TEXTS][: 2 * MAX_BARS]

    def draw(axes: Axes) -> None:
        shares = [100 * each["called_ai"] for each in shown]
        colours = [_COLOURS["warn" if share >= 100 * MORE_ACCUSED else "human"] for share in shares]
        axes.barh(range(len(shown)), shares, height=0.62, color=colours)
        axes.axvline(5, color=_COLOURS["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
        _name_bars(axes, [each["value"] or "all held-out texts" for each in shown])
        _part_columns(axes, [each["column"] for each in shown])
        axes.set_xlim(0, max(20, *shares) * 1.05)
        axes.set_xlabel("% of human texts called AI")

    return _svg("accused", 60 + LINE * len(shown), draw)


def dropped_by_reason(dropped: Mapping[str, int]) -> str:
    """Bars of rows, the largest reason first."""
    shown = [(reason, rows) for reason, rows in dropped.items() if rows][:MAX_BARS]

    def draw(axes: Axes) -> None:
        rows = [count for _, count in shown]
        bars = axes.barh(range(len(shown)), rows, height=0.62, color=_COLOURS["bar"])
        axes.bar_label(bars, [f"{count:,}" for count in rows], padding=4)
        _name_bars(axes, [reason for reason, _ in shown])
        axes.set_xlim(0, max(rows, default=1) * 1.2)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)

    return _svg("dropped", 26 + LINE * max(1, len(shown)), draw)


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _part_columns(axes: Axes, columns: Sequence[str]) -> None:
    for place in range(1, len(columns)):
        if columns[place] != columns[place - 1]:
            axes.axhline(place - 0.5, color=_COLOURS["muted"], linewidth=0.7)


def _short(name: str) -> str:
    name = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", name).split())
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def _round_numbers(low: float, high: float) -> list[int]:
    """1, 2 and 5 times powers of ten within a range; powers alone where there would be many."""
    found = [digit * 10**power for power in range(7) for digit in (1, 2, 5) if low <= digit * 10**power <= high]
    return found if len(found) <= 6 else [number for number in found if str(number)[0] == "1"]


def _svg(name: str, height: float, draw: Callable[[Axes], None]) -> str:
    """Draw on a figure of its own and return its SVG, without a size, its identifiers marked with its name."""
    import matplotlib
    from matplotlib.figure import Figure

    sink = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        draw(figure.subplots())
        figure.savefig(sink, format="svg", metadata={"Date": None})
    return _inline(sink.getvalue(), name)


def _inline(document: str, name: str) -> str:
    opening, body = document[document.index("<svg") :].split(">", 1)
    opening = re.sub(r' (?:width|height)="[^"]*"', "", opening)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", f"{opening}>{body}")
    for colour, value in _COLOURS.items():
        svg = svg.replace(value, f"var(--{colour})")
    return svg
