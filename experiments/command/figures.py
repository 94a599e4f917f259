"""Figures drawn without a display, with labels at the lines instead of a legend."""

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from PIL import Image

from experiments.command.report import whole_file

STYLE: dict[Any, Any] = {
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
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxrnn",
}
GREY = "#666666"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
TICKS = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001)  # errors
LEAST_ERROR = 0.001  # an error of zero is drawn here
LINE_OF_TEXT = 0.06  # of a panel's height: the least distance of two labels


class Curve(NamedTuple):
    """One quantity over epochs, for several seeds."""

    label: str
    colour: str
    values: np.ndarray  # (epochs, seeds)


class Panel(NamedTuple):
    title: str
    curves: Sequence[Curve]


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Writes a figure as `stem.png` and `stem.svg`."""
    paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    for path in paths:
        with whole_file(path) as partial:
            if path.suffix == ".png":
                write_png(figure, partial, dpi=130)
            else:
                figure.savefig(partial, format="svg", metadata={"Date": None})  # the same bytes for the same numbers
    return paths


def write_png(figure: Figure, path: Path, dpi: int) -> None:
    """Writes a figure with a palette of 128 colours, which takes a fifth less than one with all of them."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    image = Image.open(content).convert("RGB")
    image = image.quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.save(path, format="png", optimize=True)


def learning_curves(stem: Path, title: str, panels: Sequence[Panel], baseline: tuple[str, float]) -> None:
    """Draws test accuracy over epochs: the mean over seeds as a line, their range as a band, a baseline dashed.

    The height is logarithmic in the error, because what matters happens between 90 % and 100 %.
    """
    accuracies = np.concatenate([curve.values.ravel() for panel in panels for curve in panel.curves])
    errors = np.maximum(1 - np.append(accuracies, baseline[1]), LEAST_ERROR)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.4 + 4.9 * len(panels), 4.4), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        axes[0].set_yscale("log")
        axes[0].set_ylim(1.1 * errors.max(), 0.8 * errors.min())
        axes[0].yaxis.set_major_locator(FixedLocator(TICKS))
        axes[0].yaxis.set_minor_locator(NullLocator())
        axes[0].yaxis.set_major_formatter(lambda error, _: f"{100 * (1 - error):.4g} %")
        axes[0].set_ylabel("test accuracy (log scale of the error)")
        for axis, panel in zip(axes, panels, strict=True):
            _draw(axis, panel, baseline)
        figure.suptitle(title, x=0.01, ha="left", fontsize=13)
        save_figure(figure, stem)


def loss_curves(stem: Path, title: str, unit: str, curves: Mapping[str, np.ndarray], x: str = "epoch") -> None:
    """Draws losses `(evaluations, seeds)` by name: their mean over seeds, its last value, and their range."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axis = figure.subplots()
        ends = []
        for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
            places, mean = np.arange(1, len(values) + 1), values.mean(axis=1)
            axis.fill_between(places, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.18, linewidth=0)
            axis.plot(places, mean, color=colour, linewidth=2, marker="o" if len(values) == 1 else None)
            ends.append((float(mean[-1]), f"{name} {mean[-1]:.3f}", colour))
        axis.set_xlim(1, max(2, *(len(values) for values in curves.values())))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        axis.set_xlabel(x)
        axis.set_ylabel(unit)
        axis.set_title(title)
        _label_ends(axis, ends)
        save_figure(figure, stem)


def _label_ends(axis: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Writes labels at the ends of lines, without overlaps; `ends` are (value, label, colour)."""
    heights = axis.transAxes.inverted().transform(axis.transData.transform([(1, value) for value, _, _ in ends]))
    placed = spread_out(heights[:, 1].tolist(), LINE_OF_TEXT)
    for (_, label, colour), height in zip(ends, placed, strict=True):
        axis.annotate(label, (1.02, height), xycoords="axes fraction", va="center", color=colour, annotation_clip=False)


def _draw(axis: Axes, panel: Panel, baseline: tuple[str, float]) -> None:
    name, level = baseline
    axis.axhline(_error(level), color=GREY, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
    ends = [(level, name, GREY)]
    for curve in panel.curves:
        epochs = np.arange(1, len(curve.values) + 1)
        worst, best = _error(curve.values.min(axis=1)), _error(curve.values.max(axis=1))
        mean = curve.values.mean(axis=1)
        axis.fill_between(epochs, worst, best, color=curve.colour, alpha=0.18, linewidth=0)
        marker = "o" if len(epochs) == 1 else None  # one epoch is a point, which a line does not show
        axis.plot(epochs, _error(mean), color=curve.colour, linewidth=2, marker=marker, clip_on=False)
        ends.append((float(mean[-1]), curve.label, curve.colour))
    axis.set_xlim(1, max(2, len(panel.curves[0].values)))
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    axis.set_xlabel("epoch")
    axis.set_title(panel.title)
    _label_ends(axis, [(_error(end), f"{label}  {100 * end:.1f}", colour) for end, label, colour in ends])


def _error(accuracy: Any) -> Any:
    return np.maximum(1 - accuracy, LEAST_ERROR)


def spread_out(heights: Sequence[float], distance: float) -> list[float]:
    """Moves heights apart evenly until all distances are almost `distance` at least; their order stays the same."""
    places = list(heights)
    order = sorted(range(len(places)), key=lambda k: places[k])
    for _ in range(100):
        for below, above in itertools.pairwise(order):
            overlap = distance - (places[above] - places[below])
            if overlap > 0:
                places[below] -= overlap / 2
                places[above] += overlap / 2
    return places
