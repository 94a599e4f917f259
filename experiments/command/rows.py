"""Tables of results in Markdown: their lines, and how numbers are written."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from experiments.command.report import mean_and_std

Record = dict[str, Any]  # of a run, as its results.json holds it


class Row(NamedTuple):
    """One line of the table."""

    what: str
    parameters: int
    minutes: float
    obtained: str
    published: str
    differs: str = "nothing"


def mean_over_seeds(values: Sequence[float], digits: int, scale: float = 1) -> str:
    """Mean, standard deviation and number of seeds."""
    seeds = "one seed" if len(values) == 1 else f"{len(values)} seeds"
    return f"{mean_and_std(values, scale, digits)}, {seeds}"


def markdown(headings: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table in Markdown, without a line end after it."""
    written = [[cell.replace("|", "\\|") for cell in line] for line in (headings, *lines)]
    first, *rest = (f"| {' | '.join(cells)} |" for cells in written)
    return "\n".join([first, f"|{'---|' * len(written[0])}", *rest])
