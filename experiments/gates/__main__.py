"""Measures the gates of trained LSTMs and GRUs, and the loss without one of them.

    python -m experiments.gates

Trains both cells to read digits pixel by pixel and to predict the next character of a text. On held-out data it
measures the distribution of every gate's values before and after training, how long units keep their values
compared with the length of the task, and the loss with a gate fixed open (1), closed (0) or at its mean. Then it
trains again from the start with a gate fixed, so that the other parameters can compensate.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table

import jaxrnn
from experiments.command.devices import DeviceOptions, Devices, devices_of, platform_of
from experiments.command.options import among, check_seeds, positive
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.report import mean_and_std
from experiments.command.script import Result, run_script
from experiments.datasets.text import load_text
from experiments.gates.figure import draw
from experiments.gates.measures import (
    WAYS,
    ablations,
    as_lists,
    before_and_after,
    order_verdicts,
    saturation_verdicts,
)
from experiments.models.cells import CONTESTANTS
from experiments.models.problems import Problem, as_task, digits, next_character, testing
from experiments.training.loop import Settings, begin, fit, make_optimiser
from experiments.training.runs import check_shares
from experiments.training.sizes import check_training, shapes_of
from jaxrnn.analysis import ablate_gates

TASKS = ("digits", "text")
WITHOUT = {"lstm": {"i": 1.0, "f": 1.0, "o": 1.0}, "gru": {"r": 1.0, "z": 0.0}}  # the value of a gate that is removed


@dataclasses.dataclass(frozen=True)
class Config(DeviceOptions):
    """Gates of trained LSTMs and GRUs: saturation, retention, and what is lost without one."""

    tasks: tuple[str, ...] = TASKS
    """What is learned: any of digits, text."""
    cells: tuple[str, ...] = ("lstm", "gru")
    """Which cells: any of lstm, gru."""
    retrain: tuple[str, ...] = ("lstm", "gru")
    """Which of the cells to train again from the start with each gate fixed; none if nothing follows."""
    hidden_size: int = 32
    """Hidden units of every cell."""
    digits_updates: int = 1200
    """Updates in learning the digits."""
    text_updates: int = 1000
    """Updates in learning the text."""
    batch_size: int = 32
    """Sequences an update."""
    learning_rate: float | None = None
    """Adam's first learning rate, which falls to 0 along a cosine; by default 0.01 for digits, 0.03 for text."""
    window: int = 100
    """Characters that are read at a time."""
    text: Path | None = None
    """A text in UTF-8 to learn in the place of tiny-shakespeare."""
    data_dir: Path | None = None
    """Where tiny-shakespeare is; otherwise the folder in JAXRNN_DATA, otherwise the user's cache."""
    seed: int = 0
    """The first seed."""
    seeds: int = 3
    """How many runs, with seeds one after another."""
    out: Path = Path("results/gates")
    """The folder for results.json and gates.png."""
    quick: bool = False
    """A small version of it all but the training without a gate, in under half a minute."""


QUICK = {"hidden_size": 16, "digits_updates": 60, "text_updates": 40, "window": 30, "seeds": 1, "retrain": ()}
RATES = {"digits": 0.01, "text": 0.03}


class Run(NamedTuple):
    """A training of all seeds."""

    task: str
    cell: str
    fixed: tuple[str, float] | None  # a gate and its value in training; None: no gate is fixed


def problems(config: Config) -> dict[str, Problem]:
    """The tasks asked for, by name."""
    made = {}
    for name in config.tasks:
        if name == "digits":
            made[name] = digits(config.batch_size)
        else:
            text = load_text(config.text, config.data_dir, config.window)
            made[name] = next_character(text, config.window, config.batch_size)
    return made


def check(config: Config) -> None:
    """Raises a `ValueError` or `OSError` for options that cannot be run."""
    positive(config, "hidden_size", "digits_updates", "text_updates", "batch_size", "learning_rate", "window")
    check_seeds(config)
    among(config, "tasks", TASKS)
    among(config, "cells", tuple(WITHOUT))
    if config.retrain:
        among(config, "retrain", config.cells)
    problems(config)
    jobs = len(runs_of(config))
    check_shares(config, jobs)
    for problem in problems(dataclasses.replace(config, batch_size=1)).values():
        batch = shapes_of(problem.batch(0, 0), config.batch_size)
        for name in dict.fromkeys(config.cells):
            cell = CONTESTANTS[name].make(config.hidden_size, problem.steps)
            check_training(config, as_task(problem, cell, config.hidden_size), batch, jobs=jobs)


def runs_of(config: Config) -> list[Run]:
    """All trainings, the longest first, so that all devices end at about the same time."""
    found = []
    for task in sorted(config.tasks, key=TASKS.index, reverse=True):
        for cell in config.cells:
            gates = WITHOUT[cell].items() if cell in config.retrain else ()
            found += [Run(task, cell, None), *(Run(task, cell, fixed) for fixed in gates)]
    return found


def updates_of(config: Config, task: str) -> int:
    return config.digits_updates if task == "digits" else config.text_updates


def train(config: Config, problem: Problem, run: Run, devices: Devices, show: Show) -> dict[str, Any]:
    """Trains one model, and returns its record; the gates are measured if none of them is fixed."""
    plain = CONTESTANTS[run.cell].make(config.hidden_size, problem.steps)
    cell = plain if run.fixed is None else ablate_gates(plain, *run.fixed)
    platform = platform_of(devices)
    updates, seeds = updates_of(config, run.task), range(config.seed, config.seed + config.seeds)
    task, test = as_task(problem, cell, config.hidden_size), testing(problem, cell, platform)
    rate = RATES[run.task] if config.learning_rate is None else config.learning_rate
    optimiser = make_optimiser(rate, cosine_steps=updates)
    settings = Settings(updates, max(1, updates // 6))
    done = fit(task, optimiser, seeds, settings, lambda models: test(models, problem.validation), devices, show)
    models = done.state.params
    record = {
        **run._asdict(),
        "steps": problem.steps,
        "learning_rate": rate,
        "parameters": jaxrnn.count_params(models) // config.seeds,
        "seconds": done.seconds,
        "updates": [evaluation.step for evaluation in done.history],
        "validation_loss": done.metric("loss").tolist(),
        "test": as_lists(test(models, problem.test)),
    }
    if run.fixed is None:
        show(updates, "looking at the gates")
        before = begin(task, optimiser, seeds).params
        record["gates"] = before_and_after(problem, cell, before, models)
        show(updates, "fixing the gates")
        record["ablated"] = ablations(problem, cell, models, seeds, platform)
    return record


def judged(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The verdicts on the claims, by task and cell."""
    found: dict[str, Any] = {}
    for record in records:
        if record["fixed"] is not None:
            continue
        task, cell = record["task"], record["cell"]
        verdicts: dict[str, Any] = {"saturated": saturation_verdicts(record["gates"]["after"])}
        if cell == "lstm":
            ways = {way: {gate: fixed[way]["loss"] for gate, fixed in record["ablated"].items()} for way in WAYS}
            again = {
                r["fixed"][0]: r["test"]["loss"]
                for r in records
                if (r["task"], r["cell"]) == (task, cell) and r["fixed"]
            }
            verdicts["order"] = order_verdicts(ways | ({"retrained": again} if again else {}))
        found.setdefault(task, {})[cell] = verdicts
    return found


def run(config: Config) -> Result:
    """Trains, measures and prints."""
    if config.quick:  # compiling is nearly all of it
        jax.config.update("jax_disable_most_optimizations", True)
    tasks = problems(config)
    jobs = {}
    for plan in runs_of(config):
        fixed = "" if plan.fixed is None else f", {plan.fixed[0]} = {plan.fixed[1]:g}"
        work = functools.partial(train, config, tasks[plan.task], plan)
        jobs[f"{plan.task}, {CONTESTANTS[plan.cell].label}{fixed}"] = Job(updates_of(config, plan.task), work)
    records = list(side_by_side(jobs, devices=devices_of(config)).values())
    verdicts = judged(records)
    print_tables(records, verdicts)
    labels = {name: (problem.label, problem.unit) for name, problem in tasks.items()}
    record = {"runs": records, "verdicts": verdicts}
    return record, functools.partial(draw, config.out / "gates", records, labels)


def print_tables(records: Sequence[Mapping[str, Any]], verdicts: Mapping[str, Any]) -> None:
    spread, lost = Table(title="Gates on data held out, % of values, before > after training"), Table(title="Test loss")
    for heading in ("task", "cell", "gate", "below 0.1", "above 0.9", "retention, steps", "near 0 or 1"):
        spread.add_column(heading)
    for heading in ("task", "cell", "gate", "intact", *WAYS, "retrained without"):
        lost.add_column(heading)
    again = {(r["task"], r["cell"], r["fixed"][0]): r["test"]["loss"] for r in records if r["fixed"]}
    for record in records:
        if record["fixed"] is not None:
            continue
        task, cell = record["task"], record["cell"]
        before, after = record["gates"]["before"], record["gates"]["after"]
        for gate in after:
            shares = [
                f"{mean_and_std(before[gate][side], 100, 0)} > {mean_and_std(after[gate][side], 100, 0)}"
                for side in ("below", "above")
            ]
            kept = [
                mean_and_std(gates[gate]["retention"]["quantile_50"])
                for gates in (before, after)
                if "retention" in gates[gate]
            ]
            spread.add_row(task, cell, gate, *shares, " > ".join(kept), verdicts[task][cell]["saturated"][gate])
            losses = [mean_and_std(record["ablated"][gate][way]["loss"], 1, 3) for way in WAYS]
            retrained = mean_and_std(again[task, cell, gate], 1, 3) if (task, cell, gate) in again else "-"
            lost.add_row(task, cell, gate, mean_and_std(record["test"]["loss"], 1, 3), *losses, retrained)
    console = Console()
    console.print(spread, lost)
    for task, cells in verdicts.items():
        for way, found in cells.get("lstm", {}).get("order", {}).items():
            claim = "forget > input > output"
            console.print(f"{task}, LSTM, {way}: {', '.join(found['orders'])}; {claim}: {found[claim]}")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script("gates", Config, run, check=check, quick=QUICK, writes=("gates",), arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
