"""A cell over time as one plain scan, differentiated by JAX: the oracle of gradients over long sequences.

It shares no code with `jaxrnn.sequence`. One program of a cell has every option: the order of the steps, masks, resets,
the borders of windows and the limit of clipping are its arguments.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.registry import cell_of, quick_jit


@jax.custom_vjp
def limited(limit: jax.Array, state: Any) -> Any:
    """The state, whose cotangent is clipped to ± limit."""
    return state


def _limited_backward(limit: jax.Array, d: Any) -> Any:
    def clipped(leaf: jax.Array) -> jax.Array:  # complex cotangents are not clipped
        return leaf if jnp.iscomplexobj(leaf) else jnp.minimum(jnp.maximum(leaf, -limit), limit)

    return jnp.zeros_like(limit), jax.tree.map(clipped, d)


limited.defvjp(lambda limit, state: (state, limit), _limited_backward)


def _where(condition: jax.Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition[..., None], x, y), a, b)


@functools.cache
def _program(name: str) -> Any:
    cell = cell_of(name)

    def read(operands: Any, order: jax.Array, over_time: Any, limit: jax.Array, key: Any) -> Any:
        params, xs, state, reset_state = operands
        params, xs = (params, xs) if key is None else cell.sample(key, params, xs)
        mask, *entries = over_time
        xs, mask = jax.tree.map(lambda leaf: leaf[order], (xs, mask))

        def step(state: Any, now: Any) -> Any:
            x, is_valid, is_reset, is_border = now
            before = limited(limit, state)
            before = jax.tree.map(lambda s: jnp.where(is_border, jax.lax.stop_gradient(s), s), before)
            before = before if reset_state is None else _where(is_reset, reset_state, before)
            after, y = cell.step(params, before, x)
            after = _where(is_valid, after, before)
            return after, (_where(is_valid, y, jnp.zeros_like(y)), after)

        final, outputs = jax.lax.scan(step, state, (xs, mask, *entries))
        return final, *jax.tree.map(lambda leaf: jnp.zeros_like(leaf).at[order].set(leaf), outputs)

    def run_back(operands: Any, order: Any, over_time: Any, limit: Any, cotangents: Any, key: Any) -> Any:
        values, pullback = jax.vjp(lambda *operands: read(operands, order, over_time, limit, key), *operands)
        return values, pullback(cotangents)

    return quick_jit(run_back)


def differentiated(
    name: str,
    operands: Any,
    cotangents: Any,
    *,
    mask: Any = None,
    resets: Any = None,
    reverse: bool = False,
    truncate: int | None = None,
    clip_gradient: float = np.inf,
    key: Any = None,
) -> Any:
    """Values of `unroll` with `return_states`, and gradients by (params, xs, state, reset_state)."""
    shape = operands[1].shape[:-1]
    order, over_time = in_order_of_reading(shape, mask, resets, reverse, truncate)
    limit = np.asarray(clip_gradient, operands[1].dtype)
    return _program(name)(operands, order, over_time, limit, cotangents, key)


def in_order_of_reading(shape: Any, mask: Any, resets: Any, reverse: bool, truncate: int | None) -> tuple[Any, Any]:
    """The steps as they are read; and the mask by time, and by the order of reading resets and borders of windows."""
    steps = np.arange(shape[0])
    order = steps[::-1] if reverse else steps
    mask = np.ones(shape, bool) if mask is None else mask
    entered = np.zeros(shape, bool)
    if resets is not None:  # a reset at t lies between t - 1 and t
        entered[1:] = np.asarray(resets)[np.maximum(order[1:], order[:-1])]
        entered[0] = False if reverse else resets[0]
    borders = (steps > 0) & (steps % (truncate or shape[0]) == 0)
    return order, (mask, entered, borders)
