"""Figures that stand on their own: drawn without a display, labelled at the lines instead of in a legend."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments._report import whole_file

STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
}
GREY = "#666666"
LINE_OF_TEXT = 0.06  # of a panel's height: the least distance of two labels


class Curve(NamedTuple):
    """One quantity over epochs, for several seeds."""

    label: str
    colour: str
    values: np.ndarray  # (epochs, seeds)


class Panel(NamedTuple):
    title: str
    curves: Sequence[Curve]


def learning_curves(path: Path, title: str, panels: Sequence[Panel], baseline: tuple[str, float]) -> None:
    """Test accuracy over epochs: the mean over seeds as a line, their range as a band, a baseline dashed."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 4.6 * len(panels), 4.2), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        lowest = min(baseline[1], *(curve.values.min() for panel in panels for curve in panel.curves))
        bottom = max(0.0, np.floor(10 * lowest) / 10)
        for axis, panel in zip(axes, panels, strict=True):
            axis.set_ylim(bottom, 1.0)
            _draw(axis, panel, baseline)
        axes[0].set_ylabel("test accuracy")
        figure.suptitle(title, x=0.01, ha="left", fontsize=13)
        with whole_file(path) as partial:
            figure.savefig(partial, format="png", dpi=160)


def _draw(axis: Axes, panel: Panel, baseline: tuple[str, float]) -> None:
    name, level = baseline
    axis.axhline(level, color=GREY, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
    ends = [(level, name, GREY)]
    for curve in panel.curves:
        epochs = np.arange(1, len(curve.values) + 1)
        mean = curve.values.mean(axis=1)
        axis.fill_between(
            epochs, curve.values.min(axis=1), curve.values.max(axis=1), color=curve.colour, alpha=0.18, linewidth=0
        )
        marker = "o" if len(epochs) == 1 else None  # one epoch is a point, which a line does not show
        axis.plot(epochs, mean, color=curve.colour, linewidth=2, marker=marker)
        ends.append((float(mean[-1]), curve.label, curve.colour))
    axis.set_xlim(1, max(2, len(panel.curves[0].values)))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axis.set_xlabel("epoch")
    axis.set_title(panel.title)
    bottom, top = axis.get_ylim()
    heights = spread_out([(end - bottom) / (top - bottom) for end, _, _ in ends], LINE_OF_TEXT)
    for (end, label, colour), height in zip(ends, heights, strict=True):
        axis.annotate(
            f"{label}  {100 * end:.1f}",
            (1.02, height),
            xycoords="axes fraction",
            va="center",
            color=colour,
            annotation_clip=False,
        )


def spread_out(heights: Sequence[float], distance: float) -> list[float]:
    """Heights in the same order, at least `distance` apart, none above 1, the topmost moved least."""
    placed: list[float] = list(heights)
    ceiling = 1.0
    for k in sorted(range(len(heights)), key=lambda k: -heights[k]):
        placed[k] = min(heights[k], ceiling)
        ceiling = placed[k] - distance
    return placed
