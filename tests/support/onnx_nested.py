"""ONNX models with recurrent operators inside `If`, `Loop` and `Scan`, and what they compute, in NumPy."""

import contextlib
import functools
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from jaxrnn import Bidirectional, LSTMState
from jaxrnn.interop import from_onnx
from tests.support import in_numpy
from tests.support.onnx_tools import node, operator
from tests.support.registry import B, I, T, gap

CLOSE = 5e-6  # relative to the largest entry; measured: 2.9e-7 at most
H = 4
XS = np.random.default_rng(7).standard_normal((T, B, I)).astype(np.float32)


def tensor(name: str, *shape: Any, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape or None)  # without sizes of no known shape


def scalar(name: str, dtype: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, [])


def held(constants: dict[str, np.ndarray]) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(array, name) for name, array in constants.items()]


def body(nodes: list[Any], outputs: list[Any], inputs: tuple[Any, ...] = (), **constants: np.ndarray) -> Any:
    return helper.make_graph(nodes, "body", list(inputs), outputs, held(constants))


def model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], opset: int = 17, ir: int = 8, **constants: np.ndarray
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, held(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def squeeze(x: str, y: str, axis: int, opset: int, name: str = "axis") -> list[Any]:
    """`Squeeze`, whose axes are an attribute before opset 13."""
    if opset < 13:
        return [node("Squeeze", x, y, axes=[axis])]
    return [helper.make_node("Constant", [], [name], value_ints=[axis]), node("Squeeze", f"{x} {name}", y)]


def renamed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.replace(".", "_"): array for name, array in arrays.items()}


def lstm(x: str = "x", features: int = I, op: str = "LSTM", **settings: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """An operator `rnn` with the output `rnn_Y`, and its weights `rnn_W`, `rnn_R` and `rnn_B`."""
    made, weights = operator("rnn", x, features, H, op, directions=1, **settings)
    for names in (made.input, made.output):
        names[:] = [name.replace(".", "_") for name in names]
    return made, renamed(weights)


def nested_ifs(
    levels: int, where: str = "outermost", opset: int = 17, ir: int = 8, op: str = "LSTM"
) -> onnx.ModelProto:
    """An operator in `levels` operators `If`, each in a branch of the one before; `where` its weights are.

    The path is "If_0.then_branch/If_1.then_branch/rnn" for two.
    """
    made, weights = lstm(op=op)
    names = list(weights)
    constants = [helper.make_node("Constant", [], [name], value=held({name: weights[name]})[0]) for name in names]
    inner, at_levels, outer = [made, *squeeze("rnn_Y", "y_in", 1, opset)], [[] for _ in range(levels)], weights
    if where == "innermost":
        outer, inner = {}, constants + inner
    elif where == "spread":  # W outermost, R a constant of the first branch, B computed in the second
        outer = {"rnn_W": weights["rnn_W"], "half": weights["rnn_B"][:, : weights["rnn_B"].shape[1] // 2]}
        outer["rest"] = weights["rnn_B"][:, weights["rnn_B"].shape[1] // 2 :]
        at_levels[0] = [constants[1]]
        at_levels[1] = [node("Concat", "half rest", "joined", axis=1), node("Identity", "joined", "rnn_B")]
    for k in reversed(range(levels)):
        end = "y_in" if k == levels - 1 else f"y_{k + 1}"
        other = body([node("MatMul", "x other", f"z_{k}")], [tensor(f"z_{k}")])
        then = body([*at_levels[k], *inner], [tensor(end)])
        inner = [helper.make_node("If", ["c"], [f"y_{k}"], name=f"If_{k}", then_branch=then, else_branch=other)]
    inputs = [tensor("x", "t", "b", I), tensor("c", 1, dtype=TensorProto.BOOL)]
    outer |= {"other": np.ones((I, H), np.float32)}
    if ir < 4:
        inputs += [tensor(name, *array.shape) for name, array in outer.items()]
    return model(inner, inputs, [tensor("y_0", "t", "b", H)], opset, ir, **outer)


def looped(opset: int = 17) -> onnx.ModelProto:
    """A `Loop` that applies an LSTM twice, to what it returned before."""
    made, weights = lstm("v", H)
    inputs = (scalar("k", TensorProto.INT64), scalar("go", TensorProto.BOOL), tensor("v", T, B, H))
    nodes = [made, *squeeze("rnn_Y", "w", 1, opset), node("Identity", "go", "on")]
    inside = body(nodes, [scalar("on", TensorProto.BOOL), tensor("w", T, B, H)], inputs)
    loop = helper.make_node("Loop", ["two", "yes", "x"], ["y"], name="Loop_0", body=inside)
    constants = weights | {"two": np.array(2), "yes": np.array(True)}
    return model([loop], [tensor("x", T, B, H)], [tensor("y", T, B, H)], opset, **constants)


def scanned() -> onnx.ModelProto:
    """A `Scan` over several batches, each read by an LSTM from zeros."""
    made, weights = lstm("one")
    inside = body([made, *squeeze("rnn_Y", "out", 1, 17)], [tensor("out", T, B, H)], (tensor("one", T, B, I),))
    scan = helper.make_node("Scan", ["xs"], ["ys"], name="Scan_0", body=inside, num_scan_inputs=1)
    return model([scan], [tensor("xs", "n", T, B, I)], [tensor("ys", "n", T, B, H)], **weights)


@functools.cache
def newest_opset() -> int:
    """The newest opset that both onnx and ONNX Runtime have; either may be ahead."""
    for opset in reversed(range(21, onnx.defs.onnx_opset_version() + 1)):
        given = model([node("Relu", "x", "y")], [tensor("x", 1)], [tensor("y", 1)], opset, 10)
        with contextlib.suppress(Exception):  # onnxruntime has an error of its own for each cause
            by_runtime(given, x=np.ones(1, np.float32))
            return opset
    return 21


def by_runtime(given: onnx.ModelProto, **feeds: Any) -> np.ndarray:
    """The first output of ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    running = onnxruntime.InferenceSession(given.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return running.run(None, feeds)[0]


def by_numpy(read: Any, xs: np.ndarray, lengths: Any = None) -> np.ndarray:
    """What a network and its parameters compute, in float64: outputs (T, B, ·) of the last layer."""
    network, params = read
    mask = None if lengths is None else np.arange(len(xs))[:, None] < np.asarray(lengths)
    for layer, record in zip(network.layers, params, strict=True):
        both = isinstance(layer, Bidirectional)
        halves = [(layer.forward, record.forward), (layer.backward, record.backward)] if both else [(layer, record)]
        ys = [_unrolled(cell, half, xs, mask, reverse=bool(k)) for k, (cell, half) in enumerate(halves)]
        xs = np.concatenate(ys, axis=-1)
    return xs.astype(np.float32)


def _unrolled(cell: Any, record: Any, xs: np.ndarray, mask: Any, reverse: bool) -> np.ndarray:
    zeros = np.zeros((xs.shape[1], record.w_h.shape[0]))
    kind = type(record).__name__.removesuffix("Params").lower()
    name = f"{kind}-before" if "reset_after=False" in repr(cell) else kind
    state = LSTMState(zeros, zeros) if kind == "lstm" else zeros
    return in_numpy.unroll(name, record, xs, state, mask=mask, reverse=reverse)[1]


def assert_same(given: onnx.ModelProto, nodes: Any = None, xs: np.ndarray = XS, times: int = 1, **feeds: Any) -> Any:
    """Asserts that ONNX Runtime's outputs are those of the network that is read, applied `times` times."""
    onnx.checker.check_model(given)
    read, expected, ys = from_onnx(given, nodes=nodes), by_runtime(given, **{"x": xs, **feeds}), xs
    for _ in range(times):
        ys = by_numpy(read, ys)
    assert gap(ys, expected) <= CLOSE
    return read
