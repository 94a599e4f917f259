"""What the pages say, and how each of it is computed anew from code or record.

A statement is a page and a function that returns a fragment of it. The fragment has to stand on the page,
white space apart: where the page is wrong, or the code has changed, it does not.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[3]
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


class Statement(NamedTuple):
    """A sentence of a page, or a part of one."""

    page: str
    name: str
    fragment: Callable[[], str]


STATEMENTS: list[Statement] = []


def says(page: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """The page has the fragment that the function returns."""

    def listed(fragment: Callable[[], str]) -> Callable[[], str]:
        STATEMENTS.append(Statement(page, fragment.__name__, fragment))
        return fragment

    return listed


def spaced(text: str) -> str:
    """The text, with single spaces."""
    return " ".join(text.split())


@functools.cache
def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@functools.cache
def record(name: str) -> Any:
    """A committed record, by its name; those of benchmarks begin with `benchmarks/`."""
    folder, _, own = name.rpartition("/")
    return json.loads(text_of(f"experiments/{folder}/results/{own}.json".replace("//", "/")))


def span(values: Any, digits: int = 2) -> str:
    """The least and the largest."""
    values = list(values)
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"
