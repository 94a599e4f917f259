"""Odd values: arrays that are none, mappings that raise, names and numbers that no one expects."""

import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx

import jaxrnn
from jaxrnn import Bidirectional, LSTMParams, RNNParams

# ---- values


class Raising:
    """Every attribute that is asked for raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name} today\nnor tomorrow")


class LazyArray:
    """An array of another library whose data cannot be read."""

    shape, dtype, ndim = (3, 4), np.dtype("float32"), 2

    def __init__(self, error: Exception):
        self.error = error

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise self.error


class NotPrinted:
    def __repr__(self) -> str:
        raise ZeroDivisionError("repr")


class OddDtype:
    shape, dtype = (3, 4), "no dtype"


class Boxed:
    def __init__(self, value: Any):
        self.value = value

    def unbox(self) -> Any:
        return self.value


class Subclass(np.ndarray):
    pass


class LazyMapping(Mapping):
    """A mapping that raises at one of its keys, or at its iteration."""

    def __init__(self, entries: Mapping, at: Any, error: Exception):
        self.entries, self.at, self.error = entries, at, error

    def __getitem__(self, key: Any) -> Any:
        if key == self.at:
            raise self.error
        return self.entries[key]

    def __iter__(self) -> Iterator:
        if self.at is None:
            raise self.error
        return iter(self.entries)

    def __len__(self) -> int:
        if self.at is None:
            raise self.error
        return len(self.entries)


def itself() -> dict:
    loop: dict = {}
    loop["again"] = loop
    return loop


def nested(depth: int) -> dict:
    tree: dict = {}
    for _ in range(depth):
        tree = {"a": tree}
    return {"a": tree}


def deleted(array: np.ndarray) -> jax.Array:
    held = jnp.array(np.asarray(array, np.float32))
    held.delete()
    return held


ERRORS = (
    RuntimeError("lazy\nvalue"),
    KeyError("lazy"),
    OSError("disk"),
    AttributeError("x"),
    ZeroDivisionError(),
    ImportError("y" * 3000),
)

SAME: dict[str, Callable[[np.ndarray], Any]] = {
    "a JAX array": jnp.asarray,
    "column-major": lambda a: np.asfortranarray(a),
    "not contiguous": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "a subclass": lambda a: a.view(Subclass),
    "big-endian": lambda a: a.astype(">f4"),
    "boxed": Boxed,
}  # fmt: skip
REFUSED: dict[str, Callable[[np.ndarray], Any]] = {
    "a list": lambda a: a.tolist(),
    "a string": lambda a: "x" * 10_000,
    "bytes": lambda a: a.tobytes(),
    "a number": lambda a: 1.5,
    "integers": lambda a: a.astype(np.int32),
    "unsigned integers": lambda a: a.astype(np.uint8),
    "4-bit integers": lambda a: a.astype(jnp.int4),
    "booleans": lambda a: a > 0,
    "complex": lambda a: a.astype(np.complex64),
    "complex of JAX": lambda a: jnp.asarray(a.astype(np.complex64)),
    "integers of JAX": lambda a: jnp.asarray(a.astype(np.int32)),
    "float8": lambda a: a.astype(jnp.float8_e4m3fn),
    "longdouble": lambda a: a.astype(np.longdouble),
    "objects": lambda a: a.astype(object),
    "objects that raise": lambda a: np.full(a.shape, NotPrinted(), object),
    "strings": lambda a: a.astype("U16"),
    "dates": lambda a: np.zeros(a.shape, "M8[s]"),
    "a record": lambda a: np.zeros(a.shape, [(f"a{k}", "f4") for k in range(300)]),
    "masked": lambda a: np.ma.masked_array(a, a > 0),
    "a scalar": lambda a: np.float32(1),
    "no axes": lambda a: np.zeros((), np.float32),
    "many axes": lambda a: np.zeros((1,) * 60, np.float32),
    "one more axis": lambda a: a[None],
    "one axis less": lambda a: a[0],
    "flat": lambda a: np.concatenate([a.ravel(), a.ravel()]),
    "empty": lambda a: np.zeros((0,) * a.ndim, np.float32),
    "one more entry": lambda a: np.concatenate([a, a[..., :1]], axis=-1),
    "one entry less": lambda a: a[..., :-1],
    "a quarter less": lambda a: a[..., : max(1, a.shape[-1] * 3 // 4)],
    "twice": lambda a: np.concatenate([a, a], axis=-1),
    "lazy": lambda a: LazyArray(ERRORS[0]),
    "lazy KeyError": lambda a: LazyArray(ERRORS[1]),
    "lazy OSError": lambda a: LazyArray(ERRORS[2]),
    "lazy ImportError": lambda a: LazyArray(ERRORS[5]),
    "raising": lambda a: Raising(),
    "not printed": lambda a: NotPrinted(),
    "odd dtype": lambda a: OddDtype(),
    "boxed list": lambda a: Boxed(a.tolist()),
    "boxed loop": lambda a: Boxed(Raising()),
    "a shape": lambda a: jax.ShapeDtypeStruct(a.shape, np.float32),
    "a key": lambda a: jax.random.key(0),
    "deleted": deleted,
    "a class": lambda a: np.ndarray,
    "a function": lambda a: np.zeros,
    "a generator": lambda a: (x for x in a),
    "a set": lambda a: {1.0},
    "a memory view": lambda a: memoryview(a.tobytes()),
    "an iterator": lambda a: iter(a),
    "NotImplemented": lambda a: NotImplemented,
    "Ellipsis": lambda a: ...,
    "a module": lambda a: np,
}  # fmt: skip
ROWS: dict[str, Callable[[np.ndarray], Any]] = {  # of the first axis, which is free in some entries
    "one more row": lambda a: np.concatenate([a, a[:1]]),
    "one row less": lambda a: a[:-1],
    "half the rows": lambda a: a[: (len(a) + 1) // 2],
    "rows twice": lambda a: np.concatenate([a, a]),
    "transposed": lambda a: a.T if a.ndim == 2 else a[None],
}  # fmt: skip
KEYS: tuple[Any, ...] = (
    1.5, 7, True, None, b"weight", (), ("a", 2.0), ("a", ()), "", ".", "/", "x" * 50_000, "a\nb", "\ud800", "\0",
    frozenset(), NotPrinted(), 10**5000, np.int64(3), np.str_("s"), "weight_ih_l99999999999999999999", "layers.7.cell",
    "weight_hr_l0", "forward_rnn", "cell", "params", "lstm_" + "9" * 5000 + "/linear/w", "weight_ih_l" + "9" * 5000, "forward_/x", "layers_0.x",
)  # fmt: skip
ODD: dict[str, Callable[[], Any]] = {
    **{f"value {name}": lambda make=make: make(np.ones((2, 3), np.float32)) for name, make in {**SAME, **REFUSED}.items()},
    "None": lambda: None, "True": lambda: True, "np.True_": lambda: np.True_, "0": lambda: 0, "1": lambda: 1, "-1": lambda: -1, "2.5": lambda: 2.5,
    "nan": lambda: float("nan"), "inf": lambda: float("inf"), "2**31": lambda: 2**31, "10**12": lambda: 10**12,
    "10**5000": lambda: 10**5000, "np.int64": lambda: np.int64(3), "1j": lambda: 1j, "empty": lambda: "", "name": lambda: "tanh",
    "long": lambda: "y" * 100_000, "surrogate": lambda: "\ud800", "NUL": lambda: "a\0b", "lines": lambda: "a\nb", "b''": lambda: b"",
    "[]": list, "()": tuple, "{}": dict, "ragged": lambda: [[1, 2], [3]], "5000": lambda: [1] * 5000, "list of names": lambda: ["a", 1],
    "itself": itself, "nested": lambda: nested(5000), "nested list": lambda: [[[[]]]] * 3, "mapping": lambda: LazyMapping({"a": 1}, None, RuntimeError("lazy")),
    "lazy mapping": lambda: LazyMapping({"a": 1}, "a", RuntimeError("lazy")), "keys": lambda: dict.fromkeys(KEYS, 1),
    "record": lambda: RNNParams(1, 2, 3), "record of None": lambda: LSTMParams(None, None, None), "pair": lambda: Bidirectional(None, None),  # pyright: ignore
    "pair in pair": lambda: (Bidirectional(Bidirectional(1, 2), 3),), "network": lambda: jaxrnn.stack([jaxrnn.rnn(2)]), "cell": lambda: jaxrnn.rnn(2),
    "cell factory": lambda: jaxrnn.rnn, "complex list": lambda: [1j], "path": lambda: pathlib.Path("nowhere"), "folder": lambda: tempfile.gettempdir(),
    "long path": lambda: "a/" * 5000, "long name": lambda: "z" * 300, "exception": lambda: ValueError("x"), "lambda": lambda: lambda: 0, "object": object,
    "bad path": lambda: BadPath(), "bytes path": lambda: BytesPath(), "slice": lambda: slice(3), "range": lambda: range(3), "model": onnx.ModelProto,
}  # fmt: skip


class BadPath:
    def __fspath__(self) -> str:
        raise RuntimeError("no path")


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"path"
