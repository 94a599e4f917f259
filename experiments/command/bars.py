"""Progress bars that fit the width of a terminal: label, bar, percent, time left, and the last figure whole."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import Progress, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.command.messages import cut

LABEL = 8  # columns that a label keeps however narrow the terminal is
LEAST_BAR, BAR, MOST_BAR = 4, 10, 24
NARROW = 60  # columns, below which the words beside times are left out


class Widths(NamedTuple):
    """Columns of the parts of a line; `note` is that of the figures."""

    label: int
    bar: int
    state: int
    note: int


class Bars(Progress):
    """Bars whose tasks have the fields `state`, what is done before the first report, and `note`, the figures."""

    def __init__(self, console: Console | None = None) -> None:
        self._shown_on = console or Console(stderr=True)
        super().__init__(console=self._shown_on, disable=jax.process_index() > 0)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """Overrides: a table whose columns are as wide as `widths` says."""
        shown = [task for task in tasks if task.visible]
        total = self._shown_on.width
        states = [state_of(task, total >= NARROW) for task in shown]
        notes = [task.fields["note"] for task in shown]
        width = widths(total, [task.description for task in shown], states, notes)
        table = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        for _ in width:
            table.add_column(no_wrap=True, overflow="ellipsis")
        for task, state, note in zip(shown, states, notes, strict=True):
            bar = ProgressBar(total=max(task.total or 0, 1e-9), completed=task.completed, width=width.bar)
            label = Text(cut(task.description, width.label).ljust(width.label))  # the ends of labels differ most
            table.add_row(label, bar, Text(state.ljust(width.state)), Text(fitted(note, width.note)))
        return table


def widths(total: int, labels: Sequence[str], states: Sequence[str], notes: Sequence[str]) -> Widths:
    """Divides the columns of a line: first for the last figure, then for the label, the bar and the other figures.

    Example:
        >>> widths(80, ["lstm"], ["  7 % 00:12 left"], ["loss 0.12  test accuracy 0.9876"])
        Widths(label=4, bar=24, state=16, note=31)
        >>> widths(40, ["row by row, LSTM"], ["  7 % 00:12"], ["loss 0.12  test accuracy 0.9876"])
        Widths(label=8, bar=4, state=11, note=14)
    """
    label, state, whole = (max(map(cell_len, texts), default=0) for texts in (labels, states, notes))
    last = max((cell_len(parts_of(note)[-1]) for note in notes), default=0)
    rest = max(total - state - 3, 0)  # a space between two parts
    bar = min(LEAST_BAR, rest)
    least = min(label, LABEL)
    note = min(last, max(rest - bar - least, 0))
    label = max(min(label, rest - bar - note), 0)
    rest -= bar + note + label
    wider = min(rest, BAR - bar)
    rest, bar = rest - wider, bar + wider
    more = min(rest, whole - note)
    return Widths(label, min(bar + rest - more, MOST_BAR), state, note + more)


def parts_of(note: str) -> list[str]:
    """The figures of a note, which two spaces part."""
    return note.split("  ")


def fitted(note: str, width: int) -> str:
    """As many of the last figures as fit whole; of the very last the name is cut, and never the number.

    Example:
        >>> note = "loss 0.12  test accuracy 0.9876"
        >>> [fitted(note, width) for width in (31, 30, 14, 6)]
        ['loss 0.12  test accuracy 0.9876', 'test accuracy 0.9876', 'test ac… 0.9876', '0.9876']
    """
    parts = parts_of(note)
    for first in range(len(parts)):
        text = "  ".join(parts[first:])
        if cell_len(text) <= width:
            return text
    name, _, number = parts[-1].rpartition(" ")
    room = width - cell_len(number) - 1
    return f"{set_cell_size(name, room - 1)}… {number}" if room > 1 and name else number


def state_of(task: Task, words: bool) -> str:
    """Percent and time left; before the first report what the task waits for, and at its end the time it took."""
    if task.fields["state"]:
        return task.fields["state"]
    left, after = task.fields["left"], " left" if words else ""
    if task.finished:
        return f"100 % {'in ' if words else ''}{clock(task.elapsed or 0)}"
    return f"{min(task.percentage, 99):>3.0f} % {'--:--' if left is None else clock(left)}{after}"


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours before them if there are any.

    Example:
        >>> clock(75.2), clock(3675)
        ('01:15', '1:01:15')
    """
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
