"""The table of `lstm_vs_gru` in README.md, from its record."""

from experiments.command.report import mean_and_std
from experiments.command.rows import Record, markdown

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
