"""The values of a graph's tensors, as far as they are known without running the model.

Weights may be initialisers, or computed from them: exporters write a weight as joined slices of
another. The nodes between two recurrent operators, one `Squeeze` or ten nodes that compute a
shape first, are identified by their result. The outputs of each operator are replaced by random
numbers, which ONNX's reference evaluator carries through all nodes that only move, add or
multiply them.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrnn.interop._onnx_files import Source, require_onnx, tensor_array

if TYPE_CHECKING:
    import onnx

MOVING = {"Identity", "Cast", "Dropout", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}
MOVING |= {"Concat", "Split", "Slice", "Gather", "Shape"}
ARITHMETIC = {"Add", "Mul", "Div", "Sum", "Mean", "ReduceSum", "ReduceMean", "ReduceProd"}
SPREADING = MOVING | {"Expand", "Tile"}  # zeros stay zeros, whatever the other inputs are
PLAIN = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
LARGEST = 2**25  # entries of the inputs of a node; with more of them it is not followed


class Values:
    """Arrays by the names of tensors: constants, random numbers, and what is computed from them."""

    def __init__(self, source: Source, given: Mapping[str, np.ndarray]) -> None:
        self.source = source
        self.opsets = {opset.domain: opset.version for opset in source.model.opset_import}
        graph = source.model.graph
        self.stored: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        self.arrays: dict[str, np.ndarray] = {}
        for node in graph.node:
            if node.op_type == "Constant" and node.output:
                self._store(node.output[0], node)
        self.arrays |= given
        self.probed: dict[str, None] = {}  # tensors that depend on random numbers, in the order of the graph
        self.zeros: dict[str, bool] = {}  # whether a tensor of constants, of unknown shape, is zero

    def _store(self, name: str, node: "onnx.NodeProto") -> None:
        """The value of a `Constant`."""
        for attribute in node.attribute:
            if attribute.name == "value":
                self.stored[name] = attribute.t
            elif attribute.name in PLAIN:
                value = require_onnx(self.source.where).helper.get_attribute_value(attribute)
                self.arrays[name] = np.asarray(value, PLAIN[attribute.name])

    def get(self, name: str) -> np.ndarray | None:
        """The array of a tensor, or `None` if it depends on the inputs of the model."""
        if name not in self.arrays and name in self.stored:
            self.arrays[name] = tensor_array(self.source, self.stored[name])
        return self.arrays.get(name)

    def probe(self, name: str, array: np.ndarray) -> None:
        """Replaces a tensor by random numbers."""
        self.arrays[name] = array
        self.probed[name] = None

    def is_zero(self, name: str) -> bool | None:
        """Whether a tensor is zero; `None` if it depends on the inputs of the model."""
        if name in self.zeros or name in self.probed:
            return self.zeros.get(name)
        array = self.get(name)
        return None if array is None else not array.any()

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
        self._follow_zeros(node, inputs, outputs)

    def _follow_zeros(self, node: "onnx.NodeProto", inputs: list[str], outputs: list[str]) -> None:
        zero = None
        if node.op_type == "ConstantOfShape":
            values = [tensor_array(self.source, a.t) for a in node.attribute if a.name == "value"]
            zero = not any(value.any() for value in values)
        elif node.op_type in SPREADING and inputs:
            known = [self.is_zero(name) for name in (inputs if node.op_type == "Concat" else inputs[:1])]
            zero = None if None in known else all(known)
        if zero is not None:
            self.zeros |= dict.fromkeys(outputs, zero)

    def _computed(self, node: "onnx.NodeProto", arrays: Mapping[str, Any], outputs: list[str]) -> dict[str, np.ndarray]:
        """The outputs of a node by their names; none if they cannot be computed."""
        if sum(array.size for array in arrays.values()) > LARGEST:
            return {}
        onnx = require_onnx(self.source.where)
        from onnx.reference import ReferenceEvaluator

        unknown = onnx.helper.make_empty_tensor_value_info
        graph = onnx.helper.make_graph([node], "node", list(map(unknown, arrays)), list(map(unknown, outputs)))
        try:
            results = ReferenceEvaluator(graph, opsets=self.opsets).run(None, dict(arrays))
        except Exception:  # the node does not fit these arrays; its outputs stay unknown
            return {}
        return {name: np.asarray(result) for name, result in zip(outputs, results, strict=True)}


def ancestors(nodes: "Iterable[onnx.NodeProto]", tensors: Iterable[str]) -> frozenset[str]:
    """The given tensors, and those that they are computed from."""
    found = set(tensors)
    for node in reversed(list(nodes)):
        if found.intersection(node.output):
            found.update(node.input)
    return frozenset(found - {""})
