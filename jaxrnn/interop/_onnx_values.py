"""The values of a graph's tensors, as far as they are known without running the model.

Weights may be initialisers, or computed from them: exporters write a weight as joined slices of
another, or quantised. The nodes between two recurrent operators, one `Squeeze` or ten nodes that
compute a shape first, are identified by their result. The outputs of each operator are replaced
by random numbers, which ONNX's reference evaluator carries through all nodes that only move, add
or multiply them.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrnn._describe import cut, describe, quote
from jaxrnn.interop import _onnx_quantized
from jaxrnn.interop._onnx_files import Source, attribute_value, require_onnx, tensor_array
from jaxrnn.interop._onnx_graphs import follow_steps, reads
from jaxrnn.interop._onnx_reader import Node

if TYPE_CHECKING:
    import onnx

MOVING = {"Identity", "Cast", "Dropout", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}
MOVING |= {"Concat", "Split", "Slice", "Gather", "Shape"}
ARITHMETIC = {"Add", "Mul", "Div", "Sum", "Mean", "ReduceSum", "ReduceMean", "ReduceProd"}
SPREADING = (MOVING - {"Shape"}) | {"Expand", "Tile"}  # equal entries stay equal, whatever the other inputs are
PLAIN = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
LARGEST = 2**25  # entries of a node's inputs or outputs; with more of them it is not followed
MIXED = "mixed"  # in place of a number that all entries of a constant are, if they differ


class Values:
    """Arrays by the names of tensors: constants, random numbers, and what is computed from them."""

    def __init__(self, source: Source, given: Mapping[str, np.ndarray]) -> None:
        self.source = source
        self.given = given
        self.opsets = {opset.domain: opset.version for opset in source.model.opset_import}
        self.stored: dict[str, Any] = {}
        self.arrays: dict[str, np.ndarray] = dict(given)
        self.probed: dict[str, None] = {}  # tensors that depend on random numbers, in the order of the graph
        self.fills: dict[str, Any] = {}  # what all entries of a constant of unknown shape are, or `MIXED`
        self.path = ""  # of the graph whose nodes are read

    def enter(self, needed: frozenset[str]) -> None:
        """Reads the constants of the graph and of those around it, and computes what those hold of `needed`."""
        scope = self.source.scope
        for graph, path, step in zip(scope.graphs, scope.paths, (*scope.steps, None), strict=True):
            self.path = path
            self._read_constants(graph, is_outermost=graph is scope.graphs[0])
            for node in graph.node[: step[0]] if step else ():
                self.follow(node, needed)

    def _read_constants(self, graph: Any, is_outermost: bool) -> None:
        """Initialisers and `Constant` nodes; names of the graph hide those of the graphs around it."""
        # An input of the model may have an initialiser, which is its default; that of a body is always given.
        bound = set() if is_outermost else {value.name for value in graph.input}
        for name in () if is_outermost else bound.union(*(node.output for node in graph.node)):
            for known in (self.stored, self.arrays, self.fills):
                known.pop(name, None)
        self.stored |= {tensor.name: tensor for tensor in graph.initializer if tensor.name not in bound}
        for tensor in graph.initializer:
            self.arrays.pop(tensor.name, None)
        for node in graph.node:
            if node.op_type == "Constant" and node.output:
                self._store(node.output[0], node)
        self.arrays |= self.given

    def _store(self, name: str, node: "onnx.NodeProto") -> None:
        """The value of a `Constant`."""
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                continue
            if attribute.name == "value":
                self.stored[name] = attribute.t
            elif attribute.name in PLAIN:
                value = attribute_value(self.source, self._label(node), attribute)
                try:
                    self.arrays[name] = np.asarray(value, PLAIN[attribute.name])
                except (TypeError, ValueError, OverflowError) as error:
                    raise ValueError(
                        f"{self._label(node)} attribute {attribute.name} expected numbers, got {describe(value)}"
                    ) from error

    def _label(self, node: "onnx.NodeProto") -> str:
        return f"{self.source.where}: node {quote(self.path + node.name)} ({cut(node.op_type, 40)})"

    def get(self, name: str) -> np.ndarray | None:
        """The array of a tensor, or `None` if it depends on the inputs of the model."""
        if name not in self.arrays and name in self.stored:
            self.arrays[name] = tensor_array(self.source, self.stored[name])
        return self.arrays.get(name)

    def constant(self, name: str) -> np.ndarray | None:
        """The array of a constant; `None` if it depends on the inputs of the model or on random numbers."""
        return None if name in self.probed else self.get(name)

    def probe(self, name: str, array: np.ndarray) -> None:
        """Replaces a tensor by random numbers."""
        self.arrays[name] = array
        self.probed[name] = None

    def fill(self, name: str) -> Any:
        """What all entries of a constant are, or `MIXED`; `None` if it depends on the inputs of the model."""
        if name in self.fills or name in self.probed:
            return self.fills.get(name)
        array = self.get(name)
        return None if array is None else _fill(array)

    def sizes(self, node: Node) -> tuple[int | None, int | None]:
        """T and B of what a recurrent operator reads, where the model fixes them."""
        sizes = self._shapes.get(node.inputs["X"], ())
        if len(sizes) != 3:
            return None, None
        time, batch = (sizes[1], sizes[0]) if node.batch_first else sizes[:2]
        return time if time > 0 else None, batch if batch > 0 else None

    @functools.cached_property
    def _shapes(self) -> dict[str, list[int]]:
        """The shapes that the model states or that follow from those, with 0 for a size that is not fixed."""
        scope = self.source.scope
        graphs = scope.graphs
        with suppress(Exception):  # onnx has no error of its own for graphs it cannot follow
            inferred = require_onnx(self.source.where).shape_inference.infer_shapes(self.source.model).graph
            graphs = tuple(follow_steps(inferred, scope.steps))
        return {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for graph in graphs
            for value in (*graph.value_info, *graph.input)
            if value.type.tensor_type.HasField("shape")
        }

    def follow(self, node: "onnx.NodeProto", needed: frozenset[str]) -> None:
        """Computes the outputs of a node, if they are needed or depend on random numbers, and if it can."""
        outputs = [name for name in node.output if name]
        inputs = [name for name in node.input if name]
        if node.domain not in ("", "ai.onnx") or not outputs:
            return
        random = any(name in self.probed for name in inputs)
        if not random and not needed.intersection(outputs):
            return
        if node.op_type in MOVING | ARITHMETIC or (node.op_type == "MatMul" and inputs[0] in self.probed):
            arrays = {name: self.get(name) for name in inputs}
            if all(array is not None for array in arrays.values()):
                for name, array in self._computed(node, arrays, outputs).items():
                    self.arrays[name] = array
                    self.probed |= {name: None} if random else {}
                return
        if node.op_type == "Shape":
            self._follow_shape(node, inputs[:1], outputs[0])
        if node.op_type in _onnx_quantized.KNOWN:
            self._follow_quantised(node, inputs, outputs[0])
        self._follow_fills(node, inputs, outputs)

    def _follow_shape(self, node: "onnx.NodeProto", inputs: list[str], output: str) -> None:
        """The sizes that a `Shape` returns, if the model fixes them: exporters cut weights at the H of a state."""
        sizes = self._shapes.get(inputs[0]) if inputs else None
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        sizes = None if sizes is None else sizes[ends.get("start") : ends.get("end")]
        if sizes and min(sizes) > 0:
            self.arrays[output] = np.array(sizes, np.int64)

    def _follow_quantised(self, node: "onnx.NodeProto", inputs: list[str], output: str) -> None:
        arrays = [self.constant(name) for name in inputs]
        if any(array is None for array in arrays) or list(node.input) != inputs:
            return
        attributes = {a.name: attribute_value(self.source, self._label(node), a) for a in node.attribute}
        try:
            array = _onnx_quantized.folded(node.op_type, arrays, attributes)  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError):  # of attributes and arrays that do not fit the operator
            return
        if array is not None:
            self.arrays[output] = array

    def _follow_fills(self, node: "onnx.NodeProto", inputs: list[str], outputs: list[str]) -> None:
        fill = None
        if node.op_type == "ConstantOfShape":
            values = [tensor_array(self.source, a.t) for a in node.attribute if a.name == "value"]
            fill = _fill(np.concatenate([value.ravel() for value in values])) if values else np.float32(0)
        elif node.op_type in SPREADING and inputs:
            known = [self.fill(name) for name in (inputs if node.op_type == "Concat" else inputs[:1])]
            fill = None if any(one is None for one in known) else _common(known)
            if node.op_type == "Cast" and fill is not None and fill is not MIXED:
                cast = self._computed(node, {inputs[0]: np.asarray([fill])}, outputs)
                fill = _fill(cast[outputs[0]]) if cast else MIXED
        if fill is not None:
            self.fills |= dict.fromkeys(outputs, fill)

    def _computed(self, node: "onnx.NodeProto", arrays: Mapping[str, Any], outputs: list[str]) -> dict[str, np.ndarray]:
        """The outputs of a node by their names; none if they cannot be computed."""
        if _is_too_large(node, [arrays[name] for name in node.input if name]):
            return {}
        onnx = require_onnx(self.source.where)
        from onnx.reference import ReferenceEvaluator

        unknown = onnx.helper.make_empty_tensor_value_info
        try:
            graph = onnx.helper.make_graph([node], "node", list(map(unknown, arrays)), list(map(unknown, outputs)))
            results = ReferenceEvaluator(graph, opsets=self.opsets).run(None, dict(arrays))
            return {name: np.asarray(result) for name, result in zip(outputs, results, strict=True)}
        except Exception:  # the node does not fit these arrays; its outputs stay unknown
            return {}


def _fill(array: np.ndarray) -> Any:
    """What all entries of an array are, or `MIXED`; of an empty one zero, which changes nothing."""
    if not array.size:
        return np.float32(0)
    first = array.reshape(-1)[0]
    return first if (array == first).all() else MIXED


def _common(fills: Sequence[Any]) -> Any:
    alike = MIXED not in [fill for fill in fills if isinstance(fill, str)] and all(fill == fills[0] for fill in fills)
    return fills[0] if alike else MIXED


def _is_too_large(node: "onnx.NodeProto", arrays: Sequence[np.ndarray]) -> bool:
    """Whether inputs or outputs of a node have more than `LARGEST` entries, or are of that many parts."""
    size = sum(array.size for array in arrays)
    try:
        if node.op_type in ARITHMETIC:
            size = max(size, math.prod(np.broadcast_shapes(*(array.shape for array in arrays))))
        elif node.op_type == "MatMul":
            size = max(size, math.prod(arrays[0].shape[:-1]) * arrays[1].size)
        elif node.op_type == "Gather":
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            size = max(size, arrays[0].size // max(arrays[0].shape[axis], 1) * arrays[1].size)
    except (IndexError, ValueError):  # shapes that do not fit; the evaluator refuses them
        pass
    return size > LARGEST or any(abs(attribute.i) > LARGEST for attribute in node.attribute)


def ancestors(nodes: "Iterable[onnx.NodeProto]", tensors: Iterable[str]) -> frozenset[str]:
    """The given tensors, and those that they are computed from."""
    found = set(tensors)
    for node in reversed(list(nodes)):
        if found.intersection(node.output):
            found.update(reads(node))
    return frozenset(found - {""})
