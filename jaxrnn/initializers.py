"""Where parameters start. Any initialiser of :mod:`jax.nn.initializers` serves as well.

Cells draw every gate's block on its own, so an initialiser sees ``(I, H)`` or ``(H, H)``,
never the stacked ``(I, G*H)``: "orthogonal" means one orthogonal matrix a gate, and the
fans of Glorot are those of a gate. Bias initialisers see the names of all gates at once,
because some of them tie one gate to another.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrnn._types import BiasInitializer, Initializer

glorot_uniform = jax.nn.initializers.glorot_uniform
orthogonal = jax.nn.initializers.orthogonal


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def torch_uniform() -> Initializer:
    """U(-1/√H, 1/√H), H being the last axis: where every parameter of `torch.nn.LSTM` starts.

    References:
        torch.nn.RNNBase.reset_parameters.
    """

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        bound = 1.0 / math.sqrt(max(shape[-1], 1))
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def identity(scale: float = 1.0) -> Initializer:
    """`scale` times the identity: the recurrent weight of an IRNN, for ReLU units.

    Args:
        scale: 1 in the paper; its speech task takes 0.01 to forget sooner.

    References:
        Le, Jaitly & Hinton 2015, arXiv:1504.00941, section 3.
    """
    if not _is_number(scale):
        raise TypeError(f"identity: scale expected a number, got {scale!r}")

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        del key
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"identity: shape expected a square (H, H), got {tuple(shape)}; use it for recurrent_init")
        return jnp.asarray(scale, dtype) * jnp.eye(shape[0], dtype=dtype)

    return init


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
    for name, value in {"default": default, **gates}.items():
        if not _is_number(value):
            raise TypeError(f"gate_bias: {name} expected a number, got {value!r}")

    def init(key: Array, names: tuple[str, ...], hidden_size: int, dtype: Any) -> Array:
        del key
        unknown = sorted(set(gates) - set(names))
        if unknown:
            raise ValueError(f"gate_bias: gate {unknown[0]!r} is not one of this cell's: {', '.join(names)}")
        return jnp.concatenate([jnp.full((hidden_size,), gates.get(name, default), dtype) for name in names])

    return init


def torch_uniform_bias() -> BiasInitializer:
    """U(-1/√H, 1/√H) for every gate.

    Differs from PyTorch:
        1. torch adds two biases, each drawn so; here there is one (a GRU's `b_hn` is
           drawn apart), and its variance is half of that of torch's sum.
    """

    def init(key: Array, names: tuple[str, ...], hidden_size: int, dtype: Any) -> Array:
        bound = 1.0 / math.sqrt(hidden_size)
        return jax.random.uniform(key, (len(names) * hidden_size,), dtype, -bound, bound)

    return init


def chrono(max_time: int) -> BiasInitializer:
    """Biases that spread the units' memories over 1 to `max_time` steps.

    b_f ~ log U(1, max_time - 1) and b_i = -b_f for the LSTM; for the GRU, whose update
    gate keeps, b_z ~ log U(1, max_time - 1). Every other bias is 0.

    Args:
        max_time: the longest dependency to expect, in steps; at least 3.

    References:
        Tallec & Ollivier 2018, arXiv:1804.11188, "chrono initialization".
    """
    if not isinstance(max_time, int) or isinstance(max_time, bool):
        raise TypeError(f"chrono: max_time expected a number of steps, got {max_time!r}")
    if max_time < 3:
        raise ValueError(f"chrono: max_time expected at least 3 steps, got {max_time}")

    def init(key: Array, names: tuple[str, ...], hidden_size: int, dtype: Any) -> Array:
        kept = jnp.log(jax.random.uniform(key, (hidden_size,), dtype, 1.0, max_time - 1.0))
        keep_gate = "f" if {"f", "g"} <= set(names) else "z"
        if keep_gate not in names:
            raise ValueError(f"chrono: expected an LSTM or a GRU, got a cell with the gates {', '.join(names)}")
        biases = {keep_gate: kept}
        if keep_gate == "f":
            biases["i"] = -kept
        return jnp.concatenate([biases.get(name, jnp.zeros((hidden_size,), dtype)) for name in names])

    return init


def draw_gates(initializer: Initializer, key: Array, gates: int, shape: tuple[int, int], dtype: Any) -> Array:
    """One block of `shape` a gate, side by side: `(rows, gates * columns)`.

    Drawn in float32 at least: the decomposition behind `orthogonal` knows no narrower dtype.
    """
    drawn = dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
    keys = jax.random.split(key, gates)
    return jnp.concatenate([initializer(k, shape, drawn) for k in keys], axis=-1).astype(dtype)
