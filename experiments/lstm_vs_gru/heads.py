"""Cells with heads beside dense ones: how many updates take equal seconds, and how the losses compare."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.command.report import mean_and_std
from experiments.lstm_vs_gru.plan import Model
from experiments.models.cells import label_of


def equal_seconds(seconds: Mapping[Model, float], updates: int, call: int) -> dict[Model, int]:
    """The updates of every model with heads that take as long as those of the dense one, in whole calls.

    Args:
        seconds: of a call of each model. A model with heads is compared with the one that has its task,
            cell and budget and no heads; it is left out if there is none.
        updates: of the dense model.
        call: updates in one call.
    """
    found = {}
    for model, own in seconds.items():
        dense = [other for other in seconds if other[:3] == model[:3] and other.num_heads == 1]
        if dense and model.num_heads > 1:
            found[model] = max(1, round(updates * seconds[dense[0]] / own / call)) * call
    return found


def pairs(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each record with heads, and the dense one of its task, budget and cell."""
    dense = {(r["task"], r["budget"], r["cell"]): r for r in records if r["num_heads"] == 1}
    for record in records:
        if "at_equal_seconds" in record:
            yield record, dense[record["task"], record["budget"], record["cell"]]


def better(losses: Sequence[float], dense: Sequence[float]) -> int:
    """The seeds in which the loss is below the dense cell's."""
    return int(np.sum(np.less(losses, dense)))


def heads_lines(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What is printed of every cell with heads."""
    for own, dense in pairs(records):
        losses, anew, total = dense["test"]["loss"], own["at_equal_seconds"], len(dense["test"]["loss"])
        ratio = own["seconds_per_update"]["min"] / dense["seconds_per_update"]["min"]
        yield (
            f"{own['task']}, {own['budget']:,} parameters: {label_of(own['cell'], own['num_heads'])}, "
            f"{own['hidden_size']} units, beside {dense['hidden_size']} without: an update takes {ratio:.2f} times "
            f"as long; better in {better(own['test']['loss'], losses)} of {total} seeds after equal updates, in "
            f"{better(anew['test']['loss'], losses)} after equal seconds ({anew['updates']:,} updates, "
            f"{mean_and_std(anew['test']['loss'], 1, 4)})"
        )
