"""LSTM and GRU with equal numbers of parameters, a tanh network beside them: quality and speed.

    python -m experiments.lstm_vs_gru

Three tasks (digits pixel by pixel, the next character of a text, the adding problem), several budgets of
parameters. Every cell gets as many hidden units as make the whole model as large as the budget, the same
batches, and the same number of updates. Each model's learning rate is the one of a few, the same for all, that
has the least loss on validation data with a seed that is not reported. Updates are timed afterwards, on one
device each, with the models in turn.

    python -m experiments.lstm_vs_gru --cells gru --num-heads 1 4 8

compares block-diagonal recurrent weights with dense ones, which have fewer units for the same parameters. After
the timing every cell with heads is trained anew, with as many updates as take the seconds of the dense one.
"""

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.command.devices import DeviceOptions, Devices, devices_of, platform_of
from experiments.command.options import among, check_seeds, positive
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.report import mean_and_std
from experiments.command.script import Result, run_script
from experiments.datasets.text import load_text
from experiments.lstm_vs_gru.figure import draw
from experiments.lstm_vs_gru.heads import equal_seconds, heads_lines
from experiments.lstm_vs_gru.plan import Model, adding, cell_of, planned
from experiments.models.cells import label_of
from experiments.models.problems import Problem, as_task, digits, next_character, testing
from experiments.training.loop import Params, Settings, begin, fit, make_optimiser, training
from experiments.training.runs import check_shares
from experiments.training.sizes import bytes_of, check_training, shapes_of

TASKS = ("digits", "text", "adding")
CELLS = ("rnn", "lstm", "gru")
TOLERANCE = 0.02  # of a budget
AIMS = {"digits": ("error", 0.1), "text": ("loss", 2.1), "adding": ("loss", 1 / 600)}  # whose first update is counted
CALL = 10  # updates of every seed in one compiled call


@dataclasses.dataclass(frozen=True)
class Config(DeviceOptions):
    """LSTM and GRU at equal parameter budgets."""

    tasks: tuple[str, ...] = TASKS
    """What is learned: any of digits, text, adding."""
    cells: tuple[str, ...] = CELLS
    """What is compared: any of rnn, lstm, gru."""
    num_heads: tuple[int, ...] = (1,)
    """Heads of every cell, each number a contestant: their recurrent weights are blocks; 1 is a dense cell."""
    budgets: tuple[int, ...] = (5_000, 20_000)
    """Parameters of the whole model, each a comparison of its own."""
    updates: int = 600
    """Updates of every model."""
    batch_size: int = 32
    """Sequences an update."""
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    """Adam's first learning rates, of which each model takes its best; it falls to 0 along a cosine."""
    rounds: int = 8
    """How often each model takes its turn in the timing."""
    looks: int = 20
    """Evaluations of every model."""
    window: int = 100
    """Characters of the text that are read at a time."""
    adding_steps: int = 100
    """Length of the sequences in the adding problem."""
    text: Path | None = None
    """A text in UTF-8 to learn in the place of tiny-shakespeare."""
    data_dir: Path | None = None
    """Where tiny-shakespeare is; otherwise the folder in JAXRNN_DATA, otherwise the user's cache."""
    seed: int = 0
    """The first seed."""
    seeds: int = 3
    """How many runs, with seeds one after another."""
    out: Path = Path("results/lstm_vs_gru")
    """The folder for results.json and lstm_vs_gru.png."""
    quick: bool = False
    """A small version of everything, in about a minute at most."""


QUICK = {
    "cells": ("lstm", "gru"),
    "budgets": (5_000,),
    "learning_rates": (0.01,),
    "updates": 40,
    "window": 30,
    "adding_steps": 30,
    "seeds": 2,
    "rounds": 3,
}


class Trained(NamedTuple):
    """The record of a training, and a compiled call of ten updates that can be timed."""

    record: dict[str, Any]
    call: Callable[[], None]


def problems(config: Config) -> dict[str, Problem]:
    """The tasks asked for, by name."""
    made = {}
    for name in dict.fromkeys(config.tasks):
        if name == "digits":
            made[name] = digits(config.batch_size)
        elif name == "adding":
            made[name] = adding(config.adding_steps, config.batch_size)
        else:
            text = load_text(config.text, config.data_dir, config.window)
            made[name] = next_character(text, config.window, config.batch_size)
    return made


def check(config: Config) -> None:
    """Raises a `ValueError` or `OSError` for options that cannot be run."""
    sizes = ("budgets", "num_heads", "updates", "batch_size", "window", "adding_steps")
    positive(config, *sizes, "learning_rates", "rounds", "looks")
    check_seeds(config, more=1)  # the rates are chosen with one more
    among(config, "tasks", TASKS)
    among(config, "cells", CELLS)
    for name in ("budgets", "learning_rates", "num_heads"):
        if not getattr(config, name):
            raise ValueError(f"--{name.replace('_', '-')} expected one or more numbers, got nothing")
    if config.adding_steps < 2:
        raise ValueError(f"--adding-steps expected at least 2, got {config.adding_steps}")
    short = dataclasses.replace(config, adding_steps=2)  # as many parameters, but nothing of size is drawn
    models = planned(problems(short), config.cells, config.budgets, TOLERANCE, config.num_heads)
    check_shares(config, len(models))
    tasks = problems(dataclasses.replace(short, batch_size=1))
    for model in (model for model in models if model.budget == max(config.budgets)):
        check_memory(config, tasks[model.task], model, len(models))


def check_memory(config: Config, problem: Problem, model: Model, jobs: int) -> None:
    """Raises a `ValueError` in one line if the model cannot be trained within the memory.

    Args:
        config: of the script.
        problem: for batches of one example, the adding problem with two steps.
        model: of the largest budget.
        jobs: how many models there are.
    """
    is_adding = model.task == "adding"
    steps = config.adding_steps if is_adding else problem.steps
    batch = shapes_of(problem.batch(0, 0), config.batch_size, steps if is_adding else None)
    held_out = (problem.validation, problem.test)
    more = {"sequences to test with": bytes_of(shapes_of(held_out, steps=steps))} if is_adding else {}
    task = as_task(problem, cell_of(model, steps), model.hidden_size)
    called = min(CALL, config.updates)
    check_training(config, task, batch, jobs=jobs, steps_per_call=called, more=more)


def train(
    config: Config,
    problem: Problem,
    model: Model,
    rate: float,
    seeds: Sequence[int],
    looks: int,
    updates: int,
    devices: Devices,
    show: Show,
) -> Trained:
    """Trains one model with several seeds, evaluates it `looks` times, and tests it after the last update."""
    cell, platform = cell_of(model, problem.steps), platform_of(devices)
    task, test = as_task(problem, cell, model.hidden_size), testing(problem, cell, platform)
    optimiser = make_optimiser(rate, cosine_steps=updates)
    run = training(task, optimiser, platform)
    settings = Settings(updates, max(CALL, updates // looks), steps_per_call=CALL)

    def validated(models: Params) -> dict[str, jax.Array]:
        return test(models, problem.validation)

    done = fit(task, optimiser, seeds, settings, validated, devices, show, run=run)
    scores = {name: np.asarray(value, float) for name, value in test(done.state.params, problem.test).items()}
    metric, aim = AIMS[model.task]
    record = {
        **model._asdict(),
        "learning_rate": rate,
        "updates": [evaluation.step for evaluation in done.history],
        "validation": {name: done.metric(name).round(5).tolist() for name in scores},
        "test": {name: value.tolist() for name, value in scores.items()},
        "updates_to_aim": first_below(done.metric(metric), [e.step for e in done.history], aim),
    }
    return Trained(record, timed_call(problem, task, optimiser, seeds, run))


def first_below(values: np.ndarray, steps: Sequence[int], aim: float) -> list[int | None]:
    """For each seed the step of the first evaluation whose value is no larger than the aim: `(evaluations, seeds)`."""
    reached = values <= aim
    return [steps[int(np.argmax(own))] if own.any() else None for own in reached.T]


def timed_call(problem: Problem, task: Any, optimiser: Any, seeds: Sequence[int], run: Any) -> Callable[[], None]:
    """A function that makes ten updates of every seed, on one batch each and on the default device of this call."""
    batches = jax.tree.map(lambda *own: np.stack([np.stack(own)] * CALL), *(problem.batch(seed, 0) for seed in seeds))
    state = begin(task, optimiser, seeds)
    (device,) = jax.tree.leaves(state.params)[0].devices()

    def call() -> None:
        nonlocal state
        with jax.default_device(device):
            state, losses = run(state, batches)
            losses.block_until_ready()

    return call


def timed(calls: Mapping[Any, Callable[[], None]], rounds: int) -> dict[Any, list[float]]:
    """Times every call so many rounds, in random order; each call runs once before."""
    order, seconds = list(calls), {name: [] for name in calls}
    shuffle = np.random.default_rng(0)
    for name in order:
        calls[name]()
    for _ in range(rounds):
        for k in shuffle.permutation(len(order)):
            start = time.perf_counter()
            calls[order[k]]()
            seconds[order[k]].append(time.perf_counter() - start)
    return seconds


def trained(
    config: Config,
    tasks: Mapping[str, Problem],
    plans: Sequence[tuple[Model, float]],
    seeds: Sequence[int],
    looks: int,
    updates: Mapping[Model, int] | None = None,
) -> dict[tuple[Model, float], Trained]:
    """Trains all models side by side, with `config.updates` or those of each."""
    jobs, names = {}, {}
    for model, rate in plans:
        count = config.updates if updates is None else updates[model]
        work = functools.partial(train, config, tasks[model.task], model, rate, seeds, looks, count)
        jobs[model, rate] = Job(count, work)
        names[model, rate] = f"{model.task}, {label_of(model.cell, model.num_heads)}, {model.budget:,}, {rate:g}"
    done = side_by_side({names[plan]: job for plan, job in jobs.items()}, devices=devices_of(config))
    return {plan: done[names[plan]] for plan in jobs}


def tuned(config: Config, tasks: Mapping[str, Problem], models: Sequence[Model]) -> dict[Model, dict[float, float]]:
    """The validation loss of every model with every rate, with a seed that is not reported; empty for one rate."""
    rates = tuple(dict.fromkeys(config.learning_rates))
    if len(rates) == 1:
        return {}
    plans = [(model, rate) for model in models for rate in rates]
    done = trained(config, tasks, plans, [config.seed + config.seeds], looks=1)
    losses = {plan: one.record["validation"]["loss"][-1][0] for plan, one in done.items()}
    return {model: {rate: losses[model, rate] for rate in rates} for model in models}


def best_rate(losses: Mapping[float, float]) -> float:
    """The rate with the least loss; a loss that is not finite counts as the largest."""
    return min(losses, key=lambda rate: losses[rate] if math.isfinite(losses[rate]) else math.inf)


def run(config: Config) -> Result:
    """Tunes, trains, times and prints."""
    tasks = problems(config)
    models = planned(tasks, config.cells, config.budgets, TOLERANCE, config.num_heads)
    tuning = tuned(config, tasks, models)
    seeds = range(config.seed, config.seed + config.seeds)
    plans = [(model, best_rate(tuning[model]) if tuning else config.learning_rates[0]) for model in models]
    done = trained(config, tasks, plans, seeds, config.looks)
    seconds = timed({plan: one.call for plan, one in done.items()}, config.rounds)
    again = equal_seconds({model: min(seconds[model, rate]) for model, rate in plans}, config.updates, CALL)
    anew = trained(config, tasks, [plan for plan in plans if plan[0] in again], seeds, 1, again) if again else {}
    records = []
    for plan, one in done.items():
        each = np.array(seconds[plan]) / (CALL * config.seeds)
        speed = {"min": float(each.min()), "median": float(np.median(each))}
        tried = {f"{rate:g}": loss for rate, loss in tuning.get(plan[0], {}).items()}
        records.append({**one.record, "tuning": tried, "seconds_per_update": speed})
        if plan in anew:
            records[-1]["at_equal_seconds"] = {"updates": again[plan[0]], "test": anew[plan].record["test"]}
    records.sort(key=lambda r: (TASKS.index(r["task"]), r["budget"], CELLS.index(r["cell"]), r["num_heads"]))
    print_table(records)
    verdicts = compared(records)
    print_verdicts(verdicts)
    print(*heads_lines(records), sep="\n", end="\n" if again else "")
    labels = {name: (task.label, task.unit) for name, task in tasks.items()}
    record = {"runs": records, "lstm_against_gru": verdicts, "aims": {task: AIMS[task] for task in tasks}}
    return record, functools.partial(draw, config.out / "lstm_vs_gru", records, labels, config.updates)


def compared(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The LSTM's test loss less the GRU's, seed by seed, and the ratio of their seconds an update; of dense cells."""
    by_place = {(r["task"], r["budget"], r["cell"]): r for r in records if r["num_heads"] == 1}
    found = []
    for (task, budget, cell), lstm in by_place.items():
        gru = by_place.get((task, budget, "gru"))
        if cell != "lstm" or gru is None:
            continue
        differences = np.subtract(lstm["test"]["loss"], gru["test"]["loss"])
        seconds = [r["seconds_per_update"]["min"] for r in (lstm, gru)]
        found.append(
            {
                "task": task,
                "budget": budget,
                "loss_difference": differences.tolist(),
                "seeds_gru_better": int((differences > 0).sum()),
                "seconds_ratio": seconds[0] / seconds[1],
            }
        )
    return found


def print_table(records: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="After equal updates, on data held out")
    for heading in (
        "task",
        "cell",
        "units",
        "parameters",
        "rate",
        "loss",
        "error, %",
        "ms an update, min (median)",
        "updates to aim",
    ):
        table.add_column(heading)
    for record in records:
        speed = record["seconds_per_update"]
        reached = ["-" if step is None else str(step) for step in record["updates_to_aim"]]
        table.add_row(
            record["task"],
            label_of(record["cell"], record["num_heads"]),
            str(record["hidden_size"]),
            f"{record['parameters']:,}",
            f"{record['learning_rate']:g}",
            mean_and_std(record["test"]["loss"], 1, 4),
            mean_and_std(record["test"]["error"], 100, 1),
            f"{1e3 * speed['min']:.2f} ({1e3 * speed['median']:.2f})",
            " ".join(reached),
        )
    Console().print(table)


def print_verdicts(verdicts: Sequence[Mapping[str, Any]]) -> None:
    for found in verdicts:
        differences = found["loss_difference"]
        print(
            f"{found['task']}, {found['budget']:,} parameters: "
            f"LSTM's loss less GRU's {mean_and_std(differences, 1, 4)}, "
            f"GRU better in {found['seeds_gru_better']} of {len(differences)} seeds; "
            f"an LSTM update takes {found['seconds_ratio']:.2f} times a GRU's"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script(
        "lstm_vs_gru", Config, run, check=check, quick=QUICK, writes=("lstm_vs_gru",), arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
