"""The figures of the memory problems: a mark a seed, at the sequences it needed, or in a band of those that failed."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from experiments.command.figures import GREY, STYLE, save_figure
from experiments.memory_tasks.problems import PROBLEMS
from experiments.memory_tasks.runs import Outcome
from experiments.models.cells import CONTESTANTS

BAND = 4.0  # how many times its lower edge the upper edge of the band of failures is
TICKS = [digit * 10**power for power in range(2, 7) for digit in (1, 2, 5)]
SPACING = 0.13  # of two contestants at one length


SEQUENCES, SHARE = "training sequences until solved", "test loss, share of chance"


class Place(NamedTuple):
    """An outcome and its place in a panel."""

    x: float
    outcome: Outcome


def draw_lengths(stem: Path, outcomes: Sequence[Outcome]) -> None:
    """Draws sequences to solve against length, a panel a problem, and right answers by distance if known."""
    problems, cells = (list(dict.fromkeys(getattr(o.run, name) for o in outcomes)) for name in ("problem", "cell"))
    late = [problem for problem in problems if PROBLEMS[problem].guess is not None]
    count = len(problems) + len(late)
    columns = min(3, count) if count != 4 else 2
    rows = -(-count // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.0 + 4.3 * columns, 0.9 + 3.5 * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
        for axis, problem in zip(axes, problems, strict=False):
            _against_length(axis, [o for o in outcomes if o.run.problem == problem], cells)
        for axis, problem in zip(axes[len(problems) :], late, strict=False):
            of_problem = [o for o in outcomes if o.run.problem == problem]
            longest = max(o.run.length for o in of_problem)
            _by_distance(axis, [o for o in of_problem if o.run.length == longest])
        for axis in axes[count:]:
            axis.set_visible(False)
        _legend(figure, cells)
        save_figure(figure, stem)


def draw_variants(stem: Path, rows: Mapping[str, Sequence[tuple[str, Outcome]]]) -> None:
    """Draws the same for the comparisons: a panel a problem, a labelled column a variant."""
    with mpl.rc_context(STYLE):
        widest = max(map(len, rows.values()))
        figure = Figure(figsize=(1.2 + max(2.7, 0.22 * widest) * len(rows), 4.6), layout="constrained")
        axes = figure.subplots(1, len(rows), squeeze=False)[0]
        for axis, (problem, variants) in zip(axes, rows.items(), strict=True):
            places = [Place(k, outcome) for k, (_, outcome) in enumerate(variants)]
            hard = _too_hard([outcome for _, outcome in places])
            (_beside_chance if hard else _dots)(axis, places)
            axis.set_xticks(range(len(variants)), [name for name, _ in variants], rotation=90, fontsize=9)
            axis.set_xlim(-0.6, len(variants) - 0.4)
            run = variants[0][1].run
            axis.set_title(f"{PROBLEMS[problem].label}\n{run.length} {PROBLEMS[problem].length}", fontsize=11)
            axis.set_ylabel(SHARE if hard else SEQUENCES)
        save_figure(figure, stem)


def _against_length(axis: Axes, outcomes: Sequence[Outcome], cells: Sequence[str]) -> None:
    lengths = sorted({o.run.length for o in outcomes})
    problem, middle = PROBLEMS[outcomes[0].run.problem], (len(cells) - 1) / 2
    hard = _too_hard(outcomes)
    for k, cell in enumerate(cells):
        of_cell = sorted((o for o in outcomes if o.run.cell == cell), key=lambda o: o.run.length)
        places = [Place(lengths.index(o.run.length) + SPACING * (k - middle), o) for o in of_cell]
        medians = (_beside_chance if hard else _dots)(axis, places)
        axis.plot([x for x, _ in places], medians, color=CONTESTANTS[cell].colour, linewidth=1.2, alpha=0.6, zorder=2)
    axis.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axis.set_xlim(-0.5, len(lengths) - 0.5)
    axis.set_xlabel(problem.length)
    axis.set_ylabel(SHARE if hard else SEQUENCES)
    axis.set_title(f"{problem.label}: {_solved_by(outcomes)}" if hard else problem.label)


def _solved_by(outcomes: Sequence[Outcome]) -> str:
    solved = sum(outcome.successes for outcome in outcomes)
    return f"solved by {solved} of {sum(len(o.run.seeds) for o in outcomes)} runs" if solved else "not solved"


def _too_hard(outcomes: Sequence[Outcome]) -> bool:
    """Returns whether so few seeds solved it that losses are drawn instead, as shares of the loss of chance."""
    run = outcomes[0].run
    solved, seeds = sum(o.successes for o in outcomes), sum(len(o.run.seeds) for o in outcomes)
    return math.isfinite(PROBLEMS[run.problem].chance(run.length)) and solved < seeds / 4


def _beside_chance(axis: Axes, places: Sequence[Place]) -> list[float]:
    """Draws a mark for each seed at its least loss, as a share of the loss of chance; returns the medians."""
    axis.axhline(1, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    if not axis.texts:
        _beside(axis, "chance", 1)
    axis.set_ylim(0, 1.1)
    medians = []
    for x, outcome in places:
        contestant = CONTESTANTS[outcome.run.cell]
        shares = outcome.losses / PROBLEMS[outcome.run.problem].chance(outcome.run.length)
        axis.plot(np.full(len(shares), x), shares, linestyle="", marker=contestant.marker, color=contestant.colour,
                  markersize=5, alpha=0.75, markeredgewidth=0, zorder=3)  # fmt: skip
        medians.append(float(np.median(shares)))
    return medians


def _beside(axis: Axes, text: str, height: float) -> None:
    """Writes a label beside the right edge, where no data are."""
    axis.annotate(text, (1.01, height), xycoords=("axes fraction", "data"), va="center", color=GREY,
                  fontsize=10, annotation_clip=False)  # fmt: skip


def _dots(axis: Axes, places: Sequence[Place]) -> list[float]:
    """Draws a mark for each seed, hollow and in the band for those that failed; returns the medians."""
    run = places[0].outcome.run
    floor = run.steps * run.batch_size * 1.25
    axis.set_yscale("log")
    axis.axhspan(floor, floor * BAND, color="#f1f1f1", zorder=0)
    axis.set_ylim(0.6 * run.evaluate_every * run.batch_size, floor * BAND)
    axis.yaxis.set_major_locator(FixedLocator([tick for tick in TICKS if tick < floor]))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for x, outcome in places:
        contestant = CONTESTANTS[outcome.run.cell]
        solved = outcome.sequences
        failed = np.count_nonzero(np.isinf(solved))
        heights = floor * BAND ** ((np.arange(failed) + 0.8) / (len(solved) + 0.6))
        style: dict[str, Any] = {"linestyle": "", "marker": contestant.marker, "color": contestant.colour, "zorder": 3}
        done = solved[np.isfinite(solved)]
        axis.plot(np.full(len(done), x), done, markersize=5, alpha=0.75, markeredgewidth=0, **style)
        axis.plot(np.full(failed, x), heights, markersize=4, markerfacecolor="white", markeredgewidth=1, **style)
    return [outcome.median_sequences for _, outcome in places]


def _by_distance(axis: Axes, outcomes: Sequence[Outcome]) -> None:
    problem = PROBLEMS[outcomes[0].run.problem]
    guessed = outcomes[0].guessed.get("distance")
    for outcome in outcomes:
        contestant, late = CONTESTANTS[outcome.run.cell], outcome.late.get("distance")
        if late is not None:
            axis.plot(late.value, 100 * late.right, color=contestant.colour, marker=contestant.marker, markersize=4,
                      linestyle=(0, contestant.dashes) if contestant.dashes else "-", linewidth=1.6)  # fmt: skip
    if guessed is not None:
        axis.plot(guessed.value, 100 * guessed.right, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        _beside(axis, "nearest\nnoun", 100 * guessed.right[-1])
    axis.axhline(50, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    lowest = min((100 * o.late["distance"].right.min() for o in outcomes if "distance" in o.late), default=39)
    axis.set_ylim(min(39, lowest - 2), 101.5)
    axis.set_xlabel("distance to what is remembered (steps)")
    axis.set_ylabel("right across the distance (%)")
    axis.set_title(f"{problem.label}, {outcomes[0].run.length} {problem.length}")


def _legend(figure: Figure, cells: Sequence[str]) -> None:
    marks = [Line2D([], [], color=CONTESTANTS[cell].colour, marker=CONTESTANTS[cell].marker, linestyle="", markersize=6,
                    label=CONTESTANTS[cell].label) for cell in cells]  # fmt: skip
    failed = Line2D([], [], color=GREY, marker="o", linestyle="", markersize=5, markerfacecolor="white",
                    label="a seed that did not solve it in the steps it had")  # fmt: skip
    figure.legend(handles=[*marks, failed], loc="outside upper left", ncols=len(marks) + 1, frameon=False, fontsize=10,
                  handletextpad=0.2, columnspacing=1.2)  # fmt: skip
