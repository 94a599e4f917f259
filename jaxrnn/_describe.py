"""Short words for any value, for error messages: no message prints a value as long as the user made it."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

LONGEST = 160  # characters of a description; a message has room for two, and for what it says itself
_ENTRIES = 4  # of a container that are described
_DEPTH = 3  # of containers in each other


def quote(value: Any, longest: int = 80) -> str:
    """`repr(value)`, cut in the middle, without characters that a terminal cannot print."""
    if isinstance(value, str):
        value = value if len(value) <= 4 * longest else value[: 2 * longest] + value[-2 * longest :]
    elif isinstance(value, (bytes, bytearray)):
        value = bytes(value[: 2 * longest])
    elif isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    elif isinstance(value, (list, tuple, set, frozenset, dict)):
        return describe(value)
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__} whose repr fails>"
    return cut(text, longest)


def _quote_record(value: Any) -> str:
    """The representation of a record, which its class may define."""
    try:
        return cut(repr(value), 80)
    except Exception:
        return ""


def cut(text: str, longest: int = LONGEST) -> str:
    """The text on one line, its middle left out if it is longer."""
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    if len(text) <= longest:
        return text
    head = (longest - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


def listed(words: Iterable[Any], most: int = 6) -> str:
    """Words with commas between them, `most` of them at most."""
    words = [cut(str(word), 60) for word in words]
    more = len(words) - most
    return ", ".join(words) if more <= 0 else f"{', '.join(words[:most])} and {more} more"


def describe(value: Any) -> str:
    """A short word for a value: arrays by dtype and shape, containers by a few of their entries."""
    try:
        return cut(_describe(value, _DEPTH))
    except Exception:  # attributes of foreign objects may do anything
        return f"{type(value).__name__} that cannot be read"


def _describe(value: Any, depth: int) -> str:
    array = _array(value)
    if array is not None:
        return array
    if isinstance(value, type):
        return f"the class {value.__name__}"
    names = getattr(value, "_fields", None) if isinstance(value, tuple) else None
    if isinstance(value, tuple) and any(map(callable, value)):  # a cell, a network or a rule
        return _quote_record(value)
    if isinstance(value, tuple) and isinstance(names, tuple) and len(names) == len(value):
        fields = [f"{k}={_nested(v, depth)}" for k, v in zip(names[:8], value, strict=False)]
        return f"{type(value).__name__}({', '.join(fields)}{', …' if len(names) > 8 else ''})"
    if isinstance(value, (tuple, list)):
        entries = [_nested(v, depth) for v in value[:_ENTRIES]]
        return _container(type(value).__name__, entries, len(value))
    if isinstance(value, dict):
        few = list(value.items())[:_ENTRIES] if type(value) is dict else []
        return _container(type(value).__name__, [f"{quote(k, 30)}: {_nested(v, depth)}" for k, v in few], len(value))
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, Mapping):
        return type(value).__name__
    if value is None:
        return "None"
    return f"{type(value).__name__} {quote(value)}"


def _nested(value: Any, depth: int) -> str:
    if depth <= 1 and isinstance(value, (tuple, list, dict)):
        return f"{type(value).__name__} of {len(value)}"
    return _describe(value, depth - 1)


def _container(name: str, entries: list[str], size: int) -> str:
    if not entries:
        return f"an empty {name}" if not size else f"{name} of {size}"
    shown = ", ".join(entries)
    return f"{name} of ({shown})" if len(entries) == size else f"{name} of {size} ({shown}, …)"


def _array(value: Any) -> str | None:
    """Dtype and shape of anything that has both, with its type if that is none of JAX or NumPy."""
    if isinstance(value, type):
        return None
    try:
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if shape is None or dtype is None:
            return None
        text = f"{dtype}{cut(str(list(shape)), 60)}"
    except Exception:  # attributes of foreign objects may do anything
        return None
    is_plain = isinstance(value, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))
    if is_plain and not isinstance(value, np.ma.MaskedArray):
        return text
    return f"{type(value).__name__} of {text}"
