"""A sequence on several devices: inside `shard_map`, on a mesh with explicit axes, and with sharded units.

Inside `shard_map`, the carry of a loop must vary over the mesh axes that anything in the
loop varies over (`vary_like`).

With a placement, :class:`OnMesh` runs an implementation inside a `shard_map` of its own. A
device then holds, of every weight, the columns of its units, all gates of a unit together, and
runs a cell of those units alone. The recurrent matrix gathers what it reads from the other
devices once a step (:class:`jaxrnn.cells._algebra.Sharded`). Weights have their gates side by side
in memory, `(N, G*H)`. Reshaped to `(N, G, H)`, their last axis is the one that is sharded.
The blocks of a block-diagonal matrix are sharded over their first axis, so that a device holds
whole heads, and its recurrent product needs nothing from the others.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxrnn._bound import Bound
from jaxrnn._types import Equations, Params, Placement, PyTree, Rule, State
from jaxrnn._varying import vary_like as vary_like
from jaxrnn._varying import varying_axes
from jaxrnn.cells._algebra import Dropped, Sharded
from jaxrnn.cells._attention import Memory
from jaxrnn.sequence.request import Inputs, Options, Outcome
from jaxrnn.sequence.segments import Runs, segment_length

# Inside a `shard_map` that the user wrote


def align_carry(step: Callable[[PyTree], PyTree], carry: PyTree) -> PyTree:
    """The carry of a loop, sharded and varying over mesh axes as `step` returns it: a loop needs equal types.

    Outside of a mesh it is the carry itself.
    """
    if jax.sharding.get_abstract_mesh().empty and not varies(carry):
        return carry
    leaves, structure = jax.tree.flatten(carry)
    for _ in range(len(leaves) + 1):  # what one part gains may reach another one a step later
        types = jax.make_jaxpr(step)(jax.tree.unflatten(structure, leaves)).out_avals
        aligned = list(map(_as_type, leaves, types))
        if all(a is b for a, b in zip(aligned, leaves, strict=True)):
            break
        leaves = aligned
    return jax.tree.unflatten(structure, leaves)


def align_result(step: Callable[[PyTree], PyTree], given: PyTree, result: PyTree) -> PyTree:
    """`result`, sharded and varying over mesh axes as what `step` returns for `given`: branches need equal types."""
    if jax.sharding.get_abstract_mesh().empty and not varies(given):
        return result
    leaves, structure = jax.tree.flatten(result)
    types = jax.make_jaxpr(step)(given).out_avals
    return jax.tree.unflatten(structure, list(map(_as_type, leaves, types)))


def _as_type(leaf: Array, wanted: Any) -> Array:
    """A leaf with the sharding of a type, varying over its mesh axes too."""
    missing = tuple(sorted(wanted.manual_axis_type.varying - varying_axes(leaf)))
    leaf = jax.lax.pcast(leaf, missing, to="varying") if missing else leaf
    is_sharded = any(tuple(wanted.sharding.spec))
    if is_sharded and jax.typeof(leaf).sharding.spec != wanted.sharding.spec:
        leaf = jax.sharding.reshard(leaf, NamedSharding(wanted.sharding.mesh, wanted.sharding.spec))
    return leaf


def check_alike(where: str, xs: jax.Array, **others: jax.Array | None) -> None:
    """Raises if lengths or masks are another device's share of the batch than `xs`.

    Arrays that are the same on all devices pass, such as those made inside `shard_map`.
    """
    for name, value in others.items():
        axes, expected = (frozenset() if value is None else varying_axes(value)), varying_axes(xs)
        if expected and axes - expected:
            raise ValueError(
                f"{where}: {name} expected the share of the batch that xs is, which varies over the mesh axes "
                f"{tuple(sorted(expected))}, got one that varies over {tuple(sorted(axes))}; shard it as xs"
            )


def varies(tree: PyTree) -> bool:
    """Whether any leaf differs between devices, as `shard_map` records it. Without its checks none does."""
    return bool(varying_axes(tree))


def may_be_sharded(tree: PyTree) -> bool:
    """Whether the compiler may shard the arrays of a computation.

    Sharded `jit` is not visible while tracing. A process with one device has none. Inside
    `shard_map` every device has its own arrays.
    """
    return jax.device_count() > 1 and not varies(tree)


# With a placement


def _size(placement: Placement, axis: Any) -> int:
    axes = axis if isinstance(axis, tuple) else () if axis is None else (axis,)
    return math.prod(placement.mesh.shape[name] for name in axes)


def check_placement(where: str, cell: Any, placement: Placement, xs: Array) -> None:
    """Raises if a cell with this placement cannot run these inputs."""
    if cell.rule is None or cell.sample is not None:
        raise NotImplementedError(f"{where}: cell {cell!r} cannot be sharded by units; place a plain cell")
    if varies(xs):
        raise ValueError(
            f"{where}: cell {cell!r} is sharded by `unroll` itself, expected a call outside of shard_map; "
            "for the batch give model_parallel a batch_axis instead of data_parallel"
        )
    for k, (axis, size) in enumerate(zip(placement.batch, xs.shape[1:-1], strict=False)):
        if size % _size(placement, axis):
            raise ValueError(
                f"{where}: xs expected a batch axis {k + 1} that the {_size(placement, axis)} devices of the mesh "
                f"axis {axis!r} divide, got shape {xs.shape}"
            )


class OnMesh(NamedTuple):
    """Another run, on the devices of the placement."""

    inner: Runs

    def run(self, options: Options, inputs: Inputs) -> Outcome:
        placement = options.placement
        assert placement is not None
        batch_shape = inputs.batch_shape
        devices = math.prod(_size(placement, axis) for axis in placement.batch[: len(batch_shape)])
        here = options._replace(
            equations=local_equations(options.equations, placement),
            placement=None,
            segment=segment_length(inputs.time, math.prod(batch_shape) // devices),
            accumulate_once=False,
        )
        specs = _specs(placement, inputs)
        params = inputs.params
        if placement.hidden is not None:
            # By rows, so that gradients come back as parameters are stored, not whole on every device.
            params = jax.lax.with_sharding_constraint(params, row_shardings(params, placement))
            params = split_gates(params, jax.tree.leaves(inputs.state)[-1].shape[-1])
            specs = specs._replace(params=_unit_specs(inputs.params, placement))

        def shard(*arrays: Any) -> Outcome:
            local = Inputs(*arrays)
            if placement.hidden is not None:
                local = local._replace(params=join_gates(local.params, inputs.params))
            return self.inner.run(here, vary_like(local))

        over_time = PartitionSpec(None, *specs.state)
        run = jax.shard_map(
            shard, mesh=placement.mesh, in_specs=tuple(specs), out_specs=(specs.state, over_time, over_time)
        )
        return run(*inputs._replace(params=params))


class _Specs(NamedTuple):
    """Partition specs of the arrays of `Inputs`, field by field."""

    params: Any
    xs: PartitionSpec
    state: PartitionSpec
    reset_state: PartitionSpec
    mask: PartitionSpec
    resets: PartitionSpec
    borders: PartitionSpec


def _specs(placement: Placement, inputs: Inputs) -> _Specs:
    """How the inputs are sharded, with whole weights."""
    rank = len(inputs.batch_shape)
    batch = (*placement.batch, *[None] * rank)[:rank]
    state, over_time = PartitionSpec(*batch, placement.hidden), PartitionSpec(None, *batch)
    whole = PartitionSpec()

    def weight(w: Any) -> Any:
        if isinstance(w, Memory):  # of each sequence its own, or one for the last axes of the batch
            spec = PartitionSpec(*batch[rank - (w.values.ndim - 2) :])
            return jax.tree.map(lambda leaf: spec, w)
        return Dropped(whole, PartitionSpec(*batch)) if isinstance(w, Dropped) else whole  # pyright: ignore

    params = jax.tree.map(weight, inputs.params, is_leaf=lambda w: isinstance(w, (Dropped, Memory)))
    return _Specs(params, over_time, state, state, over_time, over_time, whole)


def seen_placement(inputs: Inputs) -> Placement | None:
    """The placement of inputs whose type shows a sharded batch: those on a mesh with axes of `AxisType.Explicit`."""
    xs = jax.tree.leaves(inputs.xs)[0]
    sharding = jax.typeof(xs).sharding
    batch = tuple(sharding.spec)[1:-1]
    if not any(batch) or varies(xs):
        return None
    return Placement(sharding.mesh, None, batch)


def reshard(inputs: Inputs, placement: Placement) -> Inputs:
    """The inputs sharded as `OnMesh` expects them, on a mesh whose axes are explicit."""

    def put(spec: Any, part: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, NamedSharding(placement.mesh, spec)), part)

    specs = _specs(placement, inputs)
    return Inputs(*(jax.tree.map(put, spec, part) for spec, part in zip(specs, inputs, strict=True)))


def row_shardings(params: Params, placement: Placement) -> PyTree:
    """How parameters are stored over the axis of the units: matrices by rows and blocks of heads by head.

    They are whole where it does not divide them.
    """
    devices = _size(placement, placement.hidden)

    def sharding(leaf: Any) -> NamedSharding:
        by_rows = len(leaf.shape) in (2, 3) and leaf.shape[0] % devices == 0
        return NamedSharding(placement.mesh, PartitionSpec(placement.hidden) if by_rows else PartitionSpec())

    return jax.tree.map(sharding, params)


def split_gates(params: Params, hidden: int) -> Params:
    """Every parameter but blocks of heads as `(..., G, H)`: G blocks of H units, or one of another size."""

    def split(leaf: Array) -> Array:
        if is_by_head(leaf):
            return leaf
        size = leaf.shape[-1]
        units = size if size % hidden else hidden
        return leaf.reshape(*leaf.shape[:-1], size // units, units)

    return jax.tree.map(split, params)


def _unit_specs(params: Params, placement: Placement) -> PyTree:
    """The partition specs of the units that own the entries of parameters, in the shape of `split_gates`."""

    def spec(leaf: Array) -> PartitionSpec:
        return PartitionSpec(*(() if is_by_head(leaf) else [None] * leaf.ndim), placement.hidden)

    return jax.tree.map(spec, params)


def join_gates(params: Params, whole: Params) -> Params:
    """The inverse of `split_gates` of the parameters `whole`, on the share of a device too."""

    def joined(w: Array, leaf: Array) -> Array:
        return w if is_by_head(leaf) else w.reshape(*w.shape[:-2], w.shape[-2] * w.shape[-1])

    return jax.tree.map(joined, params, whole)


def is_by_head(leaf: Array) -> bool:
    """Whether a parameter holds the blocks of a block-diagonal matrix, as no other does with three axes."""
    return leaf.ndim == 3


# The cell of one device's units, whose recurrent matrices read the units of all devices.


def _shard_matrices(rule: Rule, axis: str, params: Params) -> Params:
    names = [name for name in rule.matrices if name != "w_x" and getattr(params, name, None) is not None]
    matrices = [name for name in names if getattr(params, name).ndim == 2]
    return params._replace(**{name: Sharded(getattr(params, name), axis) for name in matrices})


def _on_shard(rule: Rule, axis: str, f: Any, params: Params, *args: Any) -> Any:
    return f(_shard_matrices(rule, axis, params), *args)


def _step_on_shard(rule: Rule, axis: str, params: Params, state: State, x: PyTree) -> tuple[State, PyTree]:
    params = _shard_matrices(rule, axis, params)
    return rule.forward(params, state, rule.project(params, x))[:2]


def local_equations(equations: Equations, placement: Placement) -> Equations:
    """The equations of a device's units, inside `shard_map`."""
    rule, axis = equations.rule, placement.hidden
    if axis is None or not isinstance(rule, Rule) or _size(placement, axis) == 1:
        return equations

    def on_shard(f: Any) -> Any:
        return Bound(_on_shard, rule, axis, f)

    local = Rule(
        project=on_shard(rule.project),
        forward=on_shard(rule.forward),
        backward=rule.backward if rule.prepare else on_shard(rule.backward),
        accumulate=on_shard(rule.accumulate),
        matrices=rule.matrices,
        prepare=on_shard(rule.prepare) if rule.prepare else None,
    )
    return Equations(Bound(_step_on_shard, rule, axis), local)
