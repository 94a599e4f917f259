"""Reads the recurrent operators of a model: their attributes and the tensors of their weights."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxrnn._describe import cut, quote
from jaxrnn.cells import Activation
from jaxrnn.cells._activation import NAMED
from jaxrnn.interop import _onnx_layout as layout
from jaxrnn.interop._onnx_files import Source, attribute_value
from jaxrnn.interop._onnx_graphs import Scope, scopes

if TYPE_CHECKING:
    import onnx

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
INPUTS += ("W_scale", "W_zero_point", "R_scale", "R_zero_point")  # of `DynamicQuantizeLSTM`
OUTPUTS = ("Y", "Y_h", "Y_c")
QUANTISED = "DynamicQuantizeLSTM"
DOMAINS = {"RNN": ("", "ai.onnx"), "GRU": ("", "ai.onnx"), "LSTM": ("", "ai.onnx"), QUANTISED: ("com.microsoft",)}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
KNOWN = ("activations", "activation_alpha", "activation_beta", "clip", "direction", "hidden_size", "layout")
KNOWN_OF = {"RNN": KNOWN, "GRU": (*KNOWN, "linear_before_reset"), "LSTM": (*KNOWN, "input_forget")}
KNOWN_OF[QUANTISED] = (*KNOWN[:-1], "input_forget")
ACTIVATIONS_OF = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


class Found(NamedTuple):
    """A recurrent operator, and the graph that it is in."""

    scope: Scope
    place: int  # in the graph
    path: str
    proto: "onnx.NodeProto"


class Node(NamedTuple):
    """A recurrent operator that a cell of ours supports."""

    name: str  # its path
    op: str  # its type; `forms` have "LSTM" for a `DynamicQuantizeLSTM`
    forms: tuple[layout.Form, ...]  # one a direction
    direction: str
    hidden_size: int | None
    batch_first: bool
    inputs: dict[str, str]  # tensors by ONNX's names of the inputs; absent ones left out
    output: str | None  # the tensor of Y, if the model uses it


def recurrent_nodes(model: "onnx.ModelProto") -> Iterator[Found]:
    """The operators of all graphs, in the order of the model."""
    for scope in scopes(model):
        for place, proto in enumerate(scope.graph.node):
            if proto.domain in DOMAINS.get(proto.op_type, ()):
                yield Found(scope, place, scope.name(place), proto)


def inputs_of(proto: "onnx.NodeProto") -> dict[str, str]:
    """The tensors that an operator reads, by ONNX's names of its inputs; absent ones left out."""
    return {role: tensor for role, tensor in zip(INPUTS, proto.input, strict=False) if tensor}


def read_node(source: Source, name: str, node: "onnx.NodeProto") -> Node:
    """A node with its attributes; raises, naming the attribute, for what a cell of ours cannot hold."""
    where = f"{source.where}: node {quote(name, 110)} ({node.op_type})"
    attributes = _attributes(source, where, node)
    op = "LSTM" if node.op_type == QUANTISED else node.op_type
    inputs = inputs_of(node)
    for role in ("X", "W", "R", *(("W_scale", "R_scale") if node.op_type == QUANTISED else ())):
        if role not in inputs:
            raise ValueError(f"{where} expected an input {role}, got none")
    direction = attributes.get("direction", "forward")
    if direction not in DIRECTIONS:
        raise ValueError(f"{where} attribute direction expected one of {', '.join(DIRECTIONS)}, got {quote(direction)}")
    flags = {flag: attributes.get(flag, 0) for flag in ("linear_before_reset", "input_forget", "layout")}
    for flag, number in flags.items():
        if number not in (0, 1):
            raise ValueError(f"{where} attribute {flag} expected 0 or 1, got {number!r}")
    options: dict[str, Any] = {
        "reset_after": bool(flags["linear_before_reset"]),
        "coupled": bool(flags["input_forget"]),
        "clip": _clip(where, op, attributes.get("clip")),
    }
    forms = tuple(
        layout.Form(op, **phis, **options) for phis in _activations(where, op, DIRECTIONS[direction], attributes)
    )
    for form in forms:
        if form.coupled and not layout.is_symmetric(form.recurrent_activation):
            got = form.recurrent_activation
            raise ValueError(
                f"{where} attribute activations expected σ(-a) = 1 - σ(a) of coupled gates, got {got}; "
                f"{layout.COUPLED_SIGN}"
            )
    return Node(
        name=name,
        op=node.op_type,
        forms=forms,
        direction=direction,
        hidden_size=attributes.get("hidden_size"),
        batch_first=bool(flags["layout"]),
        inputs=inputs,
        output=next(iter(node.output), "") or None,
    )


def _attributes(source: Source, where: str, node: "onnx.NodeProto") -> dict[str, Any]:
    """The attributes of a node; raises for types that ONNX does not give them, and for features of no cell of ours."""
    found = {}
    for attribute in node.attribute:
        name, value = attribute.name, attribute_value(source, where, attribute)
        if name not in KNOWN_OF[node.op_type]:
            raise ValueError(f"{where} attribute {cut(name, 60)} expected to be absent, got {_shown(value)}")
        kinds = {
            "direction": bytes,
            "activations": list,
            "activation_alpha": list,
            "activation_beta": list,
            "clip": float,
        }
        if not isinstance(value, kinds.get(name, int)):
            raise ValueError(f"{where} attribute {name} expected {kinds.get(name, int).__name__}, got {_shown(value)}")
        if name in ("activation_alpha", "activation_beta") and not all(isinstance(one, float) for one in value):
            raise ValueError(f"{where} attribute {name} expected numbers, got {_shown(value)}")
        found[name] = _shortest(value)
    if "direction" in found:
        found["direction"] = found["direction"].decode()
    if "activations" in found:
        found["activations"] = [
            name.decode() if isinstance(name, bytes) else _shown(name) for name in found["activations"]
        ]
    return found


def _shortest(value: Any) -> Any:
    """Numbers of float32 as the shortest decimals that they are nearest to."""
    if isinstance(value, list):
        return [_shortest(one) for one in value]
    return layout.shortest(value) if isinstance(value, float) else value


def _shown(value: Any) -> str:
    """The value of an attribute in a message; graphs and tensors by their kind, as they may be of any size."""
    if isinstance(value, (int, float, bytes)):
        return quote(value)
    if isinstance(value, list) and all(isinstance(one, (int, float, bytes)) for one in value[:5]):
        return cut(f"[{', '.join(quote(one, 20) for one in value[:5])}{', …' if len(value) > 5 else ''}]", 80)
    return type(value).__name__


def _clip(where: str, op: str, clip: float | None) -> float | None:
    """The attribute `clip`, of an operator whose clipping a cell of ours has."""
    if clip is None:
        return None
    if not 0 < clip < math.inf:
        raise ValueError(f"{where} attribute clip expected a positive number, got {clip}")
    if op == "LSTM":
        raise ValueError(f"{where} attribute clip expected to be absent, got {clip}; {layout.LSTM_CLIP}")
    return clip


def _activations(where: str, op: str, directions: int, attributes: dict[str, Any]) -> list[dict[str, Activation]]:
    """The activations of each direction, by the names of our options."""
    count = len(ACTIVATIONS_OF[op])
    names = attributes.get("activations")
    if names is None or (not names and op != "RNN"):  # ONNX Runtime refuses an RNN with an empty list
        names = ACTIVATIONS_OF[op] * directions
    known = {theirs.name.lower(): ours for ours, theirs in layout.ACTIVATIONS.items()}
    given = ", ".join(cut(name, 20) for name in names[:6]) + (", …" if len(names) > 6 else "")
    if len(names) != count * directions or not all(name.lower() in known for name in names):
        expected = ", ".join(theirs.name for theirs in layout.ACTIVATIONS.values())
        raise ValueError(
            f"{where} attribute activations expected {count * directions} of {expected}; got {given or 'an empty list'}"
        )
    lists = {parameter: list(attributes.get(f"activation_{parameter}") or []) for parameter in ("alpha", "beta")}
    for parameter, values in lists.items():
        if len(values) > len(names):
            raise ValueError(
                f"{where} attribute activation_{parameter} expected at most {len(names)} numbers, got {len(values)}"
            )
    phis = [_activation(where, known[name.lower()], lists) for name in names]
    found = []
    for k in range(0, len(phis), count):
        *gate, unit = phis[k : k + 2] if count > 1 else phis[k : k + 1]
        if phis[k + count - 1] != unit:
            raise ValueError(
                f"{where} attribute activations expected one function for the candidate and the memory, got {given}; "
                "an LSTM of jaxrnn has one activation for both"
            )
        found.append({"activation": unit} | ({"recurrent_activation": gate[0]} if gate else {}))
    return found


def _activation(where: str, name: str, lists: dict[str, list[float]]) -> Activation:
    """An activation, with the first α and β of the lists if it has them, which are then taken out."""
    parameters = {}
    for parameter, values in lists.items():
        if getattr(NAMED[name], parameter) is not None:
            default = getattr(layout.ACTIVATIONS[name], parameter)
            if not values and default is None:
                theirs = layout.ACTIVATIONS[name].name
                raise ValueError(f"{where} attribute activation_{parameter} expected a number for {theirs}, got none")
            parameters[parameter] = _with_digits(values.pop(0), getattr(NAMED[name], parameter)) if values else default
    try:
        return Activation(name, **parameters)
    except ValueError as error:
        raise ValueError(f"{where} attribute activations: {error}") from error


def _with_digits(number: float, default: float) -> float:
    """The number, or our default where float32 does not tell them apart, as 1/6."""
    return default if np.float32(default) == np.float32(number) else number
