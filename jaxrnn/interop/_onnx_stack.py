"""Selects recurrent operators of a model, and reads them as the layers of one stack."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrnn import _checks
from jaxrnn._describe import cut, describe, quote
from jaxrnn.interop import _onnx_layout as layout
from jaxrnn.interop import _onnx_quantized
from jaxrnn.interop._mappings import check_dtype, listed, said
from jaxrnn.interop._onnx_chain import Joined, Layer, join, read_layers
from jaxrnn.interop._onnx_files import Source
from jaxrnn.interop._onnx_graphs import listed_paths
from jaxrnn.interop._onnx_missing import without_operators
from jaxrnn.interop._onnx_reader import DIRECTIONS, QUANTISED, Found, Node, read_node, recurrent_nodes
from jaxrnn.interop._onnx_values import MIXED, Values, ancestors
from jaxrnn.interop._sizes import shown


class Stack(NamedTuple):
    """The operators of one graph that are the layers of a stack."""

    values: Values
    selected: dict[int, Node]  # by their places in the graph
    layers: list[Layer]
    joined: Joined


def read_stack(source: Source, nodes: Any, given: Mapping[str, np.ndarray], reverse: bool) -> Stack:
    """The selected operators; raises for those that are no stack, and for weights that are not constants."""
    found = _selected(source, nodes)
    source = source._replace(scope=found[0].scope)
    selected = {one.place: read_node(source, one.path, one.proto) for one in found}
    tensors = dict.fromkeys(tensor for node in selected.values() for tensor in node.inputs.values())
    for name in given:
        if name not in tensors:
            raise ValueError(f"{source.where}: weights expected one of {listed(tensors)}; got {quote(name)}")
    values = Values(source, given)
    layers = read_layers(values, selected, lambda node: _weights(values, node))
    fixed = [time for time, _ in map(values.sizes, selected.values()) if time is not None]
    for layer in layers:
        _check_direction(source, layer, reverse)
        for node in layer.nodes:
            # The layers of a stack read equally many steps, of which onnx may not follow all.
            _check_call(values, node, values.sizes(node)[0] or next(iter(fixed), None))
    _check_origins(values, selected)
    return Stack(values, selected, layers, join(values, layers))


def _selected(source: Source, nodes: Any) -> list[Found]:
    """The operators to read, of one graph, in its order."""
    where = source.where
    every = [one for one in recurrent_nodes(source.model) if not one.scope.function]
    if not every:
        raise ValueError(without_operators(source))
    found = every if nodes is None else [_called(where, every, name) for name in _names(where, nodes)]
    if len({one.scope.steps for one in found}) == 1:
        return sorted({one.place: one for one in found}.values(), key=lambda one: one.place)
    paths = [one.path for one in found]
    if nodes is None:
        raise ValueError(
            f"{where}: {source.label} expected its operators RNN, LSTM and GRU in one graph, got several: "
            f"{listed_paths(paths, 340 - len(source.label))}; choose by nodes=, of what interop.onnx_recurrent lists"
        )
    raise ValueError(f"{where}: nodes expected operators of one graph, got {listed_paths(paths)}; read them apart")


def _names(where: str, nodes: Any) -> list[str]:
    try:
        names: list[Any] = [nodes] if isinstance(nodes, str) else list(nodes if isinstance(nodes, Sequence) else ())
    except Exception as error:  # a sequence of the user's own may raise anything
        raise TypeError(f"{where}: nodes expected a name or several, got {describe(nodes)} ({said(error)})") from error
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{where}: nodes expected a name or several, got {describe(nodes)}")
    return names


def _called(where: str, every: Sequence[Found], name: str) -> Found:
    """The operator with this path; or, if there is none, with this name, or an output with it."""
    found = [one for one in every if one.path == name]
    found = found or [one for one in every if name in (one.proto.name, *filter(None, one.proto.output))]
    if len(found) == 1:
        return found[0]
    if found:
        paths = listed_paths(one.path for one in found)
        raise ValueError(
            f"{where}: nodes expected one operator called {quote(name)}, got {len(found)}: {paths}; "
            "give the path or an output of one"
        )
    known = listed_paths(one.path for one in every)
    raise ValueError(f"{where}: nodes expected one operator called {quote(name)} among {known}; got 0")


# One operator


def _weights(values: Values, node: Node) -> layout.Weights:
    """The weights of all directions of a node, with their shapes checked."""
    where = f"{values.source.where}: node {quote(node.name, 110)}"
    directions = DIRECTIONS[node.direction]
    arrays: dict[str, np.ndarray] = {}
    for role in layout.Weights._fields:
        if role not in node.inputs:
            continue
        array, name = _constant(values, where, node, role), f"{where} input {role} ({quote(node.inputs[role])})"
        if node.op == QUANTISED and role in ("W", "R"):
            scale = _constant(values, where, node, f"{role}_scale")
            zero = _constant(values, where, node, f"{role}_zero_point") if f"{role}_zero_point" in node.inputs else None
            array = _onnx_quantized.of_lstm(name, array, scale, zero)
        if array.dtype.name not in _checks.FLOATS:
            raise ValueError(f"{name} expected a floating-point array, got {cut(str(array.dtype), 40)}")
        check_dtype(where, f"input {role} ({quote(node.inputs[role])})", array)
        arrays[role] = array
        if array.ndim < 2 or len(array) != directions:
            raise ValueError(f"{name} expected {directions} along the first axis, got {shown(array.shape)}")
    weights = layout.Weights(**arrays)
    for d in range(directions):
        layout.check_shapes(where, node.forms[d], layout.one_direction(weights, d), node.inputs, node.hidden_size)
    return weights


def _constant(values: Values, where: str, node: Node, role: str) -> np.ndarray:
    tensor = node.inputs[role]
    array = values.constant(tensor)
    if array is None:
        hint = f"give it here, as weights={{{quote(tensor)}: array}}"
        if where.startswith("to_onnx"):
            hint = "weights are put back in the place of constants alone"
        got = f"{quote(tensor)}, which the model computes or is given"
        raise ValueError(f"{where} input {role} expected a constant, got {got}; {hint}")
    return array


def _check_direction(source: Source, layer: Layer, reverse: bool) -> None:
    got = " and ".join(node.direction for node in layer.nodes)
    where = f"{source.where}: node {layer.name}"
    if reverse and got != "reverse":
        raise ValueError(f"{where} attribute direction expected 'reverse' as asked, got {got!r}")
    if not reverse and got == "reverse":
        raise ValueError(
            f"{where} attribute direction expected 'forward' or 'bidirectional', got 'reverse'; "
            "with reverse=True it is read, for unroll(..., reverse=True)"
        )


def _check_call(values: Values, node: Node, steps: int | None) -> None:
    """Raises if an initial state is a constant other than zeros, or lengths are constants other than all steps."""
    where = f"{values.source.where}: node {quote(node.name)} input"
    for role in ("initial_h", "initial_c"):
        fill = values.fill(node.inputs[role]) if role in node.inputs else None
        if fill is not None and (fill is MIXED or fill != 0):
            raise ValueError(
                f"{where} {role} ({quote(node.inputs[role])}) expected zeros, or what each call gives; got a constant, "
                "which a network does not hold; put zeros in its place by weights, and give it to unroll"
            )
    lengths = values.fill(node.inputs["sequence_lens"]) if "sequence_lens" in node.inputs else None
    if lengths is not None and (lengths is MIXED or lengths != steps):
        every = "T, if the model fixed T" if steps is None else f"T = {steps}"
        raise ValueError(
            f"{where} sequence_lens ({quote(node.inputs['sequence_lens'])}) expected what each call gives, or {every}, "
            "for every sequence, got another constant; lengths are given to unroll"
        )


def _check_origins(values: Values, nodes: dict[int, Node]) -> None:
    """Raises if an initial state is computed from what another of the operators returns, as a decoder's is."""
    graph = values.source.graph
    carrying = [proto for proto in graph.node if proto.op_type not in ("Shape", "Size")]
    for k, node in nodes.items():
        for role in ("initial_h", "initial_c"):
            if role not in node.inputs or values.fill(node.inputs[role]) is not None:
                continue
            behind = ancestors(carrying, [node.inputs[role]])
            for j, other in nodes.items():
                if j != k and behind.intersection(graph.node[j].output):
                    name, origin = quote(node.name), quote(other.name)
                    raise ValueError(
                        f"{values.source.where}: node {name} input {role} ({quote(node.inputs[role])}) expected what "
                        f"each call gives, got what node {origin} returns, which a stack does not hand on; read them "
                        f"apart, by nodes={origin} and nodes={name}"
                    )
