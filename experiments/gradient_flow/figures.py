"""The figures of `gradient_flow`, drawn from its record alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from experiments.command.figures import GREY, LINE_OF_TEXT, STYLE, save_figure, spread_out
from experiments.gradient_flow.task import SYMBOLS
from experiments.models.cells import CONTESTANTS

Record = Mapping[str, Any]
FLOOR = -130.0  # decades; what falls below leaves the panel
CHANCE = float(np.log(SYMBOLS))
Ends = list[tuple[float, str, str]]  # value, label, colour

ACTIVATION_STYLES = {"linear": ("#0072B2", "o"), "tanh": ("#D55E00", "s"), "ReLU": ("#E69F00", "D")}
POWER_STYLES = {  # label, colour, marker
    "symmetric": ("symmetric", "#0072B2", "o"),
    "rotations": ("normal, not symmetric", "#009E73", "s"),
    "Gaussian": ("Gaussian entries", "#CC79A7", "D"),
}
CHANGE_STYLES = {  # label, colour, dashes; raised gradients are in the record alone, since their losses reach 0
    "none": ("not clipped", "#D55E00", (0, (4, 2))),
    "norm": ("norm", "#0072B2", "-"),
    "value": ("value", "#009E73", (0, (1, 1))),
    "each step": ("each step", "#CC79A7", (0, (5, 1, 1, 1))),
}
UNDRAWN = ("lstm-o1", "lstm-f1-o1")  # too near to other LSTMs
PALE = LinearSegmentedColormap.from_list("pale", ["#ffffff", "#8c8c8c"])
SLOPE = "growth of ‖∂L/∂h$_t$‖, natural log per step"


def draw_flow(stem: Path, length: int, record: Record) -> list[Path]:
    """The norms by step before and after training, the gain scanned, and descent with and without clipping.

    LSTMs with an output bias are in the record alone.
    """
    with mpl.rc_context({**STYLE, "font.size": 10, "axes.titlesize": 11}):
        figure = Figure(figsize=(10.6, 7.6), layout="constrained")
        axes = figure.subplots(2, 2)
        stages = list(dict.fromkeys(flow["stage"] for flow in record["flows"]))
        lowest = max(FLOOR, 1.06 * min(_least(flow["curve"]["median"]) for flow in record["flows"]))
        for axis, stage in zip(axes[0], stages, strict=True):
            flows = [flow for flow in record["flows"] if flow["stage"] == stage and flow["cell"] not in UNDRAWN]
            _norms(axis, record["steps_back"], flows, lowest)
            axis.set_title({"trained": "Trained"}.get(stage, "Before training"))
        _scan(axes[1, 0], record["gain"], "orthogonal", legend=True)
        _training(axes[1, 1], record["clipping"], "exploding", "gradient_norms", "norm of the gradient before clipping")
        figure.suptitle(
            f"The gradient of the last step's loss, followed back through {length} steps",
            x=0.01,
            ha="left",
            fontsize=13,
        )
        return save_figure(figure, stem)


def draw_spectrum(stem: Path, record: Record) -> list[Path]:
    """The gain on both matrices and far beyond them, and the powers of W_h."""
    with mpl.rc_context({**STYLE, "font.size": 10, "axes.titlesize": 11}):
        figure = Figure(figsize=(10.6, 7.6), layout="constrained")
        (first, second), (third, fourth) = figure.subplots(2, 2)
        second.sharey(first)
        _scan(first, record["gain"], "orthogonal", legend=True)
        _scan(second, record["gain"], "Gaussian", legend=False)
        second.set_ylabel("")
        _large(third, record["gain"]["large"])
        _powers(fourth, record["powers"])
        return save_figure(figure, stem)


def draw_clipping(stem: Path, record: Record) -> list[Path]:
    """The wall with descents, and the losses of networks that explode and that vanish."""
    with mpl.rc_context({**STYLE, "font.size": 10, "axes.titlesize": 11}):
        figure = Figure(figsize=(13.6, 4.3), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        _wall(figure, left, record["clipping"]["wall"])
        _training(middle, record["clipping"], "exploding", "losses", "loss, nats")
        _training(right, record["clipping"], "vanishing", "losses", "loss, nats")
        return save_figure(figure, stem)


def _least(values: Sequence[float]) -> float:
    return float(np.min([value for value in values if value is not None and np.isfinite(value)], initial=-1.0))


def _label_ends(axis: Axes, ends: Ends) -> None:
    """Beside the right edge, at the heights where the lines end, apart from each other."""
    axis.get_ylim()  # the limits are found when they are asked for
    heights = axis.transAxes.inverted().transform(axis.transData.transform([(1, value) for value, _, _ in ends]))
    places = spread_out(heights[:, 1].tolist(), 0.9 * LINE_OF_TEXT)
    for (_, label, colour), height in zip(ends, places, strict=True):
        axis.annotate(label, (1.015, height), xycoords="axes fraction", va="center", color=colour, fontsize=9)


def _norms(axis: Axes, back: Sequence[int], flows: Sequence[Record], lowest: float) -> None:
    ends: Ends = []
    for flow in flows:
        style, curve = CONTESTANTS[flow["cell"]], flow["curve"]
        if not curve["median"]:
            continue
        median, low, high = (np.array(curve[key], float) for key in ("median", "lowest", "highest"))
        shown = np.isfinite(median)  # a gradient of zero has no logarithm
        axis.fill_between(back, low, high, where=np.isfinite(low), color=style.colour, alpha=0.15, linewidth=0)
        axis.plot(
            back,
            np.where(shown, median, np.nan),
            color=style.colour,
            linewidth=1.8,
            linestyle=(0, style.dashes) if style.dashes else "-",
        )
        end = float(median[shown][-1])
        label = f"{style.label}  {end:.0f}" if abs(end) >= 10 else f"{style.label}  {end:.1f}"
        ends.append((max(end, lowest) + 1e-3 * end, label, style.colour))  # in their order where they leave the panel
    axis.set_ylim(lowest, 0.12 * -lowest)
    axis.set_xlim(0, back[-1])
    axis.set_xlabel("steps back from the loss, T - t")
    axis.set_ylabel("log$_{10}$ ‖∂L/∂h$_t$‖ / ‖∂L/∂h$_T$‖")
    _label_ends(axis, ends)


def _scan(axis: Axes, gain: Record, matrix: str, legend: bool) -> None:
    gains = np.array(gain["gains"])
    radius = float(np.mean(gain["log_radius_at_gain_1"][matrix]))
    axis.axhline(0, color="#999999", linewidth=1)
    axis.axvline(1, color="#999999", linewidth=1)
    # The bound is broad and the prediction above the marks, since all three coincide for an orthogonal matrix.
    axis.plot(gains, np.log(gains), color="#cccccc", linewidth=7, solid_capstyle="round", label="bound: log σ$_{max}$")
    axis.plot(
        gains,
        np.log(gains) + radius,
        color="#222222",
        linewidth=1.2,
        linestyle=(0, (4, 3)),
        zorder=5,
        label="predicted: log ρ",
    )
    for scan in gain["slopes"]:
        if scan["matrix"] != matrix:
            continue
        colour, marker = ACTIVATION_STYLES[scan["activation"]]
        slopes = np.array(scan["by_gain_and_seed"], float)
        middle, low, high = slopes.mean(1), slopes.min(1), slopes.max(1)
        ranges = np.maximum([middle - low, high - middle], 0)  # a mean of equal numbers is off by rounding
        label = f"measured: {scan['activation']}"
        axis.errorbar(gains, middle, ranges, color=colour, marker=marker, markersize=4.5, linewidth=1.2, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xticks([0.5, 0.71, 1, 1.41, 2], ["0.5", "0.71", "1", "1.41", "2"])
    axis.set_xlabel("gain: the largest singular value σ$_{max}$ of W$_h$")
    axis.set_ylabel(SLOPE)
    axis.set_title(f"Prediction and measurement, {matrix} W$_h$")
    if legend:
        axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)


def _large(axis: Axes, large: Record) -> None:
    gains = np.array(large["gains"])
    axis.axhline(0, color="#999999", linewidth=1)
    axis.plot(gains, np.log(gains), color=GREY, linewidth=1.6, label="log σ$_{max}$ of W$_h$")
    for name, label, colour, marker in (
        ("largest_norm", "largest norm of a step's Jacobian", "#0072B2", "s"),
        ("median_norm", "its median over steps", "#56B4E9", "v"),
        ("largest_growth", "largest growth of ‖∂L/∂h$_t$‖ in a step", "#009E73", "D"),
        ("slopes", "growth of ‖∂L/∂h$_t$‖ per step", "#D55E00", "o"),
    ):
        values = np.array(large[name], float)
        middle, low, high = values.mean(1), values.min(1), values.max(1)
        ranges = np.maximum([middle - low, high - middle], 0)
        axis.errorbar(gains, middle, ranges, color=colour, marker=marker, markersize=4.5, linewidth=1.2, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xticks(gains, [f"{gain:g}" for gain in gains])
    axis.set_xlabel("gain: the largest singular value σ$_{max}$ of W$_h$")
    axis.set_ylabel("natural log")
    axis.set_title("tanh, orthogonal W$_h$, large gains")
    axis.legend(frameon=False, fontsize=9, loc="lower left")


def _powers(axis: Axes, powers: Record) -> None:
    count, sigma = np.array(powers["powers"]), float(np.log(powers["largest_singular_value"]))
    axis.axhline(0, color="#999999", linewidth=1)
    axis.axhline(sigma, color=GREY, linewidth=1.6)
    ends: Ends = [(sigma, "log σ$_{max}$(W)", GREY)]
    for one in powers["matrices"]:
        label, colour, marker = POWER_STYLES[one["kind"]]
        rates = np.array(one["log_norm_over_t"], float)
        middle = rates.mean(1)
        ranges = np.maximum([middle - rates.min(1), rates.max(1) - middle], 0)
        axis.errorbar(count, middle, ranges, color=colour, marker=marker, markersize=4.5, linewidth=1.2, label=label)
        radius = float(np.mean(one["log_radius"]))
        if radius < sigma - 0.01:
            axis.axhline(radius, color=colour, linewidth=1.4, linestyle=(0, (4, 3)))
            ends.append((radius, "log ρ(W)", colour))
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(count, [str(t) for t in count])
    axis.set_xlabel("t")
    axis.set_ylabel("log σ$_{max}$(W$^t$) / t")
    axis.set_title("Powers of matrices with one σ$_{max}$")
    axis.legend(frameon=False, fontsize=9, loc="center left")
    _label_ends(axis, ends)


def _training(axis: Axes, clipping: Record, case: str, what: str, unit: str) -> None:
    ends: Ends = []
    for run in clipping["training"]:
        if run["case"] != case or what not in run or run["change"] not in CHANGE_STYLES:
            continue
        label, colour, dashes = CHANGE_STYLES[run["change"]]
        middle, low, high = (np.array(run[what][key], float) for key in ("median", "lowest", "highest"))
        axis.fill_between(run["updates"], low, high, color=colour, alpha=0.15, linewidth=0)
        axis.plot(run["updates"], middle, color=colour, linewidth=1.8, linestyle=dashes)
        ends.append((float(middle[-1]), label, colour))
        axis.set_xlim(0, run["updates"][-1])
    if what == "gradient_norms" or case == "exploding":
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_locator(NullLocator())
    if what == "losses":
        axis.axhline(CHANCE, color=GREY, linewidth=1.2, linestyle=(0, (1, 2)))
        ends.append((CHANCE, "chance", GREY))
        if case == "vanishing":
            axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
    axis.set_xlabel("updates of gradient descent")
    axis.set_ylabel(unit)
    axis.set_title({"exploding": "A network whose gradient explodes", "vanishing": "One whose gradient vanishes"}[case])
    _label_ends(axis, ends)


def _wall(figure: Figure, axis: Axes, wall: Record) -> None:
    weights, biases = np.array(wall["weights"]), np.array(wall["biases"])
    surface = axis.contourf(weights, biases, np.array(wall["losses"]), np.arange(0, 0.55, 0.05), cmap=PALE)
    figure.colorbar(surface, ax=axis, label="loss, (h$_T$ − 0.7)²", shrink=0.9)
    for name, way in wall["ways"].items():
        label, colour, dashes = CHANGE_STYLES[name]
        points = np.array(way, float)[:, :2]
        axis.plot(*points.T, color=colour, linestyle=dashes, linewidth=1.2, marker=".", markersize=3, label=label)
    axis.plot(*np.array(next(iter(wall["ways"].values())))[0, :2], marker="*", color="#000000", markersize=11)
    axis.set_xlim(weights[0], weights[-1])
    axis.set_ylim(biases[0], biases[-1])
    axis.grid(False)
    axis.set_xlabel("recurrent weight w")
    axis.set_ylabel("bias b")
    axis.set_title("The wall: one sigmoid unit, from the star")
    axis.legend(framealpha=1, edgecolor="none", fontsize=9, loc="lower left")
