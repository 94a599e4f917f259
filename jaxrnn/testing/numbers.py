"""Arguments for the parts of a cell: parameters, inputs, the states that the cell reaches, and cotangents."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Cell, Params, PyTree, State
from jaxrnn.cells._step import cast_floating
from jaxrnn.testing.faults import called

TIME, BATCH = 5, 2


class Case(NamedTuple):
    """A cell and one sequence that it reads, with leading axes (T, B)."""

    cell: Cell
    params: Params
    xs: Any
    before: State  # the states that enter the steps, (T, B, ·)
    after: State
    ys: PyTree
    rng: np.random.Generator

    def random_like(self, tree: PyTree) -> PyTree:
        """Normal random numbers in the shapes and dtypes of a tree."""
        return normal(self.rng, tree)


def normal(rng: np.random.Generator, tree: PyTree, scale: float = 1.0) -> PyTree:
    """Normal random numbers, in both parts of a complex leaf."""

    def drawn(leaf: Any) -> Any:
        value = scale * rng.standard_normal(jnp.shape(leaf))
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            value = value + 1j * scale * rng.standard_normal(jnp.shape(leaf))
        return jnp.asarray(value, leaf.dtype)

    return jax.tree.map(drawn, tree)


def moved(rng: np.random.Generator, params: Params) -> Params:
    """Parameters near the given ones, so that no bias is 0 and no scale 1, which would hide a term."""
    return jax.tree.map(lambda leaf, noise: leaf + noise.astype(leaf.dtype), params, normal(rng, params, 0.3))


def case_of(cell: Cell, input_size: int, params: Params | None) -> Case:
    """A case in float64; its states are those of a run from the initial state."""
    rng = np.random.default_rng(0)
    if params is None:
        params = moved(rng, called("init", cell.init, jax.random.key(0), input_size, jnp.float64))
    params = cast_floating(jax.tree.map(jnp.asarray, params), jnp.float64)
    xs = jnp.asarray(rng.standard_normal((2 * TIME, BATCH, input_size)))
    state = called("initial_state", cell.initial_state, (BATCH,), jnp.float64)

    def body(state: State, x: Any) -> Any:
        after, y = cell.step(params, state, x)
        return after, (state, after, y)

    _, (before, after, ys) = called("step", jax.jit(lambda state, xs: jax.lax.scan(body, state, xs)), state, xs)
    xs, before, after, ys = jax.tree.map(lambda leaf: leaf[TIME:], (xs, before, after, ys))
    return Case(cell, params, xs, before, after, ys, rng)
