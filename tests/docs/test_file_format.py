"""Each row of the tables of docs/file_format.md is true of a file, and its example computes an LSTM without jaxrnn."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors

import jaxrnn
from jaxrnn.cells import FAMILIES
from tests.support import in_numpy
from tests.support.registry import CELLS
from tests.support.saving import params_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "file_format.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
SIZES = {"I": 3, "H": 4, "P": 2, "N": 2, "D": 2, "O": 5}


def rows_below(header):
    """The rows of the table with this header."""
    lines = PAGE[PAGE.index(f"| {header} |") :].split("\n\n")[0].strip().split("\n")[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def tables():
    """By the call that makes the cell: name, shape and blocks of its arrays."""
    found, call = {}, ""
    for made, *row in rows_below("cell"):
        call = made.strip("`") or call
        found.setdefault(call, []).append(row)
    return found


ARRAYS = tables()


def made(call):
    return eval(call, {**SIZES, **vars(jaxrnn)})


def content(path):
    with safetensors.safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return arrays, json.loads(file.metadata()["jaxrnn"]), file.metadata()


@pytest.mark.parametrize("call", ARRAYS)
def test_arrays_of_a_cell_are_those_of_its_file(call, tmp_path):
    cell = made(call)
    jaxrnn.save(tmp_path / "cell", cell, params_of(cell, input_size=SIZES["I"]))
    arrays, _, _ = content(tmp_path / "cell")
    rows = {name.strip("`"): (shape, blocks) for name, shape, blocks in ARRAYS[call]}
    size = lambda text: eval(re.sub(r"(\d)([A-Z])", r"\1*\2", text), {}, SIZES)  # noqa: E731
    assert {name: tuple(map(size, shape[1:-1].split(", "))) for name, (shape, _) in rows.items()} == {
        name: array.shape for name, array in arrays.items()
    }
    gates = getattr(cell.config, "gates", ())
    for name, (_, blocks) in rows.items():
        if name in ("w_x", "w_h", "b", "norm.scale_x", "norm.scale_h") and blocks:
            assert blocks.split() == list(gates), name
        if name == "peephole":
            assert blocks.split() == ["rows", *(gate for gate in gates if gate != "g")]


def test_every_array_of_every_cell_is_in_the_table():
    listed = {(call.partition("(")[0], row[0].strip("`")) for call, rows in ARRAYS.items() for row in rows}
    assert {call.partition("(")[0] for call in ARRAYS} == {family.factory.__name__ for family in FAMILIES} | {"readout"}
    for make in CELLS.values():
        cell = make()
        factory = cell.config.factory if cell.config.factory != "regularize" else cell.config.cell.factory
        for path, _ in jax.tree.leaves_with_path(params_of(cell)):
            assert (factory, jax.tree_util.keystr(path, simple=True, separator=".")) in listed


TREES = {
    "a cell": jaxrnn.rnn(1),
    "a network": jaxrnn.stack([jaxrnn.rnn(1), jaxrnn.rnn(1)]),
    "a network, of a layer that reads both ways": jaxrnn.stack([jaxrnn.rnn(1)], bidirectional=True),
    'a dictionary with a network as "net"': {"net": jaxrnn.stack([jaxrnn.rnn(1)])},
    'a dictionary with a list of two cells as "cells"': {"cells": [jaxrnn.rnn(1), jaxrnn.rnn(1)]},
}


@pytest.mark.parametrize("row", rows_below("saved"), ids=lambda row: row[0])
def test_names_and_metadata_are_those_of_a_file(row, tmp_path):
    network = TREES[row[0]]
    params = jax.tree.map(params_of, network, is_leaf=lambda part: hasattr(part, "init"))
    jaxrnn.save(tmp_path / "net", network, params, {"note": 1})
    arrays, about, texts = content(tmp_path / "net")
    assert sorted(name for name in arrays if name.endswith("w_x")) == sorted(re.findall(r"`(\S*w_x)`", row[1]))
    assert sorted(texts) == ["jaxrnn", "jaxrnn_crc32"]
    entries = dict(rows_below("entry"))
    assert list(about) == [name.strip("`") for name in entries]
    assert (about["version"], about["input_size"]) == ((2, None) if isinstance(network, dict) else (1, 3))
    if isinstance(network, dict):
        assert about["configuration"].keys() == {"dict"}
        (part,) = about["configuration"]["dict"].values()
        cells = part.get("list", [part])
        assert all(cell.keys() == {"network", "input_size"} for cell in cells)


def test_the_list_of_trees_is_that_of_the_page():
    assert list(TREES) == [row[0] for row in rows_below("saved")]


def test_blocks_of_heads_go_from_unit_to_unit():
    (n, d, h), params = map(SIZES.get, "NDH"), params_of(jaxrnn.lstm(4, num_heads=2))
    dense = jaxrnn.interop.to_torch(params)["weight_hh"].T
    for head, j, k, gate in np.ndindex(n, d, d, 4):
        assert dense[head * d + j, gate * h + head * d + k] == params.w_h[head, j, gate * d + k]


@pytest.mark.processes
def test_the_example_computes_an_lstm_without_jaxrnn(tmp_path):
    cell = jaxrnn.lstm(4)
    params, xs = params_of(cell), np.random.default_rng(1).standard_normal((6, 3)).astype("float32")
    jaxrnn.save(tmp_path / "cell", cell, params)
    np.save(tmp_path / "xs.npy", xs)
    script = f"""
import sys
sys.modules["jaxrnn"] = sys.modules["jax"] = None
{EXAMPLE}
arrays, about = read({str(tmp_path / "cell")!r})
assert about["configuration"]["factory"] == "lstm"
np.save({str(tmp_path / "ys.npy")!r}, lstm(arrays, np.load({str(tmp_path / "xs.npy")!r})))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    zeros = jaxrnn.LSTMState(h=np.zeros(4), c=np.zeros(4))
    expected = in_numpy.unroll("lstm", wide, xs.astype(np.float64), zeros)[1]
    np.testing.assert_allclose(np.load(tmp_path / "ys.npy"), expected, atol=1e-6)
