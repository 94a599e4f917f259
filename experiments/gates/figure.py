"""The figure of the gates: how their values are spread before and after training, and the loss without one of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from experiments.command.figures import GREY, STYLE, save_figure
from experiments.models.cells import CONTESTANTS

NAMES = {"i": "input i", "f": "forget f", "o": "output o", "r": "reset r", "z": "update z"}
MARKS = {  # of what was done to the gate: text, colour, marker
    "open": ("open", "#0072B2", "o"),
    "closed": ("closed", "#D55E00", "s"),
    "mean": ("at its mean", "#009E73", "^"),
    "retrained": ("trained without", "#CC79A7", "D"),
}
LOSSES = (0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100)

Records = Sequence[Mapping[str, Any]]


def draw(stem: Path, records: Records, labels: Mapping[str, tuple[str, str]]) -> list[Path]:
    """Writes the figure; `labels` are a task's name and the unit of its loss, by task."""
    intact = [record for record in records if record["fixed"] is None]
    with mpl.rc_context({**STYLE, "font.size": 9, "axes.titlesize": 9}):
        figure = Figure(figsize=(8.4, 1.55 * len(labels) + 2.6), layout="constrained")
        parts = figure.subfigures(len(labels) + 1, 1, height_ratios=[1.6] * len(labels) + [2.6], squeeze=False)[:, 0]
        for part, (task, (label, _)) in zip(parts, labels.items(), strict=False):
            _histograms(part, label, [record for record in intact if record["task"] == task], first=part is parts[0])
        axes = parts[-1].subplots(1, len(labels), squeeze=False)[0]
        for axis, (task, (label, unit)) in zip(axes, labels.items(), strict=True):
            _losses(axis, f"{label}: test loss", unit, [record for record in records if record["task"] == task])
        handles, texts = axes[0].get_legend_handles_labels()
        parts[-1].legend(handles, texts, loc="outside lower center", ncols=5, frameon=False)
        return save_figure(figure, stem)


def _histograms(part: SubFigure, label: str, records: Records, first: bool) -> None:
    """The gates of one task side by side, each a panel."""
    panels = [(record["cell"], gate, record["gates"]) for record in records for gate in record["gates"]["after"]]
    columns = part.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    part.suptitle(
        f"{label}: values of the gates, and the share below 0.1 or above 0.9 after training",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    for axis, (cell, gate, when) in zip(columns, panels, strict=True):
        before, after = (100 * np.mean(when[moment][gate]["histogram"], axis=0) for moment in ("before", "after"))
        edges = np.linspace(0, 1, len(after) + 1)
        axis.stairs(after, edges, fill=True, color=CONTESTANTS[cell].colour, alpha=0.75, label="trained")
        axis.stairs(before, edges, color="#222222", linewidth=1.2, linestyle=(0, (4, 2)), label="before")
        share = 100 * np.mean(when["after"][gate]["saturated"])
        axis.set_title(f"{CONTESTANTS[cell].label}, {NAMES[gate]}: {share:.0f} %", fontsize=8.5)
        axis.set_xticks([0, 0.1, 0.5, 0.9, 1], ["0", "", "0.5", "", "1"])
        if axis.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axis.set_ylabel("% of values")
            if first:
                axis.legend(loc="upper left", frameon=False, fontsize=8, handlelength=1.4)


def _losses(axis: Axes, title: str, unit: str, records: Records) -> None:
    """Every seed as a point, the mean as a mark, the intact model as a line across its gates."""
    place, ticks = 0.0, []
    again = {(r["cell"], r["fixed"][0]): r["test"]["loss"] for r in records if r["fixed"]}
    for record in (record for record in records if record["fixed"] is None):
        begin, cell = place, record["cell"]
        for gate, ways in record["ablated"].items():
            shown = {way: fixed["loss"] for way, fixed in ways.items()}
            if (cell, gate) in again:
                shown["retrained"] = again[cell, gate]
            for offset, (way, losses) in zip(np.linspace(-0.27, 0.27, len(shown)), shown.items(), strict=True):
                _mark(axis, place + offset, losses, way)
            ticks.append((place, f"{CONTESTANTS[cell].label}\n{NAMES[gate]}"))
            place += 1
        level = float(np.mean(record["test"]["loss"]))
        label = "intact" if begin == 0 else "_again"
        axis.hlines(level, begin - 0.42, place - 0.58, color=GREY, linewidth=1.4, linestyle=(0, (5, 2)), label=label)
        place += 0.3
    axis.set_yscale("log")
    axis.set_yticks(LOSSES)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_formatter(NullFormatter())
    values = [v for r in records for v in _all_losses(r)]
    axis.set_ylim(0.8 * min(values), 1.25 * max(values))
    axis.set_xticks([at for at, _ in ticks], [text for _, text in ticks], fontsize=8)
    axis.set_ylabel(unit)
    axis.set_title(title, fontsize=10)


def _mark(axis: Axes, place: float, losses: Sequence[float], way: str) -> None:
    text, colour, marker = MARKS[way]
    label = None if text in axis.get_legend_handles_labels()[1] else text
    axis.vlines(place, min(losses), max(losses), color=colour, linewidth=2, alpha=0.5)
    axis.plot([place], [np.mean(losses)], marker, color=colour, markersize=6, label=label, linestyle="none")


def _all_losses(record: Mapping[str, Any]) -> list[float]:
    ablated = [v for ways in record.get("ablated", {}).values() for fixed in ways.values() for v in fixed["loss"]]
    return [*record["test"]["loss"], *ablated]
