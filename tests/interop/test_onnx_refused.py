"""Refusals of ONNX models and of networks that ONNX cannot express; failed writes leave no partial file."""

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import jaxrnn
from jaxrnn import Bidirectional
from jaxrnn.interop.onnx_export import to_onnx
from jaxrnn.interop.onnx_import import from_onnx
from tests.support.onnx_tools import (
    AXES,
    assert_same_network,
    cell_of,
    model_of,
    node,
    operator,
    random_params,
    with_state,
)

# ---- from_onnx


def lstm_model(settings: dict[str, Any] | None = None, op: str = "LSTM", **changed: Any) -> onnx.ModelProto:
    """Makes one operator with changed attributes or weights; a weight of `None` is omitted."""
    one, weights = operator("a", "x", 3, op=op, directions=1, **(settings or {}))
    for role, value in changed.items():
        weights[f"a.{role}"] = weights[f"a.{role}"][value] if isinstance(value, slice) else value
    return model_of([one], {name: array for name, array in weights.items() if array is not None}, ["a.Y"])


def two(*between: Any, features: int = 4, w: Any = None, **settings: Any) -> onnx.ModelProto:
    """Makes two operators with nodes between them."""
    below, weights = operator("a", "x", 3, directions=1)
    above, more = operator("b", "xs", features, directions=1, **settings)
    return model_of([below, *between, above], weights | more | AXES | ({} if w is None else {"w": w}), ["b.Y"])


SQUEEZE = node("Squeeze", "a.Y one", "xs")
FUNCTION = helper.make_node("LSTM", ["x"], ["y"], domain="other.domain")
FROM_ONNX: dict[str, tuple[Any, dict[str, Any], str]] = {
    # attributes
    "clip": (lstm_model({"clip": 3.0}), {}, r"node 'a' \(LSTM\) attribute clip expected to be absent, got 3.0; .* but not the memory"),
    "negative clip": (lstm_model({"clip": -1.0}, op="GRU"), {}, "attribute clip expected a positive number, got -1.0"),
    "activations": (lstm_model({"activations": ["Sigmoid", "Tanh", "Relu"]}), {},
                    "activations expected one function for the candidate and the memory, got Sigmoid, Tanh, Relu"),
    "number of activations": (lstm_model({"activations": ["Sigmoid", "Tanh"]}), {}, "activations expected 3 of Tanh, .*; got Sigmoid, Tanh"),
    "activation of an RNN": (lstm_model({"activations": ["Gelu"]}, op="RNN"), {}, "activations expected 1 of Tanh, Relu, Sig.*Gelu"),
    "without alpha": (lstm_model({"activations": ["ScaledTanh"]}, op="RNN"), {},
                      "attribute activation_alpha expected a number for ScaledTanh, got none"),
    "alpha": (lstm_model({"activations": ["Elu"], "activation_alpha": [-0.5]}, op="RNN"), {}, "activations: .*alpha expected a positive number, got -0.5"),
    "many alphas": (lstm_model({"activation_alpha": [0.5] * 4}), {}, "attribute activation_alpha expected at most 3 numbers, got 4"),
    "coupled": (lstm_model({"input_forget": 1, "activations": ["Softsign", "Tanh", "Tanh"]}), {}, "activations expected σ.*; the coupled LSTM of ONNX"),
    "unknown": (lstm_model({"output_sequence": 1}), {}, "attribute output_sequence expected to be absent, got 1"),
    "of another operator": (lstm_model({"input_forget": 1}, op="GRU"), {}, "attribute input_forget expected to be absent"),
    "direction": (lstm_model({"direction": "backward"}), {}, "attribute direction expected one of forward, .*'backward'"),
    "type": (lstm_model({"direction": 1}), {}, "attribute direction expected bytes, got 1"),
    "flag": (lstm_model({"layout": 2}), {}, "attribute layout expected 0 or 1, got 2"),
    "hidden_size": (lstm_model({"hidden_size": 5}), {}, "attribute hidden_size expected 4, that of R, got 5"),
    "reverse": (lstm_model({"direction": "reverse"}), {}, "direction expected 'forward' .*got 'reverse'; with reverse=True"),
    "forward": (lstm_model(), {"reverse": True}, "direction expected 'reverse' as asked, got 'forward'"),
    # weights
    "missing W": (lstm_model(W=None), {}, r"node 'a' input W expected a constant, got 'a.W'.* weights=\{'a.W': array\}"),
    "shape of W": (lstm_model(W=slice(0)), {}, r"input W \('a.W'\) expected 1 along the first axis, got \(0, 16, 3\)"),
    "shape of R": (lstm_model(), {"weights": {"a.R": np.ones((1, 15, 4), "f4")}}, r"R \('a.R'\) expected shape \(16, 4\), got \(15, 4\)"),
    "shape of B": (lstm_model(B=np.ones((1, 16), "f4")), {}, r"input B \('a.B'\) expected shape \(32,\), got \(16,\)"),
    "integers": (lstm_model(W=np.ones((1, 16, 3), int)), {}, r"input W \('a.W'\) expected a floating-point array"),
    "unknown weights": (lstm_model(), {"weights": {"W": np.ones(3)}}, "weights expected one of 'x', 'a.W', .*; got 'W'"),
    "weights": (lstm_model(), {"weights": [1]}, "weights expected a mapping of names to arrays"),
    "data elsewhere": (lstm_model(), {}, "tensor 'a.W' of the model expected its data in the model, got them in 'w.bin'"),
    # calls
    "constant state": (with_state(h=np.ones((1, 2, 4), "f4")), {}, r"initial_h \('h'\) expected zeros, .* got a constant"),
    "state made of a constant": (with_state(node("Expand", "one shape", "h"), one=np.ones((1, 1, 4), "f4")), {},
                                 r"initial_h \('h'\) expected zeros"),
    "filled state": (with_state(helper.make_node("ConstantOfShape", ["s"], ["h"], value=numpy_helper.from_array(np.ones(1, "f4")))), {},
                     r"initial_h \('h'\) expected zeros"),
    "partly filled state": (with_state(node("Expand", "z shape", "zs"), node("Concat", "zs one", "h", axis=1), z=np.zeros((1, 1, 4), "f4"), one=np.ones((1, 1, 4), "f4")), {},
                            r"initial_h \('h'\) expected zeros"),
    "constant lengths": (lstm_model(), {}, r"sequence_lens \('n'\) expected what each call gives, or T, if the model fixed T, for every sequence, got another constant"),
    # graphs
    "no operator": (model_of([node("Relu", "x", "y"), FUNCTION], {}, ["y"]), {}, "the model expected an operator RNN, LSTM or GRU, got none among 2"),
    "read-out between": (two(node("Squeeze", "a.Y one", "s"), node("Relu", "s", "xs")), {},
                         "node 'b' expected to read the outputs of 'a', .*'xs' comes from Relu ''. Read .* nodes='a' and nodes='b'"),
    "side by side": (two(), {}, "node 'b' expected to read the outputs of 'a', .*'xs' comes from outside the graph"),
    "scaled": (two(node("Squeeze", "a.Y one", "s"), node("Add", "s s", "xs")), {}, "'xs' comes from Add"),
    "product between": (two(node("MatMul", "a.Y w", "m"), node("Squeeze", "m one", "xs"), w=np.ones((1, 4, 2), "f4"), features=2), {},
                        "node 'b' expected to read the outputs of 'a', .*'xs' comes from Squeeze"),
    "features": (two(SQUEEZE, hidden=4), {"weights": {"b.W": np.ones((1, 16, 5), "f4")}}, r"node 'b' input W \('b.W'\) expected 4 columns, .* got 5"),
    "direction above": (two(SQUEEZE, direction="reverse"), {}, "node 'b' attribute direction expected 'forward'"),
    "nodes": (lstm_model(), {"nodes": "b"}, "nodes expected one operator called 'b' among 'a'; got 0"),
    "no nodes": (lstm_model(), {"nodes": []}, "nodes expected a name or several"),
    "model": (b"bytes", {}, "model expected an onnx.ModelProto or a path, got bytes"),
}  # fmt: skip
FROM_ONNX["data elsewhere"][0].graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
FROM_ONNX["data elsewhere"][0].graph.initializer[0].external_data.add(key="location", value="w.bin")
FROM_ONNX["constant lengths"][0].graph.node[0].input.append("n")
FROM_ONNX["constant lengths"][0].graph.initializer.append(numpy_helper.from_array(np.array([3], np.int32), "n"))


@pytest.mark.parametrize("what", FROM_ONNX)
def test_from_onnx_refuses_unsupported_models(what):
    model, options, message = FROM_ONNX[what]
    with pytest.raises((TypeError, ValueError), match=f"^from_onnx: .*{message}"):
        from_onnx(model, **options)


# ---- to_onnx

GRU, LSTM, PAIR = cell_of("gru"), cell_of("lstm"), jaxrnn.stack([cell_of("gru"), cell_of("gru")])
PARAMS = random_params(PAIR)
PROJECTED = random_params(cell_of("lstm-projection"))


def of_cell(cell, **options):
    return lambda: to_onnx(cell, random_params(cell), **options)


def of_pair(params=PARAMS, **options):
    return lambda: to_onnx(PAIR, params, **options)


TO_ONNX: dict[str, tuple[Any, str]] = {
    "layer norm": (
        of_cell(jaxrnn.lstm(4, layer_norm=True)),
        r"params expected a cell without layer normalisation, got lstm\(4, layer_norm=True\)",
    ),
    "mgu": (of_cell(jaxrnn.mgu(4)), r"params expected a cell of rnn, lstm or gru, got mgu\(4\); ONNX has no operator"),
    "indrnn": (of_cell(jaxrnn.indrnn(4)), "expected a cell of rnn, lstm or gru, got indrnn"),
    "own cell": (
        of_cell(jaxrnn.Cell(GRU.init, GRU.initial_state, GRU.step, name="mine")),
        "rnn, lstm or gru, got mine",
    ),
    "zoneout": (of_cell(jaxrnn.regularize(GRU, zoneout=0.1)), "expected a cell without zoneout, got regularize"),
    "activation": (
        of_cell(jaxrnn.rnn(4, activation=jnp.sin)),
        r"expected activation to be one of tanh, relu, sigmoid, .*, got rnn\(4, activation=sin\)",
    ),
    "second layer": (
        of_cell(jaxrnn.stack([GRU, Bidirectional(GRU, jaxrnn.mgu(4))])),
        r"params\[1\].backward expected a cell",
    ),
    "merge": (
        of_cell(jaxrnn.stack([GRU], bidirectional=True, merge=jnp.maximum)),
        "merge expected one of concat, sum, mul, average, got the function",
    ),
    "network": (lambda: to_onnx("gru", PARAMS), "network expected a Network or a Cell, got str"),
    "params of a cell": (of_pair(PARAMS[0]), "params expected a tuple over 2 layers, got GRUParams"),
    "params of two directions": (
        of_pair((PARAMS[0], Bidirectional(*PARAMS))),
        r"params\[1\] expected one direction, got Bidirectional",
    ),
    "params of another cell": (
        of_pair((PARAMS[0], random_params(LSTM, 0, 4))),
        r"params\[1\]: params expected GRUParams, got LSTMParams",
    ),
    "params of another form": (
        of_pair((PARAMS[0], PARAMS[1]._replace(b_hn=None))),
        r"params\[1\]: params.b_hn expected an array, got None",
    ),
    "params of another size": (
        of_pair((PARAMS[0], random_params(GRU, 0, 5))),
        r"params\[1\].w_x expected 4 rows, the outputs of layer 0; got 5",
    ),
    "shape": (
        of_pair((PARAMS[0]._replace(b=jnp.ones(3)), PARAMS[1])),
        r"params\[0\]: params.b expected shape \(12,\), got \(3,\)",
    ),
    "no matrix": (of_pair((PARAMS[0]._replace(w_x=jnp.ones(())), PARAMS[1])), r"params\[0\]: .*w_x expected a matrix"),
    "integers": (
        of_pair(jax.tree.map(lambda p: p.astype(int), PARAMS)),
        r"params\[0\]: params.w_x expected floating-point numbers, got int32\[3, 12\]",
    ),
    "traced": (
        lambda: jax.jit(lambda params: len(to_onnx(PAIR, params).graph.node))(PARAMS),
        r"params\[0\].w_x expected a concrete array",
    ),
    "float8": (
        of_pair(jax.tree.map(lambda p: p.astype(jnp.float8_e5m2), PARAMS)),
        r"params\[0\]: params.w_x expected floating-point numbers, got float8_e5m2\[3, 12\]",
    ),
    "bfloat16": (
        of_pair(jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)),
        "from opset 22 on.*, got bfloat16; cast them",
    ),
    "opset 13": (of_pair(opset=13), "opset expected 14 to .*; got 13"),
    "opset 999": (of_pair(opset=999), "opset expected 14 to .*; got 999"),
    "opset str": (of_pair(opset="17"), "opset expected a positive integer, got str"),
    "lengths": (of_pair(lengths=np.ones(3, int)), "lengths expected True or False, got int64"),
    "batch_first": (of_pair(batch_first=1), "batch_first expected True or False, got int 1"),
    "initial_state": (of_pair(initial_state=True), "initial_state expected one of 'zeros', 'inputs'; got True"),
    "reverse": (
        of_cell(jaxrnn.stack([GRU], bidirectional=True), reverse=True),
        "reverse expected False for a network that reads both ways, got True",
    ),
    "names": (
        of_pair(names={"h_n": "h"}),
        "names expected one of 'x', 'h_n_l0', 'h_n_l1', 'y'; got 'h_n'",
    ),
    "names twice": (of_pair(names={"x": "y"}), "names expected 'y' for one tensor, got it for two"),
    "names list": (of_pair(names=["x"]), "names expected a mapping of names to names, got list"),
    "singular projection": (
        lambda: to_onnx(
            cell_of("lstm-projection"), PROJECTED._replace(w_proj=jnp.ones((6, 4))), initial_state="inputs"
        ),
        "params.w_proj expected a condition number of at most 100 .* got (inf|[0-9.]+e)",
    ),
    "projection of NaN": (
        lambda: to_onnx(
            cell_of("lstm-projection"), PROJECTED._replace(w_proj=jnp.full((6, 4), jnp.nan)), initial_state="inputs"
        ),
        "params.w_proj expected a condition number of at most 100 .* got nan",
    ),
}


@pytest.mark.parametrize("what", TO_ONNX)
def test_to_onnx_refuses_unsupported_networks_and_bad_arguments(what):
    call, message = TO_ONNX[what]
    with pytest.raises((TypeError, ValueError), match=f"^to_onnx: .*({message})"):
        call()


def test_missing_onnx_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    for call in (of_pair(), lambda: from_onnx("model.onnx")):
        with pytest.raises(ImportError, match=r'_onnx: needs the package onnx; pip install "jaxrnn\[interop\]"'):
            call()


# ---- files


def test_failed_writes_leave_no_partial_file(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    model = to_onnx(PAIR, PARAMS, path=path)
    assert onnx.load(path) == model
    assert_same_network((PAIR, PARAMS), from_onnx(str(path)))
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, step, full)
            for name in ("model.onnx", "other.onnx"):
                with pytest.raises(OSError, match="No space left"):
                    to_onnx(PAIR, jax.tree.map(jnp.zeros_like, PARAMS), path=tmp_path / name)
        assert os.listdir(tmp_path) == ["model.onnx"]
        assert path.read_bytes() == before


def test_files_of_other_formats_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(FileNotFoundError):
        from_onnx(path)
    for content in (b"", b"text", pickle.dumps(Trap()), b"PK\x03\x04" + bytes(99), np.ones(9).tobytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^from_onnx: file '{path}' expected an ONNX model, got "):
            from_onnx(path)


class Trap:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_truncated_files_are_refused_and_corrupted_ones_raise_only_value_errors(tmp_path):
    """A file with one changed bit is either refused or holds other numbers."""
    path, rng = tmp_path / "model.onnx", np.random.default_rng(0)
    content = to_onnx(PAIR, PARAMS).SerializeToString()
    for end in range(0, len(content), 97):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match="^from_onnx: "):
            from_onnx(path)
    path.write_bytes(content.replace(b"forward", b"for\xffard"))
    with pytest.raises(ValueError, match="^from_onnx: file .* expected names in UTF-8"):
        from_onnx(path)
    headless = to_onnx(PAIR, PARAMS)
    headless.ClearField("opset_import")
    path.write_bytes(headless.SerializeToString())
    with pytest.raises(ValueError, match="^from_onnx: file .* got one without a graph or an operator set"):
        from_onnx(path)
    read = []
    for _ in range(60):
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            read.append(from_onnx(path))
        except ValueError as error:
            assert "from_onnx: " in str(error)  # noqa: PT017
    assert 0 < len(read) < 60
    assert all(len(network.layers) == len(params) for network, params in read)


def test_external_data_is_read_only_from_the_model_folder(tmp_path):
    model = to_onnx(PAIR, PARAMS)
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="data.bin", size_threshold=0)
    assert_same_network((PAIR, PARAMS), from_onnx(path))
    data = (folder / "data.bin").read_bytes()
    (folder / "data.bin").write_bytes(data[:-1])
    with pytest.raises(
        ValueError, match=r"^from_onnx: tensor 'layer_1.[WRB]' of file .* expected \[1, .*\] numbers.* truncated"
    ):
        from_onnx(path)
    (folder / "data.bin").unlink()
    with pytest.raises(ValueError, match="expected its data in 'data.bin' beside the model, got no such file"):
        from_onnx(path)
    (tmp_path / "secret.bin").write_bytes(data)
    (folder / "link").symlink_to(tmp_path)
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "link/secret.bin"):
        outside = onnx.load(path, load_external_data=False)
        for tensor in outside.graph.initializer:
            tensor.external_data[0].value = location
        path.write_bytes(outside.SerializeToString())
        with pytest.raises(ValueError, match="expected its data in the folder of the model, got .*, which is outside"):
            from_onnx(Path(path))
