"""The figures of the benchmarks: colours that colour-blind eyes tell apart, and a marker of its own for each line."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatter, NullLocator

from experiments.benchmarks._peers import PEERS
from experiments.benchmarks._summary import BASE, ratios
from experiments.benchmarks._turns import TASKS, Timing
from experiments.command.figures import GREY, LINE_OF_TEXT, STYLE, spread_out, write_png
from experiments.command.report import whole_file

# Okabe and Ito's palette. jaxrnn's own have filled markers and solid lines, the others open ones and dashes.
LOOKS: dict[str, tuple[str, str]] = {
    "default": ("#000000", "o"),
    "scan": ("#777777", "s"),
    "sharded": ("#D55E00", "D"),
    "flax": ("#0072B2", "^"),
    "haiku": ("#009E73", "v"),
    "keras": ("#CC79A7", "X"),
    "equinox": ("#56B4E9", "P"),
    "torch": ("#E69F00", "*"),
}
OWN_LOOKS = {
    "None": LOOKS["default"],
    "gates": ("#D55E00", "D"),
    "16": ("#0072B2", "h"),
    "sqrt": ("#009E73", "d"),
    "cell": LOOKS["default"],
    "network": LOOKS["sharded"],
    "bptt": LOOKS["default"],
    "cudnn": LOOKS["sharded"],
    "pallas": ("#009E73", "d"),
    **{f"scan x{k}": ("#777777", f"${k}$") for k in (1, 2, 4, 8, 16)},
}
RATIOS = (1 / 256, 1 / 64, 1 / 16, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


def compare_times(path: Path, timings: Sequence[Timing], machine: str, base: str = BASE) -> None:
    """A panel for each cell and task, a row for each shape: times relative to one contestant."""
    cells = list(dict.fromkeys(t.cell for t in timings))
    shapes = list(dict.fromkeys(t.shape for t in timings))
    names = [name for name in (*LOOKS, *OWN_LOOKS) if any(t.contestant == name for t in timings)]
    relative = ratios(timings, base)
    span = min(relative, default=1.0) / 1.15, max(relative, default=1.0) * 1.15
    with mpl.rc_context({**STYLE, "axes.grid.axis": "both"}):
        size = 2.2 + 3.0 * len(cells), 2.0 + 2 * (0.7 + 0.32 * len(shapes))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(TASKS), max(1, len(cells)), sharex=True, sharey=True, squeeze=False)
        for row, task in zip(grid, TASKS, strict=True):
            for axis, cell in zip(row, cells, strict=True):
                here = [(t, r) for t, r in zip(timings, relative, strict=True) if (t.cell, t.task) == (cell, task)]
                _dots(axis, shapes, names, here)
                axis.set_title(f"{cell}, {task}")
                axis.set_xlim(*span)
        grid[0][0].set_ylim(len(shapes) - 0.5, -0.5)
        handles = [_mark(grid[0][0], [], [], name) for name in names]
        figure.legend(handles, names, loc="outside lower center", ncols=3 * len(cells) or 1, frameon=False)
        title = f"Time relative to jaxrnn's {base}, left is faster; rows are T,B,I,H\n{machine}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        _save(figure, path)


def _dots(axis: Axes, shapes: Sequence[str], names: Sequence[str], measured: Sequence[tuple[Timing, float]]) -> None:
    axis.axvline(1, color=GREY, linewidth=1, zorder=1)
    for name in names:
        mine = [(ratio, shapes.index(t.shape)) for t, ratio in measured if t.contestant == name]
        _mark(axis, [ratio for ratio, _ in mine], [place for _, place in mine], name)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(RATIOS))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}" if ratio > 0.2 else f"1/{1 / ratio:g}"))
    axis.set_yticks(range(len(shapes)), shapes)


def _mark(axis: Axes, xs: Sequence[float], ys: Sequence[float], name: str):
    colour, marker, face = _look(name)
    (handle,) = axis.plot(
        xs, ys, linestyle="none", marker=marker, markersize=8, color=colour, markerfacecolor=face, markeredgewidth=1.5
    )
    return handle


def _look(name: str) -> tuple[str, str, str]:
    """Colour, marker, and the colour that fills it."""
    colour, marker = {**LOOKS, **OWN_LOOKS}[name]
    return colour, marker, "white" if name in PEERS else colour


def curves(path: Path, title: str, xs: Sequence[int], lines: Mapping[str, Sequence[float]], x: str, y: str) -> None:
    """One line for each name over positive sizes, both axes logarithmic, labelled at its end."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 5.0), layout="constrained")
        axis = figure.subplots()
        axis.set_xscale("log")
        axis.set_yscale("log")
        for name, values in lines.items():
            colour, marker, face = _look(name)
            style = {"linestyle": (0, (4, 2)) if name in PEERS else "-", "marker": marker, "markerfacecolor": face}
            axis.plot(xs, values, color=colour, linewidth=1.8, clip_on=False, **style)
        axis.xaxis.set_major_locator(FixedLocator(list(xs)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(LogFormatter())  # between powers of ten, where there is room
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.set_title(title)
        axis.set_xlim(xs[0], xs[-1] if len(xs) > 1 else 2 * xs[0])
        axis.set_ylim(top=3 * axis.get_ylim()[1])  # room for the names
        _label_ends(axis, lines)
        _save(figure, path)


def _label_ends(axis: Axes, lines: Mapping[str, Sequence[float]]) -> None:
    """Names at the right, pushed apart where they would overlap, each tied to its line."""
    low, high = np.log(axis.get_ylim())
    heights = [float((np.log(values[-1]) - low) / (high - low)) for values in lines.values()]
    for name, height, place in zip(lines, heights, spread_out(heights, LINE_OF_TEXT), strict=True):
        colour, _, _ = _look(name)
        tie = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkB": 0, "relpos": (0, 0.5)}
        axis.annotate(
            name,
            (1.0, height),
            (1.08, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            color=colour,
            annotation_clip=False,
            arrowprops=tie,
        )


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as partial:
        write_png(figure, partial, dpi=160)
