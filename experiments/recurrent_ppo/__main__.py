"""Agents with memory: recurrent PPO on four tasks, each with a known optimum, beside a network without memory.

    python -m experiments.recurrent_ppo

The tasks are pure functions of JAX, so that rollouts and learning are one compiled program. Settings were chosen with
seeds from 100 on. Returns are those of the likeliest actions on new episodes; at the bandit also their
expectation over all sequences of rewards, which is exact. At the end the same program is timed with Flax's cell.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from experiments.command.devices import Devices, devices_of, platform_of
from experiments.command.memory import check_fits
from experiments.command.options import among, check_total, positive
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.script import Result, run_script
from experiments.recurrent_ppo import planning, ppo, speed
from experiments.recurrent_ppo.environments import ARMS, ENVIRONMENTS, PULLS
from experiments.recurrent_ppo.figure import draw
from experiments.recurrent_ppo.network import CELLS, network_of
from experiments.recurrent_ppo.plan import SETTINGS, Run, planned, settings_of
from experiments.recurrent_ppo.tables import row
from experiments.recurrent_ppo.training import bandit_values, fit, tested
from experiments.training.runs import RunOptions, check_runs, keeper_of, seeds_of
from experiments.training.sizes import STATE, bytes_of


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """Recurrent PPO beside a network without memory."""

    environments: tuple[str, ...] = tuple(ENVIRONMENTS)
    """What is learned: any of cart_pole, chain, bandit, repeat_previous."""
    cells: tuple[str, ...] = CELLS
    """The networks: any of memoryless, gru, lstm, min_gru."""
    hidden_size: int = 64
    """Units of every layer."""
    updates: int | None = None
    """Rollouts to learn from, instead of those of each task."""
    tests: int = 1000
    """New episodes that every network is tested with at the end."""
    rounds: int = 7
    """How often each program takes its turn in the timing."""
    seeds: int = 3
    """How many runs, with --seed and the seeds after it."""
    out: Path = Path("results/recurrent_ppo")
    """The folder for results.json, the figure, logs and checkpoints."""


QUICK = {
    "environments": ("bandit",),
    "cells": ("memoryless", "gru"),
    "updates": 24,
    "seeds": 1,
    "rounds": 1,
    "tests": 50,
}
TIMED = 4  # updates in a call


def check(config: Config) -> None:
    """Raises a `ValueError` or `OSError` for options that cannot be run."""
    positive(config, "hidden_size", "updates", "tests", "rounds")
    among(config, "environments", tuple(ENVIRONMENTS))
    among(config, "cells", CELLS)
    if jax.process_count() > 1:
        raise ValueError(f"--processes expected 1, as rollouts are not shared; got {jax.process_count()}")
    runs = planned(config.environments, config.cells)
    for name in config.environments:
        check_total("--updates", config.updates or 1, SETTINGS[name].steps * SETTINGS[name].episodes)
    check_runs(config, {run.name: run._asdict() for run in runs})
    for run in runs:
        check_memory(config, run)


def check_memory(config: Config, run: Run) -> None:
    """Raises a `ValueError` in one line if a run cannot fit the memory; counts shapes alone."""
    environment, settings = ENVIRONMENTS[run.environment], settings_of(run.environment, config.updates)
    network = network_of(environment, run.cell, config.hidden_size, run.remembered)
    begin = functools.partial(ppo.begin, environment, network, settings)
    state = config.seeds * bytes_of(jax.eval_shape(begin, jax.random.key(0)))
    rows = max(settings.steps * settings.episodes // settings.minibatches, config.tests)
    parts = {STATE: state, "states of a rollout or a test": 4 * rows * config.hidden_size}
    check_fits(parts, ("--hidden-size", "--seeds") if state > parts["states of a rollout or a test"] else ("--tests",))


def train(config: Config, run: Run, devices: Devices, show: Show) -> dict[str, Any]:
    """The record of one network on one task."""
    environment, settings = ENVIRONMENTS[run.environment], settings_of(run.environment, config.updates)
    network = network_of(environment, run.cell, config.hidden_size, run.remembered)
    keeper = keeper_of(config, run.name, run._asdict())
    course = fit(environment, network, settings, seeds_of(config), devices, show, keeper)
    platform, each = platform_of(devices), settings.steps * settings.episodes
    test = tested(environment, network, course.params, config.tests, config.seed, platform)
    record = {
        **run._asdict(),
        "parameters": course.parameters,
        "seconds": round(course.seconds, 1),
        "environment_steps": settings.updates * each,
        "steps": [found.step * each for found in course.history],
        "returns": course.metric("return").round(3).tolist(),
        "test": test.round(4).tolist(),
    }
    if run.environment == "bandit":
        record["exact"] = bandit_values(network, course.params, platform).round(4).tolist()
    return record


def run(config: Config) -> Result:
    """Trains all networks side by side, tests, times and prints."""
    jobs, plans = {}, {}
    for one in planned(config.environments, config.cells):
        title = f"{one.environment}, {one.label}"
        total = settings_of(one.environment, config.updates).updates
        jobs[title], plans[title] = Job(total, functools.partial(train, config, one)), one
    done = side_by_side(jobs, devices=devices_of(config))
    records = [done[title] for title in plans]
    timed = timing(config)
    print_table(records)
    best = planning.values(ARMS, PULLS)
    print(f"The bandit's best plan: {best.optimal:.3f}; of pulling the likeliest arm: {best.greedy:.3f}")
    rates = {name: own["most"] for name, own in timed.steps_per_second.items()}
    ratio = rates["unroll"] / rates["flax"]
    print(f"Environment steps a second: {rates['unroll']:,.0f}; with Flax's cell {rates['flax']:,.0f} ({ratio:.2f}x)")
    settings = {name: SETTINGS[name]._asdict() for name in dict.fromkeys(config.environments)}
    record = {"settings": settings, "runs": records, "bandit": best._asdict(), "speed": timed._asdict()}
    return record, functools.partial(draw, config.out / "recurrent_ppo", records)


def timing(config: Config) -> speed.Timed:
    """The GRU's training on CartPole in three programs, on one device."""
    settings = SETTINGS["cart_pole"]
    with jax.default_device(devices_of(config)[0]):
        return speed.measured(ENVIRONMENTS["cart_pole"], config.hidden_size, settings, config.rounds, TIMED)


def print_table(records: Sequence[dict[str, Any]]) -> None:
    table = Table(title="Returns of the likeliest actions, by seed")
    for heading in ("task", "network", "parameters", "by seed", "optimum", "env. steps", "seconds"):
        table.add_column(heading)
    for record in records:
        table.add_row(*row(record))
    Console(width=120).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script(
        "recurrent_ppo", Config, run, check=check, quick=QUICK, writes=("recurrent_ppo",), arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
