"""A gated cell with a rule, written as a user would: h_t = (1 - z) n + z h, with both gates of x and h."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import Cell, Rule

H = 4


class Params(NamedTuple):
    w_x: jax.Array  # (I, 2H)
    w_h: jax.Array  # (H, 2H)
    b: jax.Array  # (2H,)


def init(key, input_size, dtype=jnp.float32):
    keys = jax.random.split(key)
    shapes = (input_size, 2 * H), (H, 2 * H)
    w_x, w_h = (jax.random.normal(k, shape, dtype) / 2 for k, shape in zip(keys, shapes, strict=True))
    return Params(w_x, w_h, jnp.zeros(2 * H, dtype))


def initial_state(batch_shape=(), dtype=jnp.float32):
    return jnp.zeros((*batch_shape, H), dtype)


def gates(params, h, a):
    z, n = jnp.split(a + h @ params.w_h, 2, -1)
    return jax.nn.sigmoid(z), jnp.tanh(n)


def step(params, h, x):
    z, n = gates(params, h, project(params, x))
    h = (1 - z) * n + z * h
    return h, h


def project(params, xs):
    return xs @ params.w_x + jnp.broadcast_to(params.b, (*xs.shape[:-1], 2 * H))


def forward(params, h, a):
    z, n = gates(params, h, a)
    h = (1 - z) * n + z * h
    return h, h, (z, n)


def backward(params, tape, dh, dy):
    z, n = tape.residual
    dh = dh + dy
    da = jnp.concatenate([dh * (tape.before - n) * z * (1 - z), dh * (1 - z) * (1 - n * n)], -1)
    return dh * z + da @ params.w_h.T, da


def accumulate(params, xs, tape, da):
    over = tuple(range(da.ndim - 1))
    product = lambda x: jnp.tensordot(x, da, (over, over))  # noqa: E731
    return Params(product(xs), product(tape.before), da.sum(over)), da @ params.w_x.T


RULE = Rule(project, forward, backward, accumulate, matrices=("w_x", "w_h"))
CELL = Cell(init, initial_state, step, RULE, name="own")
