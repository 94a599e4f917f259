"""Which steps take part, and where nothing may cross: selections on whole states."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxrnn._types import PyTree, State


def select(where: Bool[Array, "*B"] | None, chosen: PyTree, other: PyTree) -> PyTree:
    """`chosen` where true, else `other`; leaves start with the axes of `where`. `None` is true everywhere.

    A selection, never a product: NaN on the side not taken reaches neither values nor gradients.
    """
    if where is None:
        return chosen

    def leaf(a: Array, b: Array) -> Array:
        return jnp.where(jnp.reshape(where, where.shape + (1,) * (a.ndim - where.ndim)), a, b)

    return jax.tree.map(leaf, chosen, other)


def only(where: Bool[Array, "*B"] | None, tree: PyTree) -> PyTree:
    """`tree` where true, else zeros."""
    return select(where, tree, None if where is None else jax.tree.map(jnp.zeros_like, tree))


def replace(where: Bool[Array, "*B"] | None, tree: PyTree, replacement: PyTree) -> PyTree:
    """`replacement` where true, else `tree`; `None` is false everywhere."""
    return tree if where is None else select(where, replacement, tree)


def mask_of_lengths(lengths: Int[Array, "*B"], time: int) -> Bool[Array, "T *B"]:
    """True at the steps t < length."""
    steps = jax.lax.broadcasted_iota(lengths.dtype, (time, *lengths.shape), 0)
    return steps < jnp.broadcast_to(lengths, steps.shape)


def resets_on_entry(resets: Bool[Array, "T *B"], reverse: bool) -> Bool[Array, "T *B"]:
    """For each step, in the order of reading: is the state that enters it replaced?

    A reset at t parts step t-1 from step t. Reading forward, the state entering t is
    replaced; in reverse the state entering t-1. Reading in reverse, nothing of the
    sequence lies beyond step 0, and a reset there replaces nothing.
    """
    if not reverse or resets.shape[0] == 0:
        return resets
    return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])


def window_borders(time: int, window: int | None, reverse: bool) -> Bool[Array, "T"] | None:
    """The steps that begin a window of `window` steps, counted from the first step read; not the first."""
    if window is None or window >= time:
        return None
    order = jnp.arange(time - 1, -1, -1) if reverse else jnp.arange(time)
    return (order % window == 0) & (order > 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _clipped(limit: float, state: State) -> State:
    return state


_clipped.defvjp(lambda limit, state: (state, None), lambda limit, _, d: (clip(limit, d),))


def clip(limit: float | None, tree: PyTree) -> PyTree:
    """Every entry clipped to ± limit."""
    return tree if limit is None else jax.tree.map(lambda leaf: jnp.clip(leaf, -limit, limit), tree)


def crossing(limit: float | None, cut: Bool[Array, ""] | None, state: State) -> State:
    """A state on its way from one step to the next: itself, but its cotangent is clipped, or stopped."""
    if limit is not None:
        state = _clipped(limit, state)
    return state if cut is None else select(cut, jax.lax.stop_gradient(state), state)


def shifted(initial: State, after: State, reverse: bool) -> State:
    """The states that were current before each step, from those after each step: `(T, *B, ·)`."""

    def leaf(first: Array, states: Array) -> Array:
        if states.shape[0] == 0:
            return states
        parts = [states[1:], first[None]] if reverse else [first[None], states[:-1]]
        return jnp.concatenate(parts)

    return jax.tree.map(leaf, initial, after)
