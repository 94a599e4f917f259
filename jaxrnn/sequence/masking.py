"""Masks, resets and window borders: selections on whole states."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxrnn._types import PyTree, State


def select(condition: Bool[Array, "*B"] | None, chosen: PyTree, other: PyTree) -> PyTree:
    """`chosen` where true, else `other`; leaves start with the axes of `condition`. `None` is true everywhere.

    It selects and never multiplies, so NaN on the other side reaches neither values nor gradients.
    """
    if condition is None:
        return chosen

    def leaf(a: Array, b: Array) -> Array:
        return jnp.where(jnp.reshape(condition, condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)

    return jax.tree.map(leaf, chosen, other)


def only(condition: Bool[Array, "*B"] | None, tree: PyTree) -> PyTree:
    """`tree` where true, else zeros. `None` is true everywhere."""
    return select(condition, tree, None if condition is None else jax.tree.map(jnp.zeros_like, tree))


def replace(condition: Bool[Array, "*B"] | None, tree: PyTree, replacement: PyTree) -> PyTree:
    """`replacement` where true, else `tree`. `None` is false everywhere."""
    return tree if condition is None else select(condition, replacement, tree)


def mask_of_lengths(lengths: Int[Array, "*B"], time: int) -> Bool[Array, "T *B"]:
    """True at the steps t < length."""
    steps = jax.lax.broadcasted_iota(lengths.dtype, (time, *lengths.shape), 0)
    return steps < jnp.broadcast_to(lengths, steps.shape)


def resets_on_entry(resets: Bool[Array, "T *B"], reverse: bool) -> Bool[Array, "T *B"]:
    """Whether the reset state replaces the state that enters each step.

    A reset at t lies between step t-1 and step t. Read forward, it replaces the state that
    enters t. Read in reverse, it replaces the state that enters t-1; a reset at step 0 then
    replaces nothing.
    """
    if not reverse or resets.shape[0] == 0:
        return resets
    return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])


def window_borders(time: int, window: int | None, reverse: bool) -> Bool[Array, "T"] | None:
    """True at the first step of every window of `window` steps but the first, in the order of reading."""
    if window is None or (isinstance(time, int) and window >= time):
        return None
    order = jnp.arange(time - 1, -1, -1) if reverse else jnp.arange(time)
    return (order % window == 0) & (order > 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_clipped_cotangent(limit: float, state: State) -> State:
    return state


_with_clipped_cotangent.defvjp(lambda limit, state: (state, None), lambda limit, _, d: (clip(limit, d),))


def clip(limit: float | None, tree: PyTree) -> PyTree:
    """Every entry clipped to ± limit."""
    return tree if limit is None else jax.tree.map(lambda leaf: jnp.clip(leaf, -limit, limit), tree)


def with_limited_cotangent(limit: float | None, border: Bool[Array, ""] | None, state: State) -> State:
    """The state, whose cotangent is clipped, and zero where a step begins a window."""
    if limit is not None:
        state = _with_clipped_cotangent(limit, state)
    return state if border is None else select(border, jax.lax.stop_gradient(state), state)


def shifted(initial: State, after: State, reverse: bool) -> State:
    """The states before each step from those after each step, `(T, *B, ·)`."""

    def leaf(first: Array, states: Array) -> Array:
        if states.shape[0] == 0:
            return states
        parts = [states[1:], first[None]] if reverse else [first[None], states[:-1]]
        return jnp.concatenate(parts)

    return jax.tree.map(leaf, initial, after)
