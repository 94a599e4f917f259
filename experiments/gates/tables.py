"""The tables of `gates` in README.md, from its record."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments.command.report import mean_and_std
from experiments.command.rows import Record, markdown

TASKS = {"text": "next character", "digits": "digits"}
NAMES = {"f": "forget", "i": "input", "o": "output", "r": "reset", "z": "update"}
ORDER = {"lstm": ("f", "i", "o"), "gru": ("r", "z")}
DIGITS = {"text": 3, "digits": 2}  # after the point, of a loss of the whole cell
WAYS = {"open": "open", "closed": "closed", "mean": "at its mean", "retrained": "trained without"}
CLAIMED = "f > i > o"


def tables(record: Record) -> dict[str, str]:
    """Every table by its name: shares of saturated values, retention times, orders, and losses without a gate."""
    intact = {(run["task"], run["cell"]): run for run in record["runs"] if run["fixed"] is None}
    return {
        "saturated": _saturated(intact),
        "retention": _retention(intact),
        "lstm": _losses(record, intact, "lstm"),
        "gru": _losses(record, intact, "gru"),
        "orders": _orders(record["verdicts"]),
    }


def _gates() -> Iterator[tuple[str, str]]:
    return ((cell, gate) for cell, gates in ORDER.items() for gate in gates)


def _saturated(intact: Mapping[tuple[str, str], Record]) -> str:
    """Per cent of the values below 0.1 and above 0.9 after training."""
    lines = []
    for task, name in TASKS.items():
        after = {cell: intact[task, cell]["gates"]["after"] for cell in ORDER}
        sides = [[100 * np.mean(after[cell][gate][side]) for side in ("below", "above")] for cell, gate in _gates()]
        lines.append([name, *(f"{below:.0f} + {above:.0f}" for below, above in sides)])
    return markdown(["task", *(f"{cell.upper()} {gate}" for cell, gate in _gates())], lines)


def _retention(intact: Mapping[tuple[str, str], Record]) -> str:
    """Steps, of the units whose gate says what is kept."""
    lines = []
    for task, name in TASKS.items():
        for cell, gate in (("lstm", "f"), ("gru", "z")):
            run = intact[task, cell]
            before, after = (run["gates"][when][gate]["retention"] for when in ("before", "after"))
            times = [before["quantile_50"], after["quantile_50"], after["quantile_90"]]
            longer = 100 * np.mean(after["longer_than_task"])
            means = [f"{np.mean(values):.1f}" for values in times]
            lines.append([name, f"{cell.upper()} {gate}", str(run["steps"]), *means, f"{longer:.0f} %"])
    headings = ["task", "gate", "steps of the task", "median before", "median after", "9 of 10 units below"]
    return markdown([*headings, "units that keep longer than the task"], lines)


def _losses(record: Record, intact: Mapping[tuple[str, str], Record], cell: str) -> str:
    """Test losses of the whole cell, and with one gate fixed."""
    again = {(run["task"], run["cell"], run["fixed"][0]): run["test"]["loss"] for run in record["runs"] if run["fixed"]}
    lines = []
    for task, name in TASKS.items():
        digits, run = DIGITS[task], intact[task, cell]
        whole = f"{mean_and_std(run['test']['loss'], 1, digits)} ({100 * np.mean(run['test']['error']):.1f})"
        for k, gate in enumerate(ORDER[cell]):
            fixed: Mapping[str, Any] = run["ablated"][gate]
            without = [mean_and_std(fixed[way]["loss"], 1, 2) for way in WAYS if way in fixed]
            retrained = mean_and_std(again[task, cell, gate], 1, digits)
            lines.append(["" if k else name, NAMES[gate], "" if k else whole, *without, retrained])
    return markdown(["task", cell.upper(), "intact", *WAYS.values()], lines)


def _orders(verdicts: Record) -> str:
    """In how many seeds the gates of an LSTM matter in the claimed order, and in how many the forget gate most."""
    lines = []
    for task, name in TASKS.items():
        found = [verdicts[task]["lstm"]["order"][way]["orders"] for way in WAYS]
        exact = [f"{sum(order == CLAIMED for order in seeds)} of {len(seeds)}" for seeds in found]
        first = [f"{sum(order.startswith('f >') for order in seeds)} of {len(seeds)}" for seeds in found]
        lines += [[name, CLAIMED, *exact], ["", "f first", *first]]
    return markdown(["task", "order", *WAYS.values()], lines)
