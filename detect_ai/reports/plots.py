"""Figures as inline SVG, in colours that the page around them chooses, for light and for dark.

What comes out is markup: names of sources, domains and generators stand in it escaped, as matplotlib writes them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 380  # units of the view box: about the width of a phone, so that letters stay readable there
LINE = 17  # units a bar
MAX_BARS = 20
MAX_NAME = 27  # characters
# Stand-ins that nothing else in a figure has: each becomes a variable of the page's style sheet.
_NAMES = ("ink", "muted", "line", "human", "ai", "bar", "warn", "page")
COLOURS = {name: f"#0{i}0{i}0{i}" for i, name in enumerate(_NAMES, 1)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched, and takes the page's font
    "text.parse_math": False,  # a `$` in the name of a source is a `$`
    "font.size": 10.5,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["line"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["ink"],
    "legend.frameon": False,
    "legend.fontsize": 10,
}


def count_bars(name: str, counts: Mapping[str, int]) -> str:
    """Bars of counts by reason, in their order.

    Args:
        name: of the figure on its page.
        counts: by reason.
    """
    shown = [(reason, rows) for reason, rows in counts.items() if rows][:MAX_BARS]

    def draw(axes: Axes) -> None:
        rows = [count for _, count in shown]
        bars = axes.barh(range(len(shown)), rows, height=0.62, color=COLOURS["bar"])
        axes.bar_label(bars, [f"{count:,}" for count in rows], padding=4)
        name_bars(axes, [reason for reason, _ in shown])
        axes.set_xlim(0, max(rows, default=1) * 1.2)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)

    return svg(name, 26 + LINE * max(1, len(shown)), draw)


def name_bars(axes: Axes, names: Sequence[str]) -> None:
    """Names, shortened, beside horizontal bars that stand at 0, 1, 2, … from the top."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def part_columns(axes: Axes, columns: Sequence[str]) -> None:
    """Lines between bars of different columns."""
    for place in range(1, len(columns)):
        if columns[place] != columns[place - 1]:
            axes.axhline(place - 0.5, color=COLOURS["muted"], linewidth=0.7)


def short(name: str, longest: int = MAX_NAME) -> str:
    """A name on one line of a figure."""
    name = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", name).split())
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def svg(name: str, height: float, draw: Callable[[Axes], None]) -> str:
    """Draw on one pair of axes and return its SVG, as `panels` does."""
    return panels(name, height, lambda figure: draw(figure.subplots()))


def panels(name: str, height: float, draw: Callable[[Figure], None]) -> str:
    """Draw on a figure of its own and return its SVG, without a size, its identifiers marked with its name."""
    import matplotlib
    from matplotlib.figure import Figure

    sink = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        draw(figure)
        figure.savefig(sink, format="svg", metadata={"Date": None})
    return _inline(sink.getvalue(), name)


def _inline(document: str, name: str) -> str:
    opening, body = document[document.index("<svg") :].split(">", 1)
    opening = re.sub(r' (?:width|height)="[^"]*"', "", opening)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", f"{opening}>{body}")
    for colour, value in COLOURS.items():
        svg = svg.replace(value, f"var(--{colour})")
    return svg
