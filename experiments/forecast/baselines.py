"""Forecasts of the weather that need no network, and the errors of a forecast."""

from typing import Any

import numpy as np

from experiments.forecast.series import DAY, Prepared, Windows

PENALTIES = (100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0)  # of the squared weights; validation chooses


def rmse(forecast: np.ndarray, truth: np.ndarray, axis: Any = None) -> Any:
    return np.sqrt(np.nanmean(np.square(forecast - truth), axis=axis))


def scores(forecast: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Errors in degrees of `(W, horizon, airports)`, over all hours and by hour, where something was measured."""
    return {
        "rmse": float(rmse(forecast, truth)),
        "mae": float(np.nanmean(np.abs(forecast - truth))),
        "rmse_by_hour": rmse(forecast, truth, axis=(0, 2)).round(3).tolist(),
    }


def persistence(prepared: Prepared, begins: np.ndarray) -> np.ndarray:
    """The last temperature."""
    return np.repeat(prepared.last[begins - 1][:, None], prepared.horizon, axis=1)


def seasonal(prepared: Prepared, begins: np.ndarray) -> np.ndarray:
    """The temperature at the same hour of the last day that is known."""
    hours = np.arange(prepared.horizon)
    return prepared.last[begins[:, None] + hours - DAY * (1 + hours // DAY)]


def inputs_of(windows: Windows) -> np.ndarray:
    """All features of all hours, and a constant, `(W, history * features + 1)`."""
    return np.concatenate([windows.xs.reshape(len(windows.xs), -1), np.ones((len(windows.xs), 1))], axis=1).astype(
        float
    )


def linear(prepared: Prepared) -> tuple[dict[str, np.ndarray], float]:
    """Ridge regression of all inputs of a window on what the mean day misses.

    An hour without a measurement counts as one that the mean day meets.

    Returns:
        The forecasts of the validation and the test hours, and the penalty with the least error on the former.
    """
    windows = {name: prepared.windows(begins) for name, begins in prepared.begins.items()}
    train = windows.pop("train")
    inputs = {name: inputs_of(part) for name, part in windows.items()}
    xs = inputs_of(train)
    missed = np.nan_to_num(train.truth - train.base).reshape(len(xs), -1)
    squares, products, free = xs.T @ xs, xs.T @ missed, np.append(np.ones(xs.shape[1] - 1), 0)  # the constant is free

    def forecasts(penalty: float) -> dict[str, np.ndarray]:
        weights = np.linalg.solve(squares + penalty * np.diag(free), products)
        return {name: part.base + (inputs[name] @ weights).reshape(part.base.shape) for name, part in windows.items()}

    found = {penalty: forecasts(penalty) for penalty in PENALTIES}
    best = min(found, key=lambda penalty: rmse(found[penalty]["validation"], windows["validation"].truth))
    return found[best], best


def every_rule(prepared: Prepared, begins: np.ndarray) -> dict[str, np.ndarray]:
    """The forecasts of the rules that learn nothing but the shape of a day."""
    return {
        "last value": persistence(prepared, begins),
        "a day before": seasonal(prepared, begins),
        "last value, mean day": prepared.base(begins),
    }
