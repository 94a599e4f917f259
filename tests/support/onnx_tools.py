"""Helpers of the ONNX tests: cells, comparisons with ONNX Runtime, and models built node by node."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import jaxrnn
from jaxrnn import Bidirectional, LSTMState
from jaxrnn.interop.onnx_export import to_onnx
from tests.support.registry import B, I, T, gap, random_like

# Relative to the largest entry of each array. Measured: 6e-7 at most, over all networks and cases of these tests.
TOLERANCE = 2e-6

CELLS = {
    "rnn": lambda: jaxrnn.rnn(4),
    "rnn-relu": lambda: jaxrnn.rnn(4, activation="relu", use_bias=False),
    "rnn-sigmoid": lambda: jaxrnn.rnn(4, activation="sigmoid"),
    "gru": lambda: jaxrnn.gru(4),
    "gru-no-bias": lambda: jaxrnn.gru(4, use_bias=False),
    "gru-before": lambda: jaxrnn.gru(4, reset_after=False),
    "gru-before-no-bias": lambda: jaxrnn.gru(4, reset_after=False, use_bias=False),
    "lstm": lambda: jaxrnn.lstm(4),
    "lstm-no-bias": lambda: jaxrnn.lstm(4, use_bias=False),
    "lstm-peephole": lambda: jaxrnn.lstm(4, peephole=True),
    "lstm-coupled": lambda: jaxrnn.lstm(4, coupled=True),
    "lstm-coupled-peephole": lambda: jaxrnn.lstm(4, coupled=True, peephole=True, use_bias=False),
    "lstm-projection": lambda: jaxrnn.lstm(6, projection_size=4),
    "lstm-all": lambda: jaxrnn.lstm(6, projection_size=4, coupled=True, peephole=True),
    "lstm-activations": lambda: jaxrnn.lstm(
        4,
        coupled=True,
        peephole=True,
        activation="softsign",
        recurrent_activation=jaxrnn.Activation("hard_sigmoid", 0.2),
    ),
    "gru-activations": lambda: jaxrnn.gru(
        4,
        activation=jaxrnn.Activation("elu", 0.7, clip=0.9),
        recurrent_activation=jaxrnn.Activation("hard_sigmoid", 0.3, 0.4, clip=0.9),
    ),
    "gru-3": lambda: jaxrnn.gru(3),
}


@functools.cache
def cell_of(name: str) -> jaxrnn.Cell:
    """One cell for each name, so that tests share compiled programs."""
    return CELLS[name]()


def random_params(network: Any, seed: int = 0, input_size: int = I, dtype: Any = jnp.float32) -> Any:
    """Random parameters whose first entries are negative zeros."""

    def draw(shape: jax.ShapeDtypeStruct) -> jax.Array:
        numbers = 0.6 * rng.standard_normal(shape.shape).astype(np.float32)
        numbers.flat[0] = -0.0
        return jnp.asarray(numbers, dtype)

    rng = np.random.default_rng(seed)
    return jax.tree.map(draw, jax.eval_shape(lambda key: network.init(key, input_size), jax.random.key(0)))


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, np.ndarray]:
    """The outputs of ONNX Runtime by name."""
    running = session(model)
    assert [x.name for x in running.get_inputs()] == list(feeds)
    return dict(zip([y.name for y in running.get_outputs()], running.run(None, feeds), strict=True))


def named(network: Any, states: Any, when: str) -> dict[str, np.ndarray]:
    """The states of a network or a cell, with the names and shapes that they have in an ONNX model."""
    single = isinstance(network, jaxrnn.Cell)
    arrays = {}
    for k, (layer, state) in enumerate([(network, states)] if single else zip(network.layers, states, strict=True)):
        label = "" if single else f"_l{k}"
        groups = {label: [state]}
        if isinstance(layer, Bidirectional):
            apart = layer.forward != layer.backward
            groups = {label: [state[0]], f"{label}_reverse": [state[1]]} if apart else {label: list(state)}
        for name, group in groups.items():
            parts = [s._asdict() if isinstance(s, LSTMState) else {"h": s} for s in group]
            arrays |= {f"{part}_{when}{name}": np.stack([p[part] for p in parts]) for part in parts[0]}
    return arrays


def assert_model_equals_network(
    network: Any, params: Any, *, lengths: Any = None, initial: bool = False, reverse: bool = False,
    batch_first: bool = False, opset: int = 17, time: int = T, batch: int = B, seed: int = 0,
) -> onnx.ModelProto:  # fmt: skip
    """Asserts that ONNX Runtime and `unroll` return equal outputs and final states for random inputs."""
    model = to_onnx(
        network, params, lengths=lengths is not None, initial_state="inputs" if initial else "zeros",
        reverse=reverse, batch_first=batch_first, opset=opset,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    xs = rng.standard_normal((time, batch, I)).astype(np.float32)
    states = None
    if initial:
        states = random_like(seed + 1, jax.eval_shape(lambda: network.initial_state((batch,))), jnp.float32)
    if isinstance(network, jaxrnn.Cell):
        final, ys = jaxrnn.unroll(network, params, xs, states, lengths=lengths, reverse=reverse)
    else:
        final, ys = network.unroll(params, xs, states, lengths=lengths, reverse=reverse)
    swapped = (lambda a: np.swapaxes(a, 0, 1)) if batch_first else (lambda a: a)
    feeds = {"x": swapped(xs)} | ({} if lengths is None else {"lengths": lengths})
    theirs = run(model, feeds | (named(network, states, "0") if initial else {}))
    ours = {"y": swapped(np.asarray(ys)), **named(network, final, "n")}
    assert list(theirs) == list(ours)
    assert max(gap(theirs[name], ours[name]) for name in ours) <= TOLERANCE
    return model


def assert_same_network(ours: Any, theirs: Any, tolerance: float = TOLERANCE) -> None:
    """Asserts that cells are equal and that params are equal to the bit.

    A `w_h` that was multiplied by a projection is equal within `tolerance`.
    """
    (cells, params), (again, read) = ours, theirs
    assert repr(again) == repr(cells)
    assert jax.tree.structure(read) == jax.tree.structure(params)
    records = [jax.tree.leaves(tree, is_leaf=lambda p: hasattr(p, "w_h")) for tree in (params, read)]
    for record, got in zip(*records, strict=True):
        for name, array in record._asdict().items():
            if name == "w_h" and getattr(record, "w_proj", None) is not None:
                assert gap(got.w_h, array) <= tolerance
            elif array is not None:
                assert getattr(got, name).dtype == array.dtype
                assert np.asarray(getattr(got, name)).tobytes() == np.asarray(array).tobytes()


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def model_of(
    nodes: list[Any], constants: dict[str, np.ndarray], outputs: list[str], opset: int = 17
) -> onnx.ModelProto:
    """An ONNX model whose inputs are all names that no node computes and no constant holds."""
    made = {*constants, *(name for node in nodes for name in node.output), ""}
    read = dict.fromkeys(name for node in nodes for name in node.input if name not in made)
    value = helper.make_empty_tensor_value_info
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", [value(name) for name in read], [value(name) for name in outputs], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


# Models built node by node


def operator(name: str, x: str, features: int, hidden: int = 4, op: str = "LSTM", directions: int = 2, **settings: Any):
    """A recurrent node, and its weights by name. Their names begin with that of the node."""
    rng, rows = np.random.default_rng(len(name) + features), {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * hidden
    shapes = {"W": (directions, rows, features), "R": (directions, rows, hidden), "B": (directions, 2 * rows)}
    weights = {f"{name}.{role}": (0.5 * rng.standard_normal(s)).astype(np.float32) for role, s in shapes.items()}
    settings = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward", **settings}
    return helper.make_node(op, [x, *weights], [f"{name}.Y", f"{name}.Y_h"], name=name, **settings), weights


def node(op: str, inputs: str, outputs: str, **settings: Any):
    return helper.make_node(op, inputs.split(), outputs.split(), **settings)


AXES = {"one": np.array([1]), "last": np.array([0, 0, -1]), "zero": np.array(0), "two": np.array([2, 3])}


def with_state(*made: Any, **constants: np.ndarray) -> onnx.ModelProto:
    """A model with an LSTM whose initial_h is `h`, which the nodes of `made` may compute."""
    one, weights = operator("a", "x", 3, directions=1)
    one.input.extend(["", "h"])
    return model_of([*made, one], weights | constants, ["a.Y"])
