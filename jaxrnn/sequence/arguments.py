"""The arguments of `unroll`, validated in one place and made into a request."""

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from jaxrnn import _checks, _describe
from jaxrnn._types import CELL_TYPES, Cell, Params, PlacedCell, PyTree, Rule, State
from jaxrnn.cells._activation import GatePhis, Phi
from jaxrnn.cells._family import FamilyConfig
from jaxrnn.cells._step import cast_floating, check_dtype_of_state, is_complex
from jaxrnn.sequence.inspection import closes_over_traced_values, has_field, is_own, widened_matrices
from jaxrnn.sequence.masking import mask_of_lengths, resets_on_entry, window_borders
from jaxrnn.sequence.request import (
    CLOSURES,
    COMPLEX,
    PLATFORMS,
    SYMBOLIC_BATCH,
    SYMBOLIC_TIME,
    Device,
    Inputs,
    Options,
    Request,
)
from jaxrnn.sequence.segments import is_symbolic, segment_length
from jaxrnn.sequence.sharding import (
    check_alike,
    check_placement,
    may_be_sharded,
    reshard,
    seen_placement,
    varies,
    vary_like,
)
from jaxrnn.sequence.structure import check_forward


class Given(NamedTuple):
    """The keyword arguments of `unroll` as the user gave them, without the implementation."""

    lengths: Any = None
    mask: Any = None
    resets: Any = None
    reset_state: Any = None
    reverse: Any = False
    return_states: Any = False
    checkpoint: Any = None
    compute_dtype: Any = None
    truncate: Any = None
    clip_gradient: Any = None
    key: Any = None


def validate(cell: Any, params: Params, xs: Any, state: State | None, given: Given, where: str = "unroll") -> Request:
    """The request that a call of `unroll` makes, or of a function `where` with its arguments.

    Raises:
        TypeError, ValueError, NotImplementedError: as `unroll` does.
    """
    check_cell(where, cell)
    cell, placement = cell if isinstance(cell, PlacedCell) else (cell, None)
    xs = _checks.floating(where, "xs", xs)
    if xs.ndim < 2:
        raise ValueError(f"{where}: xs expected shape (T, *B, I), got {xs.shape}; a sequence of scalars has I = 1")
    if cell.check is not None:
        cell.check(where, params, xs.shape)
    if placement is not None:
        check_placement(where, cell, placement, xs)
    device, is_varying = device_of(xs), varies((params, xs))
    inputs, options = _arrays(where, cell, params, xs, state, given), _options(where, cell, given)
    dtypes = dtypes_of(where, cell, params, xs, given.compute_dtype)
    check_dtype_of_state(where, inputs.state, dtypes.state, "params and xs")
    if options.clip_gradient is not None and is_complex(inputs.state):
        raise NotImplementedError(
            f"{where}: clip_gradient expected None for {cell!r}, whose state is complex, got {options.clip_gradient}; "
            "complex numbers have no order to clip by"
        )
    inputs = cast_floating(inputs, dtypes.state)
    if dtypes.compute is not None:
        _check_products(where, cell, inputs, dtypes.compute)
    closes = closes_over_traced_values(cell, inputs)
    if not closes:
        check_forward(where, cell, inputs)
    key = None if given.key is None else _checks.key(where, "key", given.key)
    if key is not None and cell.sample is not None:
        params, sampled = cell.sample(key, inputs.params, inputs.xs)
        inputs = inputs._replace(params=params, xs=sampled)
    if placement is None:
        inputs = vary_like(inputs)
        placement = seen_placement(inputs)
        inputs = inputs if placement is None else reshard(inputs, placement)
    options = options._replace(
        compute_dtype=dtypes.compute,
        output_dtype=dtypes.output,
        placement=placement,
        segment=segment_length(inputs.time, math.prod(inputs.batch_shape)),
        accumulate_once=options.keep_gates and may_be_sharded(inputs),
        takes_batch_axes=placement is None and _takes_batch_axes(cell, inputs, options),
    )
    features = _features(given, options, dtypes.state, device, is_varying)
    also = {
        CLOSURES: closes,
        COMPLEX: is_complex(inputs.state),
        SYMBOLIC_TIME: is_symbolic(inputs.time),
        SYMBOLIC_BATCH: is_symbolic(*inputs.batch_shape),
    }
    features = features | {name for name, is_asked in also.items() if is_asked}
    return Request(options, inputs, features, device, repr(cell))


def _arrays(where: str, cell: Cell, params: Params, xs: Array, state: State | None, given: Given) -> Inputs:
    """The arrays, checked but for those of the parameters, in the dtypes they came in."""
    time, batch_shape = xs.shape[0], xs.shape[1:-1]
    expected = jax.eval_shape(lambda: cell.initial_state(batch_shape))
    for name, value in (("state", state), ("reset_state", given.reset_state)):
        if value is not None:
            _checks.state_like(where, name, value, expected)
    reverse = _checks.boolean(where, "reverse", given.reverse)
    mask, resets, reset_state = _mask(where, given, time, batch_shape), given.resets, given.reset_state
    if resets is not None:
        resets = resets_on_entry(_checks.step_mask(where, "resets", resets, (time, *batch_shape)), reverse)
        reset_state = cell.initial_state(batch_shape) if reset_state is None else reset_state
    elif reset_state is not None:
        raise ValueError(f"{where}: reset_state expected None without resets, got {_checks.describe(reset_state)}")
    check_alike(where, xs, **{"lengths" if given.lengths is not None else "mask": mask}, resets=resets)
    truncate = None if given.truncate is None else _checks.positive_int(where, "truncate", given.truncate)
    state = cell.initial_state(batch_shape) if state is None else state
    inputs = Inputs(params, xs, state, reset_state, mask, resets, window_borders(time, truncate, reverse))
    return jax.tree.map(jnp.asarray, inputs)


def _mask(where: str, given: Given, time: int, batch_shape: tuple[int, ...]) -> Any:
    if given.lengths is not None and given.mask is not None:
        raise ValueError(f"{where}: lengths and mask were both given, expected one; a mask says all that lengths can")
    if given.lengths is not None:
        return mask_of_lengths(_checks.sequence_lengths(where, given.lengths, time, batch_shape), time)
    return None if given.mask is None else _checks.step_mask(where, "mask", given.mask, (time, *batch_shape))


BATCHED = ("rnn", "lstm", "gru", "mgu")  # whose loops take the axis of a `vmap`, with the same program without one


def _takes_batch_axes(cell: Cell, inputs: Inputs, options: Options) -> bool:
    """Whether the loop may get more batch axes: all sequences share every parameter, and it is in one piece."""
    if not isinstance(cell.config, FamilyConfig) or cell.config.factory not in BATCHED:
        return False
    if is_own(cell.rule) and is_own(cell.rule, (GatePhis, Phi)):  # a rule put in the place of the library's
        return False
    return inputs.borders is None and options.checkpoint in (None, "gates")


def _options(where: str, cell: Cell, given: Given) -> Options:
    """The options that do not depend on the arrays."""
    clip = given.clip_gradient
    return Options(
        equations=cell.equations,
        reverse=_checks.boolean(where, "reverse", given.reverse),
        return_states=_checks.boolean(where, "return_states", given.return_states),
        checkpoint=checkpoint_of(where, given.checkpoint),
        clip_gradient=None if clip is None else _checks.positive_float(where, "clip_gradient", clip),
    )


def checkpoint_of(where: str, checkpoint: Any) -> Any:
    """`checkpoint`, checked."""
    if checkpoint is None or (isinstance(checkpoint, str) and checkpoint in ("gates", "sqrt")):
        return checkpoint
    if isinstance(checkpoint, str):
        got = _describe.quote(checkpoint)
        raise ValueError(f"{where}: checkpoint expected None, 'gates', 'sqrt' or a number of steps; got {got}")
    return _checks.positive_int(where, "checkpoint", checkpoint)


def _features(given: Given, options: Options, dtype: Any, device: Device, is_varying: bool) -> frozenset[str]:
    """What the request asks of an implementation."""
    placement, checkpoint = options.placement, options.checkpoint
    asked = {
        "lengths": given.lengths is not None,
        "mask": given.mask is not None,
        "resets": given.resets is not None,
        "reverse": options.reverse,
        "return_states": options.return_states,
        'checkpoint="gates"': checkpoint == "gates",
        "checkpoint=K": checkpoint not in (None, "gates"),
        "compute_dtype": options.compute_dtype is not None,
        "truncate": given.truncate is not None,
        "clip_gradient": options.clip_gradient is not None,
        "shard_map with its checks": is_varying,
        "model_parallel": placement is not None and placement.hidden is not None,
        "a batch on an explicit mesh": placement is not None and placement.hidden is None,
        "bfloat16, float16": dtype in (jnp.bfloat16, jnp.float16),
        "float32": dtype == jnp.float32,
        "float64": dtype == jnp.float64,
        PLATFORMS.get(device.platform, device.platform): True,
    }
    return frozenset(name for name, is_asked in asked.items() if is_asked)


class Dtypes(NamedTuple):
    """The dtype of the operands of products, if one is named; that of states and gates; that of outputs."""

    compute: Any
    state: Any
    output: Any


def dtypes_of(where: str, cell: Cell, params: Params, xs: Array, compute_dtype: Any) -> Dtypes:
    """The dtypes that a call computes in. Products of `compute_dtype` accumulate in float32 at least."""
    if compute_dtype is None:
        dtype = jnp.result_type(xs, *_floats(params))
        return Dtypes(None, dtype, dtype)
    compute_dtype = _compute_dtype(where, compute_dtype, cell)
    accumulator = compute_dtype if jnp.finfo(compute_dtype).bits > 32 else jnp.dtype(jnp.float32)
    return Dtypes(compute_dtype, accumulator, xs.dtype)


def _floats(tree: PyTree) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]


def _compute_dtype(where: str, compute_dtype: Any, cell: Cell) -> Any:
    dtype = _checks.float_dtype(where, "compute_dtype", compute_dtype, narrow=True)
    if not isinstance(cell.rule, Rule) or not cell.rule.matrices:
        raise NotImplementedError(
            f"{where}: compute_dtype does not support {_checks.describe(cell)}, which has no rule that names "
            "its matrices"
        )
    return dtype


def _check_products(where: str, cell: Cell, inputs: Inputs, compute_dtype: Any) -> None:
    """Raises unless the rule multiplies its matrices in `compute_dtype`."""
    assert isinstance(cell.rule, Rule)
    for name in cell.rule.matrices:
        if not has_field(inputs.params, name):
            raise NotImplementedError(
                f"{where}: compute_dtype expected a rule whose matrices are fields of params, NamedTuples of arrays, "
                f"but that of {_checks.describe(cell)} names {_checks.quote(name)}, "
                f"got {_checks.describe(inputs.params)}"
            )
    for name in widened_matrices(cell, inputs, compute_dtype):
        raise NotImplementedError(
            f"{where}: compute_dtype expected a rule that multiplies params.{name} in its own dtype, but that of "
            f"{_checks.describe(cell)} multiplies it in another one than {compute_dtype.name}; use jaxrnn.dot and "
            "dot_transposed, or cast the other operand to the matrix' dtype and give the product preferred_element_type"
        )


def check_cell(where: str, cell: Any, name: str = "cell") -> None:
    """Raises unless `cell` is a :class:`jaxrnn.Cell`, placed on a mesh or not."""
    if isinstance(cell, CELL_TYPES):
        return
    hint = "wrap your functions as jaxrnn.Cell(init, initial_state, step)"
    if hasattr(cell, "network"):
        hint = "call the module itself, or its network.unroll(module.params, xs)"
    elif hasattr(cell, "unroll"):
        hint = "call net.unroll(params, xs)"
    elif hasattr(cell, "cell"):
        hint = "give the module's cell and its params"
    raise TypeError(f"{where}: {name} expected a jaxrnn.Cell, got {_checks.describe(cell)}; {hint}")


def warn_of_silence(where: str, has_noise: bool, model: Any) -> None:
    """Warns the caller's caller that noise is off, if there is any."""
    if has_noise:
        warnings.warn(
            f"{where}: key was not given, so the noise of {_describe.cut(str(model), 120)} is off; "
            "give a key to train, key=None to evaluate",
            stacklevel=3,
        )


def device_of(xs: Any) -> Device:
    """The device of concrete inputs; while tracing, the one that this process computes on by default.

    Starts JAX's devices if nothing has. It cannot foresee that a program traced here is lowered
    for another platform.
    """
    if isinstance(xs, jax.Array) and not isinstance(xs, Tracer):
        device = next(iter(xs.devices()))
    else:
        # A device, a platform's name, or None
        default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
        device = default if isinstance(default, jax.Device) else jax.devices(default)[0]
    platform = device.platform
    if platform == "gpu":  # JAX's one name for both makers
        platform = "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"
    return Device(platform, device.device_kind)
