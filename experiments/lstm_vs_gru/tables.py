"""The tables of `lstm_vs_gru` in README.md, from its records."""

from collections.abc import Mapping
from typing import Any

from experiments.command.report import mean_and_std
from experiments.command.rows import Record, markdown
from experiments.lstm_vs_gru.heads import better, pairs
from experiments.models.cells import label_of

TASKS = {"digits": 3, "text": 3, "adding": 4}  # digits after the point of a loss
CELLS = {"rnn": "tanh RNN", "lstm": "LSTM", "gru": "GRU"}


def tables(record: Record) -> dict[str, str]:
    """The comparison: test losses, the rate that was chosen, and the least milliseconds of an update."""
    runs = {(run["task"], run["budget"], run["cell"]): run for run in record["runs"]}
    lines = []
    for task, digits in TASKS.items():
        for budget in sorted({budget for own, budget, _ in runs if own == task}):
            own = [runs[task, budget, cell] for cell in CELLS]
            losses = [f"{mean_and_std(run['test']['loss'], 1, digits)} ({run['learning_rate']:g})" for run in own]
            ms = ", ".join(f"{1e3 * run['seconds_per_update']['min']:.1f}" for run in own)
            lines.append([task, f"{budget:,}", *losses, ms])
    return {"comparison": markdown(["task", "parameters", *CELLS.values(), "ms: tanh, LSTM, GRU"], lines)}


def tables_of_heads(record: Record) -> dict[str, str]:
    """Cells with heads beside dense ones of as many parameters, after equal updates and after equal seconds."""
    of_task = [run for task in TASKS for run in record["runs"] if run["task"] == task]
    lines = [_beside_dense(run, {id(own): dense for own, dense in pairs(of_task)}.get(id(run))) for run in of_task]
    headings = ("ms an update", "equal updates (rate)", "equal seconds (updates)", "seeds better")
    return {"heads": markdown(["task", "cell", "units", "parameters", *headings], lines)}


def _beside_dense(run: Mapping[str, Any], dense: Mapping[str, Any] | None) -> list[str]:
    """The row of a run; `dense` is `None` for a dense cell."""
    digits, losses, speed = TASKS[run["task"]], run["test"]["loss"], run["seconds_per_update"]["min"]
    row = [run["task"], label_of(run["cell"], run["num_heads"]), str(run["hidden_size"]), f"{run['parameters']:,}"]
    after = f"{mean_and_std(losses, 1, digits)} ({run['learning_rate']:g})"
    if dense is None:
        return [*row, f"{1e3 * speed:.1f}", after, "-", "-"]
    anew, base = run["at_equal_seconds"], dense["test"]["loss"]
    found = anew["test"]["loss"]
    return [
        *row,
        f"{1e3 * speed:.1f} ({speed / dense['seconds_per_update']['min']:.2f})",
        after,
        f"{mean_and_std(found, 1, digits)} ({anew['updates']:,})",
        f"{better(losses, base)}, {better(found, base)} of {len(base)}",
    ]
