"""The figure of LSTM against GRU: quality against parameters, and against seconds of training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from experiments.command.figures import STYLE, save_figure
from experiments.models.cells import CONTESTANTS, label_of

MARKERS = {"rnn": "s", "lstm": "o", "gru": "^"}
DASHES = {"rnn": (2, 2), "lstm": (), "gru": (6, 2)}


def draw(
    stem: Path, records: Sequence[Mapping[str, Any]], labels: Mapping[str, tuple[str, str]], updates: int
) -> list[Path]:
    """Writes the figure: a column for each task, the test loss over parameters above and over seconds below."""
    with mpl.rc_context({**STYLE, "font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(3.1 * len(labels) + 0.3, 5.2), layout="constrained")
        rows = figure.subplots(2, len(labels), sharey="col", squeeze=False)
        for column, (task, (label, unit)) in enumerate(labels.items()):
            own = [record for record in records if record["task"] == task]
            for row, across in enumerate((_parameters, _seconds)):
                axis = rows[row, column]
                for cell, heads in dict.fromkeys((record["cell"], record["num_heads"]) for record in own):
                    line = [r for r in own if (r["cell"], r["num_heads"]) == (cell, heads)]
                    _line(axis, cell, heads, line, across, updates)
                axis.set_xscale("log")
                axis.xaxis.set_minor_locator(NullLocator())
                axis.set_xlabel(("parameters", f"seconds for {updates:,} updates")[row])
                axis.set_ylabel(f"test loss, {unit}")
            ticks = sorted({record["budget"] for record in own})
            rows[0, column].set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            _whole_ticks(rows[1, column], [_seconds(record, updates) for record in own])
            rows[0, column].set_title(label)
            if max(np.mean(r["test"]["loss"]) for r in own) > 20 * min(np.mean(r["test"]["loss"]) for r in own):
                rows[0, column].set_yscale("log")
        handles, texts = rows[0, 0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=3, frameon=False)
        return save_figure(figure, stem)


def _parameters(record: Mapping[str, Any], updates: int) -> float:
    del updates
    return record["parameters"]


def _seconds(record: Mapping[str, Any], updates: int) -> float:
    return updates * record["seconds_per_update"]["min"]


def _line(axis: Axes, cell: str, heads: int, records: Sequence[Mapping[str, Any]], across: Any, updates: int) -> None:
    """The mean of the seeds, and each seed as a small point. Cells with heads are paler, the more heads the paler."""
    records = sorted(records, key=lambda record: record["budget"])
    xs = [across(record, updates) for record in records]
    means = [np.mean(record["test"]["loss"]) for record in records]
    colour, label = CONTESTANTS[cell].colour, label_of(cell, heads)
    strength = 1 / (1 + 0.5 * np.log2(heads))
    for x, record in zip(xs, records, strict=True):
        losses = record["test"]["loss"]
        axis.plot([x] * len(losses), losses, ".", color=colour, alpha=0.45 * strength, markersize=5)
    style = (0, DASHES[cell]) if DASHES[cell] else "-"
    axis.plot(xs, means, color=colour, alpha=strength, linestyle=style, marker=MARKERS[cell], markersize=6, label=label)


def _whole_ticks(axis: Axes, values: Sequence[float]) -> None:
    """Ticks at 1, 2 and 5 times powers of ten."""
    candidates = [step * 10.0**power for power in range(-3, 5) for step in (1, 2, 5)]
    axis.set_xticks([tick for tick in candidates if min(values) / 1.3 <= tick <= max(values) * 1.3])
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
