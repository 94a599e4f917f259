"""A row of the table of results in README.md, and how its numbers are written."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Record = dict[str, Any]  # of a run, as its results.json holds it


class Row(NamedTuple):
    """One line of the table."""

    what: str
    parameters: int
    minutes: float
    obtained: str
    published: str
    differs: str = "nothing"


def mean_over_seeds(values: Sequence[float], form: str = "{:.2f}", factor: float = 1.0) -> str:
    """Mean, standard deviation and number of seeds."""
    scaled = factor * np.asarray(values)
    mean = form.format(scaled.mean())
    if len(scaled) == 1:
        return f"{mean}, one seed"
    return f"{mean} ± {form.format(scaled.std(ddof=1))}, {len(scaled)} seeds"
