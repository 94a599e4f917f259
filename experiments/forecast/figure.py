"""The figure of the weather: errors by hour ahead, and forecasts with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jax.scipy.stats import norm
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.command.figures import COLOURS, GREY, STYLE, save_figure
from experiments.datasets.weather import AIRPORTS
from experiments.forecast.model import Normal
from experiments.forecast.series import Prepared
from experiments.models.cells import Contestant

DASHES = ((0, (5, 1, 1, 1)), (0, (4, 1)))
BEST = "last value, mean day"
PAST = 48  # hours drawn before a forecast
EXAMPLES = 3


def examples_of(prepared: Prepared, begins: np.ndarray) -> list[int]:
    """Places of windows that forecast from noon on, evenly over the year; errors do not choose them."""
    noon = np.flatnonzero(prepared.clock[begins] == 12)
    noon = noon if len(noon) >= EXAMPLES else np.arange(len(begins))
    return [int(noon[len(noon) * (2 * k + 1) // (2 * EXAMPLES)]) for k in range(EXAMPLES)]


def draw(
    stem: Path,
    look: Contestant,
    prepared: Prepared,
    hours: np.ndarray,
    rules: Mapping[str, Sequence[float]],
    by_seed: Mapping[str, np.ndarray],
    said: Normal,
) -> list[Path]:
    """Writes the figure.

    Args:
        stem: the path without a suffix.
        look: of the network.
        prepared: the series.
        hours: of the series.
        rules: errors by hour ahead of forecasts without a network.
        by_seed: those of the network and of its average with the regression, each `(seeds, horizon)`.
        said: the first seed's forecasts of all test windows, in degrees, calibrated.
    """
    begins = prepared.begins["test"]
    with mpl.rc_context({**STYLE, "font.size": 9, "axes.titlesize": 9}):
        figure = Figure(figsize=(7.6, 4.6), layout="constrained")
        axes = figure.subplots(2, 2).ravel()
        _errors(axes[0], look, rules, by_seed)
        for axis, place in zip(axes[1:], examples_of(prepared, begins), strict=True):
            _forecast(axis, look, prepared, hours, begins[place], Normal(*(np.asarray(part)[place] for part in said)))
        handles, texts = axes[1].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower right", ncols=len(texts), frameon=False, fontsize=8)
        return save_figure(figure, stem)


def _errors(
    axis: Axes, look: Contestant, rules: Mapping[str, Sequence[float]], by_seed: Mapping[str, np.ndarray]
) -> None:
    """Errors as shares of those of the best rule; the other rules are far above, and in the table alone."""
    least, ahead = np.array(rules[BEST]), np.arange(1, by_seed["both"].shape[1] + 1)
    marker = "o" if len(ahead) == 1 else None
    axis.plot(
        ahead, np.ones(len(ahead)), color=COLOURS[1], linestyle=DASHES[0], linewidth=1.3, marker=marker, label=BEST
    )
    regression = rules["linear regression"] / least
    axis.plot(ahead, regression, color=COLOURS[3], linewidth=1.3, marker=marker, label="linear regression")
    for kind, dashes, more in (("network", DASHES[1], ""), ("both", "-", ", regression")):
        shares = by_seed[kind] / least
        axis.fill_between(ahead, shares.min(0), shares.max(0), color=look.colour, alpha=0.25, linewidth=0)
        axis.plot(ahead, shares.mean(0), color=look.colour, linestyle=dashes, linewidth=1.8, marker=marker,
                  label=f"{look.label}{more}")  # fmt: skip
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.5 * (high - low))  # room for the legend above the lines
    axis.legend(frameon=False, fontsize=7.5, ncols=2, loc="upper left", handlelength=2.4, columnspacing=1)
    axis.set_xlabel("hours ahead")
    axis.set_title(f"Test RMSE as a share of that of {BEST}")


def _forecast(axis: Axes, look: Contestant, prepared: Prepared, hours: np.ndarray, begin: int, said: Normal) -> None:
    airport = 0
    ahead = np.arange(1, prepared.horizon + 1)
    past = np.arange(-min(PAST, prepared.history) + 1, 1)
    whole = np.append(past, ahead)
    mean, deviation = said.mean[:, airport], said.deviation[:, airport]
    for share, alpha in ((0.9, 0.18), (0.5, 0.3)):
        reach = float(norm.ppf(0.5 + share / 2)) * deviation
        axis.fill_between(ahead, mean - reach, mean + reach, color=look.colour, alpha=alpha, linewidth=0,
                          label=f"{100 * share:.0f} % interval")  # fmt: skip
    marker = "o" if len(ahead) == 1 else None
    axis.plot(ahead, mean, color=look.colour, linewidth=1.8, marker=marker, label="mean forecast")
    base = prepared.base(np.array([begin]))[0, :, airport]
    axis.plot(ahead, base, color=COLOURS[1], linestyle=DASHES[0], linewidth=1.2, marker=marker,
              label=BEST)  # fmt: skip
    axis.plot(whole, prepared.truth[begin - 1 + whole, airport], color="#222222", linewidth=1.1, label="measured")
    axis.axvline(0.5, color=GREY, linewidth=0.8)
    axis.set_xlim(whole[0], whole[-1])
    axis.set_xlabel("hours from the forecast")
    axis.set_title(f"{AIRPORTS[airport]} from {str(hours[begin]).replace('T', ', ')}:00 UTC, °F")
