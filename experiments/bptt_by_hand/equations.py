"""The equations of the documents, written down once more, so that JAX can differentiate by anything in them.

A number that is added to a quantity has the derivative by that quantity for its own. `added` holds such
zeros: "a_f" is added to the pre-activation of the gate f, "C" to the memory before h reads it, "carry"
to what the memory passes on to the next step alone, "h" to the output, "x" to the input.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import jaxrnn

Added = Mapping[str, jax.Array]  # of one step `(B, ·)`, or of all `(T, B, ·)`
Vectors = dict[str, jax.Array]


def sigmoid(a: jax.Array) -> jax.Array:
    """σ."""
    return 1 / (1 + jnp.exp(-a))


def _blocks(matrix: jax.Array, gates: int) -> list[jax.Array]:
    return jnp.split(matrix, gates, axis=-1)


def rnn(params: Any, h: jax.Array, x: jax.Array, added: Added) -> tuple[jax.Array, Vectors]:
    """h_t = tanh(x_t W + h_{t-1} U + b)."""
    a = x @ params.w_x + h @ params.w_h + params.b[None] + added["a"]
    h = jnp.tanh(a)
    return h + added["h"], {"h": h}


def lstm(params: Any, state: Any, x: jax.Array, added: Added) -> tuple[Any, Vectors]:
    """C_t = f ⊙ C_{t-1} + i ⊙ c̃ and h_t = o ⊙ tanh(C_t)."""
    h, c = state
    parts = (_blocks(matrix, 4) for matrix in (params.w_x, params.w_h, params.b[None]))
    a_i, a_f, a_g, a_o = (x @ w + h @ u + b for w, u, b in zip(*parts, strict=True))
    f, i = sigmoid(a_f + added["a_f"]), sigmoid(a_i + added["a_i"])
    g, o = jnp.tanh(a_g + added["a_c̃"]), sigmoid(a_o + added["a_o"])
    c = f * c + i * g + added["C"]
    h = o * jnp.tanh(c)
    return jaxrnn.LSTMState(h + added["h"], c + added["carry"]), {"f": f, "i": i, "c̃": g, "o": o, "C": c, "h": h}


def gru(params: Any, h: jax.Array, x: jax.Array, added: Added) -> tuple[jax.Array, Vectors]:
    """h_t = (1 - z) ⊙ h̃ + z ⊙ h_{t-1}, with h̃ = tanh(x W_h̃ + b_h̃ + r ⊙ q)."""
    w_r, w_z, w_n = _blocks(params.w_x, 3)
    u_r, u_z, u_n = _blocks(params.w_h, 3)
    b_r, b_z, b_n = _blocks(params.b[None], 3)
    r = sigmoid(x @ w_r + h @ u_r + b_r + added["a_r"])
    z = sigmoid(x @ w_z + h @ u_z + b_z + added["a_z"])
    q = h @ u_n + params.b_hn[None] + added["q"]
    n = jnp.tanh(x @ w_n + b_n + r * q + added["a_h̃"])
    h = (1 - z) * n + z * h
    return h + added["h"], {"r": r, "z": z, "q": q, "h̃": n, "h": h}


STEPS: dict[str, Callable[..., tuple[Any, Vectors]]] = {"rnn": rnn, "lstm": lstm, "gru": gru}
VECTORS = {  # of a step, in the order of the tables
    "rnn": ("h",),
    "lstm": ("f", "i", "c̃", "o", "C", "h"),
    "gru": ("r", "z", "q", "h̃", "h"),
}
NAMES = {  # of what is added, in the order of the tables
    "rnn": ("h", "a", "x"),
    "lstm": ("h", "C", "carry", "a_f", "a_i", "a_c̃", "a_o", "x"),
    "gru": ("h", "a_r", "a_z", "a_h̃", "q", "x"),
}


def softmax_cost(v: jax.Array, c: jax.Array, h: jax.Array, label: jax.Array) -> jax.Array:
    """-log ŷ of the class that is asked for, with ŷ = softmax(h V + c), of `(B, H)`: a sum over B."""
    a = jnp.exp(h @ v + c[None])
    predicted = a / a.sum(-1, keepdims=True)
    return -jnp.log(jnp.take_along_axis(predicted, label[:, None], -1)).sum()


def sigmoid_cost(v: jax.Array, c: jax.Array, h: jax.Array, y: jax.Array) -> jax.Array:
    """-Σ y log ŷ + (1 - y) log(1 - ŷ), with ŷ = σ(h V + c)."""
    predicted = sigmoid(h @ v + c[None])
    return -(y * jnp.log(predicted) + (1 - y) * jnp.log(1 - predicted)).sum()


def cost(
    name: str, params: Any, read: jaxrnn.ReadoutParams, state: Any, xs: jax.Array, labels: jax.Array, added: Added
) -> tuple[jax.Array, list[Vectors]]:
    """The sum over steps of `softmax_cost`, and the vectors of every step: a loop in Python over `(T, B, I)`."""
    assert read.c is not None
    total, seen = jnp.zeros((), xs.dtype), []
    for t in range(len(xs)):
        now = {key: value[t] for key, value in added.items()}
        state, vectors = STEPS[name](params, state, xs[t] + now["x"], now)
        h = jax.tree.leaves(state)[0]
        total = total + softmax_cost(read.v, read.c, h, labels[t])
        seen.append(vectors)
    return total, seen
