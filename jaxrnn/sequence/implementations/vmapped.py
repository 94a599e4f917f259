"""A run over time whose batch may get another axis from `jax.vmap`.

Under `jax.vmap` with shared weights, JAX's rule for a function with a hand-written derivative makes the weight
gradient of every element, and sums them where the gradient is taken outside of the `vmap`. Here the axis that
`vmap` adds becomes a batch axis of the loop instead, so that a program with `vmap` is the program with that batch
axis. This is decided where `vmap` comes before the derivative: in `grad(sum(vmap(f)))`. In `vmap(grad(f))`, which asks
for the gradient of every element, and where the weights have the axis too, JAX's rule is what is meant.

A primitive is needed: the derivative of a `jax.custom_batching.custom_vmap` is its own function's, not its rule's.
It exists while tracing alone. Under a derivative, and in a compiled program, the traced run stands in its place.

A run with effects has no such primitive: an activation that prints, or reads other elements by `axis_name`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from jaxrnn._types import PyTree
from jaxrnn.sequence.request import Inputs, Options, Outcome
from jaxrnn.sequence.segments import segment_length

Run = Callable[..., Any]  # of `Options`, and of the fields of `Inputs` one by one, to an `Outcome`

primitive = Primitive("over_time")
primitive.multiple_results = True


def with_batch_axes(run: Run, options: Options, inputs: Inputs) -> Outcome:
    """`run(options, *inputs)`, to which `jax.vmap` over anything but the parameters adds a batch axis.

    Only for a rule that takes any number of batch axes, and parameters without any.
    """
    leaves, structure = jax.tree.flatten(inputs)
    of_leaves = lambda *leaves: run(options, *jax.tree.unflatten(structure, leaves))  # noqa: E731
    traced, shapes = jax.make_jaxpr(of_leaves, return_shape=True)(*leaves)
    if traced.effects:
        return run(options._replace(takes_batch_axes=False), *inputs)
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    given = {"run": run, "options": options, "structure": structure, "precision": precision}
    found = primitive.bind(*leaves, traced=traced, **given)
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _call(*leaves: Any, traced: ClosedJaxpr, **_: Any) -> Sequence[Any]:
    return jaxpr_as_fun(traced)(*leaves)


def _jvp(leaves: Sequence[Any], tangents: Sequence[Any], *, traced: ClosedJaxpr, **_: Any) -> Any:
    """The derivative of the traced run, by the leaves that have a tangent."""
    places = [k for k, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]

    def of_active(*active: Any) -> Sequence[Any]:
        every = list(leaves)
        for k, leaf in zip(places, active, strict=True):
            every[k] = leaf
        return jaxpr_as_fun(traced)(*every)

    return jax.jvp(of_active, [leaves[k] for k in places], [tangents[k] for k in places])


def _batch(
    leaves: Sequence[Any],
    axes: Sequence[int | None],
    *,
    traced: ClosedJaxpr,
    run: Run,
    options: Options,
    structure: Any,
    precision: Any,
) -> tuple[Sequence[Any], Sequence[int]]:
    inputs, of = Inputs(*jax.tree.unflatten(structure, leaves)), Inputs(*jax.tree.unflatten(structure, axes))
    shared = *_axes(inputs.params, of.params), *_axes(inputs.borders, of.borders)
    if any(axis is not None for axis in shared) or any(map(_is_sharded, leaves, axes)):
        found = jax.vmap(jaxpr_as_fun(traced), in_axes=tuple(axes))(*leaves)
        return found, [0] * len(found)
    size = next(leaf.shape[axis] for leaf, axis in zip(leaves, axes, strict=True) if axis is not None)
    first, second = _mover(size, 0), _mover(size, 1)
    inputs = Inputs(
        params=inputs.params,
        xs=_map(second, inputs.xs, of.xs),
        state=_map(first, inputs.state, of.state),
        reset_state=_map(first, inputs.reset_state, of.reset_state),
        mask=_map(second, inputs.mask, of.mask),
        resets=_map(second, inputs.resets, of.resets),
        borders=inputs.borders,
    )
    options = options._replace(segment=segment_length(inputs.time, math.prod(inputs.batch_shape)))
    with jax.default_matmul_precision(precision):  # that of the call, which `vmap` may be outside of
        final, ys, states = with_batch_axes(run, options, inputs)
    parts = (final, 0), (ys, 1), (states, 1)
    return jax.tree.leaves((final, ys, states)), [axis for part, axis in parts for _ in jax.tree.leaves(part)]


def _is_sharded(leaf: Any, axis: int | None) -> bool:
    """Whether the new axis of an array is sharded over an explicit mesh: then all of a loop has to be."""
    return axis is not None and tuple(jax.typeof(leaf).sharding.spec)[axis : axis + 1] not in ((), (None,))


def _mover(size: int, to: int) -> Callable[[Any, int | None], Array]:
    """A function that puts the new axis of an array in its place; an array without one is repeated."""

    def move(leaf: Any, axis: int | None) -> Array:
        if axis is not None:
            return jnp.moveaxis(leaf, axis, to)
        shape = (*leaf.shape[:to], size, *leaf.shape[to:])
        return jnp.broadcast_to(jnp.expand_dims(leaf, to), shape)

    return move


def _axes(tree: PyTree, axes: PyTree) -> list[int | None]:
    """The axes of the leaves of a tree; `None` is no structure here."""
    return jax.tree.structure(tree).flatten_up_to(axes)


def _map(f: Callable[[Any, int | None], Array], tree: PyTree, axes: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, list(map(f, leaves, _axes(tree, axes))))


# The forward pass of a derivative, as one equation: it is not split into what a derivative needs and what it does not.

whole = Primitive("forward_over_time")
whole.multiple_results = True


def as_one_equation(f: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`f(*args)`, which JAX does not look into where it takes a derivative; results that are equal are one."""
    leaves, structure = jax.tree.flatten(args)
    traced, shapes = jax.make_jaxpr(lambda *leaves: f(*jax.tree.unflatten(structure, leaves)), return_shape=True)(
        *leaves
    )
    if traced.effects:
        return f(*args)
    different = list(dict.fromkeys(traced.jaxpr.outvars))
    once = ClosedJaxpr(traced.jaxpr.replace(outvars=different), traced.consts)
    found = dict(zip(different, whole.bind(*leaves, traced=once), strict=True))
    return jax.tree.unflatten(jax.tree.structure(shapes), [found[each] for each in traced.jaxpr.outvars])


def _batch_whole(
    leaves: Sequence[Any], axes: Sequence[int | None], *, traced: ClosedJaxpr
) -> tuple[Sequence[Any], Sequence[int]]:
    found = jax.vmap(jaxpr_as_fun(traced), in_axes=tuple(axes))(*leaves)
    return found, [0] * len(found)


for each, batch in ((primitive, _batch), (whole, _batch_whole)):
    each.def_impl(_call)
    each.def_abstract_eval(lambda *leaves, traced, **_: traced.out_avals)
    ad.primitive_jvps[each] = _jvp
    batching.primitive_batchers[each] = batch
    mlir.register_lowering(each, mlir.lower_fun(_call, multiple_results=True))
