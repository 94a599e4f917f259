"""The record of the weather as tables and as a row of the table of results."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from experiments.command.report import mean_and_std
from experiments.command.rows import Record, Row, markdown, mean_over_seeds
from experiments.forecast.model import INTERVALS
from experiments.models.cells import CONTESTANTS

AHEAD = (1, 6, 12, 24)  # hours


def ahead(record: Record) -> list[int]:
    return [hour for hour in AHEAD if hour <= record["config"]["horizon"]]


def lines(record: Record, *, short: bool = False) -> Iterator[list[str]]:
    """A line for every forecast: errors over all hours and at some, in degrees Fahrenheit.

    Args:
        record: of a run.
        short: leave out the spread over seeds, but for the first error.
    """
    hours = ahead(record)
    for name, found in record["baselines"].items():
        yield [name, *(f"{value:.2f}" for value in (*errors_of(found, hours), found["mae"]))]
    for name, seeds in networks_of(record).items():
        columns = np.array([[*errors_of(seed, hours), seed["crps"]] for seed in seeds]).T
        texts = [mean_and_std(column.tolist(), digits=2) for column in columns]
        yield [name, texts[0], *(text.split()[0] if short else text for text in texts[1:])]


def errors_of(found: Mapping[str, Any], hours: Sequence[int]) -> list[float]:
    """RMSE and MAE over all hours, and the RMSE at some."""
    return [found["rmse"], found["mae"], *(found["rmse_by_hour"][hour - 1] for hour in hours)]


def networks_of(record: Record) -> dict[str, Any]:
    """The entries of all seeds by name: of the network, and of its average with the regression."""
    label = CONTESTANTS[record["config"]["cell"]].label
    return {label: record["network"], f"{label}, regression": record["both"]}


def seeds_of(record: Record) -> str:
    return "one seed" if len(record["seeds"]) == 1 else f"{len(record['seeds'])} seeds"


def headings(record: Record) -> list[str]:
    return ["forecast", "RMSE", "MAE", *(f"{hour} h" for hour in ahead(record)), "CRPS"]


def coverages(record: Record) -> Iterator[list[str]]:
    """The share of hours within each interval, by the network's own deviations and by calibrated ones."""
    for label, seeds in networks_of(record).items():
        for name, how in (("coverage", "as trained"), ("calibrated_coverage", "calibrated")):
            shares = np.array([seed[name] for seed in seeds])
            yield [f"{label}, {how}", *(mean_and_std(column.tolist(), 100) for column in shares.T)]


def shown(record: Record) -> list[Table]:
    """The tables for a terminal."""
    hours = record["config"]["horizon"]
    errors = Table(title=f"Test hours: errors in °F over {hours} hours, and RMSE at some; {seeds_of(record)}")
    inside = Table(title="Test hours within the network's intervals, %")
    for table, names, rows in (
        (errors, headings(record), lines(record, short=True)),
        (inside, ["interval, %", *(f"{100 * share:g}" for share in INTERVALS)], coverages(record)),
    ):
        for k, name in enumerate(names):
            table.add_column(name, justify="right" if k else "left")
        for row in rows:
            table.add_row(*row)
    return [errors, inside]


def tables(record: Record) -> dict[str, str]:
    """The tables of a page."""
    return {
        "errors": markdown(headings(record), lines(record)),
        "coverage": markdown(["interval", *(f"{100 * share:g} %" for share in INTERVALS)], coverages(record)),
    }


def rows(record: Record) -> Iterator[Row]:
    """The rows of a record in the table of results."""
    rules = ", ".join(f"{name} {found['rmse']:.2f}" for name, found in record["baselines"].items())
    minutes, parameters = record["seconds"] / 60, record["parameters"]
    more = (0, record["regression_parameters"])
    for (name, seeds), others in zip(networks_of(record).items(), more, strict=True):
        obtained = mean_over_seeds([seed["rmse"] for seed in seeds], 2)
        what = f"weather, a day ahead, {name}: test RMSE, °F"
        yield Row(what, parameters + others, minutes, obtained, f"without a network: {rules}", "-")


def best_rule(record: Record) -> tuple[str, Any]:
    """The baseline with the least error."""
    return min(record["baselines"].items(), key=lambda item: item[1]["rmse"])
