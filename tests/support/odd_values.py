"""A fuzz: every argument of a function replaced by odd values, and what the function says to each.

    good = {"cell": cell, "params": params, "xs": xs, "lengths": None}
    assert not faults("unroll", jaxrnn.unroll, good, accepted={"lengths": {"None"}})

`ODD` is the table of odd values. A call with one of them must return, or raise an error that a
user can act on (`fault_of_error`). With `accepted` a call that returns is a fault too, unless
the table lists it. `None` does not judge what is accepted.

Tests that use it need the fixture `unhooked`, so that the library's own errors are seen.
"""

import contextlib
import dis
import functools
import importlib.util
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

import jaxrnn

LIBRARY = str(Path(jaxrnn.__file__).parent)
LONGEST = 500  # characters of a message
ERRORS = (TypeError, ValueError, NotImplementedError)


class Traced(NamedTuple):
    """A value that the call gets while it is traced."""

    value: Any


class Table:
    """What a data frame shows: a shape, a dtype and a cast, without being an array."""

    shape, ndim, dtype, size = (2, 3), 2, np.dtype("float32"), 6

    def astype(self, dtype):
        return self

    def __len__(self):
        return 2


class Rude:
    """An object whose representation, comparison and truth raise."""

    def __repr__(self):
        raise RuntimeError("no representation")

    __eq__ = __bool__ = __repr__
    __hash__ = object.__hash__


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray))


def _like(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The good value with its arrays changed; in the place of a value without arrays a changed array."""

    def make(good: Any) -> Any:
        leaves = jax.tree.leaves(good) if not callable(good) else []
        if not leaves or not all(map(_is_array, leaves)):
            return change(_shared()["array"])
        return jax.tree.map(change, good)

    return make


def _cast(dtype: Any) -> Callable[[Any], Any]:
    def change(leaf: Any) -> Any:
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if jnp.iscomplexobj(leaf) and not jnp.issubdtype(dtype, jnp.complexfloating):
            leaf = leaf.real
        return jnp.asarray(np.asarray(jax.random.key_data(leaf) if is_key else leaf).astype(dtype))

    return _like(change)


def _full(value: Any, dtype: Any) -> Callable[[Any], Any]:
    return _like(lambda leaf: np.full(leaf.shape, value, dtype))


def _traced(good: Any) -> Traced:
    """The good value while it is traced, if it can be."""
    leaves = jax.tree.leaves(good) if not callable(good) else []
    numbers = all(_is_array(leaf) or isinstance(leaf, (int, float)) for leaf in leaves)
    return Traced(good if leaves and numbers else _shared()["array"])


def _torch_tensor(good: Any) -> Any:
    import torch

    array = np.asarray(good) if _is_array(good) and not isinstance(good, jax.Array) else np.ones((2, 3), np.float32)
    return torch.from_numpy(array)


@functools.cache
def _shared() -> dict[str, Any]:
    """Values of JAX, made once."""
    return {
        "params": jaxrnn.mgu(3).init(jax.random.key(0), 2),
        "key": jax.random.key(0),
        "keys": jax.random.split(jax.random.key(0), 3),
        "array": jnp.ones((2, 3)),
    }


# Each entry makes its value anew, from the good value in whose place it stands.
ODD: dict[str, Callable[[Any], Any]] = {
    "None": lambda good: None,
    "True": lambda good: True,
    "0": lambda good: 0,
    "-1": lambda good: -1,
    "2.5": lambda good: 2.5,
    "nan": lambda good: float("nan"),
    "inf": lambda good: float("inf"),
    "10**12": lambda good: 10**12,
    "10**400": lambda good: 10**400,
    "1j": lambda good: 1j,
    "a string": lambda good: "a string",
    "an empty string": lambda good: "",
    "a long string": lambda good: "x" * 5000,
    "two lines": lambda good: "two\nlines",
    "a lone surrogate": lambda good: "\ud800",
    "bytes": lambda good: b"x",
    "an empty list": lambda good: [],
    "an empty tuple": lambda good: (),
    "a long list": lambda good: [1] * 5000,
    "a ragged list": lambda good: [[1.0, 2.0], [3.0], [[4.0]]],
    "a list of strings": lambda good: ["a", "b"],
    "a nested list": lambda good: np.ones((50, 50)).tolist(),
    "an empty dict": lambda good: {},
    "a dict": lambda good: {"w_x": 1.0, 2: None},
    "a set": lambda good: {1, 2},
    "a generator": lambda good: (k for k in range(3)),
    "an object": lambda good: object(),
    "a rude object": lambda good: Rude(),
    "a class": lambda good: dict,
    "the class of cells": lambda good: jaxrnn.Cell,
    "a lambda": lambda good: lambda *args, **options: None,
    "a table": lambda good: Table(),
    "strings": lambda good: np.asarray(["a", "b"]),
    "objects": lambda good: np.asarray([object(), None], object),
    "dates": lambda good: np.asarray(["2026-01-01"], "datetime64[D]"),
    "a record": lambda good: np.zeros(2, [("a", np.float32), ("b", np.int32)]),
    "a masked array": lambda good: np.ma.masked_array(np.ones((2, 3), np.float32), np.eye(2, 3, dtype=bool)),
    "a 0-d array": lambda good: np.asarray(1.5, np.float32),
    "six axes": lambda good: np.ones((1, 2, 1, 2, 1, 2), np.float32),
    "no entries": lambda good: np.ones((0,), np.float32),
    "a shape": lambda good: jax.ShapeDtypeStruct((2, 3), jnp.float32),
    "a cell": lambda good: jaxrnn.gru(3),
    "a network": lambda good: jaxrnn.stack([jaxrnn.rnn(3)]),
    "params of another cell": lambda good: _shared()["params"],
    "a key": lambda good: _shared()["key"],
    "keys": lambda good: _shared()["keys"],
    "a raw key": lambda good: np.zeros(2, np.uint32),
    "a traced number": lambda good: Traced(np.float32(0.5)),
    "a traced integer": lambda good: Traced(np.int32(2)),
    "a traced array": lambda good: Traced(_shared()["array"]),
    # Those below are the good value in another form, if it has arrays.
    "traced": _traced,
    "in NumPy": _like(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)),
    "booleans": _cast(bool),
    "int8": _cast(jnp.int8),
    "int32": _cast(jnp.int32),
    "complex64": _cast(jnp.complex64),
    "float16": _cast(jnp.float16),
    "float8": _cast(ml_dtypes.float8_e4m3fn),
    "NaN": _full(np.nan, np.float32),
    "dates of its shape": _full(np.datetime64("2026-01-01"), "datetime64[D]"),
    "objects of its shape": _full(None, object),
    "one axis more": _like(lambda leaf: leaf[None]),
    "one axis less": _like(lambda leaf: leaf[0] if leaf.ndim else leaf),
    "its shapes": _like(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)),
    "variables": _like(nnx.Variable),
    "numbers": _like(lambda leaf: 1.0),
    "in a list": lambda good: [good],
}
if importlib.util.find_spec("torch") is not None:
    ODD["a torch tensor"] = _torch_tensor


def fault_of_error(error: Exception, names: Collection[str], words: Collection[str]) -> str | None:
    """What is wrong with an error, or `None` if it is right.

    It is a TypeError, ValueError or NotImplementedError, raised by a `raise` of the library, begins
    with one of `names` and a colon, has one of `words` (the argument) in it, and is short and printable.
    """
    message = str(error)
    if type(error) not in ERRORS:
        return f"{type(error).__name__}: {message[:100]!r}"
    if not _raised_by_library(error):
        return f"{type(error).__name__} from elsewhere: {message[:100]!r}"
    if not any(message.startswith(f"{name}:") for name in names):
        return f"names another function: {message[:100]!r}"
    if not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message) for word in words):
        return f"does not name the argument: {message[:150]!r}"
    if len(message) > LONGEST:
        return f"has {len(message)} characters: {message[:100]!r}"
    if not message.isprintable():
        return f"is not printable: {message[:300]!r}"
    return None


def _raised_by_library(error: Exception) -> bool:
    """Whether the last frame of the traceback is at a `raise` in a file of the library."""
    frames = error.__traceback__
    assert frames is not None
    while frames.tb_next is not None:
        frames = frames.tb_next
    code = frames.tb_frame.f_code
    is_raise = code.co_code[frames.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return is_raise and code.co_filename.startswith(LIBRARY)


@contextlib.contextmanager
def _as_for_users() -> Iterator[None]:
    """JAX promotes dtypes and ranks, as it does by default, and leaves its own frames in tracebacks."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield
    finally:
        jax.config.update("jax_traceback_filtering", before)


def error_of(call: Callable[..., Any], arguments: Mapping[str, Any], only_traced: bool = False) -> Exception | None:
    """The error that a call raises, or `None`; an argument that is `Traced` is traced during the call."""
    traced = {name: value.value for name, value in arguments.items() if type(value) is Traced}
    plain = {name: value for name, value in arguments.items() if name not in traced}

    def run(values: dict[str, Any]) -> None:
        result = call(**plain, **values)
        if not values and not only_traced:
            jax.block_until_ready(result)

    try:
        with _as_for_users():
            jax.eval_shape(run, traced) if traced or only_traced else run({})
    except Exception as error:
        return error
    return None


def faults(
    name: str | Collection[str],
    call: Callable[..., Any],
    good: Mapping[str, Any],
    odd: Mapping[str, Callable[[Any], Any]] = ODD,
    *,
    accepted: Mapping[str, Collection[str]] | None = None,
    words: Mapping[str, Collection[str]] | None = None,
    arguments: Collection[str] | None = None,
    only_traced: bool = False,
) -> list[str]:
    """Calls `call(**good)` with each argument replaced by each odd value, and returns what went wrong, in words.

    Args:
        name: what the messages begin with: the name of the function, or several.
        call: the function. Wrap one that returns a function, so that this one is called too.
        good: arguments of a call that works, by name.
        odd: the odd values, by name.
        accepted: for each argument the names of the odd values that are right for it. A call
            that returns for another one is a fault; so is an error for one of these.
        words: for each argument the words that name it in messages, if they are not its name.
        arguments: those to replace, by default all.
        only_traced: programs are traced, not compiled and run: for programs that compile slowly.
    """
    names = (name,) if isinstance(name, str) else name
    found = []
    if (error := error_of(call, good, only_traced)) is not None:
        raise AssertionError(f"{names[0]} refuses the good arguments") from error
    for argument in good if arguments is None else arguments:
        right = None if accepted is None else accepted.get(argument, ())
        for odd_name, make in odd.items():
            error = error_of(call, {**good, argument: make(good[argument])}, only_traced)
            if error is not None:
                fault = fault_of_error(error, names, (words or {}).get(argument, (argument,)))
                if fault is None and right is not None and odd_name in right:
                    fault = f"refused: {error}"
            else:
                fault = None if right is None or odd_name in right else "accepted"
            if fault is not None:
                found.append(f"{names[0]}({argument}={odd_name}): {fault}")
    return found
