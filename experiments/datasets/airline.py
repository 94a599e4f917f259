"""Airline passengers of every month from 1949 to 1960, in thousands."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.datasets._archives import members_of, zip_members
from experiments.datasets._files import decoded, read_files
from experiments.datasets._sources import DataSet, File, Package

AIRLINE = DataSet(
    "airline",
    "passengers of an airline in 144 months",
    "BSD-3",
    "6 MB",
    (File("Airline.csv", "28af0eb869db6d9fbd31d5af03993a0cbf36c0857c3eb046a068c094b60da851"),),
    (
        Package(
            "pip",
            "aeon==1.6.0",
            "aeon-*.whl",
            members_of(zip_members, {"Airline.csv": "aeon/datasets/data/Airline/Airline.csv"}),
        ),
    ),
)


class Series(NamedTuple):
    """A number a month."""

    months: np.ndarray  # (N,), datetime64[M]
    values: np.ndarray  # (N,), float32


class Parts(NamedTuple):
    """A series in three parts, the earliest first."""

    train: Series
    validation: Series
    test: Series


def load_airline(data_dir: Path | None = None, source: DataSet = AIRLINE) -> Series:
    """The whole series.

    Raises:
        MissingData: naming the command that gets the set.
        ValueError: naming the file, if it is not the published one.
    """
    contents = read_files(source, data_dir)
    (file,) = source.files
    return parse_months(decoded(contents[file.name], file.name), file.name)


def parse_months(text: str, name: str) -> Series:
    """A series from lines such as `1949-01,112`, below a line of headings.

    Raises:
        ValueError: naming the line, if it is not of that form, or not the month after the one before.
    """
    months, values = [], []
    for number, line in enumerate(text.splitlines()[1:], 2):
        try:
            month, value = line.split(",")
            months.append(np.datetime64(month, "M"))
            values.append(float(value))
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: expected a month and a number, got {line!r}") from error
        if len(months) > 1 and months[-1] != months[-2] + np.timedelta64(1, "M"):
            raise ValueError(f"{name}, line {number}: {months[-1]} does not follow {months[-2]}")
    if not values:
        raise ValueError(f"{name}: no months in it")
    return Series(np.array(months), np.array(values, np.float32))


def chronological(series: Series, validation: int, test: int) -> Parts:
    """The last months for testing, those before them for validation, all before for training.

    Raises:
        ValueError: if that leaves no month for training.

    Example:
        >>> year = Series(np.arange("1949-01", "1950-01", dtype="datetime64[M]"), np.arange(12.0))
        >>> [part.values.tolist() for part in chronological(year, validation=2, test=3)[1:]]
        [[7.0, 8.0], [9.0, 10.0, 11.0]]
    """
    first, second = len(series.values) - validation - test, len(series.values) - test
    if first < 1 or validation < 0 or test < 0:
        raise ValueError(f"{len(series.values)} months leave none for training beside {validation} and {test} others")
    return Parts(
        *(Series(series.months[a:b], series.values[a:b]) for a, b in ((0, first), (first, second), (second, None)))
    )
