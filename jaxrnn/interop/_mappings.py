"""Reads mappings of names to arrays for every converter, checked entry by entry."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrnn import _checks
from jaxrnn._describe import cut, describe, quote
from jaxrnn.interop._sizes import shown

DEEPEST = 64  # mappings in each other
LONGEST_NAME = 100  # characters of a name in a message
LARGEST_NUMBER = 10**9  # as a part of a name


class Entries(NamedTuple):
    """The entries of a mapping below a prefix, by the rest of their names."""

    where: str  # the converter, for messages
    prefix: str  # empty, or with a separator at its end
    separator: str
    values: dict[str, Any]

    def label(self, name: str) -> str:
        """What messages call an entry."""
        return f"entry {quote(self.prefix + name, LONGEST_NAME)}"


def said(error: Exception) -> str:
    """The kind and the text of another library's error."""
    try:
        text = str(error)
    except Exception:  # classes of the user's own may raise anything
        text = ""
    return cut(f"{type(error).__name__}: {text}" if text else type(error).__name__, 100)


def items(where: str, argument: str, mapping: Mapping, prefix: str = "") -> Iterator[tuple[Any, Any]]:
    """The names and values of a mapping, which may read its values, and fail, when they are asked for."""
    try:
        names = list(mapping)
    except Exception as error:
        raise ValueError(
            f"{where}: {argument} expected a mapping of names to arrays, got {describe(mapping)}, "
            f"whose names cannot be read ({said(error)})"
        ) from error
    for name in names:
        try:
            value = mapping[name]
        except Exception as error:
            full = quote(prefix + name if isinstance(name, str) else name, LONGEST_NAME)
            raise ValueError(
                f"{where}: {argument}: entry {full} expected an array, got one that cannot be read ({said(error)})"
            ) from error
        yield name, value


def _flat(
    where: str, argument: str, mapping: Mapping, separator: str, prefix: str = "", above: tuple[int, ...] = ()
) -> Iterator[tuple[str, Any]]:
    """The entries of nested mappings; `above` are the ids of those that hold this one."""
    if id(mapping) in above or len(above) >= DEEPEST:
        got = "one that holds itself" if id(mapping) in above else "more"
        raise ValueError(
            f"{where}: {argument} expected at most {DEEPEST} mappings in each other, got {got}, "
            f"at {quote(prefix, LONGEST_NAME)}"
        )
    for key, value in items(where, argument, mapping, prefix):
        parts = key if isinstance(key, tuple) else (key,)
        if not parts or not all(map(_is_name, parts)):
            raise TypeError(
                f"{where}: names expected strings, or tuples of strings and integers, got {describe(key)} in {argument}"
            )
        name = prefix + separator.join(str.__str__(part) if isinstance(part, str) else str(part) for part in parts)
        if isinstance(value, Mapping):
            yield from _flat(where, argument, value, separator, name + separator, (*above, id(mapping)))
        else:
            yield name, value


def _is_name(part: Any) -> bool:
    return isinstance(part, str) or (type(part) is int and abs(part) <= LARGEST_NUMBER)


def read_mapping(where: str, argument: str, mapping: Any, prefix: str, separator: str, collection: str = "") -> Entries:
    """The entries of a flat or nested mapping below `prefix`, and below `collection` if there is one; no others."""
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"{where}: {argument} expected a mapping of names to arrays, got {describe(mapping)}; "
            "files are read with jaxrnn.interop.read; of a module give the weights, not the module"
        )
    prefix = join_prefix(where, prefix, separator)
    values: dict[str, Any] = {}
    for name, value in _flat(where, argument, mapping, separator):
        if name in values:
            raise ValueError(f"{where}: entry {quote(name, LONGEST_NAME)} expected once, got it twice, flat and nested")
        values[name] = value
    if collection and any(name.startswith(collection + separator) for name in values):
        prefix = collection + separator + prefix
    return select(Entries(where, "", separator, values), argument, prefix)


def select(entries: Entries, argument: str, prefix: str) -> Entries:
    """The entries below a prefix, which is empty or ends with a separator."""
    below = {name[len(prefix) :]: value for name, value in entries.values.items() if name.startswith(prefix)}
    if not below:
        hint = "; does prefix lead to them?" if prefix else ""
        raise ValueError(
            f"{entries.where}: {argument} expected entries below {quote(prefix, LONGEST_NAME)}, got "
            f"{listed(entries.values)}{hint}"
        )
    return entries._replace(prefix=prefix, values=below)


def join_prefix(where: str, prefix: Any, separator: str) -> str:
    """`prefix` with one separator at its end, or the empty string."""
    if not isinstance(prefix, str):
        raise TypeError(f"{where}: prefix expected a string, got {describe(prefix)}")
    bare = prefix.removesuffix(separator)
    return bare + separator if bare else ""


def listed(names: Iterable[str], room: int = 180) -> str:
    """Names in a message, as many as there is room for."""
    names = list(names)
    words: list[str] = []
    for name in names[:6]:
        word = quote(name, 60)
        if words and sum(map(len, words)) + len(word) > room:
            break
        words.append(word)
    more = len(names) - len(words)
    return (", ".join(words) or "no entries") + (f" and {more} more" if more else "")


def hint_of_module(value: Any, *parts: str) -> str:
    """What to give instead of a module, for a message; the first of the attributes `parts` that it has."""
    for part in parts:
        try:
            found = getattr(value, part, None)
        except Exception:  # foreign objects may raise anything
            continue
        if found is not None:
            return f"; of a module give its .{part}"
    return ""


def child(entries: Entries, path: str) -> Entries:
    """The entries below `path`."""
    path += entries.separator
    below = {name[len(path) :]: value for name, value in entries.values.items() if name.startswith(path)}
    return entries._replace(prefix=entries.prefix + path, values=below)


SELECT = "prefix selects a part of a larger mapping"


def check_present(entries: Entries, expected: Iterable[str], hint: str = SELECT) -> None:
    """Raises if a name is missing."""
    for name in expected:
        if name not in entries.values:
            have = listed(entries.prefix + other for other in entries.values)
            raise ValueError(f"{entries.where}: expected {entries.label(name)}, got {have}; {hint}")


def check_names(entries: Entries, expected: Sequence[str], optional: Sequence[str] = (), hint: str = SELECT) -> None:
    """Raises if a name is missing or unexpected."""
    check_present(entries, expected, hint)
    known = dict.fromkeys([*expected, *optional])
    for name in entries.values:
        if name not in known:
            beside = listed(entries.prefix + other for other in known)
            raise ValueError(f"{entries.where}: {entries.label(name)} is not one of {beside}; {hint}")


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


def _to_array(value: Any) -> np.ndarray | None:
    """The array in `value`; `None` if there is none."""
    inner = _unwrapped(value)
    known = isinstance(inner, (np.ndarray, np.generic, jax.Array)) or hasattr(inner, "__array__")
    if not known or isinstance(inner, type):
        return None
    return inner if isinstance(inner, np.ma.MaskedArray) else np.asarray(inner)


def as_numpy(where: str, name: str, value: Any) -> np.ndarray:
    """`value` as a floating-point NumPy array in the machine's byte order; `name` is how messages call it."""
    if isinstance(value, Tracer):
        raise TypeError(f"{where}: {name} expected a concrete array, got {describe(value)}; convert outside jit")
    try:
        array = _to_array(value)
    except Exception as error:  # arrays of other libraries may raise anything
        raise TypeError(
            f"{where}: {name} expected an array, got {describe(value)}, which cannot be read ({said(error)})"
        ) from error
    if array is None:
        raise TypeError(f"{where}: {name} expected an array, got {describe(value)}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{where}: {name} expected an array, got a masked one; fill it first")
    if array.dtype.name not in _checks.FLOATS:
        raise TypeError(
            f"{where}: {name} expected a floating-point array, got {describe(array)}; "
            f"weights are {', '.join(_checks.FLOATS)}"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def check_shape(where: str, name: str, array: np.ndarray, shape: tuple[int, ...], cause: str = "") -> None:
    """Raises unless `array` has this shape."""
    if array.shape != shape:
        cause = f"; {cause}" if cause else ""
        raise ValueError(f"{where}: {name} expected shape {shape}, got {shown(array.shape)}{cause}")


def entry(entries: Entries, name: str) -> np.ndarray:
    """One entry as a NumPy array that JAX can hold."""
    array = as_numpy(entries.where, entries.label(name), entries.values[name])
    check_dtype(entries.where, entries.label(name), array)
    return array


def arrays(entries: Entries) -> Entries:
    """The entries as NumPy arrays that JAX can hold."""
    return entries._replace(values={name: entry(entries, name) for name in entries.values})


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
