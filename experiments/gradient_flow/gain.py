"""The gain of W_h scanned from vanishing to exploding, and the powers of W_h.

Two matrices whose largest singular value is 1, one orthogonal, so that all of its eigenvalues
lie on the unit circle as well, and one with normal entries, whose eigenvalues lie further in.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.command.progress import Show, silent
from experiments.gradient_flow.measure import slope
from experiments.gradient_flow.task import INPUTS, balanced_labels, sequences
from jaxrnn import analysis

ACTIVATIONS: dict[str, Any] = {"linear": lambda a: a, "tanh": "tanh", "ReLU": "relu"}
MATRICES = ("orthogonal", "normal")
POWERS = 40
POWER_GAINS = {"orthogonal": (0.9, 1.0, 1.1), "normal": (1.0, 1.5, 2.0)}
SEQUENCES = 4
LONGEST = 300  # steps; a linear network doubles its state in each at the gain of 2


class Scan(NamedTuple):
    """The measured slopes of one activation on one matrix."""

    activation: str
    matrix: str
    slopes: np.ndarray  # (gains, seeds), growth of ‖∂L/∂h_t‖ a step on the way back


class Gains(NamedTuple):
    """A scan of the gain, which is the largest singular value."""

    gains: np.ndarray
    log_radius: dict[str, np.ndarray]  # (seeds,), of each matrix at gain 1
    scans: list[Scan]
    log_powers: dict[str, np.ndarray]  # (gains, POWERS), log of the spectral norm of W, W², …, of the first seed


def matrix(kind: str, hidden_size: int, key: jax.Array) -> jax.Array:
    """`(H, H)`, with 1 as its largest singular value."""
    shape = (hidden_size, hidden_size)
    if kind == "orthogonal":
        return jax.nn.initializers.orthogonal()(key, shape)
    drawn = jax.random.normal(key, shape)
    return drawn / jnp.linalg.norm(drawn, 2)


def slopes_of(cell: jaxrnn.Cell, params: Any, xs: jax.Array, v: jax.Array) -> Any:
    """A compiled `(gains, matrix) -> (gains, T, B)` of log ‖∂L/∂h_t‖, where L = ⟨h_T · v⟩."""

    def of_gain(gain: jax.Array, w_h: jax.Array) -> jax.Array:
        own = params._replace(w_h=gain * w_h)
        return analysis.gradient_flow(cell, own, xs, lambda _, ys: jnp.mean(jnp.dot(ys[-1], v))).log_state_norms

    return jax.jit(jax.vmap(of_gain, in_axes=(0, None)))


def log_powers(kind: str, params: Any, w_h: jax.Array) -> np.ndarray:
    """Of the matrix at each of its gains, the largest singular value of the powers."""
    found = analysis.recurrent_spectrum(params._replace(w_h=w_h), powers=POWERS)["h"].log_power_singular_values
    n = np.arange(1, POWERS + 1)
    return np.stack([np.asarray(found[:, 0]) + n * np.log(gain) for gain in POWER_GAINS[kind]])


def scan(hidden_size: int, length: int, count: int, seeds: range, show: Show = silent) -> Gains:
    """Every activation on every matrix of every seed, at `count` gains from 1/2 to 2."""
    with jax.enable_x64(True):
        return _scan(hidden_size, min(length, LONGEST), np.geomspace(0.5, 2.0, count), seeds, show)


def _scan(hidden_size: int, length: int, gains: np.ndarray, seeds: range, show: Show) -> Gains:
    keys = [jax.random.split(jax.random.key(seed), len(MATRICES)) for seed in seeds]
    made = {kind: [matrix(kind, hidden_size, key[place]) for key in keys] for place, kind in enumerate(MATRICES)}
    xs = jnp.swapaxes(sequences(jax.random.key(seeds[0]), balanced_labels(SEQUENCES), length), 0, 1)  # (T, B, I)
    v = jax.random.normal(jax.random.key(seeds[0]), (hidden_size,))
    scans, done = [], 0
    params: Any = None
    for activation, function in ACTIVATIONS.items():
        cell = jaxrnn.rnn(hidden_size, activation=function)
        params = jax.tree.map(lambda leaf: leaf.astype(v.dtype), cell.init(jax.random.key(seeds[0]), INPUTS))
        of_matrix = slopes_of(cell, params, xs, v)
        for kind in MATRICES:
            logs = [np.asarray(of_matrix(jnp.asarray(gains), w_h)) for w_h in made[kind]]
            slopes = [[slope(of_gain) for of_gain in of_seed] for of_seed in logs]
            scans.append(Scan(activation, kind, np.array(slopes).T))
            done += 1
            show(done, f"{activation}, {kind}")
    radius = {
        kind: np.array([np.log(np.abs(np.linalg.eigvals(np.asarray(w_h))).max()) for w_h in made[kind]])
        for kind in MATRICES
    }
    return Gains(gains, radius, scans, {kind: log_powers(kind, params, made[kind][0]) for kind in MATRICES})
