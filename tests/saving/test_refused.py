"""Refusals of damaged files, of impossible paths and of bad arguments; failed saves keep the old file."""

import os
import pickle
import resource
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxrnn
from jaxrnn import LSTMState
from jaxrnn.saving import load, save
from tests.support.registry import I
from tests.support.saving import TINY, assert_same_bits, forge, own_cell, params_of

pytestmark = pytest.mark.usefixtures("unhooked")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


# Damaged and forged files


def array(name, value):
    return lambda arrays, _: arrays.update({name: value})


def configured(*at, **changes):
    """Changes options of the configuration, or of the part at a path."""

    def change(_, entry):
        part = entry["configuration"]
        for step in at:
            part = part[step]
        part.update(changes)

    return change


def entry(**changes):
    return lambda _, e: e.update(changes)


def checksums(**changes):
    """Changes checksums by name; `None` leaves one out."""

    def change(_, entry):
        entry["checksums"] |= {name.replace("_of_", "."): value for name, value in changes.items()}
        entry["checksums"] = {name: value for name, value in entry["checksums"].items() if value is not None}

    return change


def nested(levels, inner):
    """A configuration in which `regularize` stands around `inner` so many times."""
    quiet = {"factory": "regularize", "input_dropout": 0.0, "recurrent_dropout": 0.0, "dropconnect": 0.0}
    for _ in range(levels):
        inner = {**quiet, "zoneout": 0.0, "cell": inner}
    return inner


F4, NESTED = np.zeros((I, 4), np.float32), "[" * 100_000
FORGED = {
    "missing array": (lambda a, _: a.__delitem__("0.w_h"), "expected arrays 0.w_h, got none"),
    "extra array": (array("9.w_x", F4), "expected no arrays 9.w_x, got them"),
    "renamed array": (lambda a, _: a.update({"0.w": a.pop("0.w_h")}), "expected arrays 0.w_h, got none"),
    "misshapen": (array("0.w_x", F4), r"0.w_x expected shape \(3, 16\), got \(3, 4\)"),
    "transposed": (array("0.w_x", np.zeros((16, I), np.float32)), r"0.w_x expected shape \(3, 16\), got \(16, 3\)"),
    "too many axes": (array("0.b", np.zeros((1, 16), np.float32)), r"0.b expected shape \(16,\), got \(1, 16\)"),
    "integers": (array("0.b", np.zeros(16, np.int32)), "0.b expected numbers like float32, got int32"),
    "booleans": (array("0.b", np.zeros(16, bool)), "0.b expected numbers like float32, got bool"),
    "complex": (array("0.b", np.zeros(16, np.complex64)), "0.b expected one of F64, .*, got C64"),
    "float64": (array("0.b", np.zeros(16)), "0.b is float64, which needs .*jax_enable_x64"),
    "newer version": (entry(version=3), "version expected at most 2, got 3; update jaxrnn, a newer one wrote it"),
    "no version": (lambda _, e: e.pop("version") and None, "version is missing or wrong"),
    "version of another type": (entry(version="2"), "version is missing or wrong, got str '2'"),
    "fraction as version": (entry(version=1.5), "version is missing or wrong, got float 1.5"),
    "float as version": (entry(version=1.0), "version is missing or wrong, got float 1.0"),
    "true as version": (entry(version=True), "version is missing or wrong, got bool True"),
    "version of many digits": (entry(version=10**100), "version expected at most 2, got an integer of 333 bits"),
    "true as input size": (entry(input_size=True), "input_size is missing or wrong, got bool True"),
    "huge input size": (entry(input_size=2**31), "input_size is missing or wrong, got int 2147483648"),
    "no checksums": (entry(checksums={}), "checksums expected one of '..*', '.*', '.*' and 6 more, got none"),
    "missing checksum": (checksums(**{"0_of_w_h": None}), "checksums expected one of '0.w_h', got none; the file is corrupted"),
    "extra checksum": (checksums(w_z=1), "checksums expected none of 'w_z', got one; is an array missing"),
    "renamed checksum": (checksums(**{"0_of_b": None, "0_of_c": 1}), "checksums expected one of '0.b', got none"),
    "wrong checksum": (checksums(**{"0_of_b": 1}), "'0.b' does not have its checksum"),
    "float as checksum": (
        lambda _, e: e["checksums"].update({"0.b": float(e["checksums"]["0.b"])}), "'0.b' does not have its checksum"),
    "unknown entry": (entry(optimiser={}), "expected the entries version, .*; got 'optimiser' beside them"),
    "not a number as dropout": (configured(dropout=float("nan")), r"stack: dropout expected a rate in \[0, 1\), got nan"),
    "no input size": (entry(input_size=0), "input_size is missing or wrong, got int 0"),
    "no configuration": (lambda _, e: e.pop("configuration") and None, "configuration is missing or wrong"),
    "list of checksums": (entry(checksums=[]), "checksums is missing or wrong"),
    "list of metadata": (entry(metadata=[1]), "metadata is missing or wrong"),
    "not an object": (lambda *_: "[1]", "version is missing or wrong"),
    "not JSON": (lambda *_: "{", "jaxrnn in its metadata expected JSON"),
    "nested JSON": (lambda *_: NESTED, "jaxrnn in its metadata expected JSON"),
    "unknown cell": (configured("cells", 0, factory="sru"),
        r"configuration.cells\[0\]: factory expected one of rnn, lstm, .*got str 'sru'"),
    "a function of Python": (configured("cells", 0, factory="exec"), "factory expected one of .*, got str 'exec'"),
    "stack in a stack": (configured("cells", 0, factory="stack"), "factory expected one of .*, got str 'stack'"),
    "no cell": (configured(cells=[3]), "factory expected one of .*, got int 3"),
    "no cells": (configured(cells={}), "stack: cells expected a list, got an empty dict"),
    "empty cells": (configured(cells=[]), "stack: cells expected at least one"),
    "one direction": (configured("cells", 0, forward={}),
        "lstm: option expected one of 'hidden_size', .*; got 'forward'"),
    "unknown option": (configured("cells", 0, colour=1),
        "lstm: option expected one of 'hidden_size', .*; got 'colour'"),
    "unknown option of the stack": (configured(colour=1), "stack: option expected one of 'cells', .*; got 'colour'"),
    "initialiser": (configured("cells", 0, kernel_init="zeros"), "lstm: option expected one of .*; got 'kernel_init'"),
    "wrong option": (configured("cells", 0, use_bias="yes"), "lstm: use_bias expected True or False, got str 'yes'"),
    "wrong size": (configured("cells", 0, hidden_size=-4), "lstm: hidden_size expected a positive integer, got -4"),
    "another size": (configured("cells", 0, hidden_size=5), r"0.w_x expected shape \(3, 20\), got \(3, 16\)"),
    "huge size": (configured("cells", 0, hidden_size=2**31),
        r"configuration.cells\[0\]: lstm: hidden_size expected at most 2147483647, got 2147483648"),
    "size of many digits": (configured("cells", 0, hidden_size=10**400),
        "hidden_size expected at most 2147483647, got an integer of 1329 bits"),
    "as large a size as there is": (configured("cells", 0, hidden_size=2**31 - 1), r"0.w_x expected shape \(3, 8589934588\)"),
    "layers without arrays": (
        lambda _, e: e["configuration"].update(cells=e["configuration"]["cells"] * 10_000),
        "configuration: stack: cells expected at most 9, got 30000"),
    "deeply nested noise": (
        lambda _, e: e["configuration"]["cells"].append(nested(65, e["configuration"]["cells"][0])),
        r"cells\[3\].cell.cell.*.cell.cell: expected at most 64 of regularize around each other"),
    "no activation": (lambda _, e: e["configuration"]["cells"][1].pop("activation") and None,
        r"configuration.cells\[1\]: rnn: activation is missing"),
    "no merge": (lambda _, e: e["configuration"].pop("merge") and None, "configuration: stack: merge is missing"),
    "a callable as merge": (configured(merge="a callable"),
        "stack: merge expected one of 'concat', .*'average' or a callable; got 'a callable'"),
    "a callable as activation": (configured("cells", 1, activation="a callable"),
        "rnn: activation expected one of .* or a callable; got 'a callable'"),
    "rates of an array": (configured("cells", 2, cell={"factory": "mgu", "hidden_size": 4, "use_bias": True}),
        r"configuration.cells\[2\].zoneout expected a rate, got dict"),
    "no size": (lambda _, e: e["configuration"]["cells"][0].pop("hidden_size") and None,
        "lstm: hidden_size is missing"),
    "wrong merge": (configured(merge="max"), "stack: merge expected one of"),
    "list as merge": (configured(merge=["sum"]), "stack: merge expected one of"),
    "wrong dropout": (configured(dropout="much"), "stack: dropout expected a number"),
    "wrong activation": (configured("cells", 1, activation="sin"), "rnn: activation expected one of"),
    "zoneout of another state": (
        configured("cells", 2, zoneout={"h": 0.1, "d": 0.2}), "LSTMState: missing a required argument"),
    "noise around nothing": (lambda _, e: e["configuration"]["cells"][2].pop("cell") and None,
        "regularize: cell is missing"),
    "noise around noise": (configured("cells", 2, cell=3), "factory expected one of"),
}  # fmt: skip
FORGED_NET = jaxrnn.stack(
    [jaxrnn.lstm(4), jaxrnn.rnn(4), jaxrnn.regularize(jaxrnn.lstm(4), zoneout=LSTMState(h=0.1, c=0.2))]
)


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    path = tmp_path_factory.mktemp("genuine") / "net.safetensors"
    save(path, FORGED_NET, params_of(FORGED_NET))
    return path.read_bytes()


@pytest.mark.parametrize("fault", FORGED)
def test_forged_files_are_refused(fault, path, genuine):
    change, message = FORGED[fault]
    path.write_bytes(genuine)
    forge(path, change)
    with pytest.raises(ValueError, match=f"load: .*net.safetensors: .*({message})"):
        load(path)


def test_rewritten_file_without_changes_loads(path, genuine):
    path.write_bytes(genuine)
    forge(path, lambda *_: None)
    assert_same_bits(params_of(FORGED_NET), load(path)[1])


def test_truncated_and_corrupted_files_are_refused(path):
    save(path, TINY, params_of(TINY), {"note": "a"})
    whole = path.read_bytes()
    assert 500 < len(whole) < 1000
    broken = [whole[:k] for k in range(len(whole))]
    broken += [whole[:k] + bytes([whole[k] ^ flip]) + whole[k + 1 :] for k in range(len(whole)) for flip in (1, 0x80)]
    broken += [whole + b"\0", whole + whole]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="load: .*net.safetensors: "):
            load(path)


class Bomb:
    """Unpickling it creates a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_files_of_other_formats_are_refused_without_execution(path, tmp_path):
    folder = tmp_path / "the bomb went off"
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:  # the layout of torch.save
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(folder)))
    for content, message in (
        (pickle.dumps(Bomb(folder)), "a Python pickle, which could execute anything; nothing of it was run"),
        (pickle.dumps(Bomb(folder), protocol=0), "truncated, corrupted or another"),
        ((tmp_path / "model.pt").read_bytes(), "a zip archive, as torch.save"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
        (b"\x93NUMPY" + bytes(99), "a NumPy file"),
        (b"", "truncated, corrupted or another"),
        (safetensors.numpy.save({"w_x": F4}), "got safetensors from elsewhere; jaxrnn.interop"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"load: .*net.safetensors: expected .*{message}"):
            load(path)
    assert not folder.exists()
    pickle.loads(pickle.dumps(Bomb(folder)))
    assert folder.exists()


# Impossible paths and failed saves


def test_impossible_paths_are_refused(path, tmp_path):
    (tmp_path / "file").touch()
    params = params_of(TINY)
    for bad, error, reason in (
        (tmp_path, IsADirectoryError, "expected a file, got a folder"),
        (tmp_path / "nowhere" / "net", FileNotFoundError, "No such file or directory"),
        (tmp_path / "file" / "net", NotADirectoryError, "Not a directory"),
    ):
        with pytest.raises(error, match=f"save: path: {reason}; nothing was changed"):
            save(bad, TINY, params)
        with pytest.raises(error, match="load: path: "):
            load(bad)
    for f in (lambda: save(3, TINY, params), lambda: load(None)):
        with pytest.raises(TypeError, match="(save|load): path expected a string or a path, got"):
            f()
    for bad in ("a\0b", "\ud800", tmp_path / "a\0b"):
        for f in (lambda bad=bad: save(bad, TINY, params), lambda bad=bad: load(bad)):
            with pytest.raises(
                ValueError, match="(save|load): path expected characters that the name of a file can have, got"
            ):
                f()
    assert os.listdir(tmp_path) == ["file"]


def test_folder_without_write_permission_is_refused(path, tmp_path):
    params, me = params_of(TINY), os.geteuid()
    tmp_path.chmod(0o500)
    try:
        if me == 0:
            os.seteuid(65534)  # root may write anywhere
        with pytest.raises(PermissionError, match="save: path: "):
            save(path, TINY, params)
    finally:
        os.seteuid(me)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_interrupted_save_leaves_the_old_file(failing, path, tmp_path, monkeypatch):
    save(path, TINY, params_of(TINY))
    before = path.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, failing, interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(path, TINY, params_of(TINY, input_size=2))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_full_disk_leaves_the_old_file(path, tmp_path):
    save(path, TINY, params_of(TINY))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OSError, match="save: path: File too large; nothing was changed: '.*net.safetensors'"):
            save(path, TINY, params_of(TINY, input_size=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.safetensors"]


# Bad arguments


def test_bad_arguments_are_refused(path):
    params, deleted = params_of(TINY), jnp.ones(1)
    deleted.delete()
    stacked = jaxrnn.stack([TINY])

    def named(name):
        return own_cell()._replace(init=lambda key, n: {name: jnp.ones(1)})

    cases = [
        (lambda: save(path, jaxrnn.rnn, params), TypeError, "save: network expected one from jaxrnn.stack, or a cell"),
        (lambda: load(path, "rnn"), TypeError,
         "load: network expected one from jaxrnn.stack, or a cell, .* or a dictionary of them, got str 'rnn'"),
        (lambda: load(path, return_metadata=1), TypeError, "load: return_metadata expected True or False"),
        (lambda: save(path, TINY, params, params_only=None), TypeError, "save: params_only expected True or False"),
        (lambda: save(path, jaxrnn.lstm(1), params), ValueError,
         r"save: params: w_x expected shape \(3, 4\), got \(3, 1\)"),
        (lambda: save(path, TINY, params._replace(b=None)), ValueError, "save: params: expected arrays b, got none"),
        (lambda: save(path, jaxrnn.rnn(1, use_bias=False), params), ValueError,
         "params: expected no arrays b, got them"),
        (lambda: save(path, stacked, params), ValueError, "params: expected arrays 0.w_x, 0.w_h, 0.b, got none"),
        (lambda: save(path, stacked, [params]), TypeError, "save: params expected tuple of .*, got list of"),
        (lambda: save(path, TINY, params._asdict()), TypeError, "save: params expected RNNParams.*, got dict of"),
        (lambda: save(path, TINY, params._replace(b=0.0)), TypeError,
         "save: params: b expected an array, got float 0.0"),
        (lambda: save(path, TINY, params._replace(b=np.array(["a"]))), TypeError,
         "b expected real numbers .*, got <U1"),
        (lambda: save(path, TINY, params._replace(b=jax.random.key(0))), TypeError,
         "b expected real numbers of 8 to 64"),
        (lambda: save(path, TINY, params._replace(b=np.zeros(1, np.int32))), ValueError,
         "b expected numbers like float32"),
        (lambda: jax.jit(lambda p: save(path, TINY, p))(params), TypeError, "w_x expected numbers, got a traced array"),
        (lambda: save(path, own_cell(), {"a": {"b": params.b}, "a.b": params.b}, params_only=True), ValueError,
         "save: params expected leaves with paths of their own"),
        (lambda: save(path, TINY, params._replace(b=np.ma.masked_array([1.0], [True]))), TypeError,
         "save: params: b expected an array, got MaskedArray of"),
        (lambda: save(path, TINY, params._replace(b=deleted)), ValueError,
         "save: params: b expected numbers, got a deleted array; was it donated"),
        (lambda: save(path, named("__metadata__"), {"__metadata__": params.b}, params_only=True), ValueError,
         "save: params expected names that safetensors can hold, got '__metadata__'"),
        (lambda: save(path, named("\ud800"), {"\ud800": params.b}, params_only=True), ValueError,
         r"save: params expected names that safetensors can hold, got '.ud800'"),
        (lambda: save(path, TINY, {1: params.b, "a": params.b}), TypeError,
         "save: params expected a tree that JAX can flatten, got dict of"),
        (lambda: save(path, TINY, params, {"a": [1, {"b": (1,)}]}), TypeError,
         r"save: metadata\['a'\]\[1\]\['b'\] expected what JSON can hold, got tuple of"),
        (lambda: save(path, TINY, params, [1]), TypeError, "save: metadata expected a dictionary, got list"),
        (lambda: save(path, TINY, params, {"a": (1,)}), TypeError, r"metadata\['a'\] expected .*, got tuple of \(int 1\), which it would give back as list of .*; write tuples as lists"),
        (lambda: save(path, TINY, params, {1: "a"}), TypeError, r"metadata expected what JSON can hold, got dict of \(1: str 'a'\)"),
        (lambda: save(path, TINY, params, {"a": float("nan")}), TypeError,
         "metadata expected what JSON can hold: Out of range"),
        (lambda: save(path, TINY, params, {"a": params.b}), TypeError, "metadata expected what JSON can hold: .*Array"),
    ]  # fmt: skip
    for f, error, message in cases:
        with pytest.raises(error, match=message):
            f()
        assert not path.exists()


def test_missing_safetensors_package_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for f in (lambda: save(path, TINY, params_of(TINY)), lambda: load(path)):
        with pytest.raises(ImportError, match=r'(save|load): .* pip install "jaxrnn\[interop\]"'):
            f()
