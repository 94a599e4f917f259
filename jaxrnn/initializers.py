"""Initial values of parameters. Any initialiser of :mod:`jax.nn.initializers` works as well.

Cells draw every gate's block on its own, so an initialiser sees ``(I, H)`` or ``(H, H)``,
never the stacked ``(I, G*H)``: "orthogonal" means one orthogonal matrix a gate, and the
fans of Glorot are those of a gate. With heads it sees ``(D, D)``, D = H/N, once a gate and
head. Bias initialisers of this module see the names of all gates at once, because some of
them tie one gate to another; one of JAX's draws each gate's ``(H,)``.

What these functions return compares by value and can be pickled.
"""

import dataclasses
import inspect
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrnn import _checks, _describe
from jaxrnn._bound import Bound


@runtime_checkable
class Initializer(Protocol):
    """Draws an array: the signature of everything in :mod:`jax.nn.initializers`."""

    def __call__(self, key: Array, shape: Any, dtype: Any = ..., /) -> Array: ...


@runtime_checkable
class BiasInitializer(Protocol):
    """Draws the biases of all gates of a cell, in the order of ``gates``: ``(G*H,)``."""

    def __call__(self, key: Array, gates: tuple[str, ...], hidden_size: int, dtype: Any, /) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Initializers:
    """What draws the parameters of a cell: `w_x`, the recurrent matrices, and the biases."""

    kernel: Initializer
    recurrent: Initializer
    bias: BiasInitializer | Initializer


def _draw_by_jax(name: str, options: tuple[Any, ...], key: Array, shape: Any, *dtype: Any) -> Array:
    try:
        return getattr(jax.nn.initializers, name)(*options)(key, shape, *dtype)
    except IndexError as error:
        raise ValueError(f"{name}: expected axes that the shape {tuple(shape)} has, got {options}") from error


MOST_AXES = 64  # of an array of NumPy


def _axis(where: str, name: str, axis: Any) -> int:
    if not (_checks.is_integer(axis) and -MOST_AXES <= axis < MOST_AXES):
        raise TypeError(f"{where}: {name} expected the number of an axis, got {_describe.describe(axis)}")
    return int(axis)


def _axes(where: str, name: str, axes: Any) -> int | tuple[int, ...]:
    if not isinstance(axes, Sequence) or isinstance(axes, (str, bytes)):
        return _axis(where, name, axes)
    if len(set(axes := tuple(_axis(where, name, axis) for axis in axes))) < len(axes):
        raise ValueError(f"{where}: {name} expected each axis once, got {_describe.describe(axes)}")
    return axes


def _dtype(where: str, dtype: Any) -> Any:
    return None if dtype is None else _checks.float_dtype(where, "dtype", dtype)


def _finite(where: str, name: str, value: Any) -> float:
    value = _checks.number(where, name, value)
    if not math.isfinite(value):
        raise ValueError(f"{where}: {name} expected a finite number, got {value}")
    return value


def glorot_uniform(in_axis: Any = -2, out_axis: Any = -1, batch_axis: Any = (), dtype: Any = None) -> Initializer:
    """:func:`jax.nn.initializers.glorot_uniform`: U(±√(6 / (fan_in + fan_out))).

    References:
        Glorot & Bengio 2010, equation 16.
    """
    where = "glorot_uniform"
    names = {"in_axis": in_axis, "out_axis": out_axis, "batch_axis": batch_axis}
    axes = tuple(_axes(where, name, axis) for name, axis in names.items())
    return Bound(_draw_by_jax, where, (*axes, _dtype(where, dtype)))


def orthogonal(scale: float = 1.0, column_axis: int = -1, dtype: Any = None) -> Initializer:
    """:func:`jax.nn.initializers.orthogonal`: `scale` times an orthogonal matrix, uniformly drawn.

    References:
        Saxe, McClelland & Ganguli 2014, arXiv:1312.6120.
    """
    where = "orthogonal"
    axis = _axis(where, "column_axis", column_axis)
    return Bound(_draw_by_jax, where, (_finite(where, "scale", scale), axis, _dtype(where, dtype)))


def uniform(scale: float = 1e-2, dtype: Any = None) -> Initializer:
    """:func:`jax.nn.initializers.uniform`: U(0, `scale`)."""
    return Bound(_draw_by_jax, "uniform", (_finite("uniform", "scale", scale), _dtype("uniform", dtype)))


def torch_uniform() -> Initializer:
    """U(-1/√H, 1/√H), with H the last axis: the distribution of every parameter of `torch.nn.LSTM`.

    References:
        torch.nn.RNNBase.reset_parameters.
    """
    return _torch_uniform


def _torch_uniform(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    bound = 1.0 / math.sqrt(max(shape[-1], 1))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def identity(scale: float = 1.0) -> Initializer:
    """`scale` times the identity: the recurrent weight of an IRNN, for ReLU units.

    Args:
        scale: 1 in the paper; its speech task takes 0.01 to forget sooner.

    References:
        Le, Jaitly & Hinton 2015, arXiv:1504.00941, section 3.
    """
    return Bound(_identity, _finite("identity", "scale", scale))


def _identity(scale: float, key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    del key
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"identity: shape expected a square (H, H), got {tuple(shape)}; use it for recurrent_init")
    return jnp.asarray(scale, dtype) * jnp.eye(shape[0], dtype=dtype)


def gate_bias(default: float = 0.0, **gates: float) -> BiasInitializer:
    """A constant for each gate by name: `gate_bias(f=1.0)` opens the forget gate.

    Args:
        default: the bias of every gate that is not named.
        **gates: values by the gate's letter, as in the cell's docstring.

    Raises:
        ValueError: when parameters are made for a cell without such a gate.

    References:
        Gers, Schmidhuber & Cummins 2000 for the forget gate; Jozefowicz, Zaremba &
        Sutskever 2015, section 2.2, for the value 1.
    """
    values = {name: _checks.number("gate_bias", name, value) for name, value in {"default": default, **gates}.items()}
    for name, value in values.items():
        if math.isnan(value):
            raise ValueError(f"gate_bias: {name} expected a number, got nan")
    return Bound(_gate_bias, values.pop("default"), tuple(sorted(values.items())))


def _gate_bias(
    default: float,
    gates: tuple[tuple[str, float], ...],
    key: Array,
    names: tuple[str, ...],
    hidden_size: int,
    dtype: Any,
) -> Array:
    del key
    values = dict(gates)
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(f"gate_bias: gate {_describe.quote(unknown[0])} is not one of this cell's: {', '.join(names)}")
    return jnp.concatenate([jnp.full((hidden_size,), values.get(name, default), dtype) for name in names])


def torch_uniform_bias() -> BiasInitializer:
    """U(-1/√H, 1/√H) for every gate.

    Differs from PyTorch:
        1. torch adds two biases, each drawn so; here there is one (a GRU's `b_hn` is
           drawn apart), and its variance is half of that of torch's sum.
    """
    return _torch_uniform_bias


def _torch_uniform_bias(key: Array, names: tuple[str, ...], hidden_size: int, dtype: Any) -> Array:
    bound = 1.0 / math.sqrt(hidden_size)
    return jax.random.uniform(key, (len(names) * hidden_size,), dtype, -bound, bound)


def chrono(max_time: int) -> BiasInitializer:
    """Biases that spread the units' memories over 1 to `max_time` steps.

    b_f ~ log U(1, max_time - 1) and b_i = -b_f for the LSTM; for the GRU, whose update
    gate keeps, b_z ~ log U(1, max_time - 1), and for the minimal GRU, whose gate writes, b_z is minus that. Every other
    bias is 0.

    Args:
        max_time: the longest dependency to expect, in steps; at least 3.

    References:
        Tallec & Ollivier 2018, arXiv:1804.11188, "chrono initialization".
    """
    if not _checks.is_integer(max_time):
        raise TypeError(f"chrono: max_time expected a number of steps, got {_describe.describe(max_time)}")
    if max_time < 3:
        raise ValueError(f"chrono: max_time expected at least 3 steps, got {_describe.quote(max_time)}")
    return Bound(_chrono, _checks.size("chrono", "max_time", max_time))


def _chrono(max_time: int, key: Array, names: tuple[str, ...], hidden_size: int, dtype: Any) -> Array:
    drawn = dtype if max_time <= float(jnp.finfo(dtype).max) else jnp.float32
    kept = jnp.log(jax.random.uniform(key, (hidden_size,), drawn, 1.0, max_time - 1.0)).astype(dtype)
    keep_gate = "f" if {"f", "g"} <= set(names) else "z"
    if keep_gate not in names or {"f", "z"} <= set(names):  # z of an sLSTM is no gate
        raise ValueError(f"chrono: expected an LSTM or a GRU, got a cell with the gates {', '.join(names)}")
    writes = keep_gate == "z" and "r" not in names  # the minimal GRU's
    biases = {keep_gate: -kept if writes else kept}
    if keep_gate == "f":
        biases["i"] = -kept
    return jnp.concatenate([biases.get(name, jnp.zeros((hidden_size,), dtype)) for name in names])


def powerlaw_forget(num_heads: int = 1, depth: float = 0.0) -> BiasInitializer:
    """Forget gates spread by a power law over the units of each head, from open to closed; every other bias is 0.

    b_f of unit k of the D units of a head is 5 - 12 (k / (D-1))^(0.3 + 1.3 depth). With one unit it is 5.

    Args:
        num_heads: N of the cell.
        depth: of the layer, from 0, the first of a network, to 1, the last: l / (L-1) of layer l = 0..L-1.
            Deeper layers have more units whose gate is open.

    Raises:
        TypeError, ValueError: for a depth outside [0, 1]; when parameters are made for a cell without a gate f,
            or whose units `num_heads` does not divide.

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.slstm(3, bias_init=jaxrnn.initializers.powerlaw_forget(depth=1.0))
        >>> [round(float(b), 2) for b in cell.init(jax.random.key(0), 2).b[3:6]]  # of i, then f
        [5.0, 1.04, -7.0]

    References:
        Beck et al. 2024, arXiv:2405.04517, whose code initialises sLSTM so.
    """
    num_heads = _checks.size("powerlaw_forget", "num_heads", num_heads)
    depth = _checks.number("powerlaw_forget", "depth", depth)
    if not 0 <= depth <= 1:
        raise ValueError(
            f"powerlaw_forget: depth expected a number from 0 to 1, got {depth}; it is l / (L-1) of layer l of L"
        )
    return Bound(_powerlaw_forget, num_heads, depth)


def _powerlaw_forget(
    num_heads: int, depth: float, key: Array, names: tuple[str, ...], hidden_size: int, dtype: Any
) -> Array:
    del key
    if "f" not in names:
        raise ValueError(f"powerlaw_forget: expected a cell with a gate f, got one with the gates {', '.join(names)}")
    if hidden_size % num_heads:
        raise ValueError(
            f"powerlaw_forget: num_heads expected a number that divides hidden_size = {hidden_size}, got {num_heads}"
        )
    size = hidden_size // num_heads
    position = jnp.arange(size, dtype=jnp.float32) / max(size - 1, 1)
    forget = jnp.tile(5 - 12 * position ** (0.3 + 1.3 * depth), num_heads).astype(dtype)
    zeros = jnp.zeros((hidden_size,), dtype)
    return jnp.concatenate([forget if name == "f" else zeros for name in names])


def draw_gates(
    where: str, initializer: Initializer, key: Array, gates: int, shape: tuple[int, int], dtype: Any
) -> Array:
    """One block of `shape` a gate, side by side: `(rows, gates * columns)`.

    Drawn in float32 at least: the decomposition in `orthogonal` does not support a narrower dtype.
    """
    drawn = dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
    blocks = [draw(where, initializer, k, shape, drawn) for k in jax.random.split(key, gates)]
    return jnp.concatenate(blocks, axis=-1).astype(dtype)


def draw_heads(where: str, initializer: Initializer, key: Array, shape: tuple[int, int, int], dtype: Any) -> Array:
    """The blocks `(N, D, G*D)` of a block-diagonal matrix: one block of `(D, D)` for each gate of each head.

    Drawn under `jax.vmap`, so that many heads take one program.
    """
    heads, size, columns = shape

    def block(key: Array) -> Array:
        return draw_gates(where, initializer, key, columns // size, (size, size), dtype)

    return jax.vmap(block)(jax.random.split(key, heads))


def draw_biases(
    where: str, initializer: Any, key: Array, gates: tuple[str, ...], hidden_size: int, dtype: Any
) -> Array:
    """The biases of all gates, `(G*H,)`, by an initialiser that sees all gates, or one of JAX's, which draws each."""
    if _sees_gates(initializer):
        return _checked(where, initializer, (len(gates) * hidden_size,), (key, gates, hidden_size, dtype))
    keys = jax.random.split(key, len(gates))
    return jnp.concatenate([draw(where, initializer, k, (hidden_size,), dtype) for k in keys])


def draw(where: str, initializer: Initializer, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of `shape`, by an initialiser that has the signature of JAX's.

    Raises:
        ValueError: if the initialiser does not support the shape, or returns something else.
    """
    return _checked(where, initializer, shape, (key, shape, dtype))


def _checked(where: str, initializer: Any, shape: tuple[int, ...], args: tuple[Any, ...]) -> Array:
    try:
        drawn = initializer(*args)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where} cannot draw shape {shape}: {_describe.cut(str(error), 240)}") from error
    if getattr(drawn, "shape", None) != shape:
        raise ValueError(f"{where} expected an array of shape {shape}, got {_describe.describe(drawn)}")
    return drawn


def _sees_gates(initializer: Any) -> bool:
    """Whether it has the signature of :class:`BiasInitializer`, and not JAX's, `(key, shape, dtype)`."""
    try:
        parameters = inspect.signature(initializer).parameters.values()
    except (TypeError, ValueError):
        return True
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in by_position if p.default is p.empty]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) and len(required) < 4:
        return len(by_position) < 2
    return len(required) > 2 and len(by_position) > 3 and by_position[2].name != "dtype"
