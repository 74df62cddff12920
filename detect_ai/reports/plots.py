"""Plots of the reports as SVG data URIs, to be embedded by `<img>`."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BARS = 40
MIN_TEXTS = 20  # of a class in a slice, to plot its rate
HUMAN, AI, WARN, GREY, INK = "#1f6fb5", "#c8641b", "#b3362b", "#8d99a8", "#1d232b"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "detect_ai",
    "text.parse_math": False,  # a `$` in the name of a source is a `$`
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dcdfe4",
    "legend.frameon": False,
}
_PERCENTS = [0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"]


def svg(height: float, draw: Callable[[Axes], None]) -> str:
    """Draw on one pair of axes, 6 inches wide and `height` inches high, and return a data URI."""
    import matplotlib
    from matplotlib.figure import Figure

    sink = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6, height), layout="constrained")
        draw(figure.subplots())
        figure.savefig(sink, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(sink.getvalue()).decode()}"


def roc(curves: Mapping[str, Any], points: Sequence[tuple[str, float, float]]) -> str | None:
    """ROC curves of detector and baseline with a logarithmic FPR axis, and the operating points.

    Args:
        curves: `roc` and `baseline_roc`, each None or `fpr` and `tpr`.
        points: label, FPR and TPR of each target.
    """
    if not curves["roc"]:
        return None

    def draw(axes: Axes) -> None:
        for key, label, colour in (("roc", "detector", AI), ("baseline_roc", "TF-IDF baseline", INK)):
            if curves[key]:
                axes.plot(curves[key]["fpr"], curves[key]["tpr"], color=colour, label=label, drawstyle="steps-post")
        for label, fpr, tpr in points:
            axes.plot(max(fpr, 0.001), tpr, "o", color=AI)
            axes.annotate(label, (max(fpr, 0.001), tpr), (7, -11), textcoords="offset points")
        axes.set_xscale("log")
        axes.set_xlim(0.0009, 1)
        axes.set_xticks([0.001, 0.01, 0.05, 0.2, 1], ["0.1%", "1%", "5%", "20%", "100%"])
        axes.set_xticks([], minor=True)
        axes.set_ylim(0, 1.02)
        axes.set_yticks(*_PERCENTS)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("detection rate")
        axes.legend(loc="lower right")

    return svg(3.6, draw)


def reliability(bins: Sequence[Mapping[str, Any]]) -> str | None:
    """Fraction of AI texts by predicted probability; the area of a dot grows with its number of texts."""
    if not bins:
        return None

    def draw(axes: Axes) -> None:
        largest = max(row["count"] for row in bins)
        stated, observed = ([row[key] for row in bins] for key in ("mean_probability", "fraction_ai"))
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
        axes.plot(stated, observed, color=AI, linewidth=1)
        sizes = [12 + 120 * row["count"] / largest for row in bins]
        axes.scatter(stated, observed, s=sizes, color=AI, zorder=3, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability of AI", ylabel="fraction of AI texts")
        axes.set_xticks(*_PERCENTS)
        axes.set_yticks(*_PERCENTS)

    return svg(3.6, draw)


def histogram(counts: Mapping[str, Any]) -> str | None:
    """Distribution of the probabilities of each class, on a logarithmic scale."""
    classes = [row for row in (("human", "human", HUMAN), ("ai", "AI", AI)) if sum(counts[row[0]])]
    if not classes:
        return None

    def draw(axes: Axes) -> None:
        for key, label, colour in classes:
            total = sum(counts[key])
            fractions = [100 * count / total for count in counts[key]]
            axes.stairs(fractions, counts["edges"], color=colour, fill=True, alpha=0.25)
            axes.stairs(fractions, counts["edges"], color=colour, label=f"{label} ({total:,})")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(xlim=(0, 1), xlabel="predicted probability of AI", ylabel="% of the class's texts")
        axes.set_xticks(*_PERCENTS)
        axes.legend(loc="upper center")

    return svg(3, draw)


def rates_by_slice(
    rows: Sequence[Mapping[str, Any]], metric: str, count: str, label: str, target: float | None = None
) -> str | None:
    """A dot and a 95% interval for each slice with enough texts; red where the interval lies above `target`.

    Args:
        rows: slices with `column` and `value`, largest first within a column.
        metric: name of the rate.
        count: name of the number of texts that it is a rate of.
        label: of the axis.
        target: FPR, drawn as a line.
    """
    shown = [row for row in rows if row[count] >= MIN_TEXTS and row.get(metric) is not None][:MAX_BARS]
    if not shown:
        return None

    def draw(axes: Axes) -> None:
        for place, row in enumerate(shown):
            low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
            colour = WARN if target is not None and low is not None and low > target else HUMAN if target else AI
            if low is not None and high is not None:
                axes.hlines(place, low, high, color=colour, linewidth=1.5)
            axes.plot(row[metric], place, "o", color=colour, markersize=4.5, clip_on=False)
        if target is not None:
            axes.axvline(target, color=GREY, linestyle="--", linewidth=1)
        name_bars(axes, [f"{row['column']}: {row['value']}" if row["column"] else row["value"] for row in shown])
        axes.set_xlim(0, 1 if target is None else None)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        axes.set_xlabel(label)

    return svg(0.7 + 0.21 * len(shown), draw)


def lengths_by_class(lengths: Mapping[str, Any]) -> str:
    """Distribution of the number of tokens of each class.

    Args:
        lengths: `edges` of the bins, and under `human` and `ai` their `counts`.
    """

    def draw(axes: Axes) -> None:
        for key, label, colour in (("human", "human", HUMAN), ("ai", "AI", AI)):
            counts = lengths[key]["counts"]
            fractions = [100 * count / max(1, sum(counts)) for count in counts]
            axes.stairs(fractions, lengths["edges"], color=colour, fill=True, alpha=0.25)
            axes.stairs(fractions, lengths["edges"], color=colour, label=label)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set(xlabel="tokens", ylabel="% of the class's texts")
        axes.legend(loc="upper left")

    return svg(3, draw)


def bars(values: Mapping[str, float], label: str, start: float = 0.0) -> str | None:
    """Horizontal bars by name, in their order, that begin at `start`."""
    shown = dict(list(values.items())[:MAX_BARS])
    if not shown:
        return None

    def draw(axes: Axes) -> None:
        widths = [value - start for value in shown.values()]
        axes.barh(range(len(shown)), widths, left=start, height=0.65, color=GREY)
        name_bars(axes, list(shown))
        axes.set_xlabel(label)

    return svg(0.7 + 0.21 * len(shown), draw)


def name_bars(axes: Axes, names: Sequence[str]) -> None:
    """Label rows 0, 1, 2, … from the top."""
    plain = [" ".join("".join(c if c.isprintable() else " " for c in name).split()) for name in names]
    axes.set_yticks(range(len(names)), [name if len(name) <= 34 else f"{name[:33]}…" for name in plain])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
