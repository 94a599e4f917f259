"""`onnx_recurrent` lists every operator of a model; models without one are refused by what they have instead."""

import copy
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from jaxrnn.interop import OnnxRecurrent, from_onnx, from_torch, onnx_recurrent, to_onnx
from tests.support.onnx_nested import H, I, T, body, lstm, model, nested_ifs, node, scalar, tensor
from tests.support.onnx_tools import cell_of, model_of, operator, random_params, session

PLACE = "If_0.then_branch/If_1.then_branch/If_2.then_branch/rnn"
FIRST = OnnxRecurrent(
    path=PLACE, kind="LSTM", direction="forward", input_size=I, hidden_size=H, X="x", sequence_lens=None, initial_h=None,
    initial_c=None, Y="rnn_Y", Y_h="rnn_Y_h", Y_c=None, function=None,
)  # fmt: skip


@pytest.mark.parametrize("where", ["outermost", "innermost", "spread"])
def test_operators_of_inner_graphs_are_listed(where):
    assert onnx_recurrent(nested_ifs(3, where)) == (FIRST,)


def test_tensors_that_are_listed_are_those_to_feed_and_to_compare(tmp_path):
    """The names of an exported model are its inputs and outputs, in the order of its layers."""
    path = tmp_path / "model.onnx"
    cell = cell_of("lstm")
    to_onnx(cell, random_params(cell), lengths=True, initial_state="inputs", path=path)
    (one,) = onnx_recurrent(path)
    assert (one.path, one.kind, one.direction, one.input_size, one.hidden_size) == (
        "layer_0",
        "LSTM",
        "forward",
        I,
        4,
    )
    feeds = [value.name for value in session(onnx.load(path)).get_inputs()]
    assert [one.X, one.sequence_lens, one.initial_h, one.initial_c] == feeds
    assert None not in (one.Y, one.Y_h, one.Y_c)


def test_operators_that_are_refused_are_listed():
    made, weights = lstm(activations=["Sigmoid", "Tanh", "Relu"], clip=3.0, direction="sideways")
    other, _ = lstm("w", op="GRU")
    made.output[0], other.name, other.output[0] = "", "", "Y2"
    other.input[:] = ["w", "W2", "R2"]  # the weights are inputs
    del other.attribute[:]
    given = model_of([made, other], {name: weights[name] for name in ("rnn_W", "rnn_R")}, ["Y2"])
    first, second = onnx_recurrent(given)
    assert (first.direction, first.input_size, first.hidden_size, first.Y) == ("sideways", I, H, None)
    assert second == OnnxRecurrent(
        "Y2", "GRU", "forward", None, None, "w", None, None, None, "Y2", "rnn_Y_h", None, None
    )
    given.graph.initializer[0].dims[:] = [7]
    given.graph.initializer[1].raw_data = b"short"
    assert onnx_recurrent(given)[0].input_size is None
    empty = model_of([helper.make_node("RNN", [], [])], {}, [])
    (alone,) = onnx_recurrent(empty)
    assert (alone.path, alone.kind, set(alone[3:])) == ("RNN 0", "RNN", {None})


def test_operators_of_equal_paths_are_all_listed():
    """Names of nodes need not be unique."""
    given = nested_ifs(1)
    given.graph.node.append(given.graph.node[0])
    assert onnx_recurrent(given) == (FIRST._replace(path="If_0.then_branch/rnn"),) * 2
    with pytest.raises(
        ValueError, match="^from_onnx: the model expected its operators .* in one graph, got several: 'If_0"
    ):
        from_onnx(given)


def with_function(*beside: Any) -> onnx.ModelProto:
    made, weights = lstm()
    function = helper.make_function(
        "mine", "Encoder", ["x", *weights], ["rnn_Y"], [made], [helper.make_opsetid("", 17)]
    )
    call = helper.make_node("Encoder", ["x", *weights], ["Y"], domain="mine")
    given = model([call, *beside], [tensor("x", "t", "b", I)], [tensor("Y", "t", 1, "b", H)], **weights)
    given.opset_import.append(helper.make_opsetid("mine", 1))
    given.functions.append(function)
    return given


def test_operators_in_functions_are_listed_and_read_when_inlined():
    given = with_function()
    (one,) = onnx_recurrent(given)
    assert (one.path, one.kind, one.function, one.hidden_size) == ("mine.Encoder/rnn", "LSTM", "mine.Encoder", H)
    with pytest.raises(
        ValueError,
        match=r"got none among 2 nodes; LSTM 'mine.Encoder/rnn' is in a function: read onnx.inliner.inline_local_functions",
    ):
        from_onnx(given)
    import onnx.inliner

    made, weights = lstm()
    _, expected = from_onnx(model_of([made], weights, ["rnn_Y"]))
    network, params = from_onnx(onnx.inliner.inline_local_functions(given))
    assert repr(network) == "stack([lstm(4)])"
    np.testing.assert_array_equal(params[0].w_x, expected[0].w_x)


def test_functions_without_a_name_are_called_function():
    given = with_function()
    given.functions[0].ClearField("name")
    given.functions[0].ClearField("domain")
    (one,) = onnx_recurrent(given)
    assert (one.path, one.function) == ("function/rnn", "function")


def test_arguments_are_checked():
    for odd in (None, 3, b"bytes", [nested_ifs(1)]):
        with pytest.raises(TypeError, match="^onnx_recurrent: model expected an onnx.ModelProto or a path, got "):
            onnx_recurrent(odd)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FileNotFoundError, match="onnx_recurrent: model expected a file that can be read"):
        onnx_recurrent("nowhere.onnx")
    assert onnx_recurrent(model_of([node("Relu", "x", "y")], {}, ["y"])) == ()


# ---- what models have instead


def unrolled(prefix: str = "rnn.") -> list[Any]:
    """One step of an LSTM, as PyTorch writes its LSTMCell."""
    return [
        node("Gemm", f"h {prefix}weight_hh {prefix}bias_hh", "a_h", transB=1),
        node("Gemm", f"x {prefix}weight_ih {prefix}bias_ih", "a_x", transB=1),
        node("Add", "a_x a_h", "a"), node("Split", "a", "i f g o", axis=1, num_outputs=4),
        *(node("Sigmoid", k, f"s{k}") for k in "ifo"), node("Tanh", "g", "tg"), node("Mul", "sf c", "fc"),
        node("Mul", "si tg", "ig"), node("Add", "fc ig", "c1"), node("Tanh", "c1", "tc"), node("Mul", "so tc", "h1"),
    ]  # fmt: skip


def weights(prefix: str = "rnn.") -> dict[str, np.ndarray]:
    shapes = {"weight_ih": (16, I), "weight_hh": (16, H), "bias_ih": (16,), "bias_hh": (16,)}
    return {f"{prefix}{name}": np.ones(shape, np.float32) for name, shape in shapes.items()}


def looped_cell(op: str) -> onnx.ModelProto:
    """A plain RNN as a `Loop` or a `Scan` over MatMul."""
    steps = [node("MatMul", "h w", "hw"), node("Add", "hw x", "a"), node("Tanh", "a", "h1")]
    if op == "Loop":
        inputs = (scalar("k", TensorProto.INT64), scalar("go", TensorProto.BOOL), tensor("h", 1, H))
        inside = body(
            [*steps, node("Identity", "go", "on")], [scalar("on", TensorProto.BOOL), tensor("h1", 1, H)], inputs
        )
        made = helper.make_node("Loop", ["n", "", "h0"], ["y"], name="steps", body=inside)
    else:
        inside = body(steps, [tensor("h1", 1, H)], (tensor("h", 1, H), tensor("x", 1, H)))
        made = helper.make_node("Scan", ["h0", "xs"], ["y"], name="steps", body=inside, num_scan_inputs=1)
    return model_of([made], {"w": np.ones((H, H), np.float32), "n": np.array(T)}, ["y"])


def in_branch(nodes: list[Any], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    then = body(nodes, [tensor("h1")])
    return model_of(
        [helper.make_node("If", ["yes"], ["y"], name="If_0", then_branch=then, else_branch=then)], constants, ["y"]
    )


MODELS: dict[str, tuple[onnx.ModelProto, str]] = {
    "a cell of PyTorch": (
        model_of(unrolled(), weights(), ["h1"]),
        r"among 13 nodes; its initialisers, such as 'rnn.weight_ih', have PyTorch's names: try from_torch\(\{t.name: "
        r"onnx.numpy_helper.to_array\(t\) for t in model.graph.initializer\}, prefix='rnn'\); "
        "Gemm, Sigmoid and Tanh of the model may be a cell written out, which is not converted$",
    ),
    "two cells of PyTorch": (
        model_of([], weights("a.rnn.") | weights("b."), []),
        r"such as 'a.rnn.weight_ih', .*, prefix='a.rnn'\), or prefix='b'$",
    ),
    "a layer of PyTorch": (
        model_of([], {"encoder.weight_hh_l0_reverse": np.ones((16, H), np.float32)}, []),
        r"such as 'encoder.weight_hh_l0_reverse', have PyTorch's names: try from_torch\(.*, prefix='encoder'\)$",
    ),
    "a cell in a branch": (
        in_branch(unrolled(""), {}),
        "among 27 nodes; Gemm, Sigmoid and Tanh in 'If_0.else_branch' may be a cell written out, which is not converted$",
    ),
    "a Loop": (looped_cell("Loop"), "among 5 nodes; Loop 'steps' over MatMul and Tanh is not converted: export with RNN, LSTM or GRU"),
    "a Scan": (looped_cell("Scan"), "among 4 nodes; Scan 'steps' over MatMul and Tanh is not converted: export with RNN, LSTM or GRU"),
    "another domain": (
        model_of([helper.make_node("CudnnLSTM", ["x"], ["y"], domain="other", name="z")], {}, ["y"]),
        "among 1 nodes; CudnnLSTM 'z' of the domain 'other' is not one that is read$",
    ),
    "a multilayer perceptron": (
        model_of(
            [node("Gemm", "x w", "a"), node("Tanh", "a", "t"), node("Sigmoid", "a", "s"), node("Mul", "s t", "y")],
            {"w": np.ones((I, H), np.float32)},
            ["y"],
        ),
        "among 4 nodes$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MODELS)
def test_models_without_operators_are_refused_by_what_they_have(what):
    given, message = MODELS[what]
    with pytest.raises(
        ValueError, match=f"^from_onnx: the model expected an operator RNN, LSTM or GRU, got none .*{message}"
    ) as caught:
        from_onnx(given)
    assert len(str(caught.value)) <= 500
    assert onnx_recurrent(given) == ()


def test_the_advice_for_weights_of_torch_works():
    given, _ = MODELS["two cells of PyTorch"]
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in given.graph.initializer}
    assert from_torch(arrays, prefix="a.rnn").w_x.shape == (I, 16)


def test_long_names_leave_room_for_what_is_wrong():
    given = copy.deepcopy(MODELS["a cell of PyTorch"][0])
    for held in given.graph.initializer:
        held.name = "n" * 10**4 + held.name
    given.graph.node.append(helper.make_node("G" * 10**4 + "RU", ["x"], ["y"], domain="d" * 10**4, name="z" * 10**4))
    with pytest.raises(
        ValueError, match="^from_onnx: the model expected an operator RNN, LSTM or GRU, got none"
    ) as caught:
        from_onnx(given)
    assert len(str(caught.value)) <= 500
    nested = nested_ifs(2)
    nested.graph.node[0].name = "n" * 10**4
    assert onnx_recurrent(nested)[0].path.startswith("nnn")
    several = model_of([*nested.graph.node, operator("a", "x", I)[0]], {}, ["y_0"])
    for options in ({}, {"nodes": "m" * 10**4}, {"nodes": ["a", "rnn"]}):
        with pytest.raises(ValueError, match="^from_onnx: (the model expected its|nodes expected)") as caught:
            from_onnx(several, **options)
        assert len(str(caught.value)) <= 500
