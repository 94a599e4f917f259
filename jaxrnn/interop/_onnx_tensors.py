"""Replaces tensors of a model."""

import collections
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxrnn.interop._onnx_files import Source, require_onnx, tensor_array
from jaxrnn.interop._onnx_graphs import Scope, name_of, scopes

CONSTANTS_IN_NODES = 4  # a model of an older format lists each initialiser as an input too


class Tensors:
    """The tensors of a model by their names, with the number of nodes that read each."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.held: dict[str, list[Any]] = {}
        self.users: collections.Counter[str] = collections.Counter()
        self.names: set[str] = set()
        for scope in scopes(source.model):
            for name, tensor in _constants(scope):
                self.held.setdefault(name, []).append(tensor)
            self.users.update(_read(scope))
            self.names.update(_names(scope))

    def replace(self, protos: Sequence[Any], place: int, role: str, array: np.ndarray) -> None:
        """Makes `array` the input at this place of nodes that read one tensor. If others read it too, it stays."""
        helper, numpy_helper = require_onnx(self.source.where).helper, require_onnx(self.source.where).numpy_helper
        name = protos[0].input[place] if place < len(protos[0].input) else ""
        held = self.held.get(name, [])
        if len(held) == 1 and self.users[name] == len(protos):
            held[0].CopyFrom(numpy_helper.from_array(array, held[0].name))
            return
        self.users[name] -= len(protos)
        new = self._unused(f"{name_of(protos[0], 0)}.{role}")
        tensor, graph = numpy_helper.from_array(array, new), self.source.graph
        if self.source.model.ir_version < CONSTANTS_IN_NODES:
            graph.node.insert(0, helper.make_node("Constant", [], [new], value=tensor))
        else:
            graph.initializer.append(tensor)
        for proto in protos:
            proto.input.extend([""] * (place + 1 - len(proto.input)))
            proto.input[place] = new

    def _unused(self, name: str) -> str:
        new = next(one for k in itertools.count() if (one := f"{name}.{k}" if k else name) not in self.names)
        self.names.add(new)
        return new


def embed(source: Source) -> None:
    """Reads the arrays beside a model into it."""
    onnx = require_onnx(source.where)
    for scope in scopes(source.model):
        attributes = [attribute for node in scope.graph.node for attribute in node.attribute]
        for tensor in (*_initialisers(scope), *(a.t for a in attributes), *(t for a in attributes for t in a.tensors)):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                tensor.CopyFrom(onnx.numpy_helper.from_array(tensor_array(source, tensor), tensor.name))


def _initialisers(scope: Scope) -> Any:
    return getattr(scope.graph, "initializer", ())  # a function has none


def _constants(scope: Scope) -> Iterator[tuple[str, Any]]:
    for tensor in _initialisers(scope):
        yield tensor.name, tensor
    for node in scope.graph.node:
        if node.op_type == "Constant" and node.output:
            yield from ((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")


def _read(scope: Scope) -> Iterator[str]:
    for node in scope.graph.node:
        yield from node.input
    yield from (getattr(value, "name", value) for value in scope.graph.output)  # a function's are names


def _names(scope: Scope) -> Iterator[str]:
    yield from (name for node in scope.graph.node for name in (*node.input, *node.output))
    yield from (tensor.name for tensor in _initialisers(scope))
    yield from (getattr(value, "name", value) for value in (*scope.graph.input, *scope.graph.output))
