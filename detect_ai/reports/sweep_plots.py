"""Figures of a sweep: its figure of merit against each key, and the learning curves of all trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from detect_ai.reports.plots import COLOURS, panels, short, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT = 220  # units of a figure
_FEW = 4  # values that all get a tick of their own
_LOG_SPAN = 8.0  # a range whose ends differ by more than this factor gets a logarithmic axis


def scatter(found: Sequence[dict[str, Any]], name: str) -> str:
    """Validation AUROC of the trials against the value that each had for a key; hollow where a trial was stopped.

    Args:
        found: records of trials that did not fail, at least one.
        name: the key.
    """
    values = [record["values"][name] for record in found]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    kinds = [str(value) for value in dict.fromkeys(values)]

    def draw(axes: Axes) -> None:
        for value, record in zip(values, found, strict=True):
            place = value if numbers else kinds.index(str(value))
            face = COLOURS["human"] if record["status"] == "finished" else "none"
            axes.plot(place, record["auroc"], "o", color=COLOURS["human"], markerfacecolor=face, markersize=7)
        if not numbers:
            axes.set_xticks(range(len(kinds)), [short(kind) for kind in kinds])
            axes.set_xlim(-0.5, len(kinds) - 0.5)
        elif min(values) > 0 and max(values) / min(values) > _LOG_SPAN:
            _logarithmic(axes, values)
        axes.set_xlabel(name)
        axes.set_ylabel("Validation AUROC")
        axes.grid()

    return svg(f"by-{name}", _HEIGHT, draw)


def curves(found: Sequence[dict[str, Any]], best: str) -> str:
    """Validation AUROC and loss of every trial by step; the best one stands out.

    Args:
        found: records of trials; one that failed has its evaluations before that.
        best: id of the best one.
    """

    def draw(figure: Figure) -> None:
        for axes, (name, label) in zip(
            figure.subplots(2, sharex=True), (("auroc", "AUROC"), ("val_loss", "Loss")), strict=True
        ):
            for record in found:
                first = record["trial"] == best
                axes.plot(
                    [line["step"] for line in record["curve"]],
                    [line[name] for line in record["curve"]],
                    "o-" if record["status"] == "finished" else "o--",
                    color=COLOURS["ai" if first else "bar"],
                    linewidth=2.2 if first else 1.2,
                    markersize=5 if first else 3.5,
                    zorder=3 if first else 2,
                )
            axes.set_ylabel(label)
            axes.grid()
        axes.set_xlabel("Step")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)

    return panels("curves", 2 * _HEIGHT - 60, draw)


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers: at the values where they are few, else at 1, 3, 10, 30 and so on."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    if len(places := sorted(set(values))) <= _FEW:
        axes.set_xticks(places)
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
