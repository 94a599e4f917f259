"""Mesh axes of a user's `shard_map` that arrays vary over: the carry of a loop varies as what the loop computes."""

from typing import Any

import jax

from jaxrnn._types import PyTree


def varying_axes(tree: PyTree) -> frozenset[Any]:
    """The manual mesh axes that any leaf varies over; none outside `shard_map`."""
    leaves = jax.tree.leaves(tree)
    return frozenset().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in leaves))


def vary_like(tree: PyTree, *others: PyTree) -> PyTree:
    """`tree`, every leaf varying over the axes that any leaf of it or of the others varies over.

    For the inputs of a loop this also sums the cotangents of weights over devices once, after the
    loop, instead of inside it.
    """
    together = varying_axes((tree, others))

    def vary(leaf: jax.Array) -> jax.Array:
        missing = tuple(sorted(together - varying_axes(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, tree) if together else tree
