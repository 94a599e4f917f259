"""The few array operations that every cell is written in.

Products take their operands in the dtype of the weight and accumulate in the dtype of
the other operand, so that with weights in bfloat16 and states in float32 the product is
a mixed-precision one, and with one dtype throughout it is the plain one.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def dot(x: Float[Array, "*B N"], w: Float[Array, "N M"]) -> Float[Array, "*B M"]:
    """x w, over the last axis of x."""
    return lax.dot_general(x.astype(w.dtype), w, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=x.dtype)


def dot_transposed(d: Float[Array, "*B M"], w: Float[Array, "N M"]) -> Float[Array, "*B N"]:
    """d wᵀ, over the last axis of d: the cotangent of x in x w."""
    return lax.dot_general(d.astype(w.dtype), w, (((d.ndim - 1,), (1,)), ((), ())), preferred_element_type=d.dtype)


def outer(x: Float[Array, "*B N"], d: Float[Array, "*B M"], operands: Any) -> Float[Array, "N M"]:
    """Σ xᵀ d over all leading axes: the cotangent of w in x w. `operands` is the product's dtype."""
    leading = tuple(range(x.ndim - 1))
    return lax.dot_general(
        x.astype(operands), d.astype(operands), ((leading, leading), ((), ())), preferred_element_type=d.dtype
    )


def total(d: Float[Array, "*B M"]) -> Float[Array, "M"]:
    """Σ d over all leading axes: the cotangent of a bias."""
    return d.sum(tuple(range(d.ndim - 1)), dtype=d.dtype)


def add_bias(a: Float[Array, "*B M"], b: Float[Array, "M"] | None) -> Float[Array, "*B M"]:
    """a + b, b being `None` where the cell has no bias."""
    return a if b is None else a + jnp.broadcast_to(b, a.shape)


def split(a: Float[Array, "*B GH"], gates: int) -> list[Array]:
    """The blocks of the gates, in order."""
    return jnp.split(a, gates, axis=-1)


def sigmoid_slope(s: Array) -> Array:
    """σ' from the value s = σ(a)."""
    return s * (1 - s)


def tanh_slope(y: Array) -> Array:
    """tanh' from the value y = tanh(a)."""
    return 1 - y * y
