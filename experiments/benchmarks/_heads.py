"""Cells with heads beside dense ones, and the other ways to compute a block-diagonal recurrent product.

"dense" is the cell without heads, with the block matrix as its weights; "heads" is the cell as the library computes
it, one batched product over the heads. "zeros" writes the blocks into a dense matrix in every call. "cells" unrolls
one cell of D units for each head, one after another. "batched" and "loop" are plain scans differentiated by JAX,
which differ in their product alone: one over all heads, or one for each head.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jaxrnn
from experiments.benchmarks._contestants import Contestant, Model, of_model, unrolled
from experiments.benchmarks._problem import ALL, Problem

# Of H units in N heads of D units, with G gates: h (B, H) and w_h (N, D, GD) give (B, N, GD).
Product = Callable[[jax.Array, jax.Array], jax.Array]


def count_of(problem: Problem) -> int:
    """N."""
    return problem.params.w_h.shape[0]


def dense_cell(problem: Problem) -> jaxrnn.Cell:
    """The cell without heads."""
    return ALL[ALL[problem.form].kind].cell(problem.shape.hidden)


def blocks(w_h: jax.Array, heads: int) -> jax.Array:
    """The blocks `(N, D, GD)` of a dense matrix `(H, GH)`, whatever is between them."""
    size, gates = w_h.shape[0] // heads, w_h.shape[1] // w_h.shape[0]
    split = w_h.reshape(heads, size, gates, heads, size)
    return jnp.stack([split[n, :, :, n] for n in range(heads)]).reshape(heads, size, gates * size)


def dense(problem: Problem) -> Contestant:
    """The cell without heads; of the gradient of its matrix, the blocks are compared."""
    cell = dense_cell(problem)

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        return jaxrnn.unroll(cell, params, xs)[1]

    def as_jaxrnn(gradients: Any) -> Any:
        return gradients._replace(w_h=blocks(gradients.w_h, count_of(problem)))

    return of_model(problem, Model(outputs, jaxrnn.merge_heads(problem.params), as_jaxrnn))


def zeros(problem: Problem) -> Contestant:
    """The cell without heads, whose matrix is made of the blocks in every call."""
    cell = dense_cell(problem)

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        return jaxrnn.unroll(cell, jaxrnn.merge_heads(params), xs)[1]

    return of_model(problem, Model(outputs, problem.params))


def cells(problem: Problem) -> Contestant:
    """Every head unrolled as a cell of D units."""
    heads = count_of(problem)
    size = problem.shape.hidden // heads
    cell = ALL[ALL[problem.form].kind].cell(size)

    def of_head(leaf: jax.Array, n: int) -> jax.Array:  # (*, GH) -> (*, GD)
        split = leaf.reshape(*leaf.shape[:-1], -1, heads, size)
        return split[..., n, :].reshape(*leaf.shape[:-1], -1)

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        rest = params._replace(w_h=None)
        parts = [jax.tree.map(partial(of_head, n=n), rest)._replace(w_h=params.w_h[n]) for n in range(heads)]
        return jnp.concatenate([jaxrnn.unroll(cell, part, xs)[1] for part in parts], -1)

    return of_model(problem, Model(outputs, problem.params))


def batched(h: jax.Array, w_h: jax.Array) -> jax.Array:
    """One product, batched over the heads."""
    return jnp.einsum("bnd,nde->bne", h.reshape(len(h), *w_h.shape[:2]), w_h)


def loop(h: jax.Array, w_h: jax.Array) -> jax.Array:
    """One product for each head."""
    parts = jnp.split(h, len(w_h), axis=-1)
    return jnp.stack([part @ block for part, block in zip(parts, w_h, strict=True)], 1)


def scanned(product: Product, problem: Problem) -> Contestant:
    """A plain scan with one of the products, differentiated by JAX."""
    step = {"lstm": lstm_step, "gru": gru_step}[ALL[problem.form].kind]
    start = ALL[problem.form].cell(problem.shape.hidden).initial_state((problem.shape.batch,))

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        projected = xs @ params.w_x + jnp.broadcast_to(params.b, (1, 1, len(params.b)))

        def one(state: Any, z: jax.Array) -> tuple[Any, jax.Array]:
            return step(params, state, z, by_gate(product, params.w_h))

        return jax.lax.scan(one, start, projected)[1]

    return of_model(problem, Model(outputs, problem.params))


def by_gate(product: Product, w_h: jax.Array) -> Callable[[jax.Array], list[jax.Array]]:
    """The product of h as a list of the gates' parts, `(B, H)` each."""
    heads, size, columns = w_h.shape

    def made(h: jax.Array) -> list[jax.Array]:
        a = product(h, w_h).reshape(len(h), heads, columns // size, size)
        return [a[:, :, gate].reshape(h.shape) for gate in range(columns // size)]

    return made


def lstm_step(params: Any, state: Any, z: jax.Array, recurrent: Callable[..., list[jax.Array]]) -> tuple[Any, Any]:
    """A step of the LSTM: gates i f g o."""
    del params
    a_i, a_f, a_g, a_o = (own + more for own, more in zip(jnp.split(z, 4, -1), recurrent(state.h), strict=True))
    c = jax.nn.sigmoid(a_f) * state.c + jax.nn.sigmoid(a_i) * jnp.tanh(a_g)
    h = jax.nn.sigmoid(a_o) * jnp.tanh(c)
    return jaxrnn.LSTMState(h, c), h


def gru_step(params: Any, h: jax.Array, z: jax.Array, recurrent: Callable[..., list[jax.Array]]) -> tuple[Any, Any]:
    """A step of the GRU, reset after the product: gates r z n."""
    (z_r, z_z, z_n), (a_r, a_z, a_n) = jnp.split(z, 3, -1), recurrent(h)
    r, update = jax.nn.sigmoid(z_r + a_r), jax.nn.sigmoid(z_z + a_z)
    n = jnp.tanh(z_n + r * (a_n + jnp.broadcast_to(params.b_hn, a_n.shape)))
    h = (1 - update) * n + update * h
    return h, h


# The first is what the others are compared with.
BUILDERS: dict[str, Callable[[Problem], Contestant]] = {
    "dense": dense,
    "heads": unrolled,
    "zeros": zeros,
    "cells": cells,
    "batched": partial(scanned, batched),
    "loop": partial(scanned, loop),
}
# By T,B,I,H: the second is for DreamerV3's block GRU, with its 16 sequences of 64 steps.
SHAPES = {
    "64,32,128,512": ("lstm-heads8", "gru-heads8", "lstm-heads2", "gru-heads2"),
    "64,16,1024,1024": ("gru-heads8",),
}
QUICK = {"8,4,8,32": ("lstm-heads8", "gru-heads2")}
