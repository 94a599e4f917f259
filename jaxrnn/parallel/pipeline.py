"""Layers on different devices, which work on different chunks of time at once: a wavefront.

At tick k the device of layer l reads chunk k - l. The first layer reads the inputs; the others
read the outputs of the layer below at the tick before, sent by one `ppermute` a tick. C chunks
pass through L devices in C + L - 1 ticks. In the first and the last of them some devices have no
chunk, and what they compute is discarded.

    tick         0     1     2     3     4
    layer 0      0     1     2
    layer 1            0     1     2
    layer 2                  0     1     2        C = 3, L = 3
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from jaxrnn import _checks
from jaxrnn._types import AnyArray, Cell, Params, State
from jaxrnn.cells._step import cast_floating
from jaxrnn.cells.attend import sizes_of
from jaxrnn.network import output_size
from jaxrnn.parallel._meshes import automatic, axis_of, batch_axis_of
from jaxrnn.sequence.arguments import checkpoint_of, dtypes_of
from jaxrnn.sequence.masking import mask_of_lengths, select
from jaxrnn.sequence.registry import named
from jaxrnn.sequence.sharding import vary_like
from jaxrnn.sequence.unroll import unroll

WHERE = "pipeline"


class _Plan(NamedTuple):
    cell: Cell
    mesh: Mesh
    axis: str
    batch_axis: str | None
    chunk: int


def pipeline(
    cell: Cell, mesh: Mesh, axis: str = "layers", *, chunk: int, batch_axis: str | None = None
) -> Callable[..., tuple[State, Array]]:
    """A pipeline over chunks of time, of layers of one kind that are sharded over a mesh axis.

    The function returned gives what `stack([cell] * L).unroll` does, and `jax.grad` differentiates
    it: the backward pass runs the pipeline in reverse. Each device holds the parameters, states
    and gradients of its own L/n layers.

    Cost: a device is idle in n - 1 of T/chunk + n - 1 ticks; with chunks of at most T/(4n) steps
    this is a fifth of the time or less. A tick sends the outputs of one chunk, chunk * B * H
    numbers, to the next device, and the backward pass sends as many back. The outputs of the
    last layer, T B H numbers, go to all devices at the end.

    Args:
        cell: a cell whose outputs are as wide as its inputs. Run a first layer of another width
            before it, and a read-out after it.
        mesh: of `jax.make_mesh` or `jax.sharding.Mesh`, with `axis_types` of `AxisType.Auto`.
        axis: the mesh axis of the layers; its n devices divide their number L.
        chunk: the number of steps in a chunk; more than T make one chunk.
        batch_axis: the mesh axis over which the first batch axis is sharded, for data parallelism too.

    Returns:
        `(params, xs, states=None, *, lengths=None, mask=None, resets=None, checkpoint=None,
        compute_dtype=None, implementation=None, clip_gradient=None) -> (states, ys)`; call it
        under `jax.jit`. `xs` and `ys` are `(T, *B, H)`; `params` and `states` are those of the
        cell, every leaf with a first axis L:
        `jax.vmap(lambda key: cell.init(key, H))(jax.random.split(key, L))`, or from a stack's
        `jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)`. Store them with
        `NamedSharding(mesh, PartitionSpec(axis))`. The options are those of :func:`unroll`,
        within chunks: `checkpoint=chunk` keeps the state before each chunk.

    Raises:
        TypeError, ValueError: from this call for a mesh without the axes or a chunk that is
            not a positive integer; from the function for a number of layers that the devices
            do not divide, and for arguments that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> mesh = jax.make_mesh((1,), ("layers",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> cell = jaxrnn.gru(8)
        >>> params = jax.vmap(lambda key: cell.init(key, 8))(jax.random.split(jax.random.key(0), 3))
        >>> run = jax.jit(jaxrnn.pipeline(cell, mesh, chunk=5))
        >>> states, ys = run(params, jnp.ones((20, 4, 8)))
        >>> states.shape, ys.shape
        ((3, 4, 8), (20, 4, 8))

    References:
        Appleyard, Kočiský & Blunsom 2016, arXiv:1604.01946, section 3.3 (layers as a
        wavefront); Huang et al. 2019, arXiv:1811.06965 (idle time of a pipeline).
    """
    axis_of(WHERE, "axis", mesh, axis)
    automatic(WHERE, mesh)
    batch_axis_of(WHERE, mesh, batch_axis, axis, "layers")
    if not isinstance(cell, Cell):
        raise TypeError(f"{WHERE}: cell expected a Cell, got {_checks.describe(cell)}")
    if sizes_of(cell) is not None:
        raise NotImplementedError(
            f"{WHERE}: cell expected one that does not attend, got {_checks.describe(cell)}; a pipeline sends no memory"
        )
    if cell.sample is not None:
        warnings.warn(f"{WHERE}: the noise of {_checks.describe(cell)} is off: a pipeline draws none", stacklevel=2)
    plan = _Plan(cell, mesh, axis, batch_axis, _checks.positive_int(WHERE, "chunk", chunk))

    def run(
        params: Params,
        xs: AnyArray,
        states: State | None = None,
        *,
        lengths: AnyArray | None = None,
        mask: AnyArray | None = None,
        resets: AnyArray | None = None,
        checkpoint: str | int | None = None,
        compute_dtype: Any = None,
        implementation: str | None = None,
        clip_gradient: float | None = None,
    ) -> tuple[State, Array]:
        xs = _checks.floating(WHERE, "xs", xs)
        _check_inputs(plan, xs)
        layers = _check_layers(plan, params, xs)
        steps = xs.shape[:-1]
        if lengths is not None:
            if mask is not None:
                raise ValueError(f"{WHERE}: lengths and mask were both given, expected one")
            mask = mask_of_lengths(_checks.sequence_lengths(WHERE, lengths, steps[0], steps[1:]), steps[0])
        mask, resets = (
            None if value is None else _checks.step_mask(WHERE, name, value, steps)
            for name, value in (("mask", mask), ("resets", resets))
        )
        if mask is None and (not steps[0] or steps[0] % min(plan.chunk, steps[0])):
            mask = jnp.ones(steps, bool)  # the steps that fill the last chunk are masked
        dtypes = dtypes_of(WHERE, cell, params, xs, compute_dtype)
        initial = lambda: cell.initial_state((layers, *steps[1:]))  # noqa: E731
        if states is not None:
            _checks.state_like(WHERE, "states", states, jax.eval_shape(initial), "layers and xs")
        states = initial() if states is None else jax.tree.map(jnp.asarray, states)
        options = {
            "checkpoint": checkpoint_of(WHERE, checkpoint),
            "compute_dtype": compute_dtype,
            "implementation": named(WHERE, implementation),
            "clip_gradient": None
            if clip_gradient is None
            else _checks.positive_float(WHERE, "clip_gradient", clip_gradient),
        }
        over_time = (xs.astype(dtypes.output), mask, resets)  # as wide as outputs, which layers read
        return _run(plan, params, cast_floating(states, dtypes.state), over_time, options)

    return run


def _check_layers(plan: _Plan, params: Params, xs: Array) -> int:
    """The number of layers; raises unless the devices divide it and the params are those of the cell."""
    devices = plan.mesh.shape[plan.axis]
    _checks.numeric_leaves(WHERE, "params", params)
    sizes = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(params)}
    if len(sizes) != 1 or min(sizes) % devices or not min(sizes):
        raise ValueError(
            f"{WHERE}: params expected leaves with a first axis of layers that the {devices} devices of the mesh axis "
            f"{plan.axis!r} divide, got {_checks.describe(params)}"
        )
    check = plan.cell.check
    if check is not None:
        jax.eval_shape(lambda params: check(WHERE, jax.tree.map(lambda leaf: leaf[0], params), xs.shape), params)
    return sizes.pop()


def _check_inputs(plan: _Plan, xs: Array) -> None:
    """Raises unless the inputs are as wide as the outputs, and the devices divide their batch."""
    if xs.ndim < 2:
        raise ValueError(f"{WHERE}: xs expected shape (T, *B, H), got {xs.shape}")
    if plan.batch_axis is not None and (xs.ndim < 3 or xs.shape[1] % plan.mesh.shape[plan.batch_axis]):
        raise ValueError(
            f"{WHERE}: xs expected a batch axis 1 that the {plan.mesh.shape[plan.batch_axis]} devices of the mesh axis "
            f"{plan.batch_axis!r} divide, got shape {xs.shape}"
        )
    width = output_size(plan.cell)
    if xs.shape[-1] != width:
        raise ValueError(
            f"{WHERE}: xs expected shape (T, *B, {width}), as wide as the outputs of {_checks.describe(plan.cell)}, "
            f"got {xs.shape}; run a first layer of another width before"
        )


def _run(plan: _Plan, params: Params, states: State, over_time: Any, options: dict[str, Any]) -> tuple[State, Array]:
    """The `shard_map`; it replicates `over_time` over the layers' axis, in chunks `(C, K, *B, ·)`."""
    time = over_time[0].shape[0]
    chunk = min(plan.chunk, max(time, 1))
    chunks = max(1, -(-time // chunk))

    def chunked(leaf: Array) -> Array:
        filled = jnp.pad(leaf, [(0, chunks * chunk - time)] + [(0, 0)] * (leaf.ndim - 1))
        return filled.reshape(chunks, chunk, *leaf.shape[1:])

    def on_device(params: Params, states: State, over_time: Any) -> tuple[State, Array]:
        params, states, over_time = vary_like((params, states, over_time), jax.lax.axis_index(plan.axis))
        states, ys = _ticks(plan, params, states, over_time, options)
        return states, ys[None]

    by_layer = PartitionSpec(plan.axis)
    in_chunks = PartitionSpec(None, None, plan.batch_axis)
    held = PartitionSpec(plan.axis, plan.batch_axis)
    states, ys = jax.shard_map(
        on_device,
        mesh=plan.mesh,
        in_specs=(by_layer, held, in_chunks),
        out_specs=(held, PartitionSpec(plan.axis, None, None, plan.batch_axis)),
    )(params, states, jax.tree.map(chunked, over_time))
    ys = ys[-1]  # of the last device
    return states, ys.reshape(chunks * chunk, *ys.shape[2:])[:time]


def _ticks(plan: _Plan, params: Params, states: State, over_time: Any, options: dict[str, Any]) -> tuple[State, Array]:
    """One device's work in all ticks: its final states, and its outputs of every chunk."""
    device, devices = jax.lax.axis_index(plan.axis), jax.lax.axis_size(plan.axis)
    inputs = over_time[0]
    chunks = inputs.shape[0]

    def layers(states: State, x: Array, mask: Array | None, resets: Array | None) -> tuple[State, Array]:
        after = []
        for k in range(jax.tree.leaves(states)[0].shape[0]):
            own, state = jax.tree.map(lambda leaf, k=k: leaf[k], (params, states))
            state, x = unroll(plan.cell, own, x, state, mask=mask, resets=resets, key=None, **options)
            after.append(state)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *after), x

    def tick(carry: tuple[State, Array], now: Array) -> tuple[tuple[State, Array], Array]:
        states, below = carry
        chunk = now - device
        xs, mask, resets = jax.tree.map(lambda leaf: leaf[jnp.clip(chunk, 0, chunks - 1)], over_time)
        after, ys = layers(states, jnp.where(device == 0, xs, below), mask, resets)
        states = select((chunk >= 0) & (chunk < chunks), after, states)
        if devices > 1:
            below = jax.lax.ppermute(ys, plan.axis, [(k, k + 1) for k in range(devices - 1)])
        return (states, below), ys

    zeros = vary_like(jnp.zeros_like(inputs[0]), inputs)
    (states, _), ys = jax.lax.scan(tick, (states, zeros), jnp.arange(chunks + devices - 1, dtype=device.dtype))
    return states, ys[devices - 1 :]
