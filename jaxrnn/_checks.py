"""Checks of what users pass in: each error names function, argument, expected and got."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def describe(value: Any) -> str:
    """A short word for a value in an error message: arrays by dtype and shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    names = getattr(value, "_fields", None)
    if isinstance(value, tuple) and names:
        fields = ", ".join(f"{k}={describe(v)}" for k, v in zip(names, value, strict=True))
        return f"{type(value).__name__}({fields})"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of ({', '.join(describe(v) for v in value)})"
    if isinstance(value, dict):
        return f"dict of ({', '.join(f'{k}: {describe(v)}' for k, v in value.items())})"
    return f"{type(value).__name__} {value!r}"[:120]


def positive_int(where: str, name: str, value: Any) -> int:
    """`value` as an int of at least 1; booleans are not numbers."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{where}: {name} expected a positive integer, got {describe(value)}")
    if value < 1:
        raise ValueError(f"{where}: {name} expected a positive integer, got {value}")
    return int(value)


def positive_float(where: str, name: str, value: Any) -> float:
    """`value` as a float above 0, infinity included."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{where}: {name} expected a positive number, got {describe(value)}")
    if not value > 0:
        raise ValueError(f"{where}: {name} expected a positive number, got {value}")
    return float(value)


def rate(where: str, name: str, value: Any) -> float:
    """`value` as a probability in [0, 1)."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{where}: {name} expected a number in [0, 1), got {describe(value)}")
    if not 0 <= value < 1:
        raise ValueError(f"{where}: {name} expected a rate in [0, 1), got {value}; 1 would drop everything")
    return float(value)


def boolean(where: str, name: str, value: Any) -> bool:
    """`value` as a Python bool: options that shape the program are never traced."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{where}: {name} expected True or False, got {describe(value)}")
    return bool(value)


def one_of(where: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    """`value` is one of `choices`."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{where}: {name} expected one of {', '.join(map(repr, choices))}; got {value!r}")


def array(where: str, name: str, value: Any) -> jax.Array:
    """`value` as a JAX array; only arrays are taken, so that a stray list or scalar is named."""
    if not isinstance(value, (jax.Array, np.ndarray, np.generic)):
        raise TypeError(f"{where}: {name} expected an array, got {describe(value)}")
    return jnp.asarray(value)


def floating(where: str, name: str, value: Any) -> jax.Array:
    """`value` as a real floating-point array."""
    value = array(where, name, value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{where}: {name} expected a floating-point array, got {describe(value)}; "
            "embed or one-hot encode symbols, cast counts with astype"
        )
    return value


def params_record(where: str, params: Any, record: type) -> None:
    """`params` is a `record`."""
    if not isinstance(params, record):
        raise TypeError(
            f"{where}: params expected {record.__name__}, got {type(params).__name__}; "
            "are they the params of another cell?"
        )


def params_shapes(where: str, params: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """The named fields of `params` have these shapes."""
    for name, shape in shapes.items():
        value = getattr(params, name)
        if not hasattr(value, "shape"):
            raise TypeError(f"{where}: params.{name} expected an array of shape {shape}, got {describe(value)}")
        if tuple(value.shape) != shape:
            raise ValueError(
                f"{where}: params.{name} expected shape {shape}, got {tuple(value.shape)}; "
                "are they the params of another cell or size?"
            )


def params_presence(where: str, params: Any, present: dict[str, bool]) -> None:
    """The named fields of `params` are there, or `None`, as the cell has it."""
    for name, expected in present.items():
        value = getattr(params, name)
        if (value is not None) != expected:
            raise ValueError(
                f"{where}: params.{name} expected {'an array' if expected else 'None'}, got {describe(value)}; "
                "are they the params of the same cell in another form?"
            )


def _matrix_shape(where: str, params: Any, name: str) -> tuple[int, int]:
    shape = getattr(getattr(params, name), "shape", None)
    if shape is None or len(shape) != 2:
        raise ValueError(f"{where}: params.{name} expected a matrix, got {describe(getattr(params, name))}")
    return shape


def rows(where: str, params: Any, name: str) -> int:
    """The number of rows of a matrix of `params`."""
    return _matrix_shape(where, params, name)[0]


def columns(where: str, params: Any, name: str) -> int:
    """The number of columns of a matrix of `params`."""
    return _matrix_shape(where, params, name)[1]


def input_features(where: str, input_shape: tuple[int, ...], w_x: Any) -> None:
    """The last axis of the input is what `w_x` expects."""
    name, hint = (
        ("x", "") if where.endswith("step") else ("xs", "; is xs batch-major (B, T, I), or of another input_size?")
    )
    shape = getattr(w_x, "shape", None)
    if shape is None or len(shape) != 2:
        raise ValueError(f"{where}: params.w_x expected a matrix, got {describe(w_x)}")
    if not input_shape:
        raise ValueError(f"{where}: {name} expected shape (*B, {shape[0]}), got a scalar")
    if input_shape[-1] != shape[0]:
        raise ValueError(f"{where}: {name} has last axis {input_shape[-1]}, params.w_x expects {shape[0]}{hint}")


def state_like(where: str, name: str, state: Any, expected: Any) -> None:
    """`state` has the structure and shapes of `expected`, whose leaves have a shape and a dtype."""
    if jax.tree.structure(state) != jax.tree.structure(expected):
        raise TypeError(
            f"{where}: {name} expected {describe(expected)}, got {describe(state)}; is it the state of another cell?"
        )
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        if not hasattr(got, "shape") or not hasattr(got, "dtype"):
            raise TypeError(f"{where}: {name} expected arrays as in {describe(expected)}, got {describe(state)}")
        if tuple(got.shape) != tuple(want.shape):
            raise ValueError(
                f"{where}: {name} expected {describe(expected)}, got {describe(state)}; "
                "states are not broadcast: use jnp.broadcast_to to share one over the batch"
            )
        if jnp.issubdtype(want.dtype, jnp.floating) and not jnp.issubdtype(got.dtype, jnp.floating):
            raise TypeError(f"{where}: {name} expected floating-point arrays, got {describe(state)}")


def step_mask(where: str, name: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
    """A boolean for every step of every sequence, shape `(T, *B)` exactly."""
    value = array(where, name, value)
    if value.dtype != jnp.bool_:
        raise TypeError(f"{where}: {name} expected booleans, got {describe(value)}; compare with > 0 to make them")
    if value.shape != shape:
        raise ValueError(
            f"{where}: {name} expected shape (T, *B) = {shape}, got {value.shape}; "
            "is it batch-major? It is not broadcast"
        )
    return value


def sequence_lengths(where: str, value: Any, time: int, batch_shape: tuple[int, ...]) -> jax.Array:
    """Integers `(*B,)` in 0..T; the range of traced values cannot be seen and is not checked."""
    known = None if isinstance(value, Tracer) or not hasattr(value, "shape") else np.asarray(value)
    value = array(where, "lengths", value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{where}: lengths expected integers, got {describe(value)}")
    if value.shape != batch_shape:
        raise ValueError(
            f"{where}: lengths expected the batch shape {batch_shape}, got {value.shape}; "
            "it is not broadcast; where every device has a share of the batch, shard them as xs"
        )
    if known is not None and known.size and (known.min() < 0 or known.max() > time):
        wrong = known.min() if known.min() < 0 else known.max()
        raise ValueError(f"{where}: lengths expected values from 0 to T = {time}, got {wrong}; is xs batch-major?")
    return value if value.dtype.itemsize >= 4 else value.astype(jnp.int32)  # steps are counted in its dtype
