"""The figure of `parallel_in_time`: iterations against the largest Lyapunov exponent, and times over T."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.command.figures import GREY, STYLE, save_figure
from experiments.models.cells import CONTESTANTS

LINES = {  # colour, dashes
    "gru, loop": ("#009E73", "-"),
    "gru, Newton": ("#009E73", "--"),
    "min_gru, loop": ("#0072B2", "-"),
    "min_gru, associative scan": ("#0072B2", "--"),
}
FELL_BACK = 21  # where a setting is drawn of which no window converged


def draw(stem: Path, iterations: Sequence[Mapping[str, Any]], times: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Writes the figure."""
    with mpl.rc_context({**STYLE, "font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(8.0, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for run in iterations:
            own = CONTESTANTS[run["cell"]]
            for point in run["points"]:
                height = FELL_BACK if point["iterations"] is None else point["iterations"]
                face = own.colour if point["trained"] else "none"
                mark = "x" if point["by_steps"] else own.marker
                look = {"color": own.colour} if mark == "x" else {"facecolors": face, "edgecolors": own.colour}
                left.scatter([point["exponent"]], [height], s=28, marker=mark, **look)
            left.scatter([], [], color=own.colour, label=own.label)
        left.scatter([], [], color=GREY, marker="x", label="windows run step by step")
        left.axvline(0, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        left.set_xlabel("largest Lyapunov exponent, nats a step")
        left.set_title("Newton's iterations (hollow: untrained)")
        left.legend(frameon=False, fontsize=8)
        for way, (colour, dashes) in LINES.items():
            rows = [row for row in times if row["way"] == way and "min_ms" in row]
            steps, ms = [row["steps"] for row in rows], [row["min_ms"] for row in rows]
            right.plot(steps, ms, color=colour, linestyle=dashes, marker="o", markersize=4, label=way)
        right.set_xscale("log")
        right.set_yscale("log")
        right.set_xlabel("steps T")
        right.set_title("value and gradient on a CPU, ms")
        right.legend(frameon=False, fontsize=8)
        return save_figure(figure, stem)
