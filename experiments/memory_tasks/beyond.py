"""The figure of the problems that are tested at other lengths: right answers against the length, a line a network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from experiments.command.figures import GREY, STYLE, save_figure
from experiments.memory_tasks.problems import PROBLEMS
from experiments.memory_tasks.runs import Outcome
from experiments.models.cells import CONTESTANTS


def draw_beyond(stem: Path, outcomes: Sequence[Outcome]) -> None:
    """Draws a panel for each problem: the mean of the seeds, and a small mark for each seed."""
    problems, cells = (list(dict.fromkeys(getattr(o.run, name) for o in outcomes)) for name in ("problem", "cell"))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.0 + 3.2 * len(problems), 3.9), layout="constrained")
        axes = figure.subplots(1, len(problems), squeeze=False)[0]
        for axis, problem in zip(axes, problems, strict=True):
            _panel(axis, [o for o in outcomes if o.run.problem == problem])
        axes[0].set_ylabel("right answers (%)")
        handles = [Line2D([], [], label=CONTESTANTS[cell].label, **_line(cell)) for cell in cells]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=10)
        save_figure(figure, stem)


def _panel(axis: Axes, outcomes: Sequence[Outcome]) -> None:
    problem = PROBLEMS[outcomes[0].run.problem]
    ticks = sorted({length for o in outcomes if o.beyond is not None for length in o.beyond.lengths})
    for outcome in outcomes:
        if outcome.beyond is not None:
            lengths, right, line = outcome.beyond.lengths, 100 * outcome.beyond.right, _line(outcome.run.cell)
            axis.plot(lengths, right.mean(1), markersize=5, **line)
            axis.plot(lengths, right, alpha=0.4, markersize=2.5, **{**line, "linestyle": ""})
    axis.axhline(100 / problem.outputs, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([str(tick) for tick in ticks])
    axis.set_ylim(-2, 103)
    axis.set_xlabel(problem.length)
    axis.set_title(f"{problem.label}, learned at {min(o.run.length for o in outcomes)}", fontsize=11)


def _line(cell: str) -> dict[str, Any]:
    look = CONTESTANTS[cell]
    dashes = (0, look.dashes) if look.dashes else "-"
    return {"color": look.colour, "marker": look.marker, "linestyle": dashes, "linewidth": 1.5}
