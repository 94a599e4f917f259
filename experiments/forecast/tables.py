"""The record of the weather as tables and as a row of the table of results."""

from collections.abc import Iterator
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


def lines(record: Record) -> Iterator[list[str]]:
    """A line for every forecast: errors over all hours and at some, in degrees Fahrenheit."""
    hours = ahead(record)
    for name, found in record["baselines"].items():
        at = [f"{found['rmse_by_hour'][hour - 1]:.2f}" for hour in hours]
        yield [name, f"{found['rmse']:.2f}", f"{found['mae']:.2f}", *at, f"{found['mae']:.2f}"]
    network = record["network"]
    by_hour = np.array([seed["rmse_by_hour"] for seed in network])
    at = [mean_and_std(by_hour[:, hour - 1].tolist(), digits=2) for hour in hours]
    means = [mean_and_std([seed[name] for seed in network], digits=2) for name in ("rmse", "mae", "crps")]
    yield [label_of(record), *means[:2], *at, means[2]]
    mean = record["mean_of_seeds"]
    if len(network) > 1:
        at = [f"{mean['rmse_by_hour'][hour - 1]:.2f}" for hour in hours]
        yield ["mean forecast of the seeds", f"{mean['rmse']:.2f}", f"{mean['mae']:.2f}", *at, ""]


def label_of(record: Record) -> str:
    count = len(record["seeds"])
    return f"{CONTESTANTS[record['config']['cell']].label}, {count} seed{'s' if count > 1 else ''}"


def headings(record: Record) -> list[str]:
    return ["forecast", "RMSE", "MAE", *(f"{hour} h" for hour in ahead(record)), "CRPS"]


def coverages(record: Record) -> Iterator[list[str]]:
    """The share of hours within each interval, by the network's own deviations and by calibrated ones."""
    for name, how in (("coverage", "as trained"), ("calibrated_coverage", "calibrated")):
        shares = np.array([seed[name] for seed in record["network"]])
        yield [how, *(mean_and_std(column.tolist(), 100) for column in shares.T)]


def shown(record: Record) -> list[Table]:
    """The tables for a terminal."""
    errors = Table(
        title="Test hours: errors in °F, over 24 hours and at some (RMSE)".replace(
            "24", str(record["config"]["horizon"])
        )
    )
    inside = Table(title="Test hours within the network's intervals, %")
    for table, names, rows in (
        (errors, headings(record), lines(record)),
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
    """The row of a record in the table of results."""
    obtained = mean_over_seeds([seed["rmse"] for seed in record["network"]], 2)
    rules = ", ".join(f"{name} {found['rmse']:.2f}" for name, found in record["baselines"].items())
    minutes = record["seconds"] / 60
    yield Row(
        "weather, a day ahead: test RMSE, °F",
        record["parameters"],
        minutes,
        obtained,
        f"without a network: {rules}",
        "-",
    )


def best_rule(record: Record) -> tuple[str, Any]:
    """The baseline with the least error."""
    return min(record["baselines"].items(), key=lambda item: item[1]["rmse"])
