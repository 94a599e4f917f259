"""The weather as inputs and targets, in blocks for training, validation and testing that no window crosses."""

from typing import NamedTuple

import numpy as np

from experiments.datasets.weather import Weather

DAYS = {"train": 27, "validation": 9, "test": 9}  # in turn, eight times a year, so that each part has every season
DAY, YEAR = 24, 365.25  # hours, days
STANDARD_TIME = -5  # of New York, in hours from UTC; summer time is not the sun's
CALENDAR = 4

Blocks = list[tuple[int, int]]  # first hour, and the hour after the last


class Windows(NamedTuple):
    """What is read and what is to be forecast, from many hours on."""

    xs: np.ndarray  # (W, history, features)
    base: np.ndarray  # (W, horizon, airports): the last temperature and the mean day, in degrees
    truth: np.ndarray  # (W, horizon, airports), in degrees; NaN where nothing was measured


class Prepared(NamedTuple):
    """Every hour, and the hours at which the windows of each part begin to forecast."""

    features: np.ndarray  # (N, features), scaled by mean and deviation of the training hours
    truth: np.ndarray  # (N, airports), temperatures; NaN where nothing was measured
    last: np.ndarray  # (N, airports), the newest temperature of the same block at every hour
    clock: np.ndarray  # (N,), hours of the day in standard time
    shape: np.ndarray  # (24, airports), mean temperature of the training hours by hour of the day
    begins: dict[str, np.ndarray]  # of each part
    scale: float  # of the network's corrections: the root mean square of what the mean day misses in training
    history: int
    horizon: int

    def hours(self, begins: np.ndarray) -> np.ndarray:
        """The hours that are forecast, `(W, horizon)`."""
        return begins[:, None] + np.arange(self.horizon)

    def base(self, begins: np.ndarray) -> np.ndarray:
        """The last temperature, changed as a mean day changes."""
        pattern = self.shape[self.clock]
        return self.last[begins - 1][:, None] + pattern[self.hours(begins)] - pattern[begins - 1][:, None]

    def windows(self, begins: np.ndarray) -> Windows:
        past = begins[:, None] + np.arange(-self.history, 0)
        return Windows(self.features[past], self.base(begins), self.truth[self.hours(begins)])


def blocks_of(count: int) -> dict[str, Blocks]:
    """The blocks of each part, one after another until the hours end.

    Example:
        >>> {name: blocks[0] for name, blocks in blocks_of(10_000).items()}
        {'train': (0, 648), 'validation': (648, 864), 'test': (864, 1080)}
    """
    found: dict[str, Blocks] = {name: [] for name in DAYS}
    first = 0
    while first < count:
        for name, days in DAYS.items():
            if first < count:
                found[name].append((first, min(first + DAY * days, count)))
            first += DAY * days
    return found


def begins_of(blocks: Blocks, history: int, horizon: int) -> np.ndarray:
    """The hours from which a forecast and what it reads lie in one block.

    Example:
        >>> begins_of([(0, 6), (10, 15)], history=3, horizon=2).tolist()
        [3, 4, 13]
    """
    return np.concatenate(
        [np.arange(first + history, max(first + history, until - horizon + 1)) for first, until in blocks]
    )


def components(speed: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """East and north of a wind, `(*, 2)`; a calm has no direction, and needs none."""
    radians = np.where(speed == 0, 0.0, np.deg2rad(direction))
    return np.stack([speed * np.sin(radians), speed * np.cos(radians)], axis=-1)


def measured(weather: Weather) -> np.ndarray:
    """What is read of the weather, `(N, airports, 8)`: NaN where nothing was measured."""
    wind = components(weather.column("wind_speed"), weather.column("wind_dir"))
    names = ("temp", "dewp", "humid", "pressure", "visib")
    rain = np.log1p(50 * weather.column("precip"))  # inches, most of them 0
    return np.concatenate([np.stack([*map(weather.column, names), rain], axis=-1), wind], axis=-1)


def carried(values: np.ndarray, blocks: Blocks) -> np.ndarray:
    """Each hour's newest value of the same block; NaN before the first. It looks at no later hour."""
    found = values.copy()
    for first, until in blocks:
        part = values[first:until]
        places = np.arange(len(part)).reshape(-1, *[1] * (part.ndim - 1))
        newest = np.maximum.accumulate(np.where(np.isnan(part), 0, places), axis=0)
        found[first:until] = np.take_along_axis(part, newest, axis=0)
    return found


def calendar(hours: np.ndarray) -> np.ndarray:
    """Hour of the day and day of the year as sine and cosine, `(N, 4)`."""
    since = (hours - np.datetime64("2013-01-01T00", "h")).astype(float) + STANDARD_TIME
    angles = 2 * np.pi * np.stack([since / DAY, since / (DAY * YEAR)], axis=-1)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def prepare(weather: Weather, history: int, horizon: int) -> Prepared:
    """Features, targets and windows; means, deviations and the shape of a day are of the training hours alone."""
    blocks = blocks_of(len(weather.hours))
    known = np.concatenate([np.arange(first, until) for first, until in blocks["train"]])
    values, every = measured(weather), [block for parts in blocks.values() for block in parts]
    filled = carried(values, every)
    scaled = (filled - np.nanmean(values[known], axis=0)) / np.nanstd(values[known], axis=0)
    features = np.nan_to_num(scaled).reshape(len(values), -1)  # before a block's first value: the training mean
    truth, clock = weather.column("temp"), (weather.hours.astype(int) + STANDARD_TIME) % DAY
    shape = np.stack([np.nanmean(truth[known[clock[known] == hour]], axis=0) for hour in range(DAY)])
    last = np.where(np.isnan(filled[..., 0]), np.nanmean(truth[known], axis=0), filled[..., 0])
    prepared = Prepared(
        np.concatenate([features, calendar(weather.hours)], axis=1).astype(np.float32),
        truth,
        last,
        clock,
        shape,
        {name: begins_of(parts, history, horizon) for name, parts in blocks.items()},
        1.0,
        history,
        horizon,
    )
    begins = prepared.begins["train"]
    missed = truth[prepared.hours(begins)] - prepared.base(begins)
    return prepared._replace(scale=float(np.sqrt(np.nanmean(missed**2))))
