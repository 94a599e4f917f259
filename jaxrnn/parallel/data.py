"""A batch sharded over devices or CPU cores, each of which runs its own loop over time."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxrnn import _checks, _describe
from jaxrnn._types import PyTree
from jaxrnn.cells._step import BATCH_AXIS, inside_data_parallel

AXIS = BATCH_AXIS
WHERE = "data_parallel"
MOST_AXES = 64  # of an array of NumPy


def data_parallel(
    f: Callable[..., PyTree],
    in_axes: Sequence[int | None],
    out_axes: Any = None,
    *,
    devices: Sequence[Any] | None = None,
) -> Callable[..., PyTree]:
    """Runs `f` on every device's shard of a batch; its results are averaged over devices or joined.

    If `f` returns means over its batch, such as the value and gradient of a mean loss, the
    function returned gives means over the whole batch. Devices exchange only these results, once
    a call: there is no collective in a loop over time. What belongs to single sequences, such as
    the state between two chunks of a stream, stays on its device.

    Args:
        f: takes arrays or pytrees of them, and returns a pytree of arrays. Inside it
            `jax.lax.axis_index("batch")` is the number of the device.
        in_axes: for each argument of `f` the batch axis of all its leaves, or `None` for
            an argument that is replicated, such as parameters.
        out_axes: `None` for a result that is averaged, which must be floating-point; for any
            other the batch axis of all its leaves. One for all results, or a tuple as `f` returns
            them, nested or not: `((None, 0), None)` for `((loss, states), gradients)`.
        devices: by default all of `jax.devices()`. To make each CPU core a device, call
            `jax.config.update("jax_num_cpu_devices", os.cpu_count())` before JAX is used.

    Returns:
        A function of the same arguments, by position or by name; call it under `jax.jit`.

    Raises:
        TypeError, ValueError: from this call for bad axes or no devices; from the
            function returned for another number of arguments, a leaf without that axis,
            an axis that the devices do not divide, or results that `out_axes` does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.gru(8)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> def loss(params, state, xs, target):
        ...     state, ys = jaxrnn.unroll(cell, params, xs, state)
        ...     return jnp.mean((ys - target) ** 2), state
        >>> f = jax.value_and_grad(loss, has_aux=True)
        >>> step = jax.jit(jaxrnn.data_parallel(f, (None, 0, 1, 1), ((None, 0), None)))
        >>> state = cell.initial_state((8,))
        >>> for xs in jnp.ones((3, 20, 8, 3)):  # three chunks of a stream
        ...     (value, state), gradients = step(params, state, xs, jnp.zeros((20, 8, 8)))
        >>> state.shape, gradients.w_h.shape
        ((8, 8), (8, 24))

    Differs from:
        1. `jax.jit` of arrays sharded over a mesh: there too every device runs its own loop, but
           the compiler does not know that segments need no exchange. So weight gradients wait
           for the end of the sequence, and with `checkpoint` they are summed over devices once a
           segment. On a mesh whose axes are `AxisType.Explicit`, as `jax.make_mesh` makes them,
           within `jax.set_mesh(mesh)`, `unroll` sees the sharding and does the same as this function.
        2. `jax.pmap`: this is an ordinary traced function; inputs need no leading device axis.
        3. A replicated random key draws the same noise on every device. Give
           `jax.random.split(key, len(devices))` with axis 0, and use `key[0]` in `f`; or
           fold in the number of the device.
        4. With lengths, a mean over valid steps is not the mean of the devices' means: let
           `f` return sums, of the loss and of the steps, and divide one mean by the other.
    """
    _checks.function(WHERE, "f", f, "of arrays")
    if not isinstance(in_axes, Sequence) or isinstance(in_axes, (str, bytes)):
        raise TypeError(f"{WHERE}: in_axes expected a sequence, one entry an argument, got {_checks.describe(in_axes)}")
    for axis in in_axes:
        _check_axis("in_axes", axis, "argument")
    for axis in _checks.leaves(WHERE, "out_axes", out_axes, _is_none):
        _check_axis("out_axes", axis, "result")
    chosen = None if devices is None else _checked_devices(devices)

    def run(*args: PyTree, **named: PyTree) -> PyTree:
        used = jax.devices() if chosen is None else chosen
        args = _by_position(f, args, named) if named else args
        if len(args) != len(in_axes):
            raise TypeError(f"{WHERE}: expected {len(in_axes)} arguments, one for each of in_axes, got {len(args)}")
        for k, (axis, arg) in enumerate(zip(in_axes, args, strict=True)):
            _checks.numeric_leaves(WHERE, f"argument {k}", arg)
            if axis is not None:
                _check_divides(k, axis, arg, len(used))

        def on_device(*args: PyTree) -> PyTree:
            # Varying, so that gradients taken in `f` are not summed over devices there.
            pairs = zip(in_axes, args, strict=True)
            with inside_data_parallel():
                results = f(*(jax.lax.pcast(a, AXIS, to="varying") if axis is None else a for axis, a in pairs))
            return _over_results(lambda axis, r: jax.lax.pmean(r, AXIS) if axis is None else r, out_axes, results)

        mesh = Mesh(np.asarray(used), (AXIS,))
        in_specs = tuple(_spec(axis) for axis in in_axes)
        out_specs = jax.tree.map(_spec, out_axes, is_leaf=_is_none)
        try:
            return jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(*args)
        except TypeError as error:
            if "manual axis types do not match" not in str(error):
                raise
            raise TypeError(
                f"{WHERE}: a loop in f carries a value that begins the same on every device and then differs, such as "
                "zeros made in f; make it of an argument, as jnp.zeros_like(x), or give it "
                f"jax.lax.pcast(zeros, '{AXIS}', to='varying'); that of initial_state of a library's cell is right"
            ) from error

    return run


def _by_position(f: Callable[..., PyTree], args: tuple[PyTree, ...], named: dict[str, PyTree]) -> tuple[PyTree, ...]:
    """Arguments given by name, in the order of the signature of `f`, which is that of `in_axes`."""
    try:
        bound = inspect.signature(f).bind(*args, **named)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{WHERE}: the arguments do not fit those of f: {_describe.cut(str(error))}") from error
    if bound.kwargs:
        raise TypeError(
            f"{WHERE}: expected arguments that f takes by position too, as in_axes has one entry for each of those; "
            f"got {_describe.listed(bound.kwargs)} by name"
        )
    return bound.args


def _is_none(axis: Any) -> bool:
    return axis is None


def _check_axis(name: str, axis: Any, what: str) -> None:
    if axis is not None and not (_checks.is_integer(axis) and 0 <= axis < MOST_AXES):
        got = _checks.quote(axis)
        raise ValueError(f"{WHERE}: {name} expected None or the number of an axis for each {what}, got {got}")


def _checked_devices(devices: Any) -> list[Any]:
    """The devices as a list."""
    is_sequence = isinstance(devices, Sequence) or (isinstance(devices, np.ndarray) and devices.ndim == 1)
    if not is_sequence or not all(isinstance(each, jax.Device) for each in devices):
        got = _checks.describe(devices)
        raise TypeError(f"{WHERE}: devices expected a sequence of devices, as of jax.devices(), got {got}")
    if not len(devices):
        raise ValueError(f"{WHERE}: devices expected at least one, got none")
    if len(set(devices)) < len(devices):
        raise ValueError(f"{WHERE}: devices expected each device once, got {_checks.describe(devices)}")
    return list(devices)


def _spec(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)


def _over_results(f: Callable[[int | None, PyTree], PyTree], out_axes: Any, results: PyTree) -> PyTree:
    """`f(axis, results)` for every entry of `out_axes`, which is a tree prefix of `results`."""

    def checked(axis: int | None, part: PyTree) -> PyTree:
        for leaf in jax.tree.leaves(part):
            if not _checks.is_array(leaf):
                raise TypeError(f"{WHERE}: f expected to return arrays, got {_checks.describe(leaf)} in its results")
            if axis is None and not jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
                raise TypeError(
                    f"{WHERE}: out_axes expected the batch axis of a result that is not floating-point, which has no "
                    f"mean; got None for {_checks.describe(leaf)}"
                )
            if axis is not None and leaf.ndim <= axis:
                raise ValueError(f"{WHERE}: out_axes has axis {axis} for a result of shape {leaf.shape} on each device")
        return f(axis, part)

    try:
        jax.tree.map(lambda axis, part: None, out_axes, results, is_leaf=_is_none)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{WHERE}: out_axes expected one entry, or a tuple as f returns them, for {_checks.describe(results)}; "
            f"got {_describe.cut(repr(out_axes))}"
        ) from error
    return jax.tree.map(checked, out_axes, results, is_leaf=_is_none)


def _check_divides(argument: int, axis: int, tree: PyTree, devices: int) -> None:
    for leaf in jax.tree.leaves(tree):
        shape = np.shape(leaf)
        if len(shape) <= axis:
            raise ValueError(f"{WHERE}: argument {argument} expected arrays with an axis {axis}, got shape {shape}")
        if shape[axis] % devices:
            raise ValueError(
                f"{WHERE}: argument {argument} expected a batch axis {axis} that {devices} devices divide, "
                f"got shape {shape}; choose another batch size, or fewer `devices`"
            )
