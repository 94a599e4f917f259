"""A cell that reads the past hours, and a read-out of its last output: a normal distribution for every hour ahead."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import jaxrnn
from experiments.models.readout import Readout, read

LEAST = 0.01  # deviation, in the scale of the corrections
INTERVALS = (0.5, 0.8, 0.9)


class Normal(NamedTuple):
    """Means and standard deviations, `(*B, horizon, airports)`."""

    mean: Any
    deviation: Any


def predict(
    cell: jaxrnn.Cell,
    model: Readout,
    xs: jax.Array,
    shape: tuple[int, int],
    key: jax.Array | None = None,
    dropout: float = 0.0,
) -> Normal:
    """The scaled correction of the base after `(B, T, I)` inputs, with dropout of the last output if there is a key."""
    _, ys = jaxrnn.unroll(cell, model.cell, jnp.moveaxis(xs, -2, 0))
    last = ys[-1]
    if key is not None and dropout:
        kept = jax.random.bernoulli(key, 1 - dropout, last.shape)
        last = jnp.where(kept, last / (1 - dropout), 0.0)
    mean, spread = jnp.moveaxis(read(model, last).reshape(*last.shape[:-1], 2, *shape), -3, 0)
    return Normal(mean, jax.nn.softplus(spread) + LEAST)


def nats(said: Normal, truth: jax.Array) -> jax.Array:
    """Mean negative log-likelihood, but for a constant, of the entries of the truth that are not NaN."""
    valid = ~jnp.isnan(truth)
    scaled = (jnp.where(valid, truth, 0.0) - said.mean) / said.deviation
    every = jnp.where(valid, scaled**2 / 2 + jnp.log(said.deviation), 0.0)
    return jnp.sum(every) / jnp.maximum(jnp.sum(valid, dtype=every.dtype), 1.0)


def stretch(said: Normal, truth: np.ndarray) -> float:
    """The factor of all deviations under which these truths are likeliest: calibration with one number."""
    return float(np.sqrt(np.nanmean(np.square((truth - said.mean) / said.deviation))))


def coverage(said: Normal, truth: np.ndarray) -> list[float]:
    """The share of the truths within the central interval of each of `INTERVALS`."""
    scaled = np.abs(truth - said.mean) / said.deviation
    scaled = scaled[np.isfinite(scaled)]
    return [float(np.mean(scaled <= norm.ppf(0.5 + share / 2))) for share in INTERVALS]


def crps(said: Normal, truth: np.ndarray) -> float:
    """The mean continuous ranked probability score, in degrees. Without a spread it is the mean absolute error.

    References:
        Gneiting & Raftery 2007, equation 21, with the sign of a loss.
    """
    scaled = (truth - said.mean) / said.deviation
    score = scaled * (2 * norm.cdf(scaled) - 1) + 2 * norm.pdf(scaled) - 1 / np.sqrt(np.pi)
    return float(np.nanmean(np.asarray(said.deviation * score)))
