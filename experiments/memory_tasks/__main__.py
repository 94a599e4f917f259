"""Problems whose answer depends on distant steps, and the recurrent networks that learn them.

    python -m experiments.memory_tasks

Adding two marked numbers, copying ten symbols, the order of two symbols, the embedded Reber
grammar, and a verb that agrees with a noun far before it. Every network trains on fresh sequences
until all its seeds have solved the problem, or its steps are used up; how many seeds did, and after
how many sequences, is shown against the length. At one length a problem, some networks also
train with other changes of the gradient (clipped otherwise, not clipped, raised) and with other biases.

The parity of bits, words of a permutation group, and symbols that are copied from among noise: two layers of every
network, also of cells whose step is affine in the state, train at one length, and are tested at up to ten times it.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.command.devices import DeviceOptions, devices_of
from experiments.command.messages import shown
from experiments.command.options import among, check_seeds, positive
from experiments.command.progress import side_by_side
from experiments.command.script import Result, run_script
from experiments.memory_tasks.beyond import draw_beyond
from experiments.memory_tasks.figure import draw_lengths, draw_variants
from experiments.memory_tasks.plan import (
    BIASES,
    CELLS,
    Scale,
    biased,
    by_run,
    cells_of,
    change_of,
    changed,
    grid,
    jobs,
)
from experiments.memory_tasks.problems import PROBLEMS
from experiments.memory_tasks.record import about, as_record, outcomes_of
from experiments.memory_tasks.runs import GUESSED, Outcome, Run, make_task, network_of, tested_lengths
from experiments.memory_tasks.tracking import GROUPS
from experiments.models.cells import AFFINE, CONTESTANTS
from experiments.training.runs import check_shares
from experiments.training.sizes import CALLED, bytes_of, check_training, shapes_of

NAMED = (*CELLS, *AFFINE)
TASKS = (*(name for name in PROBLEMS if name not in GROUPS), "state_tracking")
COMPARABLE = tuple(name for name, problem in PROBLEMS.items() if not problem.beyond)
COMPARED = {  # by the field of a `Plan`: the label of a run beside others of its problem and length
    "changed": lambda run: f"{CONTESTANTS[run.cell].label}, {change_of(run)}",
    "biased": lambda run: BIASES[run.cell],
}
TITLES = {"changed": "Changes of the gradient", "biased": "Biases of the LSTM's forget and output gates"}


@dataclasses.dataclass(frozen=True)
class Config(DeviceOptions):
    """Recurrent networks that have to remember."""

    tasks: tuple[str, ...] = TASKS
    """Which problems: any of adding, copy, order, reber, agreement, parity, state_tracking, selective_copying."""
    groups: tuple[str, ...] = ("s3",)
    """Whose words state_tracking reads: any of s3, s5."""
    cells: tuple[str, ...] | None = None
    """Any of rnn-sigmoid, rnn-uniform, rnn, irnn, lstm-b0, lstm, gru, min_gru, min_lstm, rg_lru, lru. By default each
    problem's own."""
    lengths: tuple[int, ...] | None = None
    """The lengths, in each problem's own unit (steps, blanks, symbols, modifiers); by default its own."""
    comparisons: tuple[str, ...] = COMPARABLE
    """Problems on which to train with other changes of the gradient and other biases too, at their middle length."""
    hidden_size: int | None = None
    """Hidden units of every network; by default each problem's own."""
    batch_size: int = 32
    """Sequences a step."""
    steps: int | None = None
    """The most steps in which a seed may solve the problem; by default each problem's own."""
    tests: int = 500
    """Sequences that decide whether a problem is solved."""
    seeds: int = 5
    """How many runs of each network, with consecutive seeds."""
    seed: int = 0
    """The first seed."""
    reuse: tuple[str, ...] = ()
    """Files results.json of earlier runs: what they have with the same settings is not trained again."""
    out: Path = Path("results/memory_tasks")
    """The folder for results.json and the figures."""
    quick: bool = False
    """A small version: one network and two seeds, the shortest length of each problem, few steps, no comparisons."""


QUICK = {
    "tasks": (*COMPARABLE, "parity"),
    "cells": ("lstm",),
    "comparisons": (),
    "steps": 60,
    "tests": 100,
    "seeds": 2,
}


def check(config: Config) -> None:
    positive(config, "lengths", "hidden_size", "batch_size", "steps", "tests")
    check_seeds(config)
    if config.lengths == ():
        raise ValueError("--lengths expected at least one, got nothing")
    among(config, "tasks", TASKS)
    among(config, "groups", tuple(GROUPS))
    if config.cells is not None:
        among(config, "cells", NAMED)
    if config.comparisons:
        among(config, "comparisons", COMPARABLE)
    for task in tasks_of(config):
        shortest = PROBLEMS[task].shortest
        for length in lengths_of(config, task):
            if length < shortest:
                unit = PROBLEMS[task].length
                raise ValueError(f"--lengths expected at least {shortest} {unit} for {task}, got {length}")
    reused(config)
    every = every_run(planned(dataclasses.replace(config, seeds=1)))
    check_shares(config, len(jobs(every)))
    check_memory(config, every)


def check_memory(config: Config, every: Sequence[Run]) -> None:
    """Raises a `ValueError` in one line if a run of the greatest length cannot fit the memory."""
    for task in tasks_of(config):
        problem, length = PROBLEMS[task], max(lengths_of(config, task))
        steps, tests = problem.steps(length), max(config.tests, GUESSED if problem.guess else 0)
        longest = problem.steps(max(tested_lengths(problem, length), default=length))
        for one in (one for one in every if (one.problem, one.length) == (task, length)):
            least = make_task(problem, network_of(one), one.hidden_size, problem.shortest, 1)
            batch = shapes_of(least.batch(0, 0), config.batch_size, steps)
            held_out = {"sequences to test with": bytes_of(shapes_of(batch, tests, longest))}
            called = min(CALLED, one.steps)
            check_training(config, least, batch, jobs=len(jobs(every)), steps_per_call=called, more=held_out)


def tasks_of(config: Config) -> list[str]:
    """The problems asked for, by the names that they have in `PROBLEMS`, each once."""
    named = [config.groups if task == "state_tracking" else (task,) for task in config.tasks]
    return list(dict.fromkeys(name for names in named for name in names))


def lengths_of(config: Config, task: str) -> tuple[int, ...]:
    if config.lengths is not None:
        return tuple(dict.fromkeys(config.lengths))
    return PROBLEMS[task].lengths[:1] if config.quick else PROBLEMS[task].lengths


def middle(config: Config, task: str) -> int:
    """The length of the comparisons of changes of the gradient and of biases."""
    lengths = sorted(lengths_of(config, task))
    return lengths[(len(lengths) - 1) // 2]


def scale_of(config: Config) -> Scale:
    seeds = tuple(range(config.seed, config.seed + config.seeds))
    return Scale(seeds, config.batch_size, config.tests, config.hidden_size, config.steps)


class Plan(NamedTuple):
    """The runs of a problem: every network at every length, and the comparisons at one length."""

    grid: list[Run]
    changed: list[Run]
    biased: list[Run]


def planned(config: Config) -> dict[str, Plan]:
    scale = scale_of(config)
    cells = {task: tuple(dict.fromkeys(config.cells or cells_of(task))) for task in tasks_of(config)}
    return {
        task: Plan(
            grid(task, own, lengths_of(config, task), scale),
            *(
                compare(task, own, middle(config, task), scale) if task in config.comparisons else []
                for compare in (changed, biased)
            ),
        )
        for task, own in cells.items()
    }


def every_run(plans: Mapping[str, Plan]) -> list[Run]:
    """All runs, each once."""
    return list(dict.fromkeys(one for plan in plans.values() for runs in plan for one in runs))


def about_file(name: str) -> dict[str, Any]:
    """When, with what and how many runs an earlier record was made."""
    record = json.loads(Path(name).read_text(encoding="utf-8"))
    return {"date": record.get("date"), "versions": record.get("versions"), "runs": len(record["runs"])}


def reused(config: Config) -> dict[Run, Outcome]:
    """The outcomes of earlier runs; raises a `ValueError` in one line for a file that has none."""
    found: dict[Run, Outcome] = {}
    for name in config.reuse:
        try:
            record = json.loads(Path(name).read_text(encoding="utf-8"))
            found |= outcomes_of(record)
        except OSError as error:
            raise ValueError(f"--reuse expected files that can be read, got {shown(name)}: {error.strerror}") from error
        except Exception as error:  # what is no record can raise any error
            what = f"got {shown(name)} ({type(error).__name__})"
            raise ValueError(f"--reuse expected results.json of memory_tasks, {what}") from error
    return found


def run(config: Config) -> Result:
    plans = planned(config)
    every = every_run(plans)
    known = reused(config)
    new = [one for one in every if one not in known]
    found = known | (by_run(side_by_side(jobs(new), devices=devices_of(config))) if new else {})
    print_grid(plans, found)
    print_beyond([found[one] for plan in plans.values() for one in plan.grid])
    compared = {
        name: {
            task: [(label(one), found[one]) for one in getattr(plan, name)]
            for task, plan in plans.items()
            if getattr(plan, name)
        }
        for name, label in COMPARED.items()
    }
    for name, of_problems in compared.items():
        if of_problems:
            print_variants(TITLES[name], of_problems)
    problems = {(one.problem, one.length): found[one] for one in every}
    record = {
        "reused": [about_file(name) for name in config.reuse],
        "problems": [about(task, length, outcome) for (task, length), outcome in sorted(problems.items())],
        "runs": [as_record(found[one]) for one in every],
    }

    def draw() -> None:
        in_grid = [found[one] for plan in plans.values() for one in plan.grid]
        within, tested = ([o for o in in_grid if (o.beyond is None) is known] for known in (True, False))
        if within:
            draw_lengths(config.out / "memory_tasks", within)
        if tested:
            draw_beyond(config.out / "tracking", tested)
        if compared["changed"]:
            draw_variants(config.out / "changed", compared["changed"])
        if compared["biased"]:
            draw_variants(config.out / "biased", compared["biased"])

    return record, draw


def print_grid(plans: Mapping[str, Plan], found: Mapping[Run, Outcome]) -> None:
    for task, plan in plans.items():
        problem = PROBLEMS[task]
        table = Table(title=f"{problem.label}: solved at {problem.error} ≤ {problem.solved_at:.3g}")
        table.add_column("network")
        for heading in (problem.length, "solved", "sequences", problem.error, "loss", "of chance"):
            table.add_column(heading, justify="right")
        for one in plan.grid:
            outcome = found[one]
            table.add_row(CONTESTANTS[one.cell].label, str(one.length), *columns(outcome))
        Console(width=130).print(table)


def print_beyond(outcomes: Sequence[Outcome]) -> None:
    """The right answers of trained networks at all tested lengths."""
    tested = [(outcome, outcome.beyond) for outcome in outcomes if outcome.beyond is not None]
    if not tested:
        return
    table = Table(title="Right answers at other lengths, mean of the seeds (the worst seed)")
    for heading in ("problem", "network"):
        table.add_column(heading)
    table.add_column("length: %", justify="right")
    for outcome, found in tested:
        means = zip(found.lengths, 100 * found.right.mean(1), 100 * found.right.min(1), strict=True)
        shown = ", ".join(f"{length}: {mean:.1f} ({least:.1f})" for length, mean, least in means)
        table.add_row(PROBLEMS[outcome.run.problem].label, CONTESTANTS[outcome.run.cell].label, shown)
    Console(width=130).print(table)


def print_variants(title: str, compared: Mapping[str, Sequence[tuple[str, Outcome]]]) -> None:
    table = Table(title=title)
    for heading in ("problem", "trained with"):
        table.add_column(heading)
    for heading in ("solved", "sequences", "error", "loss", "of chance"):
        table.add_column(heading, justify="right")
    for task, rows in compared.items():
        for name, outcome in rows:
            problem, length = PROBLEMS[task], outcome.run.length
            table.add_row(f"{problem.label}, {length} {problem.length}", name, *columns(outcome))
    Console(width=130).print(table)


def columns(outcome: Outcome) -> tuple[str, ...]:
    """The columns of a table: seeds that solved it, sequences to solve, medians of error and loss, loss of chance."""
    sequences, chance = outcome.median_sequences, PROBLEMS[outcome.run.problem].chance(outcome.run.length)
    return (
        f"{outcome.successes}/{len(outcome.run.seeds)}",
        f"{sequences:,.0f}" if math.isfinite(sequences) else f"> {outcome.run.steps * outcome.run.batch_size:,}",
        f"{np.median(outcome.errors):.3g}",
        f"{np.median(outcome.losses):.3g}",
        f"{chance:.3g}" if math.isfinite(chance) else "",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 2 with one line on stderr if the command cannot be run as it stands."""
    figures = ("memory_tasks", "changed", "biased", "tracking")
    return run_script("memory_tasks", Config, run, check=check, quick=QUICK, writes=figures, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
