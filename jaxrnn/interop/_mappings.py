"""Reads mappings of names to arrays for every converter, checked entry by entry."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrnn import _checks


class Entries(NamedTuple):
    """The entries of a mapping below a prefix, by the rest of their names."""

    where: str  # the converter, for messages
    prefix: str  # empty, or with a separator at its end
    separator: str
    values: dict[str, Any]


def _flat(where: str, mapping: Mapping, separator: str, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        parts = key if isinstance(key, tuple) else (key,)
        if not parts or not all(isinstance(part, (str, int)) for part in parts):
            raise TypeError(
                f"{where}: names expected strings, or tuples of strings and integers, got {_checks.describe(key)}"
            )
        below = (*path, *map(str, parts))
        if isinstance(value, Mapping):
            yield from _flat(where, value, separator, below)
        else:
            yield separator.join(below), value


def read_mapping(where: str, argument: str, mapping: Any, prefix: str, separator: str) -> Entries:
    """The entries of a flat or nested mapping below `prefix`; the others are ignored."""
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"{where}: {argument} expected a mapping of names to arrays, got {type(mapping).__name__}; "
            "files are read with jaxrnn.interop.read"
        )
    prefix = join_prefix(where, prefix, separator)
    values: dict[str, Any] = {}
    for name, value in _flat(where, mapping, separator, ()):
        if name in values:
            raise ValueError(f"{where}: entry {name!r} expected once, got it twice, flat and nested")
        values[name] = value
    below = {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}
    if not below:
        raise ValueError(f"{where}: {argument} expected entries below {prefix!r}, got {_listed(values)}")
    return Entries(where, prefix, separator, below)


def join_prefix(where: str, prefix: Any, separator: str) -> str:
    """`prefix` with one separator at its end, or the empty string."""
    if not isinstance(prefix, str):
        raise TypeError(f"{where}: prefix expected a string, got {_checks.describe(prefix)}")
    bare = prefix.removesuffix(separator)
    return bare + separator if bare else ""


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    names = list(names)
    if not names:
        return "no entries"
    return ", ".join(map(repr, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def child(entries: Entries, path: str) -> Entries:
    """The entries below `path`."""
    path += entries.separator
    below = {name[len(path) :]: value for name, value in entries.values.items() if name.startswith(path)}
    return entries._replace(prefix=entries.prefix + path, values=below)


SELECT = "prefix selects a part of a larger mapping"


def check_present(entries: Entries, expected: Sequence[str], hint: str = SELECT) -> None:
    """Raises if a name is missing."""
    for name in expected:
        if name not in entries.values:
            have = _listed([entries.prefix + other for other in entries.values])
            raise ValueError(f"{entries.where}: expected entry {entries.prefix + name!r}, got {have}; {hint}")


def check_names(entries: Entries, expected: Sequence[str], optional: Sequence[str] = (), hint: str = SELECT) -> None:
    """Raises if a name is missing or unexpected."""
    check_present(entries, expected, hint)
    known = [*expected, *optional]
    for name in entries.values:
        if name not in known:
            beside = _listed([entries.prefix + other for other in known])
            raise ValueError(f"{entries.where}: entry {entries.prefix + name!r} is not one of {beside}; {hint}")


def _unwrapped(value: Any) -> Any:
    """The array inside another library's wrapper."""
    if hasattr(value, "unbox"):  # Flax Linen's partitioning metadata
        value = value.unbox()
    if hasattr(value, "detach"):  # a PyTorch tensor, perhaps on another device or with a gradient
        value = value.detach().cpu()
        # NumPy, which PyTorch converts to, has no bfloat16 of its own; float32 holds all its values.
        is_bfloat16 = str(value.dtype) == "torch.bfloat16"
        value = value.float().numpy().astype(jnp.bfloat16) if is_bfloat16 else value.numpy()
    return value


def as_numpy(where: str, name: str, value: Any) -> np.ndarray:
    """`value` as a floating-point NumPy array; `name` is how messages call it."""
    if isinstance(value, Tracer):
        raise TypeError(
            f"{where}: {name} expected a concrete array, got {_checks.describe(value)}; convert outside jit"
        )
    try:
        inner = _unwrapped(value)
        known = isinstance(inner, (np.ndarray, np.generic, jax.Array)) or hasattr(inner, "__array__")
        array = np.asarray(inner) if known else None
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{where}: {name} expected an array, got {type(value).__name__}: {error}") from error
    if array is None:
        raise TypeError(f"{where}: {name} expected an array, got {_checks.describe(value)}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{where}: {name} expected a floating-point array, got {_checks.describe(array)}")
    return array


def check_shape(where: str, name: str, array: np.ndarray, shape: tuple[int, ...], cause: str = "") -> None:
    """Raises unless `array` has this shape."""
    if array.shape != shape:
        raise ValueError(f"{where}: {name} expected shape {shape}, got {array.shape}{'; ' + cause if cause else ''}")


def entry(entries: Entries, name: str, axes: int | None = None) -> np.ndarray:
    """One entry as a NumPy array that JAX can hold, with this number of axes."""
    full = f"entry {entries.prefix + name!r}"
    array = as_numpy(entries.where, full, entries.values[name])
    check_dtype(entries.where, full, array)
    if axes is not None and array.ndim != axes:
        raise ValueError(f"{entries.where}: {full} expected {axes} axes, got shape {array.shape}")
    return array


def check_dtype(where: str, name: str, array: np.ndarray) -> None:
    """Raises unless JAX holds this dtype unchanged; float64 must be enabled."""
    if array.dtype.itemsize > np.dtype(jnp.result_type(float)).itemsize:
        raise TypeError(
            f"{where}: {name} expected a dtype that JAX holds, got {array.dtype}; "
            "set jax_enable_x64, or cast with astype('float32')"
        )


def to_jax(where: str, name: str, array: np.ndarray) -> jax.Array:
    """A JAX array that owns its memory."""
    check_dtype(where, name, array)
    return jnp.array(array)


def to_numpy(array: np.ndarray) -> np.ndarray:
    """A contiguous, writable NumPy array that owns its memory."""
    return np.array(array, order="C")
