"""The layers of a network: their directions, the walk over both, and how two directions become one output.

An entry of a tuple over layers is a layer, its parameters or its states.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrnn import _checks
from jaxrnn._types import AnyCell


class Bidirectional(NamedTuple):
    """The two cells, parameters or states of a layer that reads in both directions."""

    forward: Any
    backward: Any


Layer = AnyCell | Bidirectional


def directions(entry: Any) -> tuple[Any, ...]:
    """The parts of an entry, one a direction: two of a :class:`Bidirectional`, else the entry itself."""
    return tuple(entry) if isinstance(entry, Bidirectional) else (entry,)


def from_directions(parts: Sequence[Any]) -> Any:
    """The inverse of `directions`."""
    return Bidirectional(*parts) if len(parts) == 2 else parts[0]


class Direction(NamedTuple):
    """One cell of a network, with its parts of other trees, such as its parameters."""

    path: str  # after the name of a tuple over layers, such as "[0].forward"
    reverse: bool
    cell: Any
    parts: tuple[Any, ...]  # one of each tree that is walked with the layers


def walk_layer(k: int, layer: Any, *entries: Any) -> list[Direction]:
    """The directions of layer `k`, with their parts of its entries."""
    cells = directions(layer)
    parts = zip(*map(directions, entries), strict=True) if entries else ((),) * len(cells)
    names = [f".{name}" for name in Bidirectional._fields] if len(cells) == 2 else [""]
    return [
        Direction(f"[{k}]{name}", reverse, cell, tuple(own))
        for name, reverse, cell, own in zip(names, (False, True), cells, parts, strict=False)
    ]


def walk(layers: Sequence[Any], *trees: Sequence[Any]) -> Iterator[list[Direction]]:
    """The directions of every layer of a network, from the input up."""
    for k, (layer, *entries) in enumerate(zip(layers, *trees, strict=True)):
        yield walk_layer(k, layer, *entries)


def concat(forward: Array, backward: Array) -> Array:
    return jnp.concatenate([forward, backward], axis=-1)


def average(forward: Array, backward: Array) -> Array:
    return (forward + backward) / 2


Merge = Callable[[Array, Array], Array]


MERGES: dict[str, Merge] = {"concat": concat, "sum": jnp.add, "mul": jnp.multiply, "average": average}


def merge_of(merge: str | Merge) -> Merge:
    """The function that merges the outputs of two directions."""
    return MERGES[merge] if isinstance(merge, str) else merge


def merged(merge: str | Merge, outputs: Sequence[Array]) -> Array:
    """One output of those of a layer's directions."""
    return merge_of(merge)(*outputs) if len(outputs) == 2 else outputs[0]


def unmerged(merge: str | Merge, outputs: Sequence[Array], dys: Array) -> Sequence[Array]:
    """The cotangents of the outputs of a layer's directions, from that of the merged output."""
    if len(outputs) == 1:
        return (dys,)
    _, pull = jax.vjp(merge_of(merge), *(ys.astype(dys.dtype) for ys in outputs))
    return pull(dys)


def run_layers(
    plan: Any,
    run: Callable[[Direction, Any], tuple[Any, Array]],
    xs: Any,
    *trees: Sequence[Any],
    between: Callable[[int, Array], Array] = lambda k, ys: ys,
) -> tuple[list[list[Any]], Array]:
    """Runs every layer over the outputs of the one below it.

    `run(direction, xs) -> (kept, ys)` runs one direction, with its parts of the trees; `between(k, ys)`
    changes what the next layer reads. `plan` is a network or its plan.

    Returns:
        What was kept, by layer and direction, and the outputs of the last layer.
    """
    kept = []
    for k, ways in enumerate(walk(plan.layers, *trees)):
        found = [run(way, xs) for way in ways]
        kept.append([own for own, _ in found])
        outputs = [ys for _, ys in found]
        ys = merged(plan.merge, outputs)
        ys = ys + xs if plan.residual and k else ys
        xs = between(k, ys) if k < len(plan.layers) - 1 else ys
    return kept, xs


def check_layers(where: str, name: str, value: Any, layers: tuple[Layer, ...]) -> None:
    """Raises unless `value` is a tuple over layers, of one entry a direction each."""
    if not isinstance(value, tuple) or hasattr(value, "_fields") or len(value) != len(layers):
        raise TypeError(
            f"{where}: {name} expected a tuple over {len(layers)} layers, got {_checks.describe(value)}; "
            "those of a single cell are one entry of it"
        )
    for k, (layer, entry) in enumerate(zip(layers, value, strict=True)):
        check_directions(where, f"{name}[{k}]", layer, entry)


def check_directions(where: str, name: str, layer: Any, entry: Any) -> None:
    """Raises unless an entry has the directions of the layer it belongs to."""
    if len(directions(layer)) != len(directions(entry)):
        kind = "one direction" if len(directions(layer)) == 1 else "a Bidirectional(forward, backward)"
        raise TypeError(f"{where}: {name} expected {kind}, got {_checks.describe(entry)}")
