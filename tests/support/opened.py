"""Every cotangent of a backward pass by JAX: the equations again, with a number added wherever one is asked for.

The derivative by an added number is the cotangent of what it is added to. It shares no code with the library. Every step has parameters of its own.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.in_jax import in_order_of_reading, limited
from tests.support.registry import AFFINE, COMPLEX, H, cell_of, quick_jit

sigmoid, tanh = jax.nn.sigmoid, jnp.tanh
COUPLED = ("lstm-coupled", "lstm-all", "lstm-heads-all", "lstm-callables")
GATES = {
    "rnn": "h",
    "indrnn": "h",
    "lstm": "ifgo",
    "gru": "rzn",
    "mgu": "fn",
    "slstm": "ifzo",
    "min_gru": "zn",
    "min_lstm": "ifn",
    "rg_lru": "u",
    "lru": ("re", "im"),
}


def gates_of(name: str) -> Any:
    """The names of the gates of a cell of the registry, in the order of their columns."""
    return "fgo" if name in COUPLED else GATES[name.split("-")[0]]


def names_of(name: str) -> str:
    """The names of all that is added inside a step: to pre-activations, to q of a GRU, C for the memory, and a and b where they exist."""
    family = name.split("-")[0]
    if name in AFFINE:
        return "ab"
    more = {"lstm": "C", "gru": "" if "before" in name else "q"}
    return gates_of(name) + more.get(family, "")


def activations(name):
    """Of the gates and of the units."""
    if "activations" in name:
        return lambda a: jnp.clip(0.2 * jnp.clip(a, -3, 3) + 0.5, 0, 1), lambda a: a / (1 + jnp.abs(a))
    return (jax.nn.softmax, jnp.sin) if "callables" in name else (sigmoid, tanh)


def _norm(a, scale):
    if scale is None:
        return a
    return (a - a.mean(-1, keepdims=True)) / jnp.sqrt(a.var(-1, keepdims=True) + 1e-5) * scale[None]


def _scales(p):
    return (None, None) if getattr(p, "norm", None) is None else (p.norm.scale_x, p.norm.scale_h)


def _biased(a, b):
    return a if b is None else a + b[None]


def _rnn(name, p, h, x, e):
    phi = {"relu": jax.nn.relu, "sigmoid": sigmoid, "callable": jnp.sin}.get(name.split("-")[-1], tanh)
    recurrent = h * p.w_h[None] if p.w_h.ndim == 1 else h @ p.w_h
    return phi(_biased(x @ p.w_x + recurrent, p.b) + e["h"])


def _slstm(name, p, state, x, e):
    h, c, n, m = state
    a_i, a_f, a_z, a_o = jnp.split(_biased(x @ p.w_x + h @ p.w_h, p.b), 4, -1)
    a_i, a_f = a_i + e["i"], a_f + e["f"]
    log_f = a_f if "exponential" in name else jnp.log(sigmoid(a_f))
    top = jax.lax.stop_gradient(jnp.maximum(a_i, log_f + m))
    i, f = jnp.exp(a_i - top), jnp.exp(log_f + m - top)
    c, n = f * c + i * tanh(a_z + e["z"]), f * n + i
    return type(state)(sigmoid(a_o + e["o"]) * c / n, c, n, top)


def _lstm(name, p, state, x, e):
    sigma, phi = activations(name)
    h, c = state
    scale_x, scale_h = _scales(p)
    a = _biased(_norm(x @ p.w_x, scale_x) + _norm(h @ p.w_h, scale_h), p.b)
    a = {gate: part + e[gate] for gate, part in zip(gates_of(name), jnp.split(a, len(gates_of(name)), -1), strict=True)}
    peephole = dict(zip("ifo" if "i" in a else "fo", [] if p.peephole is None else p.peephole, strict=False))
    peep = lambda gate, c: a[gate] + (peephole[gate][None] * c if gate in peephole else 0)  # noqa: E731
    f = sigma(peep("f", c))
    i = sigma(peep("i", c)) if "i" in a else 1 - f
    c = f * c + i * phi(a["g"]) + e["C"]
    o = sigma(peep("o", c))
    read = c if p.norm is None else _norm(c, p.norm.scale_c) + p.norm.offset_c[None]
    h = o * phi(read)
    return type(state)(h if p.w_proj is None else h @ p.w_proj, c)


def _gru(name, p, h, x, e):
    sigma, phi = activations(name)
    scale_x, scale_h = _scales(p)
    x_r, x_z, x_n = jnp.split(_biased(_norm(x @ p.w_x, scale_x), p.b), 3, -1)
    if "before" in name:
        size = h.shape[-1]
        rz, n = slice(0, 2 * size), slice(2 * size, 3 * size)
        h_r, h_z = jnp.split(_norm(h @ p.w_h[:, rz], None if scale_h is None else scale_h[rz]), 2, -1)
        r, z = sigma(x_r + h_r + e["r"]), sigma(x_z + h_z + e["z"])
        recurrent = _norm((r * h) @ p.w_h[:, n], None if scale_h is None else scale_h[n])
    else:
        h_r, h_z, q = jnp.split(_norm(h @ p.w_h, scale_h), 3, -1)
        r, z = sigma(x_r + h_r + e["r"]), sigma(x_z + h_z + e["z"])
        recurrent = r * (_biased(q, p.b_hn) + e["q"])
    return (1 - z) * phi(x_n + recurrent + e["n"]) + z * h


def _mgu(name, p, h, x, e):
    (x_f, x_n), (w_f, w_n) = jnp.split(_biased(x @ p.w_x, p.b), 2, -1), jnp.split(p.w_h, 2, -1)
    f = sigmoid(x_f + h @ w_f + e["f"])
    return (1 - f) * h + f * tanh(x_n + (f * h) @ w_n + e["n"])


def _by_head(step, name, p, state, x, e):
    """Each head is a cell of its own units, which reads all inputs."""
    heads, size, _ = p.w_h.shape

    def of_head(head, leaf):
        leaf = leaf.reshape(*leaf.shape[:-1], -1, heads, size)[..., head, :]
        return leaf.reshape(*leaf.shape[:-2], -1)

    found = []
    for head in range(heads):
        own, before, added = jax.tree.map(lambda leaf, head=head: of_head(head, leaf), (p._replace(w_h=None), state, e))
        found.append(step(name, own._replace(w_h=p.w_h[head]), before, x, added))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, -1), *found)


def _min_gru(name, p, h, x, e):
    z, n = jnp.split(_biased(x @ p.w_x, p.b), 2, -1)
    return (1 - sigmoid(z) + e["a"]) * h + sigmoid(z) * n + e["b"]


def _min_lstm(name, p, h, x, e):
    i, f, n = jnp.split(_biased(x @ p.w_x, p.b), 3, -1)
    f, i = sigmoid(f), sigmoid(i)
    return (f / (f + i) + e["a"]) * h + i / (f + i) * n + e["b"]


def _rg_lru(name, p, h, x, e):
    u = _biased(x @ p.w_x, p.b)
    n, size, _ = p.w_gates.shape
    parts = [u[:, k * size : (k + 1) * size] @ p.w_gates[k] for k in range(n)]
    r, i = (jnp.concatenate([jnp.split(part, 2, -1)[g] for part in parts], -1) for g in (0, 1))
    b_r, b_i = jnp.split(p.b_gates, 2)
    a = jnp.exp(-8 * sigmoid(r + b_r[None]) * jnp.log1p(jnp.exp(p.decay))[None])
    return (a + e["a"]) * h + jnp.sqrt(1 - a**2) * sigmoid(i + b_i[None]) * u + e["b"]


def _lru(name, p, s, x, e):
    (b_re, b_im), phase = jnp.split(p.w_x, 2, -1), jnp.exp(p.theta)
    a = jax.lax.complex(*(jnp.exp(-jnp.exp(p.nu)) * f(phase) for f in (jnp.cos, jnp.sin)))
    scaled = [jnp.exp(p.gamma_log)[None] * (x @ w) for w in (b_re, b_im)]
    return (a[None] + e["a"]) * s + jax.lax.complex(*scaled) + e["b"]


def _lru_output(p, s, x):
    c_re, c_im = jnp.split(p.w_y, 2)
    return s.real @ c_re - s.imag @ c_im + x @ p.d


STEPS = {
    "lru": _lru,
    "rnn": _rnn,
    "indrnn": _rnn,
    "lstm": _lstm,
    "gru": _gru,
    "mgu": _mgu,
    "slstm": _slstm,
    "min_gru": _min_gru,
    "min_lstm": _min_lstm,
    "rg_lru": _rg_lru,
}


def _where(condition, a, b):
    return jax.tree.map(lambda x, y: jnp.where(condition[:, None], x, y), a, b)


@functools.cache
def _program(name, loss):
    step = STEPS[name.split("-")[0]]
    step = functools.partial(_by_head, step) if "heads" in name else step

    def run(operands, inside, outside, order, over_time, limit):
        """The loss, with `inside` added within steps, and `outside` to the states after them, leaves `(T, B, ·)`."""
        by_step, xs, state, reset_state = operands
        mask, entered, borders = over_time
        by_time = jax.tree.map(lambda leaf: leaf[order], (by_step, xs, mask, inside, outside))

        def body(state, now):
            (params, x, valid, inside, outside), reset, border = now
            before = limited(limit, state)
            before = jax.tree.map(lambda s: jnp.where(border, jax.lax.stop_gradient(s), s), before)
            before = _where(reset, reset_state, before)
            after = step(name, params, before, x, inside)
            if "regularized" in name:  # zoneout of 0.3, evaluated by its mean
                after = jax.tree.map(lambda old, new: 0.3 * old + 0.7 * new, before, after)
            state = jax.tree.map(jnp.add, _where(valid, after, before), outside)
            y = _lru_output(params, after, x) if name in COMPLEX else jax.tree.leaves(state)[0]
            return state, jnp.where(valid[:, None], y, jnp.zeros_like(y))

        final, ys = jax.lax.scan(body, state, (by_time, entered, borders))
        return loss(final, jnp.zeros_like(ys).at[order].set(ys))

    return quick_jit(jax.value_and_grad(run, (0, 1, 2)))


def opened(
    name, operands, loss, mask=None, resets=None, reverse=False, truncate=None, clip_gradient=np.inf
) -> dict[str, Any]:
    """The fields of `jaxrnn.analysis.BackwardPass` as a dictionary, but for `weights` and `by_gate`."""
    params, xs, state, reset_state = operands
    shape = xs.shape[:-1]
    mask = np.ones(shape, bool) if mask is None else np.asarray(mask)
    order, over_time = in_order_of_reading(shape, mask, resets, reverse, truncate)
    by_step = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(xs)), params)
    dtype = state.dtype if name in COMPLEX else xs.dtype
    inside = {gate: jnp.zeros((*shape, H), dtype) for gate in names_of(name)}
    outside = jax.tree.map(lambda leaf: jnp.zeros((len(xs), *leaf.shape), leaf.dtype), state)
    value, ((by_params, by_xs, by_state, by_reset), by_inside, by_outside) = _program(name, loss)(
        (by_step, xs, state, reset_state), inside, outside, order, over_time, np.asarray(clip_gradient, xs.dtype)
    )
    total = by_inside.pop("C", None)
    if total is not None:  # a masked step has no path through h
        total = None if "regularized" in name else jnp.where(mask[..., None], total, by_outside.c)
    return {
        "loss": value,
        "states": by_outside,
        "cell_state": total,
        "pre_activations": by_inside,
        "inputs": by_xs,
        "initial_state": by_state,
        "reset_state": by_reset,
        "contributions": by_params,
    }


def cell_and_operands(name: str, make: Any) -> tuple[Any, Any]:
    """A cell of the registry, and (params, xs, state, reset_state)."""
    case = make(name)
    return cell_of(name), (case.params, case.xs, case.state, make(name, seed=7).state)
