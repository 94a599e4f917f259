"""Operators inside `If`, `Loop` and `Scan`, and as exporters write them, are read as what ONNX Runtime computes."""

import io
import warnings
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from jaxrnn.interop import from_onnx
from tests.support.onnx_nested import (
    CLOSE,
    XS,
    B,
    H,
    I,
    T,
    assert_same,
    body,
    by_numpy,
    by_runtime,
    looped,
    lstm,
    model,
    nested_ifs,
    newest_opset,
    scanned,
    squeeze,
    tensor,
)
from tests.support.onnx_tools import model_of, node, operator
from tests.support.peers import peer
from tests.support.registry import LENGTHS, gap

YES = np.array([True])


def refused(given: Any, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=f"^from_onnx: {message}") as caught:
        from_onnx(given, **options)
    assert len(str(caught.value)) <= 500


# ---- graphs in graphs


@pytest.mark.parametrize("where", ["outermost", "innermost", "spread"])
def test_operators_inside_nested_ifs_are_read(where):
    given = nested_ifs(3, where)
    network, params = assert_same(given, c=YES)
    path = "If_0.then_branch/If_1.then_branch/If_2.then_branch/rnn"
    for name in (path, "rnn", "rnn_Y"):
        again, read = from_onnx(given, nodes=name)
        assert repr(again) == repr(network)
        assert jax.tree.map(np.array_equal, read, params)
    refused(given, rf"nodes expected one operator called 'lstm' among '{path}'; got 0$", nodes="lstm")


def test_operators_inside_loop_and_scan_are_read():
    xs = np.random.default_rng(1).standard_normal((T, B, H)).astype(np.float32)
    read = assert_same(looped(), "Loop_0.body/rnn", xs, times=2)
    assert gap(by_numpy(read, xs), by_runtime(looped(), x=xs)) > 0.01  # applied once
    several = np.stack([XS, -XS])
    read, expected = from_onnx(scanned(), nodes="Scan_0.body/rnn"), by_runtime(scanned(), xs=several)
    assert gap(np.stack([by_numpy(read, one) for one in several]), expected) <= CLOSE


@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (11, 6), (13, 7), (21, 10), (0, 10)])
def test_operators_of_every_opset_are_read(opset, ir):
    """0 stands for the newest."""
    assert_same(nested_ifs(1, "outermost", opset or newest_opset(), ir, "GRU"), c=YES)


def branches(second: str = "b") -> onnx.ModelProto:
    """A model of two sampling rates: an LSTM in each branch of an `If`, called `rnn` and `second`."""
    then, weights = lstm()
    other, more = operator("b", "x", I, H, directions=1)
    other.name = second
    graphs = [
        body([then, *squeeze("rnn_Y", "y1", 1, 17)], [tensor("y1")]),
        body([other, *squeeze("b.Y", "y2", 1, 17)], [tensor("y2")]),
    ]
    made = helper.make_node("If", ["c"], ["y"], name="rate", then_branch=graphs[0], else_branch=graphs[1])
    inputs = [tensor("x", "t", "b", I), tensor("c", 1, dtype=TensorProto.BOOL)]
    return model([made], inputs, [tensor("y", "t", "b", H)], **weights, **more)


def test_operators_of_several_graphs_are_refused_and_chosen_by_path():
    given = branches()
    # onnx sorts attributes by their names
    paths = "'rate.else_branch/b', 'rate.then_branch/rnn'"
    refused(
        given,
        rf"the model expected its operators RNN, LSTM and GRU in one graph, got several: {paths}; choose by nodes=",
    )
    refused(given, rf"nodes expected operators of one graph, got {paths}; read them apart$", nodes=["b", "rnn"])
    for name, condition in (("rate.then_branch/rnn", True), ("rate.else_branch/b", False), ("b", False)):
        assert_same(given, name, c=np.array([condition]))
    alike = branches("rnn")
    refused(
        alike,
        "nodes expected one operator called 'rnn', got 2: 'rate.else_branch/rnn', 'rate.then_branch/rnn'; "
        "give the path or an output of one$",
        nodes="rnn",
    )
    for name, condition in (("rate.else_branch/rnn", False), ("b.Y", False), ("rate.then_branch/rnn", True)):
        assert_same(alike, name, c=np.array([condition]))


def test_layers_inside_a_branch_are_one_stack():
    """A stack in an `If`, whose merge is found by the nodes between its layers."""
    below, weights = operator("a", "x", I, H)
    above, more = operator("b", "xs", 2 * H, H)
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[0, 0, -1])
    between = [
        node("Transpose", "a.Y", "t", perm=[0, 2, 1, 3]), shape, node("Reshape", "t shape", "xs"), above,
        node("Transpose", "b.Y", "u", perm=[0, 2, 1, 3]), node("Reshape", "u shape", "inner"),
    ]  # fmt: skip
    then = body([below, *between], [tensor("inner")])
    other = body([node("MatMul", "x other", "z")], [tensor("z")])
    made = helper.make_node("If", ["c"], ["y"], name="If_0", then_branch=then, else_branch=other)
    constants = {**weights, **more, "other": np.ones((I, 2 * H), np.float32)}
    inputs = [tensor("x", "t", "b", I), tensor("c", 1, dtype=TensorProto.BOOL)]
    given = model([made], inputs, [tensor("y", "t", "b", 2 * H)], **constants)
    network, _ = assert_same(given, c=YES)
    assert (network.merge, len(network.layers)) == ("concat", 2)


def test_inner_names_hide_outer_ones():
    """Each graph has a tensor of the same name; a body's inputs are given by each call, whatever their initialisers."""
    made, weights = lstm()
    inside = body([made], [tensor("rnn_Y")], rnn_W=2 * weights["rnn_W"])
    holder = helper.make_node("If", ["c"], ["y"], name="If_0", then_branch=inside, else_branch=body([], [tensor("x")]))
    inputs = [tensor("x", "t", "b", I), tensor("c", 1, dtype=TensorProto.BOOL)]
    given = model([holder], inputs, [tensor("y")], **weights)
    alone = model_of([made], {**weights, "rnn_W": 2 * weights["rnn_W"]}, ["rnn_Y"])
    expected = from_onnx(alone)[1]
    (holder,) = given.graph.node
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, from_onnx(given)[1], expected)))
    bound = holder.attribute[0].g if holder.attribute[0].name == "then_branch" else holder.attribute[1].g
    bound.input.append(tensor("rnn_W"))
    refused(
        given, r"node 'If_0.then_branch/rnn' input W expected a constant, got 'rnn_W', which the model computes or is"
    )
    computed = nested_ifs(1)
    then = next(a.g for a in computed.graph.node[0].attribute if a.name == "then_branch")
    then.node.insert(0, node("Relu", "x", "rnn_W"))
    refused(computed, "node 'If_0.then_branch/rnn' input W expected a constant, got 'rnn_W', which the model computes")


def test_outer_constants_that_were_read_before_are_hidden_too():
    """B is the sum of two tensors `half`, of which the outer one is read first, by the outer graph."""
    made, weights = lstm()
    ones = np.ones((1, 32), np.float32)
    inside = body([node("Add", "doubled half", "rnn_B"), made], [tensor("rnn_Y")])
    inside.initializer.append(numpy_helper.from_array(5 * ones, "half"))
    holder = helper.make_node("If", ["c"], ["y"], name="If_0", then_branch=inside, else_branch=body([], [tensor("x")]))
    given = model_of([node("Add", "half half", "doubled"), holder], {**weights, "half": ones}, ["y"])
    del given.graph.initializer[2]  # B of the outer graph
    _, (params,) = from_onnx(given)
    np.testing.assert_array_equal(params.b, np.full(16, 14.0))  # 2 + 5, of both biases


def test_outputs_that_only_an_inner_graph_reads_are_used():
    """The last layer is joined otherwise than those below, in a branch."""
    below, weights = operator("a", "x", I, H)
    above, more = operator("b", "xs", H, H)
    between = [node("ReduceSum", "a.Y one", "xs", keepdims=0), above]
    for op, message in (("Identity", "node 'b' expected merge='sum' and residual=False around it"), ("", "")):
        graph = body([node("Identity", "b.Y" if op else "x", "z")], [tensor("z")])
        made = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
        given = model_of([below, *between, made], weights | more | {"one": np.array([1])}, ["y"])
        if message:
            refused(given, message)
        else:
            assert from_onnx(given)[0].merge == "sum"


def test_graphs_in_a_list_are_named_by_their_number():
    """ONNX's own operators hold single graphs; an attribute may hold several."""
    made, weights = lstm()
    holder = helper.make_node("Switch", ["k"], ["y"], name="Switch_0", domain="mine")
    holder.attribute.append(helper.make_attribute("cases", [body([], [tensor("x")]), body([made], [tensor("rnn_Y")])]))
    given = model_of([holder], weights, ["y"])
    network, params = from_onnx(given, nodes="Switch_0.cases[1]/rnn")
    alone = from_onnx(model_of([made], weights, ["rnn_Y"]))
    assert repr(network) == repr(alone[0])
    np.testing.assert_array_equal(params[0].w_h, alone[1][0].w_h)


def test_refusals_inside_graphs_name_the_path():
    path = "If_0.then_branch/rnn"
    for settings, message in (
        ({"name": "direction", "s": b"up", "type": 3}, rf"node '{path}' \(LSTM\) attribute direction expected one of"),
        ({"name": "layout", "i": 2, "type": 2}, rf"node '{path}' \(LSTM\) attribute layout expected 0 or 1, got 2$"),
    ):
        given = nested_ifs(1)
        then = next(a.g for a in given.graph.node[0].attribute if a.name == "then_branch")
        kept = [a for a in then.node[0].attribute if a.name != settings["name"]]
        del then.node[0].attribute[:]
        then.node[0].attribute.extend(kept)
        then.node[0].attribute.add(**settings)
        refused(given, message)
    given = nested_ifs(2)
    given.graph.initializer[1].dims[1] = 15
    given.graph.initializer[1].raw_data = given.graph.initializer[1].raw_data[: 15 * 16]
    refused(given, r"node 'If_0.then_branch/If_1.then_branch/rnn': input R \('rnn_R'\) expected shape \(16, 4\)")


def test_an_encoder_read_inside_a_branch_is_not_taken_for_a_layer():
    """The decoder's initial state is what a graph inside a node makes of the encoder's."""
    below, weights = operator("a", "x", I, H, directions=1)
    above, more = operator("b", "xs", H, H, directions=1)
    then, other = (body([node(op, "a.Y_h", f"h{op}")], [tensor(f"h{op}")]) for op in ("Identity", "Relu"))
    made = helper.make_node("If", ["c"], ["h"], then_branch=then, else_branch=other)
    above.input.extend(["", "h"])
    nodes = [below, *squeeze("a.Y", "xs", 1, 17), made, above]
    given = model_of(nodes, weights | more, ["b.Y"])
    refused(given, r"node 'b' input initial_h \('h'\) expected what each call gives, got what node 'a' returns")


# ---- as exporters write them


def test_models_of_tensorflow_are_read():
    """tf2onnx cuts and transposes one kernel (I + H, 4H) of gates i c f o, and transposes x and y."""
    rng = np.random.default_rng(0)
    kernel, bias = (0.5 * rng.standard_normal(s).astype(np.float32) for s in ((I + H, 4 * H), (4 * H,)))
    nodes = [
        node("Split", "kernel sizes", "k_x k_h", axis=0), node("Transpose", "k_x", "k_x_"), node("Transpose", "k_h", "k_h_"),
        *(node("Split", f"{k} gates", " ".join(f"{k}{g}" for g in "icfo"), axis=0) for k in ("k_x_", "k_h_", "bias")),
        *(node("Concat", " ".join(f"{k}{g}" for g in "iofc"), f"{k}g", axis=0) for k in ("k_x_", "k_h_", "bias")),
        node("Concat", "biasg zeros", "b", axis=0),
        *(node("Unsqueeze", f"{a} first", b) for a, b in (("k_x_g", "W"), ("k_h_g", "R"), ("b", "B"))),
        node("Transpose", "x", "xt", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["xt", "W", "R", "B"], ["Y"], name="lstm", hidden_size=H),
        node("Squeeze", "Y second", "ys"), node("Transpose", "ys", "y", perm=[1, 0, 2]),
    ]  # fmt: skip
    constants = {"kernel": kernel, "bias": bias, "sizes": np.array([I, H]), "gates": np.array([H] * 4)}
    constants |= {"zeros": np.zeros(4 * H, np.float32), "first": np.array([0]), "second": np.array([1])}
    given = model(nodes, [tensor("x", "b", "t", I)], [tensor("y", "b", "t", H)], **constants)
    ys = by_numpy(from_onnx(given), XS)
    assert gap(ys.swapaxes(0, 1), by_runtime(given, x=np.ascontiguousarray(XS.swapaxes(0, 1)))) <= CLOSE


@pytest.mark.peers
def test_models_of_packed_sequences_of_torch_are_read():
    peer("torch")
    import torch
    from torch.nn.utils import rnn

    class Packed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = torch.nn.LSTM(I, H)

        def forward(self, xs, lengths):
            ys, _ = self.rnn(rnn.pack_padded_sequence(xs, lengths))
            return rnn.pad_packed_sequence(ys)[0]

    lengths, file = np.array([T, T - 1, 4, 4, 1]), io.BytesIO()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated
        arguments = torch.from_numpy(XS), torch.from_numpy(lengths)
        torch.onnx.export(Packed().eval(), arguments, file, dynamo=False, input_names=["x", "n"])
    given = onnx.load_from_string(file.getvalue())
    assert gap(by_numpy(from_onnx(given), XS, lengths), by_runtime(given, x=XS, n=lengths)) <= CLOSE


def newer_torch(made_of: str) -> onnx.ModelProto:
    """A layer as PyTorch's newer exporter writes it, optimised or with the weights cut at the sizes of the state."""
    rng = np.random.default_rng(0)
    shapes = {"weight_ih": (4 * H, I), "weight_hh": (4 * H, H), "bias_ih": (4 * H,), "bias_hh": (4 * H,)}
    arrays = {f"rnn.{name}_l0": 0.5 * rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    cut, roles = [], {"W": "weight_ih", "R": "weight_hh", "b": "bias_ih", "c": "bias_hh"}
    for role, name in roles.items():
        for k in range(4):
            cut += [node("Slice", f"rnn.{name}_l0 m{k} m{k + 1} first", f"{role}{k}")]
        cut += [node("Concat", " ".join(f"{role}{k}" for k in (0, 3, 1, 2)), f"{role}_", axis=0)]
    cut += [node("Concat", "b_ c_", "B_", axis=0), *(node("Unsqueeze", f"{r}_ first", r) for r in "WRB")]
    state = [
        node("Shape", "x", "b", start=1, end=2), node("Concat", "one b h", "sizes", axis=0),
        node("Expand", "zero sizes", "zeros"), node("Shape", "zeros", "m1", start=2, end=3),
        *(node("Mul", f"m1 k{k}", f"m{k}") for k in (2, 3, 4)),
    ]  # fmt: skip
    runs = [
        helper.make_node("LSTM", ["x", "W", "R", "B", "", "zeros", "zeros"], ["Y"], name="node_LSTM", hidden_size=H),
        node("Transpose", "Y", "Yt", perm=[0, 2, 1, 3]), node("Reshape", "Yt shape", "y"),
    ]  # fmt: skip
    constants = {"one": np.array([1]), "h": np.array([H]), "zero": np.float32(0), "first": np.array([0])}
    constants |= {"m0": np.array([0]), "shape": np.array([0, 0, -1])} | {f"k{k}": np.array([k]) for k in (2, 3, 4)}
    given = model(
        [*state, *cut, *runs], [tensor("x", "t", "b", I)], [tensor("y", "t", "b", H)], 20, 9, **constants, **arrays
    )
    if made_of == "stated sizes":
        given.graph.value_info.append(tensor("zeros", 1, "b", H))
    return given


def test_models_of_the_newer_exporter_of_torch_are_read():
    """Its weights are cut at the H of a state whose batch is not known, which the model states or onnx infers."""
    assert_same(newer_torch("stated sizes"))
    unknown = newer_torch("no sizes")
    unknown.graph.value_info.append(tensor("zeros", 1, "b", "h"))
    refused(unknown, "node 'node_LSTM' input W expected a constant, got 'W', which the model computes")
    without = newer_torch("no sizes")
    without.graph.node[1].input[2] = "x"  # the sizes of the state are not known
    refused(without, "node 'node_LSTM' input W expected a constant, got 'W', which the model computes")


def test_operators_without_states_and_with_empty_names_are_read():
    for inputs in ([], ["", "", "", ""], ["", "", ""]):
        made, weights = lstm()
        del made.input[3:]
        made.input.extend([*(["rnn_B"] if not inputs else [""]), *inputs])
        made.output[:] = ["rnn_Y", "", ""]
        kept = {name: array for name, array in weights.items() if name in made.input}
        assert_same(
            model([made, *squeeze("rnn_Y", "y", 1, 17)], [tensor("x", "t", "b", I)], [tensor("y", "t", "b", H)], **kept)
        )


def test_models_of_float16_are_read():
    made, weights = lstm()
    half = {name: array.astype(np.float16) for name, array in weights.items()}
    nodes = [node("Cast", "x", "h", to=TensorProto.FLOAT16), made, *squeeze("rnn_Y", "s", 1, 17)]
    made.input[0] = "h"
    given = model(
        [*nodes, node("Cast", "s", "y", to=TensorProto.FLOAT)], [tensor("x", "t", "b", I)], [tensor("y")], **half
    )
    network, params = from_onnx(given)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float16"}
    # ONNX Runtime computes in float32 and rounds x and y to float16, by 5e-4 each: measured 5.6e-4.
    assert gap(by_numpy((network, params), XS.astype(np.float16)), by_runtime(given, x=XS)) <= 2e-3


def test_batch_first_operators_are_read_as_the_reference_evaluator_computes():
    """ONNX Runtime has no `layout=1`."""
    from onnx.reference import ReferenceEvaluator

    made, weights = lstm(layout=1)
    given = model([made], [tensor("x", B, T, I)], [tensor("rnn_Y")], **weights)
    (theirs,) = ReferenceEvaluator(given).run(None, {"x": np.ascontiguousarray(XS.swapaxes(0, 1))})
    ours = by_numpy(from_onnx(given), XS)
    assert gap(ours.swapaxes(0, 1)[:, :, None], theirs) <= CLOSE


def test_lengths_inside_a_branch_are_those_of_a_call():
    given = nested_ifs(1)
    then = next(a.g for a in given.graph.node[0].attribute if a.name == "then_branch")
    then.node[0].input.append("n")
    given.graph.input.append(tensor("n", "b", dtype=TensorProto.INT32))
    given.graph.input[0].CopyFrom(tensor("x", T, "b", I))
    ys = by_numpy(from_onnx(given), XS, LENGTHS)
    assert gap(ys, by_runtime(given, x=XS, c=YES, n=LENGTHS)) <= CLOSE
    given.graph.initializer.append(numpy_helper.from_array(LENGTHS, "n"))
    refused(given, r"node 'If_0.then_branch/rnn' input sequence_lens \('n'\) expected what each call gives, or T = ")
