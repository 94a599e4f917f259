"""A GRU with a rule as a user would write it with jaxrnn's public products: reset-after, gates r z n."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn

BLOCKS = ("r", "z", "n")


class Params(NamedTuple):
    w_x: jax.Array  # (I, 3H)
    w_h: jax.Array  # (H, 3H)
    b: jax.Array  # (3H,)
    b_hn: jax.Array  # (H,)


class Kept(NamedTuple):
    r: jax.Array
    z: jax.Array
    n: jax.Array
    q: jax.Array  # h W_hn + b_hn


def with_bias(a, b):
    return a + jnp.broadcast_to(b, a.shape)


def project(params, xs):
    return with_bias(jaxrnn.dot(xs, params.w_x), params.b)


def forward(params, h, a):
    x_r, x_z, x_n = jnp.split(a, 3, -1)
    h_r, h_z, h_n = jnp.split(jaxrnn.dot(h, params.w_h), 3, -1)
    r, z, q = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z), with_bias(h_n, params.b_hn)
    n = jnp.tanh(x_n + r * q)
    after = (1 - z) * n + z * h
    return after, after, Kept(r, z, n, q)


def backward(params, tape, dh, dy):
    r, z, n, q = tape.residual
    dh = dh + dy
    dn = dh * (1 - z) * (1 - n * n)
    dz = dh * (tape.before - n) * z * (1 - z)
    dr = dn * q * r * (1 - r)
    recurrent = jnp.concatenate([dr, dz, dn * r], -1)
    return dh * z + jaxrnn.dot_transposed(recurrent, params.w_h), (recurrent, dn)


def accumulate(params, xs, tape, deltas):
    recurrent, dn = deltas
    dr, dz, dq = jnp.split(recurrent, 3, -1)
    da, over = jnp.concatenate([dr, dz, dn], -1), tuple(range(dn.ndim - 1))
    w_x, w_h = jaxrnn.weight_gradient(xs, da, params.w_x), jaxrnn.weight_gradient(tape.before, recurrent, params.w_h)
    return Params(w_x, w_h, da.sum(over), dq.sum(over)), jaxrnn.dot_transposed(da, params.w_x)


def step(params, h, x):
    return forward(params, h, project(params, x))[:2]


def deltas(delta):
    recurrent, dn = delta
    return dict(zip("rzq", jnp.split(recurrent, 3, -1), strict=True)) | {"n": dn}


RULE = jaxrnn.Rule(
    project, forward, backward, accumulate, matrices=("w_x", "w_h"), prepare=jaxrnn.prepare_transposed("w_h")
)
GATES = jaxrnn.Gates(BLOCKS, ("r", "z"), Kept._asdict, deltas, kept=("z", False))


def own_gru(hidden_size):
    """A cell equal in its equations, and in the values of its parameters, to `jaxrnn.gru(hidden_size)`."""
    library = jaxrnn.gru(hidden_size)

    def init(key, input_size, dtype=None):
        params = library.init(key, input_size, dtype)
        return Params(params.w_x, params.w_h, params.b, params.b_hn)

    def initial_state(batch_shape=(), dtype=jnp.float32):
        return jnp.zeros((*batch_shape, hidden_size), dtype)

    return jaxrnn.Cell(init, initial_state, step, RULE, name="own_gru", output_size=hidden_size, gates=GATES)
