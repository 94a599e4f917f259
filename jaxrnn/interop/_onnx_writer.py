"""Writes the layers of a network as ONNX nodes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxrnn.interop import _onnx_layout as layout

if TYPE_CHECKING:
    import onnx


class Operator(NamedTuple):
    """One recurrent node: a cell, or both cells of a layer if they are alike."""

    direction: str  # the attribute of the node
    suffix: str  # of the names of its states
    forms: tuple[layout.Form, ...]  # one for each direction, as are the fields below
    weights: tuple[layout.Weights, ...]
    projections: tuple[np.ndarray, ...] | None  # (H, P)

    @property
    def hidden_size(self) -> int:
        return self.weights[0].R.shape[1]

    @property
    def output_size(self) -> int:
        return self.hidden_size if self.projections is None else self.projections[0].shape[1]


class Options(NamedTuple):
    """The options that all layers share."""

    lengths: bool
    given: bool  # initial states are inputs
    merge: str


class Graph:
    """Builds a model. A tensor is named after its layer, a node after its first output."""

    def __init__(self, onnx: Any, dtype: Any) -> None:
        self.onnx = onnx
        self.dtype = np.dtype(dtype)
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: dict[str, tuple[tuple[int | str, ...], Any]] = {}  # shapes and dtypes
        self.outputs: dict[str, tuple[tuple[int | str, ...], str]] = {}  # shapes and tensors

    def node(self, op: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """Adds a node and returns its first output."""
        self.nodes.append(self.onnx.helper.make_node(op, inputs, list(outputs), name=outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, array: Any) -> str:
        self.constants[name] = np.asarray(array)
        return name

    def input(self, name: str, *shape: int | str, dtype: Any = None) -> str:
        self.inputs[name] = (shape, self.dtype if dtype is None else np.dtype(dtype))
        return name

    def output(self, name: str, tensor: str, *shape: int | str) -> None:
        """Makes `tensor` an output, under its own name."""
        self.outputs[name] = (shape, tensor)

    def model(self, names: Mapping[str, str], opset: int) -> "onnx.ModelProto":
        """The model, with `y` as the first output, and inputs and outputs renamed by `names`."""
        helper = self.onnx.helper
        kind = helper.np_dtype_to_tensor_dtype
        renamed = {name: names.get(name, name) for name in self.inputs}
        renamed |= {tensor: names.get(name, name) for name, (_, tensor) in self.outputs.items()}
        for node in self.nodes:
            node.input[:] = [renamed.get(tensor, tensor) for tensor in node.input]
            node.output[:] = [renamed.get(tensor, tensor) for tensor in node.output]
        inputs = [
            helper.make_tensor_value_info(renamed[name], kind(dtype), shape)
            for name, (shape, dtype) in self.inputs.items()
        ]
        outputs = [
            helper.make_tensor_value_info(renamed[tensor], kind(self.dtype), shape)
            for _, (shape, tensor) in sorted(self.outputs.items(), key=lambda output: output[0] != "y")
        ]
        constants = [self.onnx.numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "jaxrnn", inputs, outputs, constants)
        opsets = [helper.make_opsetid("", opset)]
        # The oldest format that has these operators, as most runtimes read it.
        version = helper.find_min_ir_version_for(opsets)
        return helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="jaxrnn")


def write_layer(graph: Graph, label: str, states: str, x: str, operators: list[Operator], options: Options) -> str:
    """Adds the nodes of a layer and returns the tensor of its outputs (time, batch, ·)."""
    runs = [_write_operator(graph, label, states, x, operator, options) for operator in operators]
    if len(operators) == 2:
        return _merged(
            graph, label, [_squeezed(graph, f"{label}.half_{k}", run) for k, run in enumerate(runs)], options
        )
    operator = operators[0]
    if len(operator.forms) == 1:
        return _squeezed(graph, f"{label}.y", runs[0])
    if options.merge != "concat":
        halves = [
            graph.node("Gather", [runs[0], graph.constant(f"direction_{k}", np.int64(k))], f"{label}.half_{k}", axis=1)
            for k in range(2)
        ]
        return _merged(graph, label, halves, options)
    side_by_side = graph.node("Transpose", runs, f"{label}.directions_last", perm=[0, 2, 1, 3])
    shape = graph.constant(f"{label}.shape", np.array([0, 0, 2 * operator.output_size], np.int64))
    return graph.node("Reshape", [side_by_side, shape], f"{label}.y")


def _squeezed(graph: Graph, name: str, run: str) -> str:
    """Adds a node that removes the axis of directions."""
    return graph.node("Squeeze", [run, graph.constant("axis_of_directions", np.array([1], np.int64))], name)


def _merged(graph: Graph, label: str, halves: list[str], options: Options) -> str:
    if options.merge == "concat":
        return graph.node("Concat", halves, f"{label}.y", axis=2)
    if options.merge == "mul":
        return graph.node("Mul", halves, f"{label}.y")
    if options.merge == "sum":
        return graph.node("Add", halves, f"{label}.y")
    total = graph.node("Add", halves, f"{label}.sum")
    return graph.node("Mul", [total, graph.constant("one_half", np.asarray(0.5, graph.dtype))], f"{label}.y")


def _write_operator(graph: Graph, label: str, states: str, x: str, operator: Operator, options: Options) -> str:
    """Adds the recurrent node with its states and returns the tensor of its outputs (time, D, batch, ·)."""
    name, states = label + operator.suffix, states + operator.suffix
    op, directions = operator.forms[0].op, len(operator.forms)
    sizes = {"h": operator.output_size, **({"c": operator.hidden_size} if op == "LSTM" else {})}
    weights = [
        "" if arrays[0] is None else graph.constant(f"{name}.{field}", np.stack(arrays))
        for field, *arrays in zip(layout.Weights._fields, *operator.weights, strict=True)
    ]
    initial = {
        part: graph.input(f"{part}_0{states}", directions, "batch", sizes[part]) for part in sizes if options.given
    }
    inputs = [x, *weights[:3], "lengths" if options.lengths else ""]
    inputs += [initial.get(part, "") for part in sizes] + (weights[3:] if op == "LSTM" else [])
    if operator.projections is not None and options.given:
        inputs[5] = _unprojected(graph, name, initial["h"], operator.projections)
    while not inputs[-1]:
        inputs.pop()
    finals = {part: f"{name}.{part}_end" for part in sizes}
    run = graph.node(
        op, inputs, f"{name}.run", *finals.values(),
        hidden_size=operator.hidden_size, direction=operator.direction, **layout.attributes(operator.forms),
    )  # fmt: skip
    graph.nodes[-1].name = name
    if operator.projections is not None:
        w_proj = graph.constant(f"{name}.W_proj", np.stack(operator.projections))
        run, finals["h"] = (
            graph.node("MatMul", [tensor, w_proj], f"{tensor}_projected") for tensor in (run, finals["h"])
        )
    for part, final in finals.items():
        if options.lengths and options.given:  # ONNX Runtime's final state of an empty sequence is zeros
            final = graph.node("Where", [_is_empty(graph), initial[part], final], f"{name}.{part}_n")
        graph.output(f"{part}_n{states}", final, directions, "batch", sizes[part])
    return run


def _unprojected(graph: Graph, name: str, h: str, projections: tuple[np.ndarray, ...]) -> str:
    """The shortest m with m W_p = h."""
    inverses = [np.linalg.pinv(w.astype(np.float64)).astype(w.dtype) for w in projections]
    return graph.node("MatMul", [h, graph.constant(f"{name}.W_proj_inverse", np.stack(inverses))], f"{name}.m_0")


def _is_empty(graph: Graph) -> str:
    """Whether each sequence has length 0, as (1, batch, 1)."""
    if "no_steps" not in graph.constants:
        zero, axes = graph.constant("no_steps", np.int32(0)), graph.constant("outer_axes", np.array([0, 2], np.int64))
        graph.node("Unsqueeze", [graph.node("Equal", ["lengths", zero], "has_no_steps"), axes], "is_empty")
    return "is_empty"
