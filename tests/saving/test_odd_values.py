"""Odd values of every argument, and in every place of a file, are refused by name or taken as they are."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import Bidirectional, LSTMState, configuration
from jaxrnn.saving import load, save
from tests.support.saving import TINY, assert_same_bits, forge, params_of

pytestmark = pytest.mark.usefixtures("unhooked")

LONGEST = 500  # characters of a message

# The configuration of a file

QUIET = {"factory": "regularize", "input_dropout": 0.0, "recurrent_dropout": 0.0, "dropconnect": 0.0, "zoneout": 0.0}
DEEP_LIST: list = []
for _ in range(200):
    DEEP_LIST = [DEEP_LIST]
DEEP_CELL: dict = {"factory": "rnn", "hidden_size": 2, "use_bias": True, "activation": "tanh"}
for _ in range(100):
    DEEP_CELL = {**QUIET, "cell": DEEP_CELL}
IN_JSON = [
    None, True, False, 0, 1, -1, 3, 2**31 - 1, 2**31, -(2**31), 2**63, 10**12, 10**400, -(10**400),
    0.0, 0.5, 1.0, 4.0, -0.5, 1e-300, 1e300, float("nan"), float("inf"),
    "", "a callable", "tanh", "lstm", "stack", "exec", "zoneout", "4", "é\n\x00", "\ud800", "x" * 20_000,
    [], [1], ["sum"], [0.1, 0.2], [[]] * 5000, DEEP_LIST,
    {}, {"h": 0.1}, {"h": 0.1, "c": 0.2}, {"h": "a", "c": []}, {"h": 0.1, "c": 0.2, "d": 0.3}, {"shape": [4], "dtype": "float32"},
    {"factory": "stack"}, {"factory": "lstm"}, {"forward": {}, "backward": {}}, {"factory": ["lstm"]},
    {"x" * 20_000: 1}, {str(k): k for k in range(5000)}, DEEP_CELL,
]  # fmt: skip
CONFIGURED = {
    "stack": jaxrnn.stack(
        [
            Bidirectional(jaxrnn.gru(2, reset_after=False), jaxrnn.indrnn(2)),
            jaxrnn.regularize(jaxrnn.lstm(2), recurrent_dropout=0.25, zoneout=LSTMState(h=0.05, c=0.5)),
        ],
        merge="sum",
    ),
    "rnn": jaxrnn.rnn(2, activation="relu"),
    "lstm": jaxrnn.lstm(3, projection_size=2, peephole=True, coupled=True, layer_norm=True),
    "heads": jaxrnn.gru(4, num_heads=2),
    "mgu": jaxrnn.regularize(jaxrnn.regularize(jaxrnn.mgu(2), zoneout=0.5), dropconnect=0.5),
}


def places(entry, at=()):
    """The paths of all values of a JSON object, its own the empty one."""
    yield at
    parts = entry.items() if isinstance(entry, dict) else enumerate(entry) if isinstance(entry, list) else ()
    for name, part in parts:
        yield from places(part, (*at, name))


def replaced(entry, at, value):
    """A copy with another value at a path."""
    if not at:
        return value
    copy = dict(entry) if isinstance(entry, dict) else list(entry)
    copy[at[0]] = replaced(entry[at[0]], at[1:], value)
    return copy


def found(entry, at):
    for step in at:
        entry = entry[step]
    return entry


def equal(a, b):
    """Whether they are equal; `True` is no 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def load_forged(path, genuine, at, value):
    """Loads a file whose JSON object has another value at a path."""
    path.write_bytes(genuine)
    forge(path, lambda _, entry: replaced(entry, at, value))
    return load(path, return_metadata=True)


def assert_named(error, path, places):
    """Checks that a message names load, the file, and one of the places, and that it is short."""
    said = str(error)
    assert len(said) <= LONGEST
    assert said.isprintable()
    assert said.startswith(f"load: {path}: ")
    assert any(re.search(rf"(?<!\w){re.escape(str(place))}(?!\w)", said) for place in places), said


@pytest.mark.parametrize("name", CONFIGURED)
def test_odd_values_in_a_configuration_are_refused_by_name_or_taken(name, tmp_path):
    """What is loaded has the value that the file says. A value of other arrays is refused by the name of an array."""
    path, network = tmp_path / "net", CONFIGURED[name]
    params, configured = params_of(network), configuration.describe(network)
    save(path, network, params)
    genuine, rng, counts = path.read_bytes(), np.random.default_rng(len(name)), {"refused": 0, "taken": 0}
    arrays = [jax.tree_util.keystr(at, simple=True, separator=".") for at, _ in jax.tree.leaves_with_path(params)]
    for at in places(configured):
        for k in rng.permutation(len(IN_JSON))[: 24 if len(at) < 2 else 6]:
            value = IN_JSON[k]
            if at == () and value is None:
                continue  # a file without a configuration
            try:
                loaded, back, _ = load_forged(path, genuine, ("configuration", *at), value)
            except ValueError as error:
                part = "configuration" if len(at) < 2 else f"configuration.{at[0]}"
                assert_named(error, path, [*at[-1:], part, *arrays, "merge"])  # a merge needs equal sizes
                counts["refused"] += 1
            else:
                assert_same_bits(params, back)
                assert equal(found(configuration.describe(loaded), at), value)
                counts["taken"] += 1
    assert counts["refused"] > 80
    assert counts["taken"] >= 1


def test_odd_values_in_the_other_entries_of_a_file_are_refused_by_name(tmp_path):
    path, params = tmp_path / "net", params_of(TINY)
    save(path, TINY, params, {"a": 1})
    genuine = path.read_bytes()
    for name in ("version", "input_size", "checksums", "metadata"):
        for value in IN_JSON:
            try:
                _, back, metadata = load_forged(path, genuine, (name,), value)
            except ValueError as error:
                assert_named(error, path, [name, "JSON", "w_x", "b"])
            else:
                assert_same_bits(params, back)
                assert (name, value) == ("version", 1) or (name, value) == ("input_size", 3) or metadata == value
                assert type(value) in (int, dict)
    for name in ("w_x", "w_h", "b"):
        for value in IN_JSON:
            with pytest.raises(ValueError, match=f"'{name}' does not have its checksum|expected JSON") as caught:
                load_forged(path, genuine, ("checksums", name), value)
            assert_named(caught.value, path, [name, "JSON"])


def test_files_without_one_of_their_entries_are_refused_by_name(tmp_path):
    path = tmp_path / "net"
    network = CONFIGURED["stack"]
    save(path, network, params_of(network))
    genuine, seen = path.read_bytes(), []
    forge(path, lambda _, entry: seen.append(entry))
    for at in places(seen[0]):
        if not at or isinstance(at[-1], int) or any(at[-1] in known for known in configuration.BEFORE.values()):
            continue
        left = {name: value for name, value in found(seen[0], at[:-1]).items() if name != at[-1]}
        path.write_bytes(genuine)
        forge(path, lambda _, entry, at=at, left=left: replaced(entry, at[:-1], left))
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            load(path)
        assert_named(caught.value, path, [at[-1], at[-2] if len(at) > 1 else at[-1]])


# The arguments


class Lazy(dict):
    """A mapping that fails when it is read."""

    def __getitem__(self, name):
        raise RuntimeError("read")

    items = keys = values = __iter__ = __getitem__  # type: ignore[assignment]


class Shaped:
    """An object with attributes of arrays that are none."""

    shape, dtype = "wide", "deep"


class Unreadable:
    """An object whose every attribute fails."""

    def __getattr__(self, name):
        raise RuntimeError("attribute")

    def __repr__(self):
        raise RuntimeError("repr")


class Place(os.PathLike):
    """A path whose name is any value."""

    def __init__(self, name):
        self.name = name

    def __fspath__(self):
        if self.name is None:
            raise RuntimeError("nowhere")
        return self.name


MODULE = jaxrnn.modules.LSTM(2, 2, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0))
CELL_MODULE = jaxrnn.modules.GRUCell(2, 2, rngs=nnx.Rngs(0))


def odd_values():
    """Values that hardly any argument expects."""
    deleted = jnp.ones(1)
    deleted.delete()
    return {
        "None": None, "True": True, "0": 0, "10**400": 10**400, "nan": float("nan"), "complex": 1j, "string": "a",
        "empty string": "", "long string": "x" * 20_000, "surrogate": "\ud800", "nul": "a\0b", "bytes": b"net",
        "list": [1, 2], "ragged": [[1], [2, 3]], "long list": [1.0] * 20_000, "set": {1}, "generator": (k for k in "a"),
        "dict": {"a": 1}, "mixed keys": {1: 1.0, "a": 2.0}, "lazy": Lazy(a=1), "function": len, "class": int, "object": object(),
        "shaped": Shaped(), "class with shape": np.ndarray, "unreadable": Unreadable(),
        "array": jnp.ones(3), "strings": np.array(["a"]), "objects": np.array([None]), "dates": np.array(["2020"], "M8[D]"),
        "masked": np.ma.masked_array([1.0], [True]), "deleted": deleted, "integers": jnp.arange(3), "complexes": jnp.ones(2, complex),
        "float8": jnp.ones(2, jnp.float8_e4m3fn), "key": jax.random.key(0), "abstract": jax.ShapeDtypeStruct((2,), jnp.float32),
        "variable": nnx.Variable(jnp.ones(2)), "state": nnx.state(MODULE), "module": MODULE, "cell module": CELL_MODULE,
        "cells": [TINY], "factory": jaxrnn.lstm, "cell": TINY._replace(init=None), "params": jaxrnn.lstm(1).init(jax.random.key(0), 1),
        "no path": Place(None), "path in bytes": Place(b"net"), "path of none": Place(3), "path with nul": Place("a\0b"),
    }  # fmt: skip


CALLS = {
    "save": lambda given: save(given["path"], given["network"], given["params"], given["metadata"],
                               params_only=given["params_only"]),
    "load": lambda given: load(given["path"], given["network"], return_metadata=given["return_metadata"]),
    "count_params": lambda given: jaxrnn.count_params(given["params"]),
}  # fmt: skip
ARGUMENTS = {
    "save": ("path", "network", "params", "metadata", "params_only"),
    "load": ("path", "network", "return_metadata"),
    "count_params": ("params",),
}
TAKEN = {
    ("save", "metadata"): {"None", "dict"},
    ("save", "params_only"): {"True"},
    ("load", "network"): {"None"},
    ("load", "return_metadata"): {"True"},
    ("count_params", "params"): {"None", "array", "masked", "deleted", "integers", "complexes", "float8", "abstract", "variable",
                                 "cell module", "params"},
}  # fmt: skip


@pytest.mark.parametrize(("function", "argument"), [(name, argument) for name in CALLS for argument in ARGUMENTS[name]])
def test_odd_arguments_are_refused_by_the_name_of_function_and_argument(function, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = {"path": tmp_path / "net", "network": TINY, "params": params_of(TINY), "metadata": {}, "params_only": False}
    save(here["path"], TINY, here["params"])
    paths = {"string", "empty string", "long string"}  # of no file that is there
    for name, value in odd_values().items():
        given = {**here, "return_metadata": False, argument: value}
        if name in TAKEN.get((function, argument), ()) or (function, argument, name) == ("save", "path", "string"):
            CALLS[function](given)
            continue
        expected = OSError if argument == "path" and name in paths else (TypeError, ValueError)
        with pytest.raises(expected, match=f"{function}: {argument}") as caught:
            CALLS[function](given)
        assert len(str(caught.value)) <= LONGEST, name
        assert str(caught.value).isprintable(), name


def test_modules_are_told_what_to_save(tmp_path):
    params, path = params_of(TINY), tmp_path / "net"
    save(path, TINY, params)
    for module, part in ((MODULE, "network"), (CELL_MODULE, "cell")):
        with pytest.raises(TypeError, match=rf"save: network expected .*; give its `.{part}` and its `.params`"):
            save(path, module, params)
        with pytest.raises(
            TypeError, match=rf"load: network expected .*; give its `.{part}`, then call its `load.params.`"
        ):
            load(path, module)
        with pytest.raises((TypeError, ValueError), match="save: params: .*; of a module give its `.params`"):
            save(path, getattr(module, part), module)
    with pytest.raises(TypeError, match=r"save: network .*; call it to make a cell: lstm\(...\)"):
        save(path, jaxrnn.lstm, params)
    with pytest.raises(TypeError, match="save: network .*; make one of the cells with jaxrnn.stack"):
        save(path, [TINY], params)
    assert_same_bits(params, load(path)[1])


def test_long_names_and_paths_are_cut_in_messages(tmp_path):
    deep = tmp_path / ("a" * 200) / ("b" * 200) / ("c" * 200)
    deep.mkdir(parents=True)
    params = params_of(TINY)
    save(deep / "net", TINY, params, {"k" * 5000: [1.0] * 5000})
    assert_same_bits(params, load(deep / "net")[1])
    wide = jaxrnn.stack([jaxrnn.rnn(k + 1) for k in range(10)])
    names = {f"{'n' * 300}{k}": jnp.ones(1) for k in range(40)}
    own = TINY._replace(init=lambda key, n: names, config=None)
    for call in (
        lambda: load(deep),
        lambda: load(deep / "nothing"),
        lambda: load(deep / "net", wide),
        lambda: load(deep / "net", jaxrnn.rnn(2, activation=jnp.sin)),
        lambda: save(deep / "net", wide, params),
        lambda: save(deep / "net", own, params, params_only=True),
        lambda: save(deep / "net", TINY, names),
        lambda: save(deep / "net", own, {name: jnp.ones(2) for name in names}, params_only=True),
        lambda: save(deep / "net", TINY, params, {"k" * 5000: [(1.0,)] * 5000}),
    ):
        with pytest.raises((OSError, TypeError, ValueError)) as caught:
            call()
        assert len(str(caught.value)) <= LONGEST
