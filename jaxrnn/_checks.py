"""Checks of what users pass in: each error names function, argument, expected and got."""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrnn._describe import describe, quote

LARGEST_SIZE = 2**31 - 1  # of an axis: indices are 32-bit integers
MOST_AXES = 32  # of a batch
FLOATS = ("float16", "bfloat16", "float32", "float64")
COMPLEX = {"float32": "complex64", "float64": "complex128"}  # by the dtype of either part


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether it is an integer; booleans and traced numbers are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a real number; booleans and traced numbers are none."""
    return is_integer(value) or isinstance(value, (float, np.floating))


def positive_int(where: str, name: str, value: Any) -> int:
    """`value` as an int of at least 1."""
    if not is_integer(value):
        raise TypeError(f"{where}: {name} expected a positive integer, got {describe(value)}{_if_traced(value)}")
    if value < 1:
        raise ValueError(f"{where}: {name} expected a positive integer, got {quote(value)}")
    return int(value)


def size(where: str, name: str, value: Any, most: int = LARGEST_SIZE) -> int:
    """`value` as the size of an axis, or a count of things that are made one by one: at least 1, at most `most`."""
    value = positive_int(where, name, value)
    if value > most:
        raise ValueError(f"{where}: {name} expected at most {most}, got {quote(value)}")
    return value


def _if_traced(value: Any) -> str:
    return "; it shapes the program, so it cannot be traced" if isinstance(value, Tracer) else ""


def token(where: str, name: str, value: Any) -> int:
    """`value` as the number of a token: an int of at least 0."""
    if not is_integer(value):
        raise TypeError(f"{where}: {name} expected a token, an integer, got {describe(value)}{_if_traced(value)}")
    if not 0 <= value <= LARGEST_SIZE:
        raise ValueError(f"{where}: {name} expected a token, 0 to {LARGEST_SIZE}, got {quote(value)}")
    return int(value)


def number(where: str, name: str, value: Any, expected: str = "a number") -> float:
    """`value` as a float."""
    if not is_number(value):
        raise TypeError(f"{where}: {name} expected {expected}, got {describe(value)}{_if_traced(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{where}: {name} expected a number that float64 can hold, got {quote(value)}") from error


def positive_float(where: str, name: str, value: Any) -> float:
    """`value` as a float above 0, infinity included."""
    value = number(where, name, value, "a positive number")
    if not value > 0:
        raise ValueError(f"{where}: {name} expected a positive number, got {value}")
    return value


def rate(where: str, name: str, value: Any) -> float:
    """`value` as a probability in [0, 1)."""
    value = number(where, name, value, "a number in [0, 1)")
    if not 0 <= value < 1:
        raise ValueError(f"{where}: {name} expected a rate in [0, 1), got {value}; 1 would drop everything")
    return value


def boolean(where: str, name: str, value: Any) -> bool:
    """`value` as a Python bool: options that shape the program are never traced."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{where}: {name} expected True or False, got {describe(value)}{_if_traced(value)}")
    return bool(value)


def one_of(where: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    """`value` is one of `choices`."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        expected = ", ".join(quote(choice) for choice in choices)
        raise ValueError(f"{where}: {name} expected one of {expected}; got {quote(value)}{_if_traced(value)}")


def is_function(value: Any) -> bool:
    """Whether it can be called for a result: no class, no record such as a cell, no box around an array."""
    return callable(value) and not isinstance(value, (type, tuple)) and not hasattr(value, "shape")


def function(where: str, name: str, value: Any, signature: str) -> Any:
    """`value` can be called; `signature` says with what."""
    if not is_function(value):
        raise TypeError(f"{where}: {name} expected a function {signature}, got {describe(value)}")
    return value


def is_array(value: Any) -> bool:
    """Whether it is an array of JAX or NumPy, traced ones included, masked ones excluded: JAX has none."""
    return isinstance(value, (jax.Array, np.ndarray, np.generic)) and not isinstance(value, np.ma.MaskedArray)


def array(where: str, name: str, value: Any) -> jax.Array:
    """`value` as a JAX array; only arrays are taken, so that a stray list or scalar is named."""
    if not is_array(value):
        raise TypeError(f"{where}: {name} expected an array, got {describe(value)}")
    if not (jnp.issubdtype(value.dtype, np.number) or value.dtype == np.bool_):
        raise TypeError(f"{where}: {name} expected an array of numbers or booleans, got {describe(value)}")
    return jnp.asarray(value)


def arrays(where: str, name: str, tree: Any) -> None:
    """Every leaf of a pytree is an array."""
    for leaf in jax.tree.leaves(tree):
        array(where, name, leaf)


def floating(where: str, name: str, value: Any) -> jax.Array:
    """`value` as a real floating-point array."""
    value = array(where, name, value)
    if value.dtype.name not in FLOATS:
        raise TypeError(
            f"{where}: {name} expected a floating-point array, got {describe(value)}; {_remedy(value.dtype)}"
        )
    return value


def integers(where: str, name: str, value: Any) -> jax.Array:
    """`value` as an array of integers."""
    value = array(where, name, value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{where}: {name} expected integers, got {describe(value)}")
    return value


def complex_array(where: str, name: str, value: Any) -> jax.Array:
    """`value` as a complex array."""
    value = array(where, name, value)
    if value.dtype.name not in COMPLEX.values():
        raise TypeError(f"{where}: {name} expected a complex array, got {describe(value)}; add 0j to real ones")
    return value


def _remedy(dtype: Any) -> str:
    """What to do with an array of a dtype that is refused."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return "complex numbers are not supported: split them into real and imaginary part"
    if jnp.issubdtype(dtype, jnp.floating):
        return f"only {', '.join(FLOATS)} are supported: cast with astype"
    return "embed or one-hot encode symbols, cast counts with astype"


def float_dtype(where: str, name: str, value: Any, narrow: bool = False) -> Any:
    """A floating-point dtype, `narrow` ones of 8 bits too; `None` is JAX's default, float32, with x64 float64."""
    if value is None:
        return jnp.result_type(float)
    dtype = None
    if isinstance(value, (str, type, np.dtype)):
        with contextlib.suppress(Exception):  # NumPy raises many kinds
            dtype = jnp.dtype(value)
    if dtype is not None and narrow and jnp.issubdtype(dtype, jnp.floating):
        return dtype
    if dtype is None or dtype.name not in FLOATS:
        got = describe(value) if dtype is None else dtype.name
        raise TypeError(f"{where}: {name} expected one of the dtypes {', '.join(FLOATS)}, got {got}")
    return dtype


def complex_dtype(where: str, name: str, dtype: Any) -> Any:
    """The complex dtype whose parts have a floating-point dtype."""
    dtype = jnp.dtype(dtype)
    if dtype.name not in COMPLEX:
        raise TypeError(
            f"{where}: {name} expected {' or '.join(COMPLEX)} for a complex state, got {dtype.name}; "
            "no complex dtype is that narrow, and compute_dtype gives products in less"
        )
    return jnp.dtype(COMPLEX[dtype.name])


def key(where: str, name: str, value: Any) -> jax.Array:
    """`value` as one random key, of either kind."""
    if isinstance(value, (jax.Array, np.ndarray)):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            if value.shape == ():
                return jnp.asarray(value)
        elif value.dtype == np.uint32 and value.shape == _raw_key_shape():
            return jnp.asarray(value)
    many = "; it is several keys, of which a call needs one" if getattr(value, "ndim", 0) else ""
    raise TypeError(f"{where}: {name} expected a key, such as jax.random.key(0), got {describe(value)}{many}")


def _raw_key_shape() -> tuple[int, ...]:
    """The shape of a key of `jax.random.PRNGKey`, which depends on JAX's default generator."""
    return _key_shape_of(jax.config.jax_default_prng_impl)  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def _key_shape_of(generator: str) -> tuple[int, ...]:
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=generator))).shape


def axes(where: str, name: str, value: Any) -> tuple[Any, ...]:
    """`value` as the axes of an array: a tuple of sizes, of which 0 is legal, and `jax.export`'s symbols too."""
    if not isinstance(value, (tuple, list)) or hasattr(value, "_fields"):
        hint = f"; write ({value},) for one axis" if is_integer(value) and 0 <= value <= LARGEST_SIZE else ""
        raise TypeError(f"{where}: {name} expected a tuple of sizes, got {describe(value)}{hint}")
    if len(value) > MOST_AXES:
        raise ValueError(f"{where}: {name} expected at most {MOST_AXES} sizes, got {len(value)}")
    for axis in value:
        if is_integer(axis):
            if not 0 <= axis <= LARGEST_SIZE:
                raise ValueError(
                    f"{where}: {name} expected sizes from 0 to {LARGEST_SIZE}, got {quote(axis)} in {describe(value)}"
                )
        elif not jax.export.is_symbolic_dim(axis):
            got = f"{describe(axis)} in {describe(value)}{_if_traced(axis)}"
            raise TypeError(f"{where}: {name} expected a tuple of sizes, got {got}")
    return tuple(int(axis) if is_integer(axis) else axis for axis in value)


def batch_shape(where: str, value: Any) -> tuple[Any, ...]:
    """`value` as the batch axes of a state."""
    return axes(where, "batch_shape", value)


def mapping(where: str, name: str, value: Any) -> Mapping[Any, Any]:
    """`value` is a dictionary or another mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{where}: {name} expected a dictionary, got {describe(value)}")
    return value


def params_record(where: str, params: Any, record: type) -> None:
    """`params` is a `record`."""
    if not isinstance(params, record):
        got = type(params).__name__ if hasattr(type(params), "_fields") else describe(params)
        raise TypeError(f"{where}: params expected {record.__name__}, got {got}; are they the params of another cell?")


def params_shapes(where: str, params: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """The named fields of `params` have these shapes."""
    for name, shape in shapes.items():
        value = getattr(params, name)
        if not is_array(value):
            raise TypeError(f"{where}: params.{name} expected an array of shape {shape}, got {describe(value)}")
        if value.dtype.name not in FLOATS:
            raise TypeError(
                f"{where}: params.{name} expected floating-point numbers, got {describe(value)}; "
                f"cast parameters to one of {', '.join(FLOATS)}"
            )
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
    value = getattr(params, name)
    if not is_array(value) or value.ndim != 2:
        raise ValueError(f"{where}: params.{name} expected a matrix, got {describe(value)}")
    return value.shape


def units(where: str, params: Any, name: str) -> tuple[int, int]:
    """The number of units that a recurrent weight of `params` reads, and of its heads."""
    value = getattr(params, name)
    if is_array(value) and value.ndim == 3:
        return value.shape[0] * value.shape[1], value.shape[0]
    return rows(where, params, name), 1


def rows(where: str, params: Any, name: str) -> int:
    """The number of rows of a matrix of `params`."""
    return _matrix_shape(where, params, name)[0]


def columns(where: str, params: Any, name: str) -> int:
    """The number of columns of a matrix of `params`."""
    return _matrix_shape(where, params, name)[1]


def input_features(where: str, input_shape: tuple[int, ...], w_x: Any) -> None:
    """The last axis of the input is what `w_x` expects."""
    name, hint = ("xs", "; is xs batch-major (B, T, I), or of another input_size?")
    if where.endswith("step") or where in ("generate", "beam_search"):
        name, hint = ("x" if where.endswith("step") else "first_input", "")
    if not is_array(w_x) or w_x.ndim != 2:
        raise ValueError(f"{where}: params.w_x expected a matrix, got {describe(w_x)}")
    shape = w_x.shape
    if not input_shape:
        raise ValueError(f"{where}: {name} expected shape (*B, {shape[0]}), got a scalar")
    if input_shape[-1] != shape[0]:
        raise ValueError(f"{where}: {name} has last axis {input_shape[-1]}, params.w_x expects {shape[0]}{hint}")


def state_like(where: str, name: str, state: Any, expected: Any, batch_of: str = "xs") -> None:
    """`state` has the structure and shapes of `expected`, whose leaves have a shape and a dtype."""
    if not same_structure(state, expected):
        raise TypeError(
            f"{where}: {name} expected {describe(expected)}, got {describe(state)}; is it the state of another cell?"
        )
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        if not _is_numeric(got):
            raise TypeError(
                f"{where}: {name} expected arrays as in {describe(expected)}, got {describe(state)}; "
                f"{type(got).__name__} is no array"
            )
        if tuple(got.shape) != tuple(want.shape):
            raise ValueError(
                f"{where}: {name} expected {describe(expected)}, got {describe(state)}; "
                f"states are not broadcast over the batch of {batch_of}: use jnp.broadcast_to to share one"
            )
        if want.dtype.name in FLOATS and got.dtype.name not in FLOATS:
            raise TypeError(f"{where}: {name} expected floating-point arrays, got {describe(state)}")
        if want.dtype.name in COMPLEX.values() and got.dtype.name not in COMPLEX.values():
            raise TypeError(f"{where}: {name} expected complex arrays, got {describe(state)}; add 0j to real ones")


def same_structure(tree: Any, expected: Any) -> bool:
    """Whether two pytrees have the same structure."""
    if isinstance(tree, Iterator):  # to JAX a leaf, with a warning
        return False
    try:
        return jax.tree.structure(tree) == jax.tree.structure(expected)
    except Exception:  # such as a dictionary whose keys cannot be sorted
        return False


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


def sequence_lengths(
    where: str,
    value: Any,
    time: int,
    batch_shape: tuple[int, ...],
    most: str = "T",
    hint: str = "is xs batch-major?",
) -> jax.Array:
    """Integers `(*B,)` in 0..T; the range of traced values cannot be seen and is not checked."""
    given, value = value, array(where, "lengths", value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{where}: lengths expected integers, got {describe(value)}")
    known = None if isinstance(given, Tracer) else np.asarray(given)  # before a cast to 32 bits
    if value.shape != batch_shape:
        raise ValueError(
            f"{where}: lengths expected the batch shape {batch_shape}, got {value.shape}; "
            "it is not broadcast; where every device has a share of the batch, shard them as xs"
        )
    if known is not None and known.size and (known.min() < 0 or known.max() > time):
        wrong = known.min() if known.min() < 0 else known.max()
        raise ValueError(f"{where}: lengths expected values from 0 to {most} = {time}, got {wrong}; {hint}")
    return value if value.dtype.itemsize >= 4 else value.astype(jnp.int32)  # steps are counted in its dtype


def hashable(where: str, name: str, value: Any) -> None:
    """`value` has a hash, by which compiled programs are found again."""
    try:
        hash(value)
    except Exception as error:
        raise TypeError(
            f"{where}: {name} expected a function that has a hash, got {describe(value)}; wrap it in a lambda"
        ) from error


def name_or_function(where: str, name: str, value: Any, names: Sequence[str]) -> None:
    """`value` is one of `names`, or a callable."""
    if not is_function(value) and not (isinstance(value, str) and value in names):
        expected = ", ".join(quote(choice) for choice in names)
        raise ValueError(f"{where}: {name} expected one of {expected} or a callable; got {quote(value)}")


def leaves_with_path(where: str, name: str, tree: Any) -> list[tuple[Any, Any]]:
    """The leaves of a tree, each with its path."""
    try:
        return jax.tree.leaves_with_path(tree)
    except Exception as error:  # the classes in a tree may raise anything
        raise TypeError(f"{where}: {name} expected a tree that JAX can flatten, got {describe(tree)}") from error


def attribute(value: Any, name: str) -> Any:
    """`getattr(value, name, None)`, also of an object whose attributes raise other errors."""
    try:
        return getattr(value, name, None)
    except Exception:
        return None


def size_of(leaf: Any) -> Any:
    """How many numbers an array of any library has, or its abstract form; `None` of anything else."""
    shape, dtype = attribute(leaf, "shape"), attribute(leaf, "dtype")
    is_own = is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
    is_numeric = isinstance(dtype, np.dtype) and (jnp.issubdtype(dtype, np.number) or dtype == np.bool_)
    if isinstance(leaf, type) or not isinstance(shape, tuple) or dtype is None or (is_own and not is_numeric):
        return None
    if not all(is_integer(axis) or jax.export.is_symbolic_dim(axis) for axis in shape):
        return None
    return math.prod(shape)


def leaves(where: str, name: str, value: Any, is_leaf: Any = None) -> list[Any]:
    """The leaves of a pytree; an iterator is none, nor a dictionary with keys that have no order."""
    try:
        if not isinstance(value, Iterator):
            return jax.tree.leaves(value, is_leaf=is_leaf)
    except Exception:  # JAX raises several kinds
        pass
    raise TypeError(f"{where}: {name} expected arrays, in tuples, lists or dictionaries, got {describe(value)}")


def numeric_leaves(where: str, name: str, value: Any, or_shapes: bool = False) -> None:
    """The leaves of `value` are arrays of numbers, booleans or keys, or numbers; with `or_shapes` arrays or shapes."""
    for leaf in leaves(where, name, value):
        is_shape = or_shapes and isinstance(leaf, jax.ShapeDtypeStruct)
        is_number = not or_shapes and (isinstance(leaf, (bool, float, complex)) or _is_index(leaf))
        if not (_is_numeric(leaf) or is_shape or is_number):
            expected = "arrays, or their shapes by jax.eval_shape" if or_shapes else "arrays of numbers"
            raise TypeError(f"{where}: {name} expected {expected}, got {describe(leaf)} in {describe(value)}")


def _is_index(value: Any) -> bool:
    return is_integer(value) and abs(value) <= LARGEST_SIZE


def _is_numeric(value: Any) -> bool:
    """Whether it is an array that JAX has too."""
    if not is_array(value):
        return False
    return isinstance(value, jax.Array) or jnp.issubdtype(value.dtype, np.number) or value.dtype == np.bool_
