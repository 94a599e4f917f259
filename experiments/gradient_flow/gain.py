"""The gain of W_h scanned from vanishing to exploding, and far beyond for the tanh network.

Two matrices whose largest singular value is 1, one orthogonal, so that all of its eigenvalues
lie on the unit circle as well, and one with Gaussian entries, whose eigenvalues lie further in.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.command.progress import Show, silent
from experiments.gradient_flow.measure import largest_growth, slope
from experiments.gradient_flow.task import INPUTS, balanced_labels, sequences
from jaxrnn import analysis

ACTIVATIONS: dict[str, Any] = {"linear": lambda a: a, "tanh": "tanh", "ReLU": "relu"}
MATRICES = ("orthogonal", "Gaussian")
LARGE_GAINS = 2.0 ** np.arange(9)  # of the tanh network alone
SEQUENCES = 4
LONGEST = 300  # steps; a linear network doubles its state in each at the gain of 2


class Scan(NamedTuple):
    """The measured slopes of one activation on one matrix."""

    activation: str
    matrix: str
    slopes: np.ndarray  # (gains, seeds), growth of ‖∂L/∂h_t‖ a step on the way back


class Saturation(NamedTuple):
    """A tanh network on an orthogonal matrix whose gain is large; natural logs, `(gains, seeds)` each."""

    gains: np.ndarray  # (gains,)
    slopes: np.ndarray
    largest_growth: np.ndarray  # of ‖∂L/∂h_t‖ in one step of one sequence
    largest_norm: np.ndarray  # spectral norm of ∂h_t/∂h_{t-1}, over the steps of all sequences
    median_norm: np.ndarray  # likewise
    zero: np.ndarray  # the share of sequences whose ∂L/∂h_1 is exactly zero


class Gains(NamedTuple):
    """A scan of the gain, which is the largest singular value."""

    gains: np.ndarray
    log_radius: dict[str, np.ndarray]  # (seeds,), of each matrix at gain 1
    scans: list[Scan]
    saturation: Saturation


class Draws(NamedTuple):
    """What a seed draws."""

    matrices: dict[str, jax.Array]  # (H, H), with 1 as the largest singular value
    xs: jax.Array  # (T, B, I)
    v: jax.Array  # (H,)
    params: Any  # of a simple network; its W_h is not used


def matrix(kind: str, hidden_size: int, key: jax.Array) -> jax.Array:
    """`(H, H)`, with 1 as its largest singular value."""
    shape = (hidden_size, hidden_size)
    if kind == "orthogonal":
        return jax.nn.initializers.orthogonal()(key, shape)
    drawn = jax.random.normal(key, shape)
    return drawn / jnp.linalg.norm(drawn, 2)


def draws(hidden_size: int, length: int, seed: int) -> Draws:
    """Everything that is random, from keys of its own."""
    key_xs, key_v, key_params, *keys = jax.random.split(jax.random.key(seed), 3 + len(MATRICES))
    v = jax.random.normal(key_v, (hidden_size,))
    params = jaxrnn.rnn(hidden_size).init(key_params, INPUTS)
    return Draws(
        {kind: matrix(kind, hidden_size, key) for kind, key in zip(MATRICES, keys, strict=True)},
        jnp.swapaxes(sequences(key_xs, balanced_labels(SEQUENCES), length), 0, 1),
        v,
        jax.tree.map(lambda leaf: leaf.astype(v.dtype), params),
    )


def slopes_of(cell: jaxrnn.Cell) -> Any:
    """A compiled `(gains, matrix, draws) -> (gains, T, B)` of log ‖∂L/∂h_t‖, where L = ⟨h_T · v⟩."""

    def of_gain(gain: jax.Array, w_h: jax.Array, xs: jax.Array, v: jax.Array, params: Any) -> jax.Array:
        own = params._replace(w_h=gain * w_h)
        return analysis.gradient_flow(cell, own, xs, lambda _, ys: jnp.mean(jnp.dot(ys[-1], v))).log_state_norms

    return jax.jit(jax.vmap(of_gain, in_axes=(0, None, None, None, None)))


def log_jacobian_norms(cell: jaxrnn.Cell) -> Any:
    """A compiled `(gains, matrix, xs, params) -> (gains, T, B)` of the log of the spectral norm of ∂h_t/∂h_{t-1}.

    It is that of diag(1 - h_t²) W_hᵀ, and for an orthogonal matrix times a gain the gain times the largest 1 - h_t².
    """

    def of_gain(gain: jax.Array, w_h: jax.Array, xs: jax.Array, params: Any) -> jax.Array:
        _, ys = jaxrnn.unroll(cell, params._replace(w_h=gain * w_h), xs)
        return jnp.log(gain) + jnp.log((1 - ys**2).max(-1))

    return jax.jit(jax.vmap(of_gain, in_axes=(0, None, None, None)))


def saturate(cell: jaxrnn.Cell, drawn: list[Draws]) -> Saturation:
    """Measures the tanh network of every seed at the large gains."""
    flow, norms, gains = slopes_of(cell), log_jacobian_norms(cell), jnp.asarray(LARGE_GAINS)
    logs, steps = [], []
    for one in drawn:
        w_h = one.matrices["orthogonal"]
        logs.append(np.asarray(flow(gains, w_h, one.xs, one.v, one.params)))
        steps.append(np.asarray(norms(gains, w_h, one.xs, one.params)))

    def each(measured: Any, values: list[np.ndarray]) -> np.ndarray:
        return np.array([[measured(of_gain) for of_gain in of_seed] for of_seed in values]).T

    return Saturation(
        LARGE_GAINS,
        each(slope, logs),
        each(largest_growth, logs),
        each(np.max, steps),
        each(np.median, steps),
        each(lambda log: np.mean(np.isneginf(log[0])), logs),
    )


def scan(hidden_size: int, length: int, count: int, seeds: range, show: Show = silent) -> Gains:
    """Every activation on every matrix of every seed, at `count` gains from 1/2 to 2."""
    with jax.enable_x64(True):
        return _scan(hidden_size, min(length, LONGEST), np.geomspace(0.5, 2.0, count), seeds, show)


def _scan(hidden_size: int, length: int, gains: np.ndarray, seeds: range, show: Show) -> Gains:
    drawn = [draws(hidden_size, length, seed) for seed in seeds]
    scans, done = [], 0
    for activation, function in ACTIVATIONS.items():
        of_matrix = slopes_of(jaxrnn.rnn(hidden_size, activation=function))
        for kind in MATRICES:
            logs = [
                np.asarray(of_matrix(jnp.asarray(gains), one.matrices[kind], one.xs, one.v, one.params))
                for one in drawn
            ]
            slopes = [[slope(of_gain) for of_gain in of_seed] for of_seed in logs]
            scans.append(Scan(activation, kind, np.array(slopes).T))
            done += 1
            show(done, f"{activation}, {kind}")
    radius = {
        kind: np.array([np.log(np.abs(np.linalg.eigvals(np.asarray(one.matrices[kind]))).max()) for one in drawn])
        for kind in MATRICES
    }
    return Gains(gains, radius, scans, saturate(jaxrnn.rnn(hidden_size), drawn))
