"""Networks read from ONNX models match the answers of ONNX, ONNX Runtime and PyTorch, however the model is written."""

import importlib
import io
import warnings
from typing import Any

import chex
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from jaxrnn import Bidirectional, LSTMState
from jaxrnn.interop.onnx_import import from_onnx
from tests.golden import make
from tests.support.onnx_tools import AXES, TOLERANCE, attributes_of, model_of, node, operator, run, with_state
from tests.support.peers import peer
from tests.support.registry import B, I, T, gap


def node_tests() -> dict[str, Any]:
    """Collects the tests that ONNX ships for the three operators."""
    cases = importlib.import_module("onnx.backend.test.case.node")._NodeTestCases
    with np.errstate(all="ignore"):  # a product of NumPy may set a flag without cause, on some processors
        for name in ("lstm", "gru", "rnn"):
            importlib.import_module(f"onnx.backend.test.case.node.{name}")
    return {case.name: case for case in cases if case.model.graph.node[0].op_type in ("LSTM", "GRU", "RNN")}


NODE_TESTS = node_tests()


def answers(network: Any, params: Any, direction: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """Outputs of the network, in the layout of the operator that it was read from."""
    h, c = inputs.get("initial_h"), inputs.get("initial_c")
    states = None
    if h is not None:
        of_each = [h_d if c is None else LSTMState(h_d, c[d]) for d, h_d in enumerate(h)]
        states = (Bidirectional(*of_each) if len(h) == 2 else of_each[0],)
    lengths, reverse = inputs.get("sequence_lens"), direction == "reverse"
    final, ys = network.unroll(params, inputs["X"], states, lengths=lengths, reverse=reverse)
    states = final[0] if direction == "bidirectional" else final
    arrays = {"Y": np.stack(np.split(np.asarray(ys), len(states), axis=-1), axis=1)}
    arrays["Y_h"] = np.stack([s.h if isinstance(s, LSTMState) else s for s in states])
    if isinstance(states[0], LSTMState):
        arrays["Y_c"] = np.stack([s.c for s in states])
    return arrays


@pytest.mark.parametrize("name", NODE_TESTS)
def test_networks_pass_the_node_tests_of_onnx(name):
    case = NODE_TESTS[name]
    (node,) = case.model.graph.node
    for given, expected in case.data_sets:
        inputs = dict(zip([x.name for x in case.model.graph.input], given, strict=True))
        direction = attributes_of(node).get("direction", b"forward").decode()
        weights = {role: inputs[role] for role in ("W", "R", "B", "P") if role in inputs}
        network, params = from_onnx(case.model, weights=weights, reverse=direction == "reverse")
        batch_first = attributes_of(node).get("layout", 0) == 1
        if batch_first:
            inputs["X"] = inputs["X"].swapaxes(0, 1)
        ours = answers(network, params, direction, inputs)
        if batch_first:
            ours = {"Y": ours["Y"].transpose(2, 0, 1, 3), "Y_h": ours["Y_h"].swapaxes(0, 1)}
        for output, theirs in zip([y.name for y in case.model.graph.output], expected, strict=True):
            assert gap(ours[output], theirs) <= TOLERANCE


def test_onnx_has_node_tests_for_every_operator():
    """Old releases of `onnx` have twelve, new ones eighteen."""
    operators = [case.model.graph.node[0].op_type for case in NODE_TESTS.values()]
    assert min(operators.count(op) for op in ("RNN", "GRU", "LSTM")) >= 4


@pytest.mark.parametrize("case", [pytest.param(case, id=key) for key, case in make.read("onnx").items()])
def test_networks_match_stored_answers_of_onnxruntime(case):
    config, inputs = case["config"], case["inputs"]
    names = ["X", "W", "R", "B", "sequence_lens", "initial_h", *(["initial_c", "P"] if config["op"] == "LSTM" else [])]
    settings = {"LSTM": ["input_forget"], "GRU": ["linear_before_reset"], "RNN": []}[config["op"]]
    held = {role: inputs[role] for role in ("W", "R", "B", "P") if role in inputs}
    node = helper.make_node(
        config["op"], [name if name in held or name not in ("B", "P") else "" for name in names], ["Y"],
        hidden_size=config["hidden_size"], direction=config["direction"], **{name: config[name] for name in settings},
    )  # fmt: skip
    model = model_of([node], held, ["Y"])
    network, params = from_onnx(model, reverse=config["direction"] == "reverse")
    given = {"X": inputs["xs"], "sequence_lens": np.asarray(config["lengths"], np.int32), "initial_h": inputs["h_0"]}
    ours = answers(network, params, config["direction"], given | {"initial_c": inputs.get("c_0")})
    for name, theirs in {"Y": "ys", "Y_h": "h_n", "Y_c": "c_n"}.items():
        if name in ours:
            assert gap(ours[name], case["outputs"][theirs]) <= TOLERANCE


# ---- variants that exporters write


JOINS = {
    "concat-reshape": ("concat", [node("Transpose", "a.Y", "t", perm=[0, 2, 1, 3]), node("Reshape", "t last", "xs")]),
    "concat-flattened-by-its-own-shape": ("concat", [
        node("Transpose", "a.Y", "t", perm=[0, 2, 1, 3]), node("Shape", "t", "s"), node("Gather", "s zero", "s0"),
        node("Gather", "s one", "s1"), node("Unsqueeze", "s0 zeros", "s0_"), node("Gather", "s two", "sizes"),
        node("ReduceProd", "sizes", "s2", axes=[0]), node("Concat", "s0_ s1 s2", "shape", axis=0),
        node("Reshape", "t shape", "xs"),
    ]),
    "concat-split": ("concat", [
        node("Split", "a.Y", "f b", axis=1), node("Squeeze", "f one", "f_"), node("Squeeze", "b one", "b_"),
        node("Dropout", "f_", "dropped"), node("Concat", "dropped b_", "xs", axis=-1),
    ]),
    "sum": ("sum", [node("ReduceSum", "a.Y one", "xs", keepdims=0)]),
    "sum-squeezed": ("sum", [node("ReduceSum", "a.Y one", "s"), node("Squeeze", "s one", "xs")]),
    "average": ("average", [node("ReduceMean", "a.Y", "xs", axes=[1], keepdims=0)]),
    "mul": ("mul", [node("ReduceProd", "a.Y", "xs", axes=[1], keepdims=0)]),
}  # fmt: skip


@pytest.mark.parametrize("how", JOINS)
def test_merges_are_recognised_by_the_nodes_between_layers(how):
    merge, between = JOINS[how]
    below, weights = operator("a", "x", 3)
    above, more = operator("b", "xs", 8 if merge == "concat" else 4)
    model = model_of([below, *between, above], weights | more | AXES | {"zeros": np.array([0])}, ["b.Y_h"])
    network, params = from_onnx(model)
    assert (network.merge, network.residual, len(network.layers)) == (merge, False, 2)
    for name, read in zip("ab", params, strict=True):
        _, (alone,) = from_onnx(model, nodes=name)
        chex.assert_trees_all_equal(read, alone)


def test_batch_first_layers_are_read():
    """The model fixes its sizes, as its `Reshape` does."""
    below, weights = operator("a", "x", 3, layout=1)
    above, more = operator("b", "xs", 8, layout=1)
    shape = {"shape": np.array([2, 7, 8])}
    model = model_of([below, node("Reshape", "a.Y shape", "xs"), above], weights | more | shape, ["b.Y"])
    with pytest.raises(ValueError, match="from_onnx: node 'b' expected to read the outputs of 'a'"):
        from_onnx(model)  # only the shape of the input tells (B, T) = (2, 7)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 7, 3]))
    network, _ = from_onnx(model)
    assert (network.merge, len(network.layers)) == ("concat", 2)


def test_residual_connections_are_recognised():
    nodes, weights = [], {}
    for k, (name, x) in enumerate([("a", "x"), ("b", "y0"), ("c", "y1")]):
        one, arrays = operator(name, x, 4, directions=1, op="GRU")
        weights |= arrays
        nodes += [one, node("Squeeze", f"{name}.Y one", f"y{k}" if not k else f"s{k}")]
        nodes += [node("Add", f"s{k} y{k - 1}", f"y{k}")] if k else []
    weights |= AXES
    assert from_onnx(model_of(nodes, weights, ["y2"]))[0].residual
    assert from_onnx(model_of(nodes[:5], weights, ["y1"]))[0].residual
    assert not from_onnx(model_of(nodes[:4], weights, ["s1"]))[0].residual
    transposed = [node("Transpose", one, f"{one}_", perm=[1, 0, 2]) for one in ("s1", "y0")]
    assert from_onnx(model_of([*nodes[:5], *transposed], weights, ["y1", "s1_"]))[0].residual
    assert from_onnx(model_of([*nodes[:4], *transposed, node("Add", "s1_ y0_", "y_")], weights, ["y_"]))[0].residual
    with pytest.raises(ValueError, match="node 'c' expected merge='concat' and residual=True around it"):
        from_onnx(model_of(nodes[:-1], weights, ["s2"]))


def test_nodes_after_the_last_layer_are_ignored():
    """A sum over directions after the last layer does not make the merge a sum."""
    below, weights = operator("a", "x", 3)
    above, more = operator("b", "xs", 8)
    nodes = [below, *JOINS["concat-reshape"][1], above, node("ReduceSum", "b.Y one", "total", keepdims=0)]
    network, _ = from_onnx(model_of([*nodes, node("Relu", "total", "y")], weights | more | AXES, ["y"]))
    assert network.merge == "concat"


def test_read_out_is_not_taken_for_a_projection():
    """It is a projection only if the recurrent weights are a product with it."""
    plain, weights = operator("a", "x", 3)
    read_out = {"w": np.random.default_rng(0).standard_normal((2, 4, 2)).astype(np.float32)}
    network, params = from_onnx(model_of([plain, node("MatMul", "a.Y w", "y")], weights | read_out, ["y"]))
    assert repr(network.layers[0].forward) == "lstm(4)"
    weights["a.R"] = np.random.default_rng(1).standard_normal((2, 16, 2)).astype(np.float32) @ read_out["w"].mT
    network, params = from_onnx(model_of([plain, node("MatMul", "a.Y w", "y")], weights | read_out, ["y"]))
    assert repr(network.layers[0].forward) == "lstm(4, projection_size=2)"
    np.testing.assert_array_equal(params[0].backward.w_proj, read_out["w"][1])


def test_weights_computed_by_nodes_are_read():
    """The nodes slice, join, transpose and cast weights, or hold them as constants."""
    plain, weights = operator("a", "x", 3)
    _, expected = from_onnx(model_of([plain], weights, ["a.Y"]))
    w, r, b = (weights[f"a.{role}"] for role in "WRB")
    pieces = {"w": w[:, :, ::-1].transpose(2, 1, 0).astype(np.float64), "r0": r[0, :5], "r1": r[:, 5:], "r2": r[1, :5]}
    made = [
        node("Slice", "w from to ax by", "w_"), node("Transpose", "w_", "w__", perm=[2, 1, 0]),
        node("Cast", "w__", "a.W", to=onnx.TensorProto.FLOAT),
        node("Unsqueeze", "r0 zeros", "r0_"), node("Unsqueeze", "r2 zeros", "r2_"),
        node("Concat", "r0_ r2_", "r_", axis=0), node("Concat", "r_ r1", "r", axis=1), node("Identity", "r", "a.R"),
        helper.make_node("Constant", [], ["a.B"], value=numpy_helper.from_array(b)),
        helper.make_node("Constant", [], ["zeros"], value_ints=[0]),
    ]  # fmt: skip
    steps = {name: np.array([k]) for name, k in {"from": 2, "to": -4, "ax": 0, "by": -1}.items()}
    _, read = from_onnx(model_of([*made, plain], pieces | steps, ["a.Y"]))
    chex.assert_trees_all_equal(read, expected)


def test_weights_computed_from_outputs_are_not_taken_for_constants():
    """Random numbers stand for those outputs."""
    xs = {"one": np.array([1]), "shape": np.array([1, 16, 4]), "scale": np.float32(0.5), "zero": np.int8(0)}
    for made in (
        [node("Reshape", "a.Y shape", "b.W")],
        [node("Mul", "a.Y scale", "m"), node("Reshape", "m shape", "b.W")],
        [
            node("Reshape", "a.Y shape", "r"),
            node("QuantizeLinear", "r scale zero", "q"),
            node("DequantizeLinear", "q scale zero", "b.W"),
        ],
    ):
        below, weights = operator("a", "x", 3, directions=1)
        above, more = operator("b", "xs", 4, directions=1)
        more = {name: array for name, array in more.items() if name != "b.W"}
        model = model_of([below, node("Squeeze", "a.Y one", "xs"), *made, above], weights | more | xs, ["b.Y"])
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 4, 3]))
        with pytest.raises(
            ValueError, match="^from_onnx: node 'b' input W expected a constant, got 'b.W', which the model computes"
        ):
            from_onnx(model)
    below, weights = operator("a", "x", 3, directions=1)
    above, more = operator("b", "xs", 4, directions=1)
    more["b.R"] = np.zeros((1, 16, 4), np.float32)  # a product with any projection
    made = [
        node("Squeeze", "a.Y one", "xs"),
        node("Slice", "a.Y from to axes", "part"),
        node("Squeeze", "part one", "w"),
    ]
    steps = {"from": np.array([0, 0, 0]), "to": np.array([1, 4, 2]), "axes": np.array([0, 2, 3]), "one": np.array([1])}
    model = model_of([below, *made, above, node("MatMul", "b.Y w", "y")], weights | more | steps, ["y"])
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 4, 3]))
    assert repr(from_onnx(model)[0]) == "stack([lstm(4), lstm(4)])"


@pytest.mark.parametrize("role", ["initial_h", "initial_c"])
def test_states_that_an_operator_hands_to_another_are_refused(role):
    """A stack does not hand the state of one layer to the next: ONNX Runtime gives other outputs."""
    below, weights = operator("a", "x", I, directions=1)
    above, more = operator("b", "xs", 4, directions=1)
    above.input.extend(["", "h"] if role == "initial_h" else ["", "", "h"])
    made = [
        below,
        node("Squeeze", "a.Y one", "xs"),
        node("Identity", "a.Y_h", "h"),
        above,
        node("Squeeze", "b.Y one", "y"),
    ]
    model = model_of(made, weights | more | AXES, ["y"])
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [T, B, I]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [T, B, 4]))
    with pytest.raises(
        ValueError,
        match=rf"^from_onnx: node 'b' input {role} \('h'\) expected what each call gives, got what node 'a' returns.*by nodes='a' and nodes='b'$",
    ):
        from_onnx(model)
    xs = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    (encoder, first), (decoder, second) = (from_onnx(model, nodes=name) for name in "ab")
    ((state,), ys) = encoder.unroll(first, xs)
    initial = LSTMState(state.h, 0 * state.h) if role == "initial_h" else LSTMState(0 * state.h, state.h)
    theirs = run(model, {"x": xs})["y"]
    assert gap(decoder.unroll(second, ys, (initial,))[1], theirs) <= TOLERANCE
    assert gap(decoder.unroll(second, ys)[1], theirs) > 0.01


def test_zeros_in_the_shape_of_outputs_are_initial_states():
    below, weights = operator("a", "x", I, directions=1)
    above, more = operator("b", "xs", 4, directions=1)
    above.input.extend(["n", "h"])
    made = [below, node("Squeeze", "a.Y one", "xs"), node("Shape", "a.Y_h", "s"), node("Expand", "nothing s", "h")]
    made += [node("Shape", "xs", "sizes"), node("Gather", "sizes zero", "t"), node("Expand", "t sizes", "n"), above]
    model = model_of(made, weights | more | AXES | {"nothing": np.zeros(1, np.float32)}, ["b.Y"])
    assert len(from_onnx(model)[0].layers) == 2


@pytest.mark.peers
def test_torch_exports_are_read():
    peer("torch")
    import torch

    torch.manual_seed(0)
    module = torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True).eval()
    xs, file = torch.randn(B, T, 3), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated
        torch.onnx.export(module, (xs,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": [0, 1]})
    network, params = from_onnx(onnx.load_from_string(file.getvalue()))
    final, ys = network.unroll(params, xs.numpy().swapaxes(0, 1))
    h, c = zip(*(state for layer in final for state in layer), strict=True)
    theirs, (h_n, c_n) = module(xs)
    for ours, expected in ((np.stack(h), h_n), (np.stack(c), c_n), (np.asarray(ys).swapaxes(0, 1), theirs)):
        assert gap(ours, expected.detach().numpy()) <= TOLERANCE


LENGTHS: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "constant": ([], {"n": np.full(B, T, np.int32)}),
    "node": ([helper.make_node("Constant", [], ["n"], value=numpy_helper.from_array(np.full(B, T, np.int32)))], {}),
    "joined": ([node("Concat", "n1 n2", "n", axis=0)], {"n1": np.full(1, T, np.int32), "n2": np.full(B - 1, T, np.int32)}),
    "expanded": ([node("Expand", "t s", "n")], {"t": np.array([T], np.int32)}),
    "cast": ([node("Expand", "t s", "n64"), node("Cast", "n64", "n", to=onnx.TensorProto.INT32)], {"t": np.array([T])}),
    "filled": ([helper.make_node("ConstantOfShape", ["s"], ["n"], value=numpy_helper.from_array(np.array([T], np.int32)))], {}),
}  # fmt: skip


def with_lengths(
    made: list[Any], constants: dict[str, np.ndarray], time: int | str, layers: int = 1
) -> onnx.ModelProto:
    """A model of one or two LSTMs that read the lengths `n`; `s` is the shape of the batch, computed from `x`."""
    nodes, weights = (
        [node("Shape", "x", "xs"), node("Slice", "xs one two", "s"), *made],
        {"one": np.array([1]), "two": np.array([2])},
    )
    for name, x, features in (("a", "x", I), ("b", "y0", 4))[:layers]:
        one, more = operator(name, x, features, directions=1)
        one.input.append("n")
        nodes += [one, node("Squeeze", f"{name}.Y one", f"y{0 if name == 'a' else 1}")]
        weights |= more
    model = model_of(nodes, weights | constants, [f"y{layers - 1}"])
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [time, "b", I]))
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info(f"y{layers - 1}", onnx.TensorProto.FLOAT, [time, "b", 4])
    )
    return model


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("how", LENGTHS)
def test_constant_lengths_of_all_steps_change_nothing(how, layers):
    model = with_lengths(*LENGTHS[how], time=T, layers=layers)
    network, params = from_onnx(model)
    xs = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    _, ys = network.unroll(params, xs)
    assert len(network.layers) == layers
    assert gap(ys, run(model, {"x": xs})[f"y{layers - 1}"]) <= TOLERANCE


@pytest.mark.parametrize("how", LENGTHS)
def test_other_constant_lengths_are_refused(how):
    """Where the model does not fix T, every constant length says something."""
    made, constants = LENGTHS[how]
    for time, expected in (("t", "or T, if the model fixed T"), (T + 1, f"or T = {T + 1}"), (T - 1, f"or T = {T - 1}")):
        with pytest.raises(
            ValueError,
            match=rf"^from_onnx: node 'a' input sequence_lens \('n'\) expected what each call gives, {expected}, for every sequence",
        ):
            from_onnx(with_lengths(made, constants, time))
    for lengths in ([T] * (B - 1) + [T - 1], [0] * B):
        with pytest.raises(
            ValueError, match=rf"sequence_lens \('n'\) expected what each call gives, or T = {T}, for every"
        ):
            from_onnx(with_lengths([], {"n": np.array(lengths, np.int32)}, T))


def test_lengths_that_are_computed_from_the_input_are_those_of_a_call():
    made = [
        node("Gather", "xs zero", "t"),
        node("Expand", "t s", "n64"),
        node("Cast", "n64", "n", to=onnx.TensorProto.INT32),
    ]
    assert len(from_onnx(with_lengths(made, {"zero": np.array([0])}, "t", layers=2))[0].layers) == 2


def test_empty_activations_are_those_that_the_operator_has_by_default():
    """ONNX Runtime refuses them for an RNN."""
    xs = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    for op in ("LSTM", "GRU"):
        one, weights = operator("a", "x", I, op=op, directions=1)
        one.attribute.add(name="activations", type=onnx.AttributeProto.STRINGS)
        model = model_of([one], weights, ["a.Y"])
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [T, B, I]))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("a.Y", onnx.TensorProto.FLOAT, [T, 1, B, 4]))
        network, params = from_onnx(model)
        theirs = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        assert gap(np.asarray(network.unroll(params, xs)[1])[:, None], theirs.run(None, {"x": xs})[0]) <= TOLERANCE


def test_initial_states_may_be_zeros_or_inputs():
    zeros = helper.make_node("ConstantOfShape", ["s"], ["z"])
    for model in (
        with_state(),
        with_state(h=np.zeros((1, 2, 4), "f4")),
        with_state(zeros, node("Slice", "z from to", "h")),
        with_state(node("Expand", "z shape", "z1"), node("Concat", "z1 z1", "h", axis=1), z=np.zeros((1, 1, 4), "f4")),
        with_state(node("MatMul", "s w", "h"), w=np.ones((4, 4), "f4")),
        with_state(zeros, node("Cast", "z", "h", to=onnx.TensorProto.FLOAT)),
    ):
        chex.assert_trees_all_equal(from_onnx(model)[1], from_onnx(with_state())[1])
    fixed = with_state(h=np.ones((1, 2, 4), "f4"))
    _, params = from_onnx(fixed, weights={"h": np.zeros((1, 2, 4), "f4")})
    chex.assert_trees_all_equal(params, from_onnx(with_state())[1])
