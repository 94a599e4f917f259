"""Claims of papers and of the project's source documents, each with the measurement that decides it."""

from collections.abc import Iterable
from typing import NamedTuple

HEADINGS = ("claim", "source", "for or against", "measured", "seeds")
VERDICTS = {True: "for", False: "against", None: "in part"}


class Claim(NamedTuple):
    """A claim, and what came out."""

    claim: str
    source: str  # a paper, or the documents "S0" to "S4" that experiments/README.md explains
    holds: bool | None  # None: in part
    measured: str  # with the numbers
    seeds: int  # 0 if nothing is random

    @property
    def verdict(self) -> str:
        return VERDICTS[self.holds]


def share(count: int, total: int) -> bool | None:
    """Whether a claim holds that is true in so many cases: against if in fewer than half of them."""
    return True if count == total else None if 2 * count >= total else False


def claims_table(claims: Iterable[Claim]) -> str:
    """In Markdown, without a line end."""
    rows = ((one.claim, one.source, one.verdict, one.measured, str(one.seeds or "-")) for one in claims)
    return markdown_table(HEADINGS, rows)


def markdown_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """In Markdown, without a line end."""
    lines = [list(headings), *(list(row) for row in rows)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    first, *rest = (f"| {' | '.join(line)} |" for line in escaped)
    return "\n".join([first, "|" + "---|" * len(lines[0]), *rest])
