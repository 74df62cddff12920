"""Plots of the reports as SVG data URIs, for embedding with `<img>`."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

MAX_BARS = 40
MIN_TEXTS = 20  # of a class in a slice, to plot its rate
HUMAN, AI, WARN, GREY, INK = "#1f6fb5", "#c8641b", "#b3362b", "#8d99a8", "#1d232b"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "detect_ai",
    "text.parse_math": False,  # show a `$` in the name of a source literally
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
    """ROC curves (`roc`, `baseline_roc`) with a logarithmic FPR axis, and points given as (label, FPR, TPR)."""
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
    """Fraction of AI texts by predicted probability; the area of a dot shows its number of texts."""
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


def histogram(counts: Mapping[str, Any], label: str, log: Literal["x", "y"]) -> str:
    """Distribution of a value in each class, from `edges` of bins and the numbers of `human` and `ai` texts in them."""

    def draw(axes: Axes) -> None:
        for key, name, colour in (("human", "human", HUMAN), ("ai", "AI", AI)):
            if total := sum(counts[key]):
                fractions = [100 * count / total for count in counts[key]]
                axes.stairs(fractions, counts["edges"], color=colour, fill=True, alpha=0.25)
                axes.stairs(fractions, counts["edges"], color=colour, label=f"{name} ({total:,})")
        axes.set(xlabel=label, ylabel="% of the class's texts", **{f"{log}scale": "log"})
        axis = axes.xaxis if log == "x" else axes.yaxis
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_minor_formatter("")  # the default is TeX, which `_STYLE` turns off
        axes.legend()

    return svg(3, draw)


def fpr_by_slice(rows: Sequence[Mapping[str, Any]], metric: str, target: float) -> str | None:
    """FPR (`metric`) and 95% interval of slices with enough human texts; red where the interval is above `target`."""
    shown = [row for row in rows if row["n_human"] >= MIN_TEXTS and row.get(metric) is not None][:MAX_BARS]
    if not shown:
        return None

    def draw(axes: Axes) -> None:
        names = []
        for place, row in enumerate(shown):
            low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
            colour = WARN if low is not None and low > target else HUMAN
            if low is not None and high is not None:
                axes.hlines(place, low, high, color=colour, linewidth=1.5)
            axes.plot(row[metric], place, "o", color=colour, markersize=4.5, clip_on=False)
            name = f"{row['column']}: {row['value']}" if row["column"] else row["value"]
            plain = " ".join("".join(c if c.isprintable() else " " for c in name).split())
            names.append(plain if len(plain) <= 34 else f"{plain[:33]}…")
        axes.axvline(target, color=GREY, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        axes.set_xlabel("false positive rate")

    return svg(0.7 + 0.21 * len(shown), draw)


def two_distributions(reference: ArrayLike, live: ArrayLike, label: str) -> str:
    """Cumulative distributions of a value in the reference and in live texts."""

    def draw(axes: Axes) -> None:
        for values, name, colour in ((reference, "reference", GREY), (live, "last window", AI)):
            axes.ecdf(values, label=name, color=colour)
        axes.set(xlabel=label, ylabel="fraction of the texts")
        axes.set_yticks(*_PERCENTS)
        axes.legend(loc="lower right")

    return svg(3, draw)


def p_values(windows: Sequence[Mapping[str, float]], level: float) -> str:
    """p-values of each signal by window, on a logarithmic axis, and the alarm level."""

    def draw(axes: Axes) -> None:
        for signal in windows[0]:
            axes.plot(range(1, len(windows) + 1), [window[signal] for window in windows], marker=".", label=signal)
        axes.axhline(level, color=WARN, linestyle="--", linewidth=1, label="alarm")
        axes.set_yscale("log")
        axes.set(xlabel="window", ylabel="p-value")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter("")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return svg(3, draw)
