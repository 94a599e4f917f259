"""Vectors whose length may overflow or underflow, as a direction and the log of the length."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrnn._types import PyTree


class Scaled(NamedTuple):
    """exp(log_scale) times a value, with one scale for each sequence, or for each step of it."""

    value: PyTree  # leaves (*B, ·)
    log_scale: Array  # (*B,)


def spread(factor: Array, leaf: Array) -> Array:
    """A number for each sequence `(*B,)`, in the shape of a leaf `(*B, ·)`."""
    return jnp.broadcast_to(factor.reshape(factor.shape + (1,) * (leaf.ndim - factor.ndim)), leaf.shape)


def times(tree: PyTree, factor: Array) -> PyTree:
    """Leaves `(*B, ·)` times a number for each sequence."""
    return jax.tree.map(lambda leaf: leaf * spread(factor, leaf), tree)


def _divided(tree: PyTree, divisor: Array) -> PyTree:
    return jax.tree.map(lambda leaf: leaf / spread(divisor, leaf), tree)


def share(log_length: Array, log_unit: Array) -> Array:
    """exp(log_length - log_unit): 0 for a length of 0, whatever the unit."""
    nothing = log_length == -jnp.inf
    return jnp.where(
        nothing, jnp.zeros_like(log_length), jnp.exp(jnp.where(nothing, log_length, log_length - log_unit))
    )


def _largest(tree: PyTree, axes: int) -> Array:
    """The largest modulus of each sequence's entries, 1 where all are 0; divided by it, squares do not underflow."""
    leaves = [jnp.max(jnp.abs(leaf), tuple(range(axes, leaf.ndim)), initial=0) for leaf in jax.tree.leaves(tree)]
    largest = functools.reduce(jnp.maximum, leaves)
    return jnp.where(largest == 0, jnp.ones_like(largest), largest)


def _length(tree: PyTree, axes: int) -> Array:
    """√Σ² over the leaves `(*B, ·)` together."""
    return jnp.sqrt(sum(jnp.sum(leaf * leaf, tuple(range(axes, leaf.ndim))) for leaf in jax.tree.leaves(tree)))


def log_norm(tree: PyTree, axes: int) -> Array:
    """The log of the length of all leaves `(*B, ·)` together; `axes` is the number of axes of B."""
    largest = _largest(tree, axes)
    return jnp.log(largest) + jnp.log(_length(_divided(tree, largest), axes))


def unit(tree: PyTree, axes: int) -> tuple[PyTree, Array]:
    """All leaves together as a vector of length 1 for each sequence, and the log of its length.

    A vector of zeros stays one, with log length -inf.
    """
    largest = _largest(tree, axes)
    tree = _divided(tree, largest)
    length = _length(tree, axes)
    divisor = jnp.where(length == 0, jnp.ones_like(length), length)
    return _divided(tree, divisor), jnp.log(largest) + jnp.log(length)


def normalised(scaled: Scaled) -> Scaled:
    """The same with a value of length 1, or of zeros at a log scale of -inf."""
    value, log_length = unit(scaled.value, scaled.log_scale.ndim)
    return Scaled(value, scaled.log_scale + log_length)


def at_one_scale(*parts: Scaled) -> tuple[list[PyTree], Array]:
    """The values of normalised parts, all at the largest of their scales, and that scale."""
    log_scale = jnp.max(jnp.stack([part.log_scale for part in parts]), 0)
    return [times(part.value, share(part.log_scale, log_scale)) for part in parts], log_scale


def plus(*parts: Scaled) -> Scaled:
    """The sum of the parts."""
    values, log_scale = at_one_scale(*map(normalised, parts))
    return Scaled(jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *values), log_scale)


def unscaled(value: Array, log_scale: Array) -> Array:
    """exp(log_scale) times a value, in two factors, so that it is finite wherever the result is."""
    half = jnp.exp(log_scale / 2)
    return jnp.where(value == 0, value, value * half * half)
