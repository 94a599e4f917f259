"""Forecasts the temperature of the next day at three airports, hour by hour, with intervals; and an airline's months.

    python -m experiments.forecast
    python -m experiments.forecast airline

A cell reads three days of hourly weather; its last output is read as a normal distribution for each of the next hours.
Forecasts that need no network are always printed beside it: rules, and a linear regression of the same inputs. The
means of the network and of the regression are averaged too.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import jaxrnn
from experiments.command.devices import Devices, devices_of, platform_of
from experiments.command.options import among, at_most, not_negative, positive, share
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.script import Result, run_script
from experiments.datasets.weather import load_weather
from experiments.forecast import airline, figure, tables
from experiments.forecast.baselines import every_rule, inputs_of, linear, rmse, scores
from experiments.forecast.model import Normal, coverage, crps, nats, predict, stretch
from experiments.forecast.series import DAY, DAYS, Prepared, prepare
from experiments.models.cells import CONTESTANTS
from experiments.models.readout import Readout, init_readout
from experiments.training.loop import Course, Settings, Task, fit, make_optimiser
from experiments.training.runs import RunOptions, check_learned, check_runs, keeper_of, seeds_of
from experiments.training.seeds import population
from experiments.training.sizes import CALLED, check_training, shapes_of


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """The temperature of the next day at three airports of New York. The airline's months: python -m
    experiments.forecast airline --help."""

    seeds: int = 3
    """How many runs, with --seed and the seeds after it."""
    data_dir: Path | None = None
    """Where the weather is; otherwise the folder in JAXRNN_DATA, otherwise the user's cache."""
    cell: str = "gru"
    """A cell by its name, such as rnn, lstm, gru."""
    hidden_size: int = 48
    """Hidden units."""
    history: int = 72
    """Hours that are read before a forecast."""
    horizon: int = 24
    """Hours that are forecast."""
    steps: int = 600
    """The most updates."""
    patience: int = 6
    """Evaluations, of 50 updates each, without a smaller error on the validation hours, after which training stops."""
    batch_size: int = 64
    """Windows a step."""
    learning_rate: float = 3e-3
    """Adam's first, which falls to 0 along a cosine."""
    clip_norm: float = 1.0
    """Longest norm of the gradient of all parameters together."""
    noise: float = 0.3
    """Standard deviation of the noise added to all inputs in training, which have a deviation of 1."""
    dropout: float = 0.2
    """The share of the last output that is dropped in training."""
    out: Path = Path("results/forecast")
    """The folder for results.json, the figure, logs and checkpoints."""


QUICK = {"steps": 100, "seeds": 2}
EVALUATE_EVERY = 50


def load(config: Config) -> Prepared:
    return prepare(load_weather(config.data_dir), config.history, config.horizon)


def task_of(config: Config, cell: jaxrnn.Cell, prepared: Prepared) -> Task:
    """Windows of the training hours, drawn anew at every step; the targets are scaled corrections of the mean day."""
    begins, shape = prepared.begins["train"], (config.horizon, prepared.truth.shape[1])

    def batch(seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((seed, step))
        windows = prepared.windows(begins[rng.integers(len(begins), size=config.batch_size)])
        noise = config.noise * rng.standard_normal(windows.xs.shape, np.float32)
        return windows.xs + noise, ((windows.truth - windows.base) / prepared.scale).astype(np.float32)

    def loss(model: Readout, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        return nats(predict(cell, model, batch[0], shape, key, config.dropout), batch[1]), carry

    outputs = 2 * shape[0] * shape[1]
    init = functools.partial(init_readout, cell, config.hidden_size, prepared.features.shape[1], outputs)
    return Task(init, loss, batch, examples=config.batch_size)


def cell_of(config: Config) -> jaxrnn.Cell:
    return CONTESTANTS[config.cell].make(config.hidden_size, config.history)


def check(config: Config) -> None:
    positive(
        config, "hidden_size", "history", "horizon", "steps", "patience", "batch_size", "learning_rate", "clip_norm"
    )
    among(config, "cell", list(CONTESTANTS))
    share(config, "dropout")
    not_negative(config, "noise")
    longest = DAY * min(DAYS.values())
    at_most(config, "horizon", longest, f"the hours of a block of {min(DAYS.values())} days")
    if config.history + config.horizon > longest:
        raise ValueError(
            f"--history and --horizon expected {longest} hours at most, got {config.history + config.horizon}"
        )
    prepared = load(config)
    check_runs(config, {"": {}})
    task = task_of(dataclasses.replace(config, batch_size=1), cell_of(config), prepared)
    check_training(
        config, task, shapes_of(task.batch(0, 0), config.batch_size), steps_per_call=min(CALLED, config.steps)
    )


def train(config: Config, prepared: Prepared, devices: Devices, show: Show) -> tuple[Course, dict[str, Normal]]:
    """The course, and the forecasts of all seeds in degrees, for the validation and the test hours."""
    cell, shape = cell_of(config), (config.horizon, prepared.truth.shape[1])
    windows = {name: prepared.windows(prepared.begins[name]) for name in ("validation", "test")}

    @functools.partial(population, platform=platform_of(devices))
    def said(model: Readout, xs: jax.Array) -> Normal:
        return predict(cell, model, xs, shape)

    def in_degrees(models: Readout, name: str) -> Normal:
        scaled = said(models, jnp.asarray(windows[name].xs))
        mean, deviation = (prepared.scale * np.asarray(part, np.float64) for part in scaled)
        return Normal(windows[name].base + mean, deviation)

    def errors(models: Readout) -> dict[str, Any]:
        found = in_degrees(models, "validation").mean
        return {"validation": rmse(found, windows["validation"].truth[None], axis=(1, 2, 3))}

    course = fit(
        task_of(config, cell, prepared),
        make_optimiser(config.learning_rate, clip_norm=config.clip_norm, cosine_steps=config.steps),
        seeds_of(config),
        Settings(config.steps, EVALUATE_EVERY, minimise="validation", patience=config.patience),
        errors,
        devices,
        show,
        keeper_of(config, "", {}),
    )
    return course, {name: in_degrees(course.params, name) for name in windows}


def calibrated(found: dict[str, Normal], prepared: Prepared) -> tuple[dict[str, Any], Normal]:
    """The entry of a forecast in the record, and its test hours, calibrated on the validation hours."""
    truth = {name: prepared.truth[prepared.hours(prepared.begins[name])] for name in found}
    factor = stretch(found["validation"], truth["validation"])
    test = found["test"]._replace(deviation=factor * found["test"].deviation)
    return {
        **scores(test.mean, truth["test"]),
        "validation_rmse": float(rmse(found["validation"].mean, truth["validation"])),
        "stretch": factor,
        "crps": crps(test, truth["test"]),
        "coverage": coverage(found["test"], truth["test"]),
        "calibrated_coverage": coverage(test, truth["test"]),
    }, test


def run(config: Config) -> Result:
    weather = load_weather(config.data_dir)
    prepared = prepare(weather, config.history, config.horizon)
    begins, truth = prepared.begins["test"], prepared.truth[prepared.hours(prepared.begins["test"])]
    regression, penalty = linear(prepared)
    rules = {**every_rule(prepared, begins), "linear regression": regression["test"]}
    baselines = {name: scores(forecast, truth) for name, forecast in rules.items()}
    look = CONTESTANTS[config.cell]
    job = Job(config.steps, functools.partial(train, config, prepared))
    course, found = side_by_side({look.label: job}, devices=devices_of(config))[look.label]
    check_learned(course, "validation")
    alone = [
        {name: Normal(said.mean[k], said.deviation[k]) for name, said in found.items()} for k in range(config.seeds)
    ]
    both = [{name: Normal((n.mean + regression[name]) / 2, n.deviation) for name, n in own.items()} for own in alone]
    entries = {
        "network": [calibrated(own, prepared) for own in alone],
        "both": [calibrated(own, prepared) for own in both],
    }
    record = {
        "parameters": course.parameters,
        "regression_parameters": inputs_of(prepared.windows(begins[:1])).shape[1] * truth[0].size,
        "seconds": course.seconds,
        "seeds": list(seeds_of(config)),
        "updates": course.history[-1].step,
        "windows": {name: len(hours) for name, hours in prepared.begins.items()},
        "hours_without_temperature": int(np.isnan(prepared.truth).any(1).sum()),
        "penalty": penalty,
        "baselines": baselines,
        **{name: [entry for entry, _ in seeds] for name, seeds in entries.items()},
    }
    whole = {**record, "config": dataclasses.asdict(config)}
    for table in tables.shown(whole):
        Console().print(table)
    by_hour = {name: entry["rmse_by_hour"] for name, entry in baselines.items()}
    own = {kind: np.array([entry["rmse_by_hour"] for entry, _ in seeds]) for kind, seeds in entries.items()}
    stem, said = config.out / "forecast", entries["both"][0][1]
    return record, lambda: figure.draw(stem, look, prepared, weather.hours, by_hour, own, said)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["airline"]:
        return airline.main(given[1:])
    return run_script("forecast", Config, run, check=check, quick=QUICK, writes=("forecast",), arguments=given)


if __name__ == "__main__":
    sys.exit(main())
