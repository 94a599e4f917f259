"""A sequence on several devices, each with its units of the cell and its share of the batch.

Inside `shard_map` a device holds of every weight the columns of its units, all gates of a
unit together, and runs a cell of those units alone; the recurrent matrix gathers what it
reads from the other devices, once a step (:class:`jaxrnn.cells._algebra.Shared`). Weights
stand in memory with their gates side by side, `(N, G*H)`; seen as `(N, G, H)` the last axis
is the one that is cut.
"""

import math
from typing import Any, NamedTuple, cast

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxrnn._types import Cell, Params, Placement, PyTree, Rule, State
from jaxrnn.cells._algebra import Dropped, Shared
from jaxrnn.sequence.plan import Inputs, Plan
from jaxrnn.sequence.segments import Run, segment_length
from jaxrnn.sequence.varying import varies, vary_like


def check_placement(where: str, cell: Cell, xs: Array) -> None:
    """The placed cell can run these inputs."""
    placement = cell.placement
    assert placement is not None
    if cell.rule is None or cell.sample is not None:
        raise NotImplementedError(f"{where}: cell {cell!r} cannot share its units out over devices; place a plain cell")
    if varies(xs):
        raise ValueError(
            f"{where}: cell {cell!r} shares its work out itself, expected a call outside of shard_map; "
            "for the batch give model_parallel a batch_axis in the place of data_parallel"
        )
    for k, (axis, size) in enumerate(zip(placement.batch, xs.shape[1:-1], strict=False)):
        if size % _size(placement, axis):
            raise ValueError(
                f"{where}: xs expected a batch axis {k + 1} that the {_size(placement, axis)} devices of the mesh "
                f"axis {axis!r} divide, got shape {xs.shape}"
            )


class Placed(NamedTuple):
    """`run` on the devices of the cell's placement. A record, so that equal ones compile once."""

    run: Run

    def __call__(self, plan: Plan, inputs: Inputs) -> tuple[State, PyTree, State | None]:
        placement = plan.cell.placement
        assert placement is not None
        time, *batch_shape = jax.tree.leaves(inputs.xs)[0].shape[:-1]
        devices = math.prod(_size(placement, axis) for axis in placement.batch[: len(batch_shape)])
        here = plan._replace(
            cell=_own_units(plan.cell, placement),
            segment=segment_length(time, math.prod(batch_shape) // devices),
            accumulate_once=False,
        )
        specs = _specs(placement, inputs)
        params = inputs.params
        if placement.units is not None:
            # By rows, so that gradients come back as parameters are stored, not whole on every device.
            params = jax.lax.with_sharding_constraint(params, row_shardings(params, placement))
            params = _gates_apart(params, jax.tree.leaves(inputs.state)[-1].shape[-1])
            cut = jax.tree.map(lambda leaf: PartitionSpec(*[None] * (leaf.ndim - 1), placement.units), params)
            specs = specs._replace(params=cut)

        def share(inputs: Inputs) -> tuple[State, PyTree, State | None]:
            if placement.units is not None:
                inputs = inputs._replace(params=_gates_together(inputs.params))
            return self.run(here, vary_like(inputs))

        every = PartitionSpec(None, *specs.state)
        run = jax.shard_map(share, mesh=placement.mesh, in_specs=(specs,), out_specs=(specs.state, every, every))
        return run(inputs._replace(params=params))


def _specs(placement: Placement, inputs: Inputs) -> Inputs:
    """Where the devices' parts of the inputs lie, weights whole."""
    batch_rank = jax.tree.leaves(inputs.xs)[0].ndim - 2
    batch = (*placement.batch, *[None] * batch_rank)[:batch_rank]
    every = PartitionSpec(*batch, placement.units), PartitionSpec(None, *batch), PartitionSpec(*batch), PartitionSpec()
    state, over_time, by_sequence, whole = cast(tuple[Any, ...], every)

    def weight(w: Any) -> Any:  # each sequence drops units of its own
        return Dropped(whole, by_sequence) if isinstance(w, Dropped) else whole

    params = jax.tree.map(weight, inputs.params, is_leaf=lambda w: isinstance(w, Dropped))
    return Inputs(params, over_time, state, over_time, over_time, state, whole)


def seen_placement(inputs: Inputs) -> Placement | None:
    """That of inputs whose type says that their batch is sharded: those on a mesh with axes of `AxisType.Explicit`."""
    xs = jax.tree.leaves(inputs.xs)[0]
    sharding = jax.typeof(xs).sharding
    batch = tuple(sharding.spec)[1:-1]
    if not any(batch) or varies(xs):
        return None
    return Placement(sharding.mesh, None, batch)


def resharded(inputs: Inputs, placement: Placement) -> Inputs:
    """All of them where `Placed` wants them, on a mesh whose axes are explicit."""

    def put(spec: Any, part: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, NamedSharding(placement.mesh, spec)), part)

    specs = _specs(placement, inputs)
    return Inputs(*(jax.tree.map(put, spec, part) for spec, part in zip(specs, inputs, strict=True)))


def row_shardings(params: Params, placement: Placement) -> PyTree:
    """How parameters are stored: matrices by rows over the axis of the units, what these do not divide whole."""
    devices = _size(placement, placement.units)

    def sharding(leaf: Any) -> NamedSharding:
        by_rows = len(leaf.shape) == 2 and leaf.shape[0] % devices == 0
        return NamedSharding(placement.mesh, PartitionSpec(placement.units) if by_rows else PartitionSpec())

    return jax.tree.map(sharding, params)


def _size(placement: Placement, axis: Any) -> int:
    axes = axis if isinstance(axis, tuple) else () if axis is None else (axis,)
    return math.prod(placement.mesh.shape[name] for name in axes)


def _gates_apart(params: Params, hidden: int) -> Params:
    """Every parameter as `(..., G, H)`: G blocks of H units, or one block of another size, as of a projection."""

    def apart(leaf: Array) -> Array:
        size = leaf.shape[-1]
        units = size if size % hidden else hidden
        return leaf.reshape(*leaf.shape[:-1], size // units, units)

    return jax.tree.map(apart, params)


def _gates_together(params: Params) -> Params:
    """The inverse of `_gates_apart`, and of a device's part of it."""
    return jax.tree.map(lambda w: w.reshape(*w.shape[:-2], w.shape[-2] * w.shape[-1]), params)


def _own_units(cell: Cell, placement: Placement) -> Cell:
    """The cell of one device's units, whose recurrent matrices read those of all."""
    rule, axis = cell.rule, placement.units
    if axis is None or rule is None or _size(placement, axis) == 1:
        return cell._replace(placement=None)

    def shared(params: Params) -> Params:
        names = [name for name in rule.matrices if name != "w_x" and getattr(params, name, None) is not None]
        matrices = [name for name in names if getattr(params, name).ndim == 2]
        return params._replace(**{name: Shared(getattr(params, name), axis) for name in matrices})

    def step(params: Params, state: State, x: PyTree) -> tuple[State, PyTree]:
        params = shared(params)
        return rule.forward(params, state, rule.project(params, x))[:2]

    prepare = rule.prepare
    own = Rule(
        project=lambda params, xs: rule.project(shared(params), xs),
        forward=lambda params, state, z: rule.forward(shared(params), state, z),
        backward=rule.backward if prepare else lambda params, *args: rule.backward(shared(params), *args),
        accumulate=lambda params, *args: rule.accumulate(shared(params), *args),
        matrices=rule.matrices,
        prepare=(lambda params: prepare(shared(params))) if prepare else None,
    )
    return cell._replace(rule=own, step=step, placement=None)
