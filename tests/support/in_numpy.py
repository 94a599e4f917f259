"""The cells in NumPy: the equations of a step, and a loop over time.

The tests compare the library with them. They share no code with it and compile nothing.
"""

import functools
from typing import Any

import jax
import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def layer_norm(a, scale):
    if scale is None:
        return a
    return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5) * scale


def fields(params):
    """Parameters by name: NumPy arrays, zeros for an absent bias, and the fields of `norm` beside the others."""
    p = {k: None if v is None else np.asarray(v) for k, v in params._asdict().items() if k != "norm"}
    norm = getattr(params, "norm", None)
    p.update(dict.fromkeys(("scale_x", "scale_h", "scale_c", "offset_c")))
    p.update({} if norm is None else {k: np.asarray(v) for k, v in norm._asdict().items()})
    if p["b"] is None:
        p["b"] = np.zeros(p["w_x"].shape[1])
    return p


def rnn(name, params, h, x):
    p = fields(params)
    phi = {"relu": lambda a: np.maximum(a, 0), "sigmoid": sigmoid, "callable": np.sin}.get(name.split("-")[-1], np.tanh)
    recurrent = h * p["w_h"] if p["w_h"].ndim == 1 else h @ p["w_h"]
    h = phi(x @ p["w_x"] + recurrent + p["b"])
    return h, h


def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def activations(name):
    """Of the gates and of the units of a row of the registry."""
    if "activations" in name:
        return lambda a: np.clip(0.2 * np.clip(a, -3, 3) + 0.5, 0, 1), lambda a: a / (1 + np.abs(a))
    return (softmax, np.sin) if "callables" in name else (sigmoid, np.tanh)


def lstm(name, params, state, x):
    p, (h, c), (sigma, phi) = fields(params), map(np.asarray, state), activations(name)
    a = layer_norm(x @ p["w_x"], p["scale_x"]) + layer_norm(h @ p["w_h"], p["scale_h"]) + p["b"]
    *a_i, a_f, a_g, a_o = np.split(a, a.shape[-1] // c.shape[-1], -1)
    p_i, p_f, p_o = (0, 0, 0) if p["peephole"] is None else [0, *p["peephole"]][-3:]
    f = sigma(a_f + p_f * c)
    i = sigma(a_i[0] + p_i * c) if a_i else 1 - f
    c = f * c + i * phi(a_g)
    o = sigma(a_o + p_o * c)
    shown = c if p["scale_c"] is None else layer_norm(c, p["scale_c"]) + p["offset_c"]
    h = o * phi(shown)
    h = h if p["w_proj"] is None else h @ p["w_proj"]
    if "regularized" in name:  # zoneout 0.3, without a key
        h, c = (0.3 * np.asarray(old) + 0.7 * new for old, new in zip(state, (h, c), strict=True))
    return type(state)(h, c), h


def gru(name, params, h, x):
    p, (sigma, phi) = fields(params), activations(name)
    size = h.shape[-1]
    r_z, n_ = slice(0, 2 * size), slice(2 * size, 3 * size)
    x_part = layer_norm(x @ p["w_x"], p["scale_x"]) + p["b"]
    s = p["scale_h"]
    if "before" in name:
        h_rz = layer_norm(h @ p["w_h"][:, r_z], None if s is None else s[r_z])
        r, z = map(sigma, np.split(x_part[..., r_z] + h_rz, 2, -1))
        n = phi(x_part[..., n_] + layer_norm((r * h) @ p["w_h"][:, n_], None if s is None else s[n_]))
    else:
        h_part = layer_norm(h @ p["w_h"], s)
        r, z = map(sigma, np.split(x_part[..., r_z] + h_part[..., r_z], 2, -1))
        b_hn = 0 if p["b_hn"] is None else p["b_hn"]
        n = phi(x_part[..., n_] + r * (h_part[..., n_] + b_hn))
    h = (1 - z) * n + z * h
    return h, h


def slstm(name, params, state, x):
    p, (h, c, n, m) = fields(params), map(np.asarray, state)
    a_i, a_f, a_z, a_o = np.split(x @ p["w_x"] + h @ p["w_h"] + p["b"], 4, -1)
    log_f = a_f if "exponential" in name else -np.logaddexp(0, -a_f)
    m = np.where(n == 0, -np.inf, m)
    top = np.maximum(a_i, log_f + m)
    i, f = np.exp(a_i - top), np.exp(log_f + m - top)
    c, n = f * c + i * np.tanh(a_z), f * n + i
    h = sigmoid(a_o) * c / n
    return type(state)(h, c, n, top), h


def mgu(name, params, h, x):
    p = fields(params)
    (x_f, x_n), (w_f, w_n) = np.split(x @ p["w_x"] + p["b"], 2, -1), np.split(p["w_h"], 2, -1)
    f = sigmoid(x_f + h @ w_f)
    n = np.tanh(x_n + (f * h) @ w_n)
    return ((1 - f) * h + f * n,) * 2


def min_gru(name, params, h, x):
    p = fields(params)
    z, n = np.split(x @ p["w_x"] + p["b"], 2, -1)
    h = (1 - sigmoid(z)) * h + sigmoid(z) * n
    return h, h


def min_lstm(name, params, h, x):
    p = fields(params)
    i, f, n = np.split(x @ p["w_x"] + p["b"], 3, -1)
    h = (sigmoid(f) * h + sigmoid(i) * n) / (sigmoid(f) + sigmoid(i))
    return h, h


def rg_lru(name, params, h, x):
    p = fields(params)
    u, blocks, size = x @ p["w_x"] + p["b"], len(p["w_gates"]), p["w_gates"].shape[1]
    r, i = np.zeros_like(u), np.zeros_like(u)
    for k in range(blocks):
        at, w = slice(k * size, (k + 1) * size), p["w_gates"][k]
        r[..., at], i[..., at] = u[..., at] @ w[:, :size], u[..., at] @ w[:, size:]
    b_r, b_i = np.split(p["b_gates"], 2)
    a = np.exp(-8 * sigmoid(r + b_r) * np.log1p(np.exp(p["decay"])))
    h = a * h + np.sqrt(1 - a**2) * sigmoid(i + b_i) * u
    return h, h


def lru(name, params, s, x):
    p = {name: np.asarray(value) for name, value in params._asdict().items()}
    (b_re, b_im), (c_re, c_im) = np.split(p["w_x"], 2, -1), np.split(p["w_y"], 2)
    phase = np.exp(p["theta"])
    a = np.exp(-np.exp(p["nu"])) * (np.cos(phase) + 1j * np.sin(phase))
    s = a * s + np.exp(p["gamma_log"]) * (x @ (b_re + 1j * b_im))
    return s, (s @ (c_re + 1j * c_im)).real + x @ p["d"]


def by_head(step, name, params, state, x):
    """One step of a cell with heads: each head is a cell of its own units, which reads all inputs."""
    heads, size, _ = np.shape(params.w_h)

    def of_head(head, leaf):
        leaf = np.asarray(leaf)
        *leading, columns = leaf.shape
        blocks = columns // (heads * size)
        return leaf.reshape(*leading, blocks, heads, size)[..., head, :].reshape(*leading, blocks * size)

    found = []
    for head in range(heads):
        own = jax.tree.map(lambda leaf, head=head: of_head(head, leaf), params._replace(w_h=None))
        before = jax.tree.map(lambda leaf, head=head: of_head(head, leaf), state)
        found.append(step(name, own._replace(w_h=np.asarray(params.w_h[head])), before, x))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, -1), *found)


# By the first word of a row of the registry.
STEPS = {
    "rnn": rnn,
    "indrnn": rnn,
    "lstm": lstm,
    "gru": gru,
    "mgu": mgu,
    "slstm": slstm,
    "min_gru": min_gru,
    "min_lstm": min_lstm,
    "rg_lru": rg_lru,
    "lru": lru,
}


def step_of(name: str) -> Any:
    """The equations of a cell of the registry."""
    word = name.split("-")[0]
    if word not in STEPS:
        row = f"the first word of the row {name!r} in tests/support/registry.py"
        raise LookupError(f"tests/support/in_numpy.py: STEPS has no {word!r}, {row}")
    return functools.partial(by_head, STEPS[word]) if "heads" in name else STEPS[word]


def as_float64(tree: Any) -> Any:
    """NumPy arrays in float64, complex ones in complex128."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.complex128 if np.iscomplexobj(leaf) else np.float64), tree)


def step(name: str, params: Any, state: Any, x: Any) -> tuple[Any, Any]:
    """One step of a cell of the registry, in float64."""
    return step_of(name)(name, *as_float64((params, state, x)))


def chosen(where: np.ndarray, a: Any, b: Any) -> Any:
    """`a` for the sequences where `where` is true, else `b`."""
    return jax.tree.map(lambda x, y: np.where(where[..., None], x, y), a, b)


def unroll(name, params, xs, state, *, mask=None, resets=None, reset_state=None, reverse=False) -> tuple[Any, Any, Any]:
    """Final state, outputs and states: a loop over `step` in float64."""
    params, xs, state = as_float64((params, xs, state))
    shape = xs.shape[:-1]
    mask = np.ones(shape, bool) if mask is None else np.asarray(mask)
    resets = np.zeros(shape, bool) if resets is None else np.asarray(resets)
    fresh = jax.tree.map(np.zeros_like, state) if reset_state is None else as_float64(reset_state)
    states = jax.tree.map(lambda leaf: np.zeros((len(xs), *leaf.shape), leaf.dtype), state)
    ys, previous = np.zeros((len(xs), *step(name, params, state, np.zeros(xs.shape[1:]))[1].shape)), None
    for t in reversed(range(len(xs))) if reverse else range(len(xs)):
        # A reset at t separates t from t-1. A reset at 0 replaces the initial state.
        if not reverse:
            state = chosen(resets[t], fresh, state)
        elif previous is not None:
            state = chosen(resets[previous], fresh, state)
        after, y = step(name, params, state, xs[t])
        state, ys[t] = chosen(mask[t], after, state), np.where(mask[t][..., None], y, 0)
        for over_time, leaf in zip(jax.tree.leaves(states), jax.tree.leaves(state), strict=True):
            over_time[t] = leaf
        previous = t
    return state, ys, states
