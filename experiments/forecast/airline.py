"""Forecasts the passengers of an airline, month by month, beside forecasts that need no network.

    python -m experiments.forecast airline

Each month the network reads the passengers so far, in logarithms, and the season of the next month; it predicts
by how much they change. The last third of the twelve years is never trained on. The naive forecasts are always printed.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import jaxrnn
from experiments.command.devices import Devices, devices_of, platform_of
from experiments.command.figures import GREY, STYLE, save_figure
from experiments.command.options import among, not_negative, positive
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.rows import Record, Row, mean_over_seeds
from experiments.command.script import Result, run_script
from experiments.datasets.airline import Parts, Series, chronological, load_airline
from experiments.models.cells import CONTESTANTS
from experiments.models.readout import Readout, init_readout, many_to_many
from experiments.training.loop import Course, Settings, Task, fit, make_optimiser
from experiments.training.runs import RunOptions, check_runs, keeper_of, seeds_of
from experiments.training.seeds import population
from experiments.training.sizes import CALLED, check_training, shapes_of


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """Passengers of an airline, a month ahead."""

    seeds: int = 5
    """How many runs, with --seed and the seeds after it."""
    data_dir: Path | None = None
    """Where the series is; otherwise the folder in JAXRNN_DATA, otherwise the user's cache."""
    cell: str = "lstm"
    """A cell by its name, such as rnn, lstm, gru."""
    hidden_size: int = 16
    """Hidden units."""
    test_months: int = 48
    """The last months, for testing."""
    validation_months: int = 12
    """The months before them, which select the best parameters."""
    steps: int = 1000
    """Updates."""
    batch_size: int = 16
    """Stretches of the training months a step."""
    window: int = 30
    """Months of each."""
    learning_rate: float = 5e-3
    """Adam's first, which falls to 0 along a cosine."""
    clip_norm: float = 1.0
    """Longest norm of the gradient of all parameters together."""
    noise: float = 0.1
    """Standard deviation of the noise added to what is read in training, in logarithms: against overfitting."""
    out: Path = Path("results/forecast_airline")
    """The folder for results.json, the figure, logs and checkpoints."""


QUICK = {"steps": 200, "seeds": 2}
EVALUATE_EVERY = 50
YEAR = 12
SCALE = 0.1  # of a change of the logarithm, which is some per cent


class Prepared(NamedTuple):
    """Inputs and targets, for each month but the first."""

    xs: np.ndarray  # (N - 1, features): of month t, with the season of month t + 1
    changes: np.ndarray  # (N - 1,): of the logarithm from month t to t + 1
    values: np.ndarray  # (N,), passengers
    scale: float  # the deviation of the known logarithms, which xs are divided by


def prepare(series: Series, known: int) -> Prepared:
    """Logarithms, scaled by the mean and deviation of the first `known` months, and three harmonics of the year."""
    logs = np.log(series.values)
    scale = float(logs[:known].std())
    scaled = (logs - logs[:known].mean()) / scale
    month = series.months.astype(int)[1:, None] % YEAR
    angles = 2 * np.pi * month * np.arange(1, 4) / YEAR
    xs = np.concatenate([scaled[:-1, None], np.sin(angles), np.cos(angles)], axis=1)
    return Prepared(xs.astype(np.float32), np.diff(logs).astype(np.float32), series.values, scale)


def forecasts(prepared: Prepared, changes: np.ndarray) -> np.ndarray:
    """Passengers of each month but the first, from those of the month before and a change."""
    return prepared.values[:-1] * np.exp(changes)


def naive(values: np.ndarray) -> dict[str, np.ndarray]:
    """Forecasts of every month that need no network; NaN where a month has no past."""
    nothing = np.full_like(values, np.nan)
    last, year, both = nothing.copy(), nothing.copy(), nothing.copy()
    last[1:] = values[:-1]
    year[YEAR:] = values[:-YEAR]
    both[YEAR + 1 :] = values[YEAR:-1] * values[1:-YEAR] / values[: -YEAR - 1]
    return {"last month": last, "a year before": year, "last month, growing as a year before": both}


def rmse(forecast: np.ndarray, values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(forecast - values))))


def split(config: Config) -> tuple[Series, Parts]:
    series = load_airline(config.data_dir)
    return series, chronological(series, config.validation_months, config.test_months)


def task_of(config: Config, cell: jaxrnn.Cell, prepared: Prepared, known: int) -> Task:
    """Windows of the training months that begin at any month, so that the number of a step does not give the season."""
    places = np.arange(config.window)

    def batch(seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((seed, step))
        rows = places[:, None] + rng.integers(known - config.window, size=config.batch_size)
        noise = config.noise / prepared.scale * rng.standard_normal(rows.shape, np.float32)
        xs = prepared.xs[rows]
        xs[..., 0] += noise
        return xs.swapaxes(0, 1), prepared.changes[rows].T

    def loss(model: Readout, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        xs, changes = batch
        said = SCALE * many_to_many(cell, model, xs)[..., 0]
        return jnp.mean(jnp.square(100 * (said - changes))), carry

    return Task(
        functools.partial(init_readout, cell, config.hidden_size, prepared.xs.shape[1], 1),
        loss,
        batch,
        examples=config.batch_size,
    )


def check(config: Config) -> None:
    positive(
        config,
        "hidden_size",
        "test_months",
        "validation_months",
        "steps",
        "batch_size",
        "window",
        "learning_rate",
        "clip_norm",
    )
    among(config, "cell", list(CONTESTANTS))
    not_negative(config, "noise")
    series, parts = split(config)
    if len(parts.train.values) < 2 * YEAR:
        raise ValueError(f"--test-months and --validation-months leave {len(parts.train.values)} months, expected 24")
    if config.window >= len(parts.train.values):
        raise ValueError(f"--window {config.window} is not less than the {len(parts.train.values)} training months")
    check_runs(config, {"": {}})
    cell, known = CONTESTANTS[config.cell].make(config.hidden_size, YEAR), len(parts.train.values)
    task = task_of(dataclasses.replace(config, batch_size=1), cell, prepare(series, known), known)
    batch = shapes_of(task.batch(0, 0), config.batch_size)
    check_training(config, task, batch, steps_per_call=min(CALLED, config.steps))


def train(config: Config, prepared: Prepared, parts: Parts, devices: Devices, show: Show) -> tuple[Course, np.ndarray]:
    """The course, and the predicted change of every month but the first by each seed, `(seeds, N - 1)`."""
    cell = CONTESTANTS[config.cell].make(config.hidden_size, YEAR)
    known = len(parts.train.values)
    until = known + len(parts.validation.values)

    @functools.partial(population, platform=platform_of(devices))
    def said(model: Readout, xs: jax.Array) -> jax.Array:
        return SCALE * many_to_many(cell, model, xs)[:, 0]

    def errors(models: Readout) -> dict[str, Any]:
        changes = np.asarray(said(models, prepared.xs))
        parts = {"train": slice(0, known - 1), "validation": slice(known - 1, until - 1)}
        return {
            name: [rmse(forecasts(prepared, own)[part], prepared.values[1:][part]) for own in changes]
            for name, part in parts.items()
        }

    course = fit(
        task_of(config, cell, prepared, known),
        make_optimiser(config.learning_rate, clip_norm=config.clip_norm, cosine_steps=config.steps),
        seeds_of(config),
        Settings(config.steps, EVALUATE_EVERY, minimise="validation"),
        errors,
        devices,
        show,
        keeper_of(config, "", {}),
    )
    return course, np.asarray(said(course.params, prepared.xs))


def run(config: Config) -> Result:
    series, parts = split(config)
    prepared = prepare(series, len(parts.train.values))
    label = CONTESTANTS[config.cell].label
    jobs = {label: Job(config.steps, functools.partial(train, config, prepared, parts))}
    course, changes = side_by_side(jobs, devices=devices_of(config))[label]
    test = slice(-config.test_months, None)
    own = np.stack([forecasts(prepared, change) for change in changes])
    by_seed = [rmse(forecast[test], series.values[test]) for forecast in own]
    mean = rmse(own.mean(0)[test], series.values[test])
    baselines = {name: rmse(forecast[test], series.values[test]) for name, forecast in naive(series.values).items()}
    table = Table(title=f"Passengers (thousands), the last {config.test_months} months, each a month ahead")
    table.add_column("forecast")
    table.add_column("root mean square error", justify="right")
    for name, error in baselines.items():
        table.add_row(name, f"{error:.2f}")
    spread = f" ± {np.std(by_seed, ddof=1):.2f}" if len(by_seed) > 1 else ""
    table.add_row(f"{label}, mean of {len(by_seed)} seeds", f"{np.mean(by_seed):.2f}{spread}")
    table.add_row(f"{label}, all seeds' mean forecast", f"{mean:.2f}")
    Console().print(table)
    record = {
        "parameters": course.parameters,
        "seconds": course.seconds,
        "seeds": list(seeds_of(config)),
        "months": {name: len(part.values) for name, part in parts._asdict().items()},
        "naive_rmse": baselines,
        "test_rmse": by_seed,
        "test_rmse_mean": float(np.mean(by_seed)),
        "test_rmse_of_mean_forecast": mean,
        "forecast": own.mean(0)[test].round(2).tolist(),
    }
    return record, functools.partial(draw, config, series, own)


def draw(config: Config, series: Series, own: np.ndarray) -> None:
    look, test = CONTESTANTS[config.cell], slice(-config.test_months, None)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axis = figure.subplots()
        months = series.months.astype("datetime64[D]")
        axis.plot(months, series.values, color="#222222", linewidth=1.6, label="passengers")
        year = naive(series.values)["a year before"][test]
        axis.plot(months[test], year, color=GREY, linestyle=(0, (3, 2)), linewidth=1.3, label="a year before")
        said = own[:, test]
        axis.fill_between(months[test], said.min(0), said.max(0), color=look.colour, alpha=0.2, linewidth=0)
        axis.plot(months[test], said.mean(0), color=look.colour, linewidth=2, label=f"{look.label}, a month ahead")
        axis.set_ylabel("passengers, thousands a month")
        axis.set_title(f"Airline, the last {config.test_months} months never trained on")
        axis.legend(frameon=False)
        save_figure(figure, config.out / "forecast")


def rows(record: Record) -> Iterator[Row]:
    """The row of a record in the table of results."""
    obtained = mean_over_seeds(record["test_rmse"], 1)
    naive = ", ".join(f"{name} {error:.1f}" for name, error in record["naive_rmse"].items())
    minutes = record["seconds"] / 60
    yield Row("airline: test RMSE, thousands", record["parameters"], minutes, obtained, f"naive: {naive}", "-")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script(
        "forecast airline", Config, run, check=check, quick=QUICK, writes=("forecast",), arguments=arguments
    )
