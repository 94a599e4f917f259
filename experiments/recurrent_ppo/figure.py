"""The figure of `recurrent_ppo`: greedy returns during training, a panel for each task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.command.figures import GREY, STYLE, save_figure
from experiments.models.cells import CONTESTANTS
from experiments.recurrent_ppo.environments import ENVIRONMENTS
from experiments.recurrent_ppo.network import LABELS

COLOURS = {"memoryless": GREY, **{name: CONTESTANTS[name].colour for name in ("gru", "lstm", "min_gru")}}


def draw(stem: Path, records: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Writes it: means as lines, ranges as bands; dashed without chrono biases where others have them."""
    names = list(dict.fromkeys(record["environment"] for record in records))
    with mpl.rc_context({**STYLE, "font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(2.7 * len(names) + 0.4, 2.9), layout="constrained")
        for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            own = [record for record in records if record["environment"] == name]
            with_chrono = {record["cell"] for record in own if record["remembered"] is not None}
            for record in own:
                dashed = record["cell"] in with_chrono and record["remembered"] is None
                _line(axis, record, (0, (3, 2)) if dashed else "-")
            axis.axhline(ENVIRONMENTS[name].optimum, color=GREY, linewidth=0.8, linestyle=":")
            axis.set_title(ENVIRONMENTS[name].label)
            axis.set_xlabel("thousand environment steps")
            axis.set_xlim(left=0)
        figure.axes[0].set_ylabel("greedy return, new episodes")
        cells = [cell for cell in LABELS if any(record["cell"] == cell for record in records)]
        handles = [Line2D([], [], color=COLOURS[cell], linewidth=2, label=LABELS[cell]) for cell in cells]
        handles.append(Line2D([], [], color=GREY, linewidth=0.8, linestyle=":", label="optimum"))
        if any(record["remembered"] is not None for record in records):
            handles.append(Line2D([], [], color=GREY, linestyle=(0, (3, 2)), label="without chrono biases"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        return save_figure(figure, stem)


def _line(axis: Any, record: Mapping[str, Any], style: Any) -> None:
    values = np.asarray(record["returns"])
    steps = np.asarray(record["steps"]) / 1000
    colour = COLOURS[record["cell"]]
    axis.fill_between(steps, values.min(1), values.max(1), color=colour, alpha=0.15, linewidth=0)
    axis.plot(steps, values.mean(1), color=colour, linestyle=style, linewidth=1.6)
