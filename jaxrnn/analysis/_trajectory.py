"""Runs a cell over a sequence and keeps its states, for every function of this package."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jaxrnn import _checks
from jaxrnn._types import AnyCell, Params, PyTree, State
from jaxrnn.cells._step import cast_floating
from jaxrnn.sequence.masking import mask_of_lengths, only, shifted
from jaxrnn.sequence.unroll import unroll

Step = Callable[[Params, State, Array], tuple[State, PyTree]]


class Steps(NamedTuple):
    """All steps of a sequence, leaves `(T, *B, ·)`."""

    before: State  # the state before each step
    xs: Array  # zeros at masked steps
    mask: Bool[Array, "T *B"] | None  # false at masked steps; None: none is masked


class Trajectory(NamedTuple):
    """The run of a cell over a sequence, all in one dtype."""

    params: Params
    steps: Steps
    final: State
    ys: Array  # (T, *B, ·)


def trajectory(
    where: str,
    cell: AnyCell,
    params: Params,
    xs: Any,
    state: State | None = None,
    lengths: Any = None,
    mask: Any = None,
    reverse: bool = False,
) -> Trajectory:
    """Runs a cell, without noise, and keeps the states; `unroll` checks the arguments."""
    options = {"lengths": lengths, "mask": mask, "reverse": reverse}
    final, ys, after = unroll(cell, params, xs, state, return_states=True, key=None, **options)
    dtype, *others = {leaf.dtype for leaf in jax.tree.leaves(after)} or {jnp.dtype(int)}
    if others or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{where}: cell expected one whose state is floating-point throughout, got {cell!r} with "
            f"{_checks.describe(final)}; only such a state has a Jacobian"
        )
    initial = cell.initial_state(xs.shape[1:-1]) if state is None else state
    params, xs, initial = cast_floating(jax.tree.map(jnp.asarray, (params, xs, initial)), dtype)
    if lengths is not None:
        mask = mask_of_lengths(_checks.sequence_lengths(where, lengths, xs.shape[0], xs.shape[1:-1]), xs.shape[0])
    mask = None if mask is None else jnp.asarray(mask)
    steps = Steps(shifted(initial, after, reverse), only(mask, xs), mask)
    return Trajectory(params, steps, final, ys)


def per_sequence(steps: Steps) -> Steps:
    """The batch axes as one: leaves `(T, N, ·)`."""
    axes = steps.xs.ndim - 1
    count = math.prod(steps.xs.shape[1:axes])
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], count, *leaf.shape[axes:]), steps)


def batched(tree: PyTree, steps: Steps) -> Any:
    """Leaves `(T, N, ·)` with the batch axes of `steps` again."""
    batch_shape = steps.xs.shape[1:-1]
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], *batch_shape, *leaf.shape[2:]), tree)


def factored_dtype(dtype: Any) -> Any:
    """The dtype to factorise matrices in: JAX computes QR and eigenvalues in float32 or float64 only."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def state_size(state: State, leading: int) -> int:
    """S, the entries of the state of one sequence, from leaves with `leading` axes before those of the state."""
    return sum(math.prod(leaf.shape[leading:]) for leaf in jax.tree.leaves(state))


def flat_step(
    step_of_cell: Step, params: Params, state: State, x: Float[Array, "I"]
) -> tuple[Float[Array, "S"], Callable[[Float[Array, "S"]], Float[Array, "S"]]]:
    """The state of one sequence as a vector, and the step from there as a function of vectors.

    The entries are those of the leaves one after another, each row by row: h then c for an LSTM.
    """
    flat, unravel = ravel_pytree(state)

    def step(flat: Float[Array, "S"]) -> Float[Array, "S"]:
        return ravel_pytree(step_of_cell(params, unravel(flat), x)[0])[0].astype(flat.dtype)

    return flat, step
