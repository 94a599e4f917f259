"""Claims of papers and of the project's source documents, each with the measurement that decides it."""

from collections.abc import Iterable
from typing import NamedTuple

from experiments.command.rows import markdown

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
    return markdown(HEADINGS, rows)
