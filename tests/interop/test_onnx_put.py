"""`to_onnx(into=...)` puts weights into a foreign model, in which nothing else changes."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import jaxrnn
from jaxrnn.interop import from_onnx, to_onnx
from tests.interop.test_onnx_export import random_network
from tests.support.onnx_nested import (
    CLOSE,
    XS,
    B,
    H,
    I,
    T,
    by_numpy,
    by_runtime,
    looped,
    lstm,
    model,
    nested_ifs,
    squeeze,
    tensor,
)
from tests.support.onnx_tools import assert_same_network, cell_of, node, operator, random_params
from tests.support.registry import gap

YES = np.array([True])
CELL, GRU, PEEPHOLE = cell_of("lstm"), cell_of("gru"), cell_of("lstm-peephole")
PARAMS = random_params(CELL, seed=5)
INPUT, OUTPUT = [tensor("x", "t", "b", I)], [tensor("y", "t", "b", H)]


def refused(message: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^to_onnx: {message}") as caught:
        to_onnx(*arguments, **options)
    assert len(str(caught.value)) <= 500


def single(drop: str = "", **changed: Any) -> onnx.ModelProto:
    """An LSTM with a read-out after it."""
    made, weights = lstm()
    made.input[:] = ["" if name == drop else name for name in made.input]
    weights = {name: array for name, array in weights.items() if name != drop} | changed
    return model([made, *squeeze("rnn_Y", "s", 1, 17), node("Tanh", "s", "y")], INPUT, OUTPUT, **weights)


def put(given: onnx.ModelProto, cell: Any = CELL, params: Any = PARAMS, **options: Any) -> onnx.ModelProto:
    """The model with other weights; asserts that it is valid, and that the given one is as before."""
    before = copy.deepcopy(given)
    made = to_onnx(cell, params, into=given, **options)
    assert given == before
    onnx.checker.check_model(made)
    return made


@pytest.mark.parametrize("seed", [1, 7, 12, 13, 18])  # with projections, of states too, and all merges
def test_models_of_random_networks_get_the_weights_that_their_own_export_has(seed):
    network = random_network(seed)
    old, new = random_params(network, seed), random_params(network, 100 + seed)
    options = {"lengths": True, "opset": 21} if seed % 2 else {"batch_first": True}
    assert to_onnx(network, new, into=to_onnx(network, old, **options)) == to_onnx(network, new, **options)


@pytest.mark.parametrize("name", ["lstm-activations", "gru-activations"])
def test_activations_are_those_of_the_model(name):
    cell = cell_of(name)
    old, new = random_params(cell, 0), random_params(cell, 1)
    given = to_onnx(cell, old)
    assert to_onnx(cell, new, into=given) == to_onnx(cell, new)
    other = cell_of(name.split("-")[0])
    refused(
        "node 'layer_0' expected a cell of .* with .*activations .*HardSigmoid.*; got",
        other,
        random_params(other),
        into=given,
    )


@pytest.mark.parametrize("where", ["outermost", "innermost", "spread"])
def test_weights_are_put_into_nested_graphs(where):
    """Those of "spread" are a shared constant, and computed; they become initialisers of the innermost graph."""
    given = nested_ifs(3, where)
    made = put(given, nodes="rnn")
    network, params = from_onnx(made)
    assert_same_network(((CELL,), (PARAMS,)), (network.layers, params))
    ys = by_numpy((jaxrnn.stack([CELL]), (PARAMS,)), XS)
    assert gap(ys, by_runtime(made, x=XS, c=YES)) <= CLOSE
    np.testing.assert_array_equal(by_runtime(made, x=XS, c=~YES), by_runtime(given, x=XS, c=~YES))


def test_only_weights_change():
    given = single()
    made = put(given)
    assert made.graph.node == given.graph.node
    assert [held.name for held in made.graph.initializer] == ["rnn_W", "rnn_R", "rnn_B"]
    del made.graph.initializer[:], given.graph.initializer[:]
    assert made == given
    ys = np.tanh(by_numpy((jaxrnn.stack([CELL]), (PARAMS,)), XS))
    assert gap(ys, by_runtime(put(single()), x=XS)) <= CLOSE


def test_tensors_that_others_read_too_stay():
    """Two operators with the same weights, of which one is trained; and a bias that is an output of the model."""
    first, weights = lstm()
    second = copy.deepcopy(first)
    second.name, second.output[:] = "other", ["other_Y", "other_Y_h"]
    nodes = [first, second, *squeeze("rnn_Y", "y", 1, 17), node("Identity", "other_Y", "z")]
    given = model(nodes, INPUT, [*OUTPUT, tensor("z", "t", 1, "b", H), tensor("rnn_B", 1, 32)], **weights)
    made = put(given, nodes="other")
    assert list(made.graph.node[1].input[1:]) == ["other.W", "other.R", "other.B"]
    assert_same_network(
        ((CELL,), (PARAMS,)), (from_onnx(made, nodes="other")[0].layers, from_onnx(made, nodes="other")[1])
    )
    np.testing.assert_array_equal(by_runtime(made, x=XS), by_runtime(given, x=XS))
    again = put(made, nodes="rnn")
    assert list(again.graph.node[0].input[1:]) == ["rnn_W", "rnn_R", "rnn.B"]  # rnn_B is an output
    taken = copy.deepcopy(given)
    taken.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "other.W"))
    assert put(taken, nodes="other").graph.node[1].input[1] == "other.W.1"


def test_biases_and_peepholes_that_an_operator_does_not_have_are_added():
    given, zeros = single("rnn_B"), PARAMS._replace(b=jnp.zeros_like(PARAMS.b))
    assert list(put(given, params=zeros).graph.node[0].input) == ["x", "rnn_W", "rnn_R", ""]
    made = put(given)
    assert list(made.graph.node[0].input) == ["x", "rnn_W", "rnn_R", "rnn.B"]
    assert_same_network(((CELL,), (PARAMS,)), (from_onnx(made)[0].layers, from_onnx(made)[1]))
    params = random_params(PEEPHOLE, 6)
    made = put(given, PEEPHOLE, params)
    assert list(made.graph.node[0].input)[3:] == ["rnn.B", "", "", "", "rnn.P"]
    assert_same_network(((PEEPHOLE,), (params,)), (from_onnx(made)[0].layers, from_onnx(made)[1]))
    ys = np.tanh(by_numpy((jaxrnn.stack([PEEPHOLE]), (params,)), XS))
    assert gap(ys, by_runtime(made, x=XS)) <= CLOSE


def test_biases_and_peepholes_that_a_cell_does_not_have_become_zeros():
    plain = cell_of("lstm-no-bias")
    params = random_params(plain, 3)
    given = put(single(), PEEPHOLE, random_params(PEEPHOLE, 6))
    made = put(given, plain, params)
    (read,) = from_onnx(made)[1]
    assert not np.asarray(read.b).any()
    assert not np.asarray(read.peephole).any()
    np.testing.assert_array_equal(read.w_h, params.w_h)
    assert gap(np.tanh(by_numpy((jaxrnn.stack([plain]), (params,)), XS)), by_runtime(made, x=XS)) <= CLOSE


def test_weights_are_put_into_models_of_the_oldest_format():
    """Its initialisers are inputs too, and inside a branch there are none."""
    before = cell_of("gru-before")
    params = random_params(before, 4)
    for source in (nested_ifs(2, "spread", 7, 3, "GRU"), nested_ifs(1, "outermost", 7, 3, "GRU")):
        made = put(source, before, params)
        assert_same_network(((before,), (params,)), (from_onnx(made)[0].layers, from_onnx(made)[1]))
        ys = by_numpy((jaxrnn.stack([before]), (params,)), XS)
        assert gap(ys, by_runtime(made, x=XS, c=YES)) <= CLOSE


def test_weights_are_put_into_the_body_of_a_loop_and_of_reversed_operators():
    params = random_params(CELL, 2, H)
    made = put(looped(), params=params)
    xs = np.random.default_rng(1).standard_normal((T, B, H)).astype(np.float32)
    read = jaxrnn.stack([CELL]), (params,)
    assert gap(by_numpy(read, by_numpy(read, xs)), by_runtime(made, x=xs)) <= CLOSE
    backward, weights = lstm(direction="reverse")
    given = model([backward, *squeeze("rnn_Y", "y", 1, 17)], INPUT, OUTPUT, **weights)
    refused(
        "node 'rnn' attribute direction expected 'forward' or 'bidirectional', got 'reverse'", CELL, PARAMS, into=given
    )
    ys = by_numpy((jaxrnn.stack([CELL]), (PARAMS,)), XS[::-1])[::-1]
    assert gap(np.ascontiguousarray(ys), by_runtime(put(given, reverse=True), x=XS)) <= CLOSE


def test_params_are_cast_to_the_dtype_of_the_model():
    half = {name: array.astype(np.float16) for name, array in lstm()[1].items()}
    given = single(**half)
    given.graph.input[0].type.tensor_type.elem_type = given.graph.output[0].type.tensor_type.elem_type = (
        TensorProto.FLOAT16
    )
    (read,) = from_onnx(put(given))[1]
    np.testing.assert_array_equal(read.w_x, np.asarray(PARAMS.w_x).astype(np.float16))
    large = PARAMS._replace(w_h=PARAMS.w_h.at[0, 0].set(1e6))
    refused("node 'rnn' expected params in the range of float16, in which the model computes", CELL, large, into=given)


def test_arrays_beside_a_model_are_in_the_result(tmp_path):
    given = nested_ifs(1)
    path = tmp_path / "model.onnx"
    onnx.save_model(copy.deepcopy(given), path, save_as_external_data=True, location="data.bin", size_threshold=0)
    made = to_onnx(CELL, PARAMS, into=path, path=tmp_path / "trained.onnx")
    assert made == to_onnx(CELL, PARAMS, into=given)
    (tmp_path / "data.bin").unlink()
    assert gap(by_numpy(from_onnx(tmp_path / "trained.onnx"), XS), by_runtime(made, x=XS, c=YES)) <= CLOSE


def test_heads_are_put_as_their_dense_matrix():
    cell = jaxrnn.lstm(H, num_heads=2)
    params = random_params(cell)
    network, read = from_onnx(put(single(), cell, params), num_heads=2)
    assert_same_network(((cell,), (params,)), (network.layers, read))


def test_fine_tuning_returns_a_model_that_computes_what_was_trained():
    given = nested_ifs(2)
    network, params = from_onnx(given)
    grads = jax.grad(lambda p: jnp.square(network.unroll(p, XS)[1]).sum())(params)
    trained = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
    made = put(given, network, trained)
    assert gap(np.asarray(network.unroll(trained, XS)[1]), by_runtime(made, x=XS, c=YES)) <= CLOSE
    assert gap(np.asarray(network.unroll(params, XS)[1]), by_runtime(made, x=XS, c=YES)) > 1e-3


def bidirectional() -> onnx.ModelProto:
    nodes, weights = operator("a", "x", I, H)
    return model([nodes], INPUT, [tensor("a.Y", "t", 2, "b", H)], **weights)


WIDE, TWO = jaxrnn.lstm(6), jaxrnn.stack([CELL, CELL])
REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "hidden size": (WIDE, random_params(WIDE), {"into": single()},
                    r"node 'rnn' expected params.w_x of shape \(3, 16\), as the model has, got \(3, 24\)"),
    "input size": (CELL, random_params(CELL, 0, 5), {"into": single()}, r"node 'rnn' expected params.w_x of shape \(3, 16\)"),
    "cell": (GRU, random_params(GRU), {"into": single()},
             "node 'rnn' expected a cell of LSTM with its defaults; got GRU with linear_before_reset 1, of params"),
    "option": (cell_of("lstm-coupled"), random_params(cell_of("lstm-coupled")), {"into": single()},
               "node 'rnn' expected a cell of LSTM with its defaults; got LSTM with input_forget 1, of params"),
    "projection": (cell_of("lstm-projection"), random_params(cell_of("lstm-projection")), {"into": single()},
                   "node 'rnn' expected params with none, as the model has, got a projection"),
    "layers": (TWO, random_params(TWO), {"into": single()},
               "into expected a model with as many recurrent layers as network, 2, got 1, 'rnn'; choose by nodes="),
    "directions": (CELL, PARAMS, {"into": bidirectional()}, "params expected as many directions as node 'a' has, 2, got 1"),
    "weights that are inputs": (CELL, PARAMS, {"into": single()}, "node 'rnn' input W expected a constant, got 'w'.*weights are put"),
    "nodes": (CELL, PARAMS, {"into": single(), "nodes": "lstm"}, "nodes expected one operator called 'lstm' among 'rnn'; got 0"),
    "nodes without a model": (CELL, PARAMS, {"nodes": "lstm"}, "nodes expected a model as into, whose operators they are"),
    "lengths": (CELL, PARAMS, {"into": single(), "lengths": True}, "lengths expected its default with into"),
    "states": (CELL, PARAMS, {"into": single(), "initial_state": "inputs"}, "initial_state expected its default with into"),
    "batch_first": (CELL, PARAMS, {"into": single(), "batch_first": True}, "batch_first expected its default with into"),
    "names": (CELL, PARAMS, {"into": single(), "names": {}}, "names expected its default with into"),
    "opset": (CELL, PARAMS, {"into": single(), "opset": 18}, "opset expected its default with into"),
    "into": (CELL, PARAMS, {"into": 3}, "model expected an onnx.ModelProto or a path, got int 3"),
}  # fmt: skip
REFUSED["weights that are inputs"][2]["into"].graph.node[0].input[1] = "w"


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_the_model_is_refused(what):
    network, params, options, message = REFUSED[what]
    refused(message, network, params, **options)


def test_networks_joined_otherwise_are_refused():
    network = jaxrnn.stack([CELL, CELL], bidirectional=True)
    given = to_onnx(network, random_params(network))
    other = jaxrnn.stack([CELL, CELL], bidirectional=True, merge="sum")
    refused(
        "network expected merge='concat', as the model into has, got 'sum'", other, random_params(other), into=given
    )
    same = jaxrnn.stack([GRU] * 3, residual=True)
    given, params = to_onnx(same, random_params(same, 0, 4)), random_params(same, 1, 4)
    assert to_onnx(same, params, into=given) == to_onnx(same, params)
    plain = jaxrnn.stack([GRU] * 3)
    refused("network expected residual=True, as the model into has, got False", plain, params, into=given)


def test_projections_with_given_states_are_refused():
    """The model multiplies them by the inverse of the projection that it had."""
    cell = cell_of("lstm-projection")
    params = random_params(cell)
    given = to_onnx(cell, params, initial_state="inputs")
    refused(r"node 'layer_0' input initial_h \(.*\) expected zeros before a projection", cell, params, into=given)
