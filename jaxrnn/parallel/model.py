"""The units of a layer sharded over devices, for weights and states too large for one."""

from collections.abc import Callable
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array

from jaxrnn import _checks
from jaxrnn._describe import cut
from jaxrnn._types import Cell, Params, PlacedCell, Placement, PyTree
from jaxrnn.cells import FAMILIES
from jaxrnn.cells._activation import is_named, mixes_units
from jaxrnn.layers import from_directions, walk
from jaxrnn.network import Network, stack
from jaxrnn.parallel._meshes import automatic, axis_of, batch_axis_of
from jaxrnn.parallel._own_cells import check_own_cell
from jaxrnn.sequence.sharding import row_shardings

WHERE = "model_parallel"
CONFIGS = tuple(family.config for family in FAMILIES if family.by_units)


@overload
def model_parallel(model: Cell, mesh: Mesh, axis: str = "model", *, batch_axis: str | None = None) -> PlacedCell: ...


@overload
def model_parallel(model: Network, mesh: Mesh, axis: str = "model", *, batch_axis: str | None = None) -> Network: ...


def model_parallel(
    model: Cell | Network, mesh: Mesh, axis: str = "model", *, batch_axis: str | None = None
) -> PlacedCell | Network:
    """The same cell or network, with the hidden units of each layer sharded over a mesh axis.

    Each of the n devices along the axis holds the columns of its H/n units of every weight, all
    gates of a unit together, and computes their part of h_t and c_t. It receives the rest of
    h_{t-1} by one all-gather a step. Parameters, states, outputs, options and results are those
    of the model itself. States and outputs are returned sharded by unit, gradients of weights
    sharded as the weights are stored.

    Cost for each device and step with B sequences on it, in numbers of the dtype of the products:

    ======================  ==========================================  ====================
    when                    what                                        numbers received
    ======================  ==========================================  ====================
    each step forward       1 all-gather of h                           B H (n-1)/n
    each step backward      1 reduce-scatter of ∂L/∂h                   B H (n-1)/n
    each segment backward   1 all-gather of the states h of its steps   B H (n-1)/n a step
    a call                  1 all-to-all of each weight that is stored  I G H (n-1)/n², and
                            by rows (:func:`param_shardings`), and one  H G H (n-1)/n²
                            of its gradient
    a call, from layer 2    1 all-gather of the outputs below, and 1    T B H (n-1)/n, and
                            all-reduce of their cotangent               2 T B H (n-1)/n
    ======================  ==========================================  ====================

    A cell with heads (`num_heads` of :func:`lstm`, :func:`gru` and others) has none of the collectives of
    a step or segment, and no all-to-all of `w_h`: every device holds whole heads, which read no others.
    A projection, and `gru(reset_after=False)` and `mgu`, whose candidate depends on a gate, have
    two products in sequence and two all-gathers and reduce-scatters a step; `indrnn` has none.
    With n devices a step's product takes 1/n of the time and its weights 1/n of the memory, but
    an all-gather waits for the slowest device. It is worthwhile where a step's product takes more
    than about ten microseconds, or where the model does not fit otherwise.

    Args:
        model: a cell of the library, such as :func:`lstm` or :func:`gru`, or a network of them. A cell of your own
            needs a rule that multiplies by :func:`jaxrnn.dot` and the other public products: by `w_x` what it reads,
            by every other of `Rule.matrices` what all units have. One step on the devices' shares is compared with
            the whole here, in numbers up to 2²⁴ parameters.
        mesh: of `jax.make_mesh` or `jax.sharding.Mesh`, with `axis_types` of `AxisType.Auto`.
        axis: the mesh axis of the units; its size divides each H, the P of a projection, and the
            number of heads of a cell that has several.
        batch_axis: the mesh axis over which the first batch axis is sharded, for data parallelism
            as well: gradients of weights are then summed over it once a call.

    Returns:
        A model that is used as the one given: call `unroll` outside of `shard_map`, under
        `jax.jit`. The compiler shards `step`.

    Raises:
        TypeError, ValueError: for a mesh without the axes, or sizes that the devices do not divide.
        NotImplementedError: for layer normalisation, but by head, noise, and cells of your own whose units are not
            independent but for those products.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> net = jaxrnn.model_parallel(jaxrnn.stack([jaxrnn.lstm(8), jaxrnn.lstm(8)]), mesh)
        >>> params = net.init(jax.random.key(0), 3)
        >>> params = jax.device_put(params, jaxrnn.param_shardings(params, mesh))
        >>> states, ys = net.unroll(params, jnp.ones((5, 2, 3)), checkpoint="sqrt")
        >>> ys.shape
        (5, 2, 8)

    Differs from:
        1. `jax.jit` of parameters sharded by columns: gates lie side by side in them, so that the
           gates of a unit are on different devices. The compiler then moves gates every step, by
           13 collectives for an LSTM over 4 devices and 6 more backward.
    """
    axis_of(WHERE, "axis", mesh, axis)
    automatic(WHERE, mesh)
    batch_axis_of(WHERE, mesh, batch_axis, axis, "units")
    placement = Placement(mesh, axis, () if batch_axis is None else (batch_axis,))
    if isinstance(model, Cell):
        return _placed("model", model, placement)
    if not isinstance(model, Network):
        raise TypeError(f"{WHERE}: model expected a Cell or a Network, got {_checks.describe(model)}")
    layers = [
        from_directions([_placed(f"layers{way.path}", way.cell, placement) for way in ways])
        for ways in walk(model.layers)
    ]
    return stack(layers, merge=model.merge, dropout=model.dropout, residual=model.residual)


def param_shardings(params: Params, mesh: Mesh, axis: str = "model") -> PyTree:
    """Shardings in which to store a model-parallel network's parameters: matrices by rows over a mesh axis.

    The blocks of heads `(N, D, G*D)` are stored by head, as they are used.

    By rows, because a device's columns of the gates are not contiguous in `(N, G*H)`, so that no
    sharding describes them; :func:`model_parallel` exchanges rows for columns once a call. Biases,
    and matrices with a number of rows that the devices do not divide, are replicated. An
    optimizer's moments, which have the shapes of the parameters, use the same shardings.

    Args:
        params: arrays, or their shapes by `jax.eval_shape`: any pytree.
        mesh: a mesh with the axis.
        axis: its name.

    Returns:
        A `jax.sharding.NamedSharding` for each array: for `jax.device_put`, for `out_shardings`
        of a jitted `init`, so that no device holds all parameters, or to restore a checkpoint.

    Raises:
        TypeError, ValueError: for something that is not a mesh, or a mesh without the axis.

    Example:
        >>> import functools, jax, jaxrnn
        >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> init = functools.partial(jaxrnn.lstm(8).init, input_size=4)
        >>> shardings = jaxrnn.param_shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
        >>> params = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
        >>> tuple(params.w_h.sharding.spec)
        ('model',)

    Differs from:
        1. NNX: modules of :mod:`jaxrnn.modules` hold the same as metadata of their parameters, set
           by `recurrent_metadata={"out_sharding": ("model", None)}`.
    """
    where = "param_shardings"
    axis_of(where, "axis", mesh, axis)
    _checks.numeric_leaves(where, "params", params, or_shapes=True)
    return row_shardings(params, Placement(mesh, axis, ()))


def _placed(where: str, cell: Cell, placement: Placement) -> PlacedCell:
    """The cell with its placement; raises unless its units can be sharded."""
    config = cell.config
    heads = getattr(config, "num_heads", 1)
    is_ours = isinstance(config, CONFIGS) and not (getattr(config, "layer_norm", False) and heads == 1)
    if config is not None and not is_ours:
        names = ", ".join(each.factory for each in CONFIGS)
        raise NotImplementedError(
            f"{WHERE}: {where} expected a cell of {names} without layer normalisation of all units, or your own, "
            f"got {_checks.describe(cell)}; what a unit computes must not depend on the others but through matrices"
        )
    assert placement.hidden is not None
    devices = placement.mesh.shape[placement.hidden]
    for leaf in jax.tree.leaves(jax.eval_shape(cell.initial_state)):
        if leaf.shape[-1] % devices:
            raise ValueError(
                f"{WHERE}: {where} expected units that the {devices} devices of the mesh axis {placement.hidden!r} "
                f"divide, got {leaf.shape[-1]} in {_checks.describe(cell)}"
            )
    if heads > 1 and heads % devices:
        raise ValueError(
            f"{WHERE}: {where} expected a number of heads that the {devices} devices of the mesh axis "
            f"{placement.hidden!r} divide, got {heads} in {_checks.describe(cell)}; a device holds whole heads"
        )
    if not isinstance(config, CONFIGS):
        expected = f"{WHERE}: {where} expected a rule whose units read each other by jaxrnn.dot with params.w_h alone"
        check_own_cell(expected, cell, placement)
    else:
        _check_activation(where, cell, config.hidden_size, devices)
    return PlacedCell(cell, placement)


def _check_activation(where: str, cell: Cell, hidden_size: int, devices: int) -> None:
    """Raises unless the activations do the same to every unit, so that a device can apply them to its own."""
    for option in ("activation", "recurrent_activation"):
        activation: Any = getattr(cell.config, option, "tanh")
        if not is_named(activation):
            _check_function(where, cell, activation, hidden_size, devices)


def _check_function(
    where: str, cell: Cell, activation: Callable[[Array], Array], hidden_size: int, devices: int
) -> None:
    expected = f"{WHERE}: {where} expected an activation that does the same to every unit by itself, as every device"
    try:
        mixes = any(mixes_units(activation, size) for size in (hidden_size, hidden_size // devices))
        differs = devices > 1 and _differs_by_unit(activation, hidden_size)
    except Exception as error:
        raise NotImplementedError(
            f"{expected} has some of them, got {_checks.describe(cell)}, which raises {cut(str(error))}"
        ) from error
    if mixes or differs:
        raise NotImplementedError(f"{expected} has some of them, got {_checks.describe(cell)}")


def _differs_by_unit(activation: Callable[[Array], Array], hidden_size: int) -> bool:
    """Whether units with one preactivation get different values; what is traced cannot be seen."""
    with jax.ensure_compile_time_eval():
        values = [activation(jnp.full((hidden_size,), a, jnp.result_type(float))) for a in (-1.5, 0.5, 2.5)]
    known = [np.asarray(value) for value in values if not isinstance(value, Tracer)]
    return any((value != value[:1]).any() for value in known)
