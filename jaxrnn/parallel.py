"""A batch shared out over devices, CPU cores among them: each runs its own loop over time."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxrnn import _checks
from jaxrnn._types import PyTree

AXIS = "batch"


def data_parallel(
    f: Callable[..., PyTree],
    in_axes: Sequence[int | None],
    *,
    devices: Sequence[Any] | None = None,
) -> Callable[..., PyTree]:
    """`f` on every device's share of a batch, its results averaged over the devices.

    Where `f` gives means over its batch, as the value and gradient of a mean loss are, so
    does the function returned, over the whole batch. Devices exchange nothing but these
    results, once a call: no collective stands in a loop over time.

    Args:
        f: takes arrays or pytrees of them, and returns a pytree of floating-point arrays.
        in_axes: for each argument of `f` the batch axis of all its leaves, or `None` for
            what every device gets whole, such as parameters.
        devices: by default all of `jax.devices()`. For one device a core of a CPU, call
            `jax.config.update("jax_num_cpu_devices", os.cpu_count())` before JAX is used.

    Returns:
        A function of the same positional arguments, to be called under `jax.jit`.

    Raises:
        TypeError, ValueError: from this call for a bad `in_axes` or no devices; from the
            function returned for another number of arguments, a leaf without that axis,
            or an axis that the devices do not divide.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.gru(8)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> def loss(params, xs, target):
        ...     return jnp.mean((jaxrnn.unroll(cell, params, xs)[1] - target) ** 2)
        >>> step = jax.jit(jaxrnn.data_parallel(jax.value_and_grad(loss), in_axes=(None, 1, 1)))
        >>> value, gradients = step(params, jnp.ones((20, 8, 3)), jnp.zeros((20, 8, 8)))
        >>> gradients.w_h.shape
        (8, 24)

    Differs from:
        1. `jax.jit` of arrays that are sharded over a mesh: the compiler leaves every device
           a loop of its own there too, but cannot see that segments need no exchange, so
           weight gradients wait for the end of the sequence.
        2. `jax.pmap`: it is an ordinary traced function; inputs need no leading device axis.
        3. A random key given whole draws the same noise on every device. Give
           `jax.random.split(key, len(devices))` with axis 0, and use `key[0]` in `f`.
    """
    where = "data_parallel"
    if not isinstance(in_axes, Sequence):
        raise TypeError(f"{where}: in_axes expected a sequence, one entry an argument, got {_checks.describe(in_axes)}")
    for axis in in_axes:
        if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int) or axis < 0):
            raise ValueError(f"{where}: in_axes expected None or the number of an axis for each argument, got {axis!r}")
    if devices is not None and not len(devices):
        raise ValueError(f"{where}: devices expected at least one, got none")

    whole = [k for k, axis in enumerate(in_axes) if axis is None]

    def run(*args: PyTree) -> PyTree:
        among = jax.devices() if devices is None else list(devices)
        if len(args) != len(in_axes):
            raise TypeError(f"{where}: expected {len(in_axes)} arguments, one for each of in_axes, got {len(args)}")
        for k, (axis, arg) in enumerate(zip(in_axes, args, strict=True)):
            if axis is not None:
                _check_divides(where, k, axis, arg, len(among))
        if len(among) == 1:
            return f(*args)

        def share(*args: PyTree) -> PyTree:
            # Varying, so that what is differentiated in `f` is not summed over devices there.
            local = [jax.lax.pcast(a, AXIS, to="varying") if k in whole else a for k, a in enumerate(args)]
            return jax.lax.pmean(f(*local), AXIS)

        specs = tuple(PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS) for axis in in_axes)
        mesh = Mesh(np.asarray(among), (AXIS,))
        return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(*args)

    return run


def _check_divides(where: str, argument: int, axis: int, tree: PyTree, devices: int) -> None:
    for leaf in jax.tree.leaves(tree):
        shape = np.shape(leaf)
        if len(shape) <= axis:
            raise ValueError(f"{where}: argument {argument} expected arrays with an axis {axis}, got shape {shape}")
        if shape[axis] % devices:
            raise ValueError(
                f"{where}: argument {argument} expected a batch axis {axis} that {devices} devices divide, "
                f"got shape {shape}; choose another batch size, or fewer `devices`"
            )
