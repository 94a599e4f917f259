"""The tables of MIGRATION.md, and the tests of their rows."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.registry import gap, random_like

PAGE = Path(__file__).parents[2] / "MIGRATION.md"
T, B, I, H = 6, 4, 3, 5  # noqa: E741
LENGTHS = np.array([4, 6, 1, 3])  # PyTorch refuses a length of 0
TOLERANCE = {"float64": 1e-12, "float32": 5e-6}  # of the largest entry; measured at 2e-15 and 9e-7


class Row(NamedTuple):
    """The three cells of a row: the other library's, ours, and what differs."""

    theirs: str
    ours: str
    differs: str

    @property
    def key(self) -> str:
        """The first cell, or the second of a row whose first is empty."""
        return self.theirs or self.ours


def sections() -> dict[str, list[Row]]:
    """The rows of every table of the page, by the heading above it."""
    found: dict[str, list[Row]] = {}
    for heading, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.S | re.M):
        lines = [line for line in text.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        if cells:
            assert all(len(row) == 3 for row in cells), heading
            assert set("".join(cells[1])) == {"-"}, heading
            found[heading] = [Row(*row) for row in cells[2:]]
    return found


class Table:
    """The rows of one library, and a test for each."""

    def __init__(self, library: str) -> None:
        self.rows = sections()[f"From {library}"]
        self.tests: dict[str, Callable[[], None]] = {}

    def row(self, key: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
        """Registers the test of the row with this key."""

        def register(test: Callable[[], None]) -> Callable[[], None]:
            assert key not in self.tests, key
            self.tests[key] = test
            return test

        return register

    def run(self, row: Row) -> None:
        """Runs the test of a row."""
        assert row.key in self.tests, f"MIGRATION.md: {row.key} expected a test, got none"
        self.tests[row.key]()

    def check(self) -> None:
        """Raises unless the table has rows, each with a test, and each test a row."""
        assert set(sections()) == {"From PyTorch", "From Flax", "From Keras"}
        keys = [row.key for row in self.rows]
        assert len(keys) >= 10
        assert len(set(keys)) == len(keys)
        assert set(self.tests) == set(keys)


def drawn(seed: int, *shape: int, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def params_of(net: Any, seed: int = 0, input_size: int = I, dtype: Any = jnp.float64) -> Any:
    """Random parameters, biases too."""
    return random_like(seed, jax.eval_shape(lambda key: net.init(key, input_size), jax.random.key(0)), dtype, scale=0.6)


def assert_same(ours: Any, theirs: Any) -> None:
    """Checks that values are equal to rounding, and that they are some."""
    theirs = np.asarray(theirs)
    assert np.abs(theirs).max() > 0.01
    assert gap(np.asarray(ours).astype(theirs.dtype), theirs) <= TOLERANCE[str(theirs.dtype)]
