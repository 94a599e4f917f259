"""Puts the weights of a network in the place of those of a foreign ONNX model."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxrnn._describe import quote
from jaxrnn.interop import _onnx_layout as layout
from jaxrnn.interop._onnx_chain import Layer, projection_node
from jaxrnn.interop._onnx_files import read_model, require_onnx
from jaxrnn.interop._onnx_graphs import outermost
from jaxrnn.interop._onnx_reader import INPUTS, QUANTISED, Node
from jaxrnn.interop._onnx_stack import Stack, read_stack
from jaxrnn.interop._onnx_tensors import Tensors, embed
from jaxrnn.interop._onnx_values import ancestors
from jaxrnn.interop._sizes import shown


class Replacement(NamedTuple):
    """An array in the place of one that nodes read."""

    protos: list[Any]
    place: int  # of the input
    role: str
    array: np.ndarray


class Entry(Protocol):
    """The form of a cell, and its params as NumPy arrays that fit it."""

    @property
    def name(self) -> str: ...  # of the params, in messages
    @property
    def form(self) -> layout.Form: ...
    @property
    def fields(self) -> layout.Fields: ...


def put(
    where: str,
    network: Sequence[Sequence[Entry]],
    merge: str,
    residual: bool,
    into: Any,
    nodes: Any,
    reverse: bool,
) -> Any:
    """A copy of the model `into` whose recurrent operators have the weights of `network`, entries of all layers."""
    onnx = require_onnx(where)
    source = read_model(where, into)
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    source = source._replace(model=model, scope=outermost(model))
    stack = read_stack(source, nodes, {}, reverse)
    _check_joined(where, network, merge, residual, stack)
    tensors = Tensors(stack.values.source)
    new = [
        one
        for layer, entries in zip(stack.layers, network, strict=True)
        for one in _replacements(where, stack, layer, entries)
    ]
    for one in new:
        tensors.replace(*one)
    embed(source)
    return model


def _check_joined(where: str, network: Sequence[Sequence[Entry]], merge: str, residual: bool, stack: Stack) -> None:
    """Raises unless the operators are as many layers as the network, joined as its layers are."""
    layers, joined = stack.layers, stack.joined
    if len(layers) != len(network):
        names = layers[0].name + (f" to {layers[-1].name}" if len(layers) > 1 else "")
        raise ValueError(
            f"{where}: into expected a model with as many recurrent layers as network, {len(network)}, got "
            f"{len(layers)}, {names}; choose by nodes="
        )
    if joined.merge not in (None, merge) and any(len(entries) == 2 for entries in network):
        raise ValueError(f"{where}: network expected merge={joined.merge!r}, as the model into has, got {merge!r}")
    if joined.residual not in (None, residual) and len(layers) > 1:
        raise ValueError(f"{where}: network expected residual={joined.residual}, as the model into has, got {residual}")


def _replacements(where: str, stack: Stack, layer: Layer, entries: Sequence[Entry]) -> list[Replacement]:
    """What the operators of a layer, and the products that project their outputs, read anew."""
    directions = sum(len(node.forms) for node in layer.nodes)
    if len(entries) != directions:
        raise ValueError(
            f"{where}: {entries[0].name} expected as many directions as node {layer.name} has, {directions}, "
            f"got {len(entries)}"
        )
    rest, found = iter(entries), []
    for node, old, old_proj in zip(*layer, strict=True):
        at = f"{where}: node {quote(node.name, 110)}"
        _check_constants(at, stack, node, old_proj)
        new, w_proj = _stacked(at, node, old, old_proj, list(itertools.islice(rest, len(node.forms))))
        place = next(k for k, one in stack.selected.items() if one is node)
        proto = stack.values.source.graph.node[place]
        for role, array in zip(layout.Weights._fields, new, strict=True):
            before = getattr(old, role)
            if before is None and (array is None or not array.any()):
                continue  # the operator has zeros there
            array = np.zeros_like(before) if array is None else array
            found.append(Replacement([proto], INPUTS.index(role), role, array))
        product = projection_node(stack.values, node, old)
        if w_proj is not None and product is not None:
            found.append(Replacement(_products(stack, proto, product[0].input[1]), 1, "W_p", w_proj))
    return found


def _products(stack: Stack, proto: Any, tensor: str) -> list[Any]:
    """The products of what an operator returns, all steps or the last, with the projection in this tensor."""
    graph = stack.values.source.graph
    carrying = [one for k, one in enumerate(graph.node) if k not in stack.selected]
    return [
        one
        for one in carrying
        if one.op_type == "MatMul" and list(one.input[1:]) == [tensor]
        and ancestors(carrying, one.input[:1]).intersection(proto.output)
    ]  # fmt: skip


def _check_constants(at: str, stack: Stack, node: Node, w_proj: np.ndarray | None) -> None:
    """Raises for weights that are quantised, and for others that depend on them."""
    if node.op == QUANTISED:
        raise ValueError(
            f"{at} expected an LSTM, got {node.op}, whose weights are integers; put them into the model before "
            "it was quantised"
        )
    every = list(stack.values.source.scope.nodes())
    for role in layout.Weights._fields:
        behind = ancestors(every, [node.inputs[role]]) if role in node.inputs else ()
        if any(proto.op_type == "DequantizeLinear" and set(proto.output) & set(behind) for proto in every):
            raise ValueError(
                f"{at} input {role} ({quote(node.inputs[role])}) expected a floating-point constant, got what "
                "DequantizeLinear computes; put weights into the model before it was quantised"
            )
    state = node.inputs.get("initial_h")
    if w_proj is not None and state is not None and stack.values.fill(state) is None:
        raise ValueError(
            f"{at} input initial_h ({quote(state)}) expected zeros before a projection, got what each call gives, "
            "which the model multiplies by the inverse of the old projection"
        )


def _stacked(
    at: str, node: Node, old: layout.Weights, old_proj: np.ndarray | None, entries: list[Entry]
) -> tuple[layout.Weights, np.ndarray | None]:
    """The weights of all directions of an operator, and its projection, with the dtype and shapes of the old ones."""
    parts, projections = [], []
    for form, entry in zip(node.forms, entries, strict=True):
        if _said(entry.form) != _said(form):  # a form also has options of other operators
            raise ValueError(f"{at} expected a cell of {_said(form)}; got {_said(entry.form)}, of {entry.name}")
        fields = dict(entry.fields)
        w_proj = fields.pop("w_proj", None)
        if (w_proj is None) != (old_proj is None):
            got, expected = ("no projection", "one") if w_proj is None else ("a projection", "none")
            raise ValueError(f"{at} expected {entry.name} with {expected}, as the model has, got {got}")
        if w_proj is not None and old_proj is not None:
            _check_shape(at, entry, "w_proj", old_proj.shape[1:], w_proj.shape)
            fields["w_h"] = layout.fold(w_proj, fields["w_h"])
            projections.append(w_proj)
        weights = layout.to_weights(form, fields)
        _check_shape(at, entry, "w_x", old.W.shape[:0:-1], weights.W.shape[::-1])
        _check_shape(at, entry, "w_h", old.R.shape[:0:-1], weights.R.shape[::-1])
        parts.append(weights)
    arrays = [_in_one(at, old.W.dtype, [getattr(part, role) for part in parts]) for role in layout.Weights._fields]
    return layout.Weights(*arrays), _in_one(at, old.W.dtype, projections)  # pyright: ignore[reportArgumentType]


def _check_shape(at: str, entry: Entry, field: str, expected: tuple[int, ...], got: tuple[int, ...]) -> None:
    if got != expected:
        raise ValueError(
            f"{at} expected {entry.name}.{field} of shape {shown(expected)}, as the model has, got {shown(got)}"
        )


def _said(form: layout.Form) -> str:
    """What an operator of this form computes, in ONNX's words."""
    options = [f"{name} {value}" for name, value in layout.attributes((form,)).items()]
    return f"{form.op} with {', '.join(options) or 'its defaults'}"


def _in_one(at: str, dtype: Any, arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The arrays of all directions, with zeros for one that is absent."""
    known = next((array for array in arrays if array is not None), None)
    if known is None:
        return None
    exact = np.stack([np.zeros_like(known) if array is None else array for array in arrays])
    with np.errstate(over="ignore"):
        cast = exact.astype(dtype)
    if (np.isfinite(exact.astype(np.float64)) & ~np.isfinite(cast.astype(np.float64))).any():
        raise ValueError(f"{at} expected params in the range of {dtype}, in which the model computes, got larger ones")
    return cast
