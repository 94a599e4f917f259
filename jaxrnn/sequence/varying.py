"""What the driver must know of many devices.

Inside `shard_map`, the carry of a loop must vary over the mesh axes that anything in the
loop varies over.
"""

from typing import Any

import jax

from jaxrnn._types import PyTree


def _axes(tree: PyTree) -> frozenset[Any]:
    """The manual mesh axes that any leaf varies over; none outside `shard_map`."""
    leaves = jax.tree.leaves(tree)
    return frozenset().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in leaves))


def vary_like(tree: PyTree, *others: PyTree) -> PyTree:
    """`tree`, every leaf varying over the axes that any leaf of it or of the others varies over.

    For the inputs of a loop this also puts the sum of the weights' cotangents over devices
    after the loop, once, instead of inside it.
    """
    together = _axes((tree, others))

    def vary(leaf: jax.Array) -> jax.Array:
        missing = tuple(sorted(together - _axes(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, tree) if together else tree


def check_alike(where: str, xs: jax.Array, **others: jax.Array | None) -> None:
    """Lengths or masks that are another device's share of the batch than `xs` are refused.

    What is the same on all devices passes, as what was made inside `shard_map` is.
    """
    for name, value in others.items():
        axes, expected = (frozenset() if value is None else _axes(value)), _axes(xs)
        if expected and axes - expected:
            raise ValueError(
                f"{where}: {name} expected the share of the batch that xs is, which varies over the mesh axes "
                f"{tuple(sorted(expected))}, got one that varies over {tuple(sorted(axes))}; shard it as xs"
            )


def varies(tree: PyTree) -> bool:
    """Whether any leaf differs between devices, as `shard_map` keeps account of it; without its checks nothing does."""
    return bool(_axes(tree))


def may_be_sharded(tree: PyTree) -> bool:
    """Whether the arrays of a computation may be spread over devices by the compiler.

    Sharded `jit` is not visible while tracing. A process with one device has none, and
    inside `shard_map` every device has its own arrays; elsewhere it may come.
    """
    return jax.device_count() > 1 and not varies(tree)
