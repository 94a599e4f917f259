"""Measures how time in parallel converges, how deep its programs are, and how long they take.

    python -m experiments.parallel_in_time

Newton's method solves all steps of a sequence at once. The script counts its iterations for tanh networks, GRUs and
LSTMs, before and after a brief training on `gradient_flow`'s task, while the gain of W_h grows, beside the largest
Lyapunov exponent. Then it counts the steps that compiled programs make one after another, and times them: the loop,
the associative scan of a minGRU and Newton's method on a GRU. On a CPU the loop wins.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from experiments.command.devices import DeviceOptions, devices_of
from experiments.command.memory import check_fits
from experiments.command.options import among, check_seeds, positive
from experiments.command.progress import Job, side_by_side
from experiments.command.script import Result, run_script
from experiments.gradient_flow.task import make_task
from experiments.models.cells import CONTESTANTS
from experiments.parallel_in_time.figure import draw
from experiments.parallel_in_time.iterations import CELLS, TRAINED_ON, scanned
from experiments.parallel_in_time.tables import tables
from experiments.parallel_in_time.times import timed
from experiments.training.sizes import check_training, shapes_of


@dataclasses.dataclass(frozen=True)
class Config(DeviceOptions):
    """Time in parallel: iterations of Newton's method, sequential depth, times."""

    cells: tuple[str, ...] = CELLS
    """Whose iterations are counted: any of rnn, gru, lstm."""
    gains: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    """What W_h is multiplied by."""
    hidden_size: int = 16
    """Hidden units of these cells."""
    steps: int = 512
    """Steps of the sequences on which iterations are counted."""
    window: int = 128
    """Steps that are solved at once."""
    updates: int = 500
    """Updates of the training."""
    batch_size: int = 32
    """Sequences an update."""
    lengths: tuple[int, ...] = (100, 1000, 10_000, 100_000)
    """Steps T of the programs that are timed."""
    time_hidden: int = 8
    """Hidden units of the cells that are timed."""
    time_batch: int = 1
    """Sequences of the programs that are timed."""
    rounds: int = 5
    """Turns of every program that is timed."""
    seed: int = 0
    """The first seed."""
    seeds: int = 3
    """How many trainings, with seeds one after another."""
    out: Path = Path("results/parallel_in_time")
    """The folder for results.json and parallel_in_time.png."""
    quick: bool = False
    """Small sizes, in under half a minute."""


QUICK = {
    "cells": ("rnn",),
    "gains": (0.5, 3.0),
    "hidden_size": 4,
    "steps": 32,
    "window": 16,
    "updates": 5,
    "batch_size": 4,
    "lengths": (20, 40),
    "time_hidden": 2,
    "rounds": 1,
    "seeds": 1,
}


def check(config: Config) -> None:
    """Raises a `ValueError` for options that cannot be run."""
    positive(config, "gains", "hidden_size", "steps", "window", "updates", "batch_size")
    positive(config, "lengths", "time_hidden", "time_batch", "rounds")
    check_seeds(config)
    among(config, "cells", CELLS)
    for name in ("gains", "lengths"):
        if not getattr(config, name):
            raise ValueError(f"--{name} expected at least one number, got nothing")
    longest = max(config.lengths) * config.time_batch * 3 * config.time_hidden
    check_fits({"sequences": 4 * longest}, ("--lengths", "--time-hidden", "--time-batch"))
    for name in config.cells:
        cell = CONTESTANTS[name].make(config.hidden_size, config.steps)
        task = make_task(cell, config.hidden_size, TRAINED_ON, config.batch_size)
        check_training(config, task, shapes_of(make_task(cell, 1, TRAINED_ON, 1).batch(0, 0), config.batch_size))


def run(config: Config) -> Result:
    """Trains, counts, times and prints."""
    if config.quick:
        jax.config.update("jax_disable_most_optimizations", True)
    jobs = {
        CONTESTANTS[name].label: Job(config.updates, functools.partial(scanned, config, name)) for name in config.cells
    }
    devices = devices_of(config)
    found = list(side_by_side(jobs, devices=devices).values())
    alone = Job(len(config.lengths), lambda _, show: timed(config, show))  # nothing else runs while it times
    times = side_by_side({"times": alone}, devices=devices)["times"]
    record = {"iterations": found, "times": times}
    console = Console()
    for name, table in tables({**record, "config": dataclasses.asdict(config)}).items():
        console.print(f"\n{name}\n{table}", soft_wrap=True, markup=False, highlight=False)
    return record, functools.partial(draw, config.out / "parallel_in_time", found, times)


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script(
        "parallel_in_time", Config, run, check=check, quick=QUICK, writes=("parallel_in_time",), arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
