"""A cell, or a stack of cells, and the read-out of its outputs.

Sequences come with examples first, and are transposed here to the time-major order of `jaxrnn.unroll`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import jaxrnn

Runner = jaxrnn.Cell | jaxrnn.Network


class Readout(NamedTuple):
    """All parameters that are trained: a cell's, and V and c of what reads its outputs."""

    cell: Any  # or of a stack, one for each layer
    v: jax.Array  # (H, O)
    c: jax.Array  # (O,)


def init_readout(cell: Runner, hidden_size: int, input_size: int, output_size: int, key: jax.Array) -> Readout:
    key_cell, key_v = jax.random.split(key)
    v = jaxrnn.initializers.glorot_uniform()(key_v, (hidden_size, output_size))
    return Readout(cell.init(key_cell, input_size), v, jnp.zeros(output_size))


def read(model: Readout, ys: jax.Array) -> jax.Array:
    """The logits `(*, O)` of outputs `(*, H)`."""
    return jaxrnn.readout(len(model.c)).logits(jaxrnn.ReadoutParams(model.v, model.c), ys)


def _outputs(
    cell: Runner,
    model: Readout,
    xs: jax.Array,
    lengths: jax.Array | None,
    clip_gradient: float | None,
) -> jax.Array:
    """The outputs `(T, *B, H)` of `(*B, T, I)` sequences."""
    run = cell.unroll if isinstance(cell, jaxrnn.Network) else functools.partial(jaxrnn.unroll, cell)
    return run(model.cell, jnp.moveaxis(xs, -2, 0), lengths=lengths, clip_gradient=clip_gradient)[1]


def many_to_one(
    cell: Runner,
    model: Readout,
    xs: jax.Array,
    lengths: jax.Array | None = None,
    clip_gradient: float | None = None,
) -> jax.Array:
    """Reads the last output of each of `(*B, T, I)` sequences: `(*B, O)`."""
    ys = _outputs(cell, model, xs, lengths, clip_gradient)
    return read(model, jaxrnn.last_output(ys, lengths))


def many_to_many(
    cell: Runner,
    model: Readout,
    xs: jax.Array,
    lengths: jax.Array | None = None,
    clip_gradient: float | None = None,
) -> jax.Array:
    """Reads every output of `(*B, T, I)` sequences: `(*B, T, O)`."""
    ys = _outputs(cell, model, xs, lengths, clip_gradient)
    return read(model, jnp.moveaxis(ys, 0, -2))


def readout_module(hidden_size: int, output_size: int, activation: str, rngs: nnx.Rngs) -> jaxrnn.modules.Readout:
    """The read-out of a model that is an NNX module, drawn from LeCun's normal distribution, as Flax's layers are."""
    kernel, bias = nnx.initializers.lecun_normal(), nnx.initializers.zeros_init()
    options = {"kernel_init": kernel, "bias_init": bias, "rngs": rngs}
    return jaxrnn.modules.Readout(hidden_size, output_size, activation, **options)
