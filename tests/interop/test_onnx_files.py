"""ONNX files that cannot be read, are damaged, or name other files: every error has the function's name and few words."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import jaxrnn
from jaxrnn.interop import from_onnx, to_onnx
from tests.support.onnx_tools import assert_same_network, cell_of, model_of, node, operator, random_params

pytestmark = pytest.mark.usefixtures("unhooked")

PAIR = jaxrnn.stack([cell_of("gru"), cell_of("gru")])
PARAMS = random_params(PAIR)


def lstm(*made: Any) -> onnx.ModelProto:
    one, weights = operator("a", "x", 3, directions=1)
    return model_of([*made, one], weights, ["a.Y"])


def refused(model: Any, message: str, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error, match=message) as caught:
        from_onnx(model)
    assert len(str(caught.value)) <= 500
    return str(caught.value)


# ---- paths


def test_errors_of_the_system_keep_their_class_and_have_our_name(tmp_path):
    refused(
        tmp_path / "nowhere.onnx",
        "from_onnx: model expected a file that can be read: No such file .*nowhere.onnx",
        FileNotFoundError,
    )
    refused(tmp_path, "from_onnx: model expected a file that can be read: Is a directory", IsADirectoryError)
    refused("", "from_onnx: model expected a file that can be read: Is a directory", IsADirectoryError)
    (tmp_path / "file").write_bytes(b"")
    refused(
        tmp_path / "file" / "model.onnx",
        "from_onnx: model expected a file that can be read: Not a directory",
        NotADirectoryError,
    )
    for name in ("x" * 300, "x/" * 5000, "x" * 10**5):
        refused(name, "from_onnx: model expected a file that can be read: File name too long", OSError)
    loop = tmp_path / "loop.onnx"
    loop.symlink_to(loop)
    refused(loop, "from_onnx: model expected a file that can be read: Too many levels of symbolic links", OSError)


class OddPath:
    def __init__(self, path: Any):
        self.path = path

    def __fspath__(self) -> Any:
        if isinstance(self.path, Exception):
            raise self.path
        return self.path


@pytest.mark.parametrize("error", [RuntimeError("no path"), KeyError("x"), OSError("disk")], ids=repr)
def test_paths_that_are_none_are_refused(error):
    for name in ("a\0b", "\ud800"):
        refused(name, "^from_onnx: model expected a path, got ")
        refused(Path(name), "^from_onnx: model expected a path, got ")
    refused(OddPath(error), f"^from_onnx: model expected a path, got OddPath .*{type(error).__name__}", TypeError)
    refused(OddPath(b"bytes"), "^from_onnx: model expected a path, got OddPath", TypeError)
    refused(b"bytes", "^from_onnx: model expected an onnx.ModelProto or a path, got bytes", TypeError)
    refused([lstm()], "^from_onnx: model expected an onnx.ModelProto or a path, got list", TypeError)


def test_models_are_read_from_paths_of_every_kind(tmp_path):
    path = tmp_path / "model.onnx"
    to_onnx(PAIR, PARAMS, path=path)
    for given in (path, str(path), OddPath(str(path))):
        assert_same_network((PAIR, PARAMS), from_onnx(given))


# ---- graphs in each other


def nested_ifs(count: int) -> onnx.ModelProto:
    """An LSTM beside `count` operators `If`, each in a branch of the one before."""
    model = lstm()
    graph = model.graph
    for _ in range(count):
        inner = graph.node.add(op_type="If", input=["c"], output=["y"])
        graph = inner.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
    return model


def test_graphs_nested_deeper_than_protobuf_reads_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    for count in (1, 31):
        path.write_bytes(nested_ifs(count).SerializeToString())
        for model in (nested_ifs(count), path):
            assert repr(from_onnx(model)[0]) == "stack([lstm(4)])"
    for count in (33, 60, 20_000):  # protobuf would write the last beyond the end of the process's memory
        refused(
            nested_ifs(count),
            "^from_onnx: the model expected at most 32 graphs in each other, as in If and Loop, got more$",
        )
    path.write_bytes(nested_ifs(60).SerializeToString())
    refused(
        path,
        "^from_onnx: file .* expected an ONNX model, got .* bytes that are none; .* or of graphs nested more than 32 deep",
    )


def test_deep_graphs_of_functions_and_of_training_are_refused():
    for place in ("functions", "training_info"):
        model = lstm()
        if place == "functions":
            model.functions.add(name="f").node.extend(nested_ifs(31).graph.node)
            holder = model.functions[0].node[-1].attribute[0].g
        else:
            holder = model.training_info.add().algorithm
        for _ in range(33):
            holder = holder.node.add(op_type="If").attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
        refused(model, "^from_onnx: the model expected at most 32 graphs in each other")


# ---- attributes


def test_attributes_without_a_value_of_their_own_are_refused_by_name():
    for name in ("activations", "hidden_size", "direction", "clip", "strange"):
        model = lstm()
        del model.graph.node[0].attribute[:]
        model.graph.node[0].attribute.add(name=name, ref_attr_name="outer", type=onnx.AttributeProto.STRINGS)
        refused(
            model,
            rf"^from_onnx: node 'a' \(LSTM\) attribute {name} expected a value, got a reference to 'outer', as only functions have them$",
        )
    model = lstm()
    model.graph.node[0].attribute.add(name="activations")
    refused(model, r"^from_onnx: node 'a' \(LSTM\) attribute activations expected (list|a value), got ")


def test_an_rnn_without_activations_is_refused():
    one, weights = operator("a", "x", 3, op="RNN", directions=1)
    one.attribute.add(name="activations", type=onnx.AttributeProto.STRINGS)
    refused(
        model_of([one], weights, ["a.Y"]),
        r"^from_onnx: node 'a' \(RNN\) attribute activations expected 1 of Tanh, Relu, Sigmoid, .*; got an empty list$",
    )


def test_constants_of_references_or_without_numbers_are_not_known():
    for attribute in (
        {"ref_attr_name": "outer", "type": onnx.AttributeProto.TENSOR},
        {"type": onnx.AttributeProto.SPARSE_TENSOR},
    ):
        model = lstm()
        made = helper.make_node("Constant", [], ["w"])
        made.attribute.add(name="value" if "ref_attr_name" in attribute else "sparse_value", **attribute)
        model.graph.node.insert(0, made)
        model.graph.node[1].input[1] = "w"
        refused(model, "^from_onnx: node 'a' input W expected a constant, got 'w'")
    model = lstm()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value_ints="text"))
    refused(model, r"^from_onnx: node '' \(Constant\) attribute value_ints expected numbers, got bytes b'text'$")


def test_messages_about_long_names_and_large_attributes_are_short():
    long = "n" * 10**5
    one, weights = operator("a", "x", 3, directions=1)
    one.name = long
    one.attribute.add(name=long, type=onnx.AttributeProto.TENSOR).t.CopyFrom(
        onnx.numpy_helper.from_array(np.ones(10**5))
    )
    refused(
        model_of([one], weights, ["a.Y"]),
        "^from_onnx: node 'nnn.*' .* attribute nnn.* expected to be absent, got TensorProto$",
    )
    del one.attribute[-1]
    for name, value in (
        ("activations", ["x" * 500] * 500),
        ("clip", 1.0),
        ("activation_alpha", [0.5] * 500),
        ("direction", long),
        ("hidden_size", 2**62),
    ):
        changed = onnx.NodeProto()
        changed.CopyFrom(one)
        kept = [attribute for attribute in one.attribute if attribute.name != name]
        del changed.attribute[:]
        changed.attribute.extend([*kept, helper.make_attribute(name, value)])
        refused(model_of([changed], weights, ["a.Y"]), f"^from_onnx: node 'nnn.*' .*attribute {name} expected ")
    two, more = operator(long + "b", long, 3, directions=1)
    refused(
        model_of([one, node("Relu", "a.Y", long, name=long), two], weights | more, [two.output[0]]),
        "^from_onnx: node 'nnn.* expected to read the outputs of 'nnn.*and nodes='nnn",
    )
    refused(model_of([one], {}, ["a.Y"]), "^from_onnx: node 'nnn.*' input W expected a constant")
    with pytest.raises(
        ValueError, match="^from_onnx: nodes expected one operator called 'mmm.*' among 'nnn.*; got 0$"
    ) as caught:
        from_onnx(model_of([one], weights, ["a.Y"]), nodes="m" * 10**5)
    assert len(str(caught.value)) <= 500
    with pytest.raises(ValueError, match="^from_onnx: weights expected one of 'x', .*; got 'mmm") as caught:
        from_onnx(model_of([one], weights, ["a.Y"]), weights={"m" * 10**5: np.ones(1, np.float32)})
    assert len(str(caught.value)) <= 500


def test_names_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    content = to_onnx(PAIR, PARAMS).SerializeToString()
    for name in (b"hidden_size", b"layer_0.W", b"GRU", b"layer_1.run"):
        path.write_bytes(content.replace(name, name[:-1] + b"\xff"))
        refused(path, "^from_onnx: file .* expected names in UTF-8, got others; is it corrupted")


def test_values_that_would_fill_the_memory_are_not_computed():
    """Each node makes a tensor from few bytes that no memory holds."""
    ones = {
        "col": np.ones((2**20, 1), np.float32),
        "row": np.ones((1, 2**20), np.float32),
        "zeros": np.zeros(2**20, np.int64),
    }
    for made in (
        [node("Add", "col row", "w")],
        [node("Gather", "col zeros", "g", axis=1), node("Identity", "g", "w")],
        [node("Concat", "col " * 100, "w", axis=0)],
    ):
        one, weights = operator("a", "x", 3, directions=1)
        one.input[1] = "w"
        refused(
            model_of([*made, one], weights | ones, ["a.Y"], 18),
            "^from_onnx: node 'a' input W expected a constant, got 'w'",
        )
    split = helper.make_node("Split", ["col"], ["w"], num_outputs=2**31 - 1)
    for made in (split, helper.make_node("If", ["c"], ["y"], then_branch=helper.make_graph([split], "g", [], []))):
        refused(
            lstm(made),
            r"^from_onnx: node '' \(Split\) attribute num_outputs expected 1, as many as it has outputs, got 2147483647$",
        )
    one, weights = operator("a", "x", 3, directions=1)
    model = model_of([one, node("MatMul", "a.Y wide", "y")], weights | {"wide": np.ones((4, 2**21), np.float32)}, ["y"])
    assert repr(from_onnx(model)[0]) == "stack([lstm(4)])"


def test_sizes_below_zero_are_refused():
    model = lstm()
    model.graph.initializer[0].dims[1] = -1
    refused(model, r"^from_onnx: tensor 'a.W' of the model expected sizes of at least 0, got \[1, -1, 3\]$")


# ---- data beside the model


def external(folder: Path) -> tuple[Path, str]:
    """A model whose arrays are in `data.bin`, and the SHA-1 of that file."""
    path = folder / "model.onnx"
    onnx.save_model(to_onnx(PAIR, PARAMS), path, save_as_external_data=True, location="data.bin", size_threshold=0)
    return path, hashlib.sha1((folder / "data.bin").read_bytes()).hexdigest()


def with_entries(path: Path, **entries: str) -> Path:
    """The model in the file `path`, with more entries of its external data; the first tensor alone has them."""
    model = onnx.load(path, load_external_data=False)
    for key, value in entries.items():
        model.graph.initializer[0].external_data.add(key=key, value=value)
    changed = path.with_name("changed.onnx")
    changed.write_bytes(model.SerializeToString())
    return changed


def test_data_beside_the_model_has_its_checksum(tmp_path):
    path, digest = external(tmp_path)
    for checksum in (digest, digest.upper(), ""):
        assert_same_network((PAIR, PARAMS), from_onnx(with_entries(path, checksum=checksum)))
    for checksum in (hashlib.sha1(b"other").hexdigest(), "0", "x" * 10**5, hashlib.sha256(b"").hexdigest()):
        message = f"^from_onnx: tensor 'layer_0.W' of file .* expected 'data.bin' to have the SHA-1 .*, got {digest}; is the file corrupted"
        refused(with_entries(path, checksum=checksum), message)
    changed = with_entries(path, checksum=digest)
    data = bytearray((tmp_path / "data.bin").read_bytes())
    data[-1] ^= 1  # a byte of another tensor
    (tmp_path / "data.bin").write_bytes(data)
    refused(changed, "expected 'data.bin' to have the SHA-1")


def test_two_locations_are_refused(tmp_path):
    """Onnx reads the last, which a check of the first does not see."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path, _ = external(folder)
    (tmp_path / "secret.bin").write_bytes((folder / "data.bin").read_bytes())
    refused(
        with_entries(path, location="../secret.bin"),
        "^from_onnx: tensor 'layer_0.W' of file .* expected one 'location' of its external data, got two$",
    )
    refused(with_entries(path, offset="0"), "expected one 'offset' of its external data, got two$")


@pytest.mark.parametrize("location", ["a\0b", "x" * 300, "loop", "fifo", "folder", "data.bin/x", ""])
def test_locations_of_no_file_are_refused(tmp_path, location):
    path, _ = external(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    refused(path, "^from_onnx: tensor 'layer_0.W' of file .* expected its data in ")


def test_offsets_outside_of_the_file_are_refused(tmp_path):
    path, _ = external(tmp_path)
    for key, value in (
        ("offset", "-1"),
        ("offset", "10000000"),
        ("offset", "x"),
        ("length", "-1"),
        ("length", str(10**15)),
        ("length", "3"),
    ):
        model = onnx.load(path, load_external_data=False)
        (entry,) = (entry for entry in model.graph.initializer[0].external_data if entry.key == key)
        entry.value = value
        changed = tmp_path / "changed.onnx"
        changed.write_bytes(model.SerializeToString())
        refused(
            changed,
            "^from_onnx: tensor 'layer_0.W' of file .* expected .* numbers, got something else; is the file truncated or corrupted",
        )


# ---- names and paths of models that are written


def test_names_that_a_model_cannot_have_are_refused():
    for names, message, error in (
        ({"x": "\ud800"}, r"names expected text that UTF-8 can hold, got '\\ud800'", ValueError),
        ({"x": ""}, "names expected a name for 'x', got str ''", TypeError),
        ({"x": 1}, "names expected a name for 'x', got int 1", TypeError),
        ({1: "x"}, "names expected one of 'x', 'h_n_l0', 'h_n_l1', 'y'; got 1", ValueError),
        ({"z" * 10**5: "x"}, "names expected one of 'x', 'h_n_l0', 'h_n_l1', 'y'; got 'zzz", ValueError),
    ):
        with pytest.raises(error, match=f"^to_onnx: {message}") as caught:
            to_onnx(PAIR, PARAMS, names=names)
        assert len(str(caught.value)) <= 500
    many = jaxrnn.stack([cell_of("gru")] * 40)
    with pytest.raises(ValueError, match="^to_onnx: names expected one of 'x', .* and 3[0-9] more; got 'z'"):
        to_onnx(many, (random_params(cell_of("gru")), *[random_params(cell_of("gru"), 0, 4)] * 39), names={"z": "x"})


def test_models_are_not_written_over_folders(tmp_path):
    for path in (tmp_path, "/", ".."):
        with pytest.raises(
            IsADirectoryError, match="to_onnx: path: expected a file, got a folder; nothing was changed"
        ):
            to_onnx(PAIR, PARAMS, path=path)
