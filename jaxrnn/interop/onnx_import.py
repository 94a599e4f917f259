"""Recurrent operators of ONNX models, as networks."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrnn import _checks, heads
from jaxrnn._describe import cut, describe, quote
from jaxrnn._types import Cell, Params
from jaxrnn.interop import _onnx_layout as layout
from jaxrnn.interop._mappings import as_numpy, check_dtype, items, listed, said, to_jax
from jaxrnn.interop._onnx_chain import Layer, join, read_layers
from jaxrnn.interop._onnx_files import Source, read_model
from jaxrnn.interop._onnx_reader import DIRECTIONS, Node, read_node, recurrent_nodes
from jaxrnn.interop._onnx_values import MIXED, Values, ancestors
from jaxrnn.interop._sizes import shown
from jaxrnn.layers import Bidirectional, from_directions
from jaxrnn.network import Network, stack

if TYPE_CHECKING:
    import onnx

WHERE = "from_onnx"


def from_onnx(
    model: "onnx.ModelProto | str | os.PathLike[str]",
    *,
    nodes: str | Sequence[str] | None = None,
    weights: Mapping[str, Any] | None = None,
    reverse: bool = False,
    num_heads: int = 1,
) -> tuple[Network, Params]:
    """The operators RNN, LSTM and GRU of an ONNX model, as a network and its parameters.

    Operators that read one another's outputs become the layers of one :func:`stack`. The nodes
    between them are recognised by their result, however an exporter writes them: directions
    concatenated, their sum, product or mean, and a layer's input added to its output. Weights
    are initialisers, constants, joined slices of them, or quantised ones behind
    `DequantizeLinear`, which are read as the numbers that it computes.

    Lengths and initial states belong to a call, not to a network: give them to `unroll`. Constant
    lengths that are the T of the model, for every sequence, change nothing. A decoder, whose
    initial state is what another operator returns, is read apart, by `nodes`.
    The network is time-first for any `layout` of the operators. Other parts of the model, such
    as an embedding before or a read-out after, are not read.

    Args:
        model: an `onnx.ModelProto`, or the path of a file. Arrays outside the file are read
            from its own folder alone.
        nodes: the name or names of the operators to read, by default all; an operator without
            a name is given by one of its outputs.
        weights: arrays by the names of tensors, for a model that takes its weights as inputs;
            they override those that the model holds.
        reverse: expects operators of direction "reverse", which read from the last step to
            the first; run the network with `unroll(..., reverse=True)`.
        num_heads: N; with more than 1 every cell has N heads and `w_h` their blocks `(N, D, G*D)`, if all
            entries between units of different heads are exactly zero.

    Returns:
        The network, a :func:`stack` even of one layer, and its parameters, in the dtypes of
        the model.

    Raises:
        ImportError: without the package `onnx`.
        OSError: if the file does not exist or cannot be read.
        TypeError, ValueError: naming the file, node, attribute or tensor: for something that is
            not an ONNX model, a truncated or corrupted one, weights that are missing or of wrong
            shapes, a file beside the model that does not have its checksum, operators that are no
            stack, and features that our cells do not have: the `clip` of an LSTM, an activation of its memory
            that is not that of its candidate, a constant initial state or other lengths.

    Example:
        >>> import jax, jaxrnn
        >>> from jaxrnn.interop.onnx_export import to_onnx
        >>> from jaxrnn.interop.onnx_import import from_onnx
        >>> net = jaxrnn.stack([jaxrnn.lstm(32, peephole=True)] * 2, bidirectional=True)
        >>> model = to_onnx(net, net.init(jax.random.key(0), 8))
        >>> network, params = from_onnx(model)
        >>> network
        stack([Bidirectional(forward=lstm(32, peephole=True), backward=lstm(32, peephole=True)), \
Bidirectional(forward=lstm(32, peephole=True), backward=lstm(32, peephole=True))])

    Differs from:
        1. ONNX: its two biases are added, except for the candidate of a GRU with `linear_before_reset`.
        2. ONNX: a projection that :func:`to_onnx` folded is separated again, up to rounding.
    """
    reverse, num_heads = _checks.boolean(WHERE, "reverse", reverse), _checks.size(WHERE, "num_heads", num_heads)
    source = read_model(WHERE, model)
    try:
        return _read(source, nodes, _given(weights), reverse, num_heads)
    except UnicodeDecodeError as error:  # of an attribute
        raise ValueError(f"{WHERE}: {source.label} expected names in UTF-8, got others; is it corrupted?") from error


def _read(
    source: Source, nodes: Any, given: dict[str, np.ndarray], reverse: bool, num_heads: int
) -> tuple[Network, Params]:
    selected = {k: read_node(source, *node) for k, node in _selected(source, nodes).items()}
    tensors = dict.fromkeys(tensor for node in selected.values() for tensor in node.inputs.values())
    for name in given:
        if name not in tensors:
            raise ValueError(f"{WHERE}: weights expected one of {listed(tensors)}; got {quote(name)}")
    values = Values(source, given)
    layers = read_layers(values, selected, lambda node: _weights(values, node))
    fixed = [time for time, _ in map(values.sizes, selected.values()) if time is not None]
    for layer in layers:
        _check_direction(layer, reverse)
        for node in layer.nodes:
            # The layers of a stack read equally many steps, of which onnx may not follow all.
            _check_call(values, node, values.sizes(node)[0] or next(iter(fixed), None))
    _check_origins(values, selected)
    joined = join(values, layers)
    pairs = [_layer(layer, num_heads) for layer in layers]
    network = stack([cell for cell, _ in pairs], merge=joined.merge or "concat", residual=bool(joined.residual))
    return network, tuple(params for _, params in pairs)


def _given(weights: Any) -> dict[str, np.ndarray]:
    if weights is None:
        return {}
    if not isinstance(weights, Mapping):
        raise TypeError(f"{WHERE}: weights expected a mapping of names to arrays, got {describe(weights)}")
    given = {}
    for name, array in items(WHERE, "weights", weights):
        if not isinstance(name, str):
            raise TypeError(f"{WHERE}: weights expected names of tensors, got {describe(name)}")
        given[name] = as_numpy(WHERE, f"weights[{quote(name)}]", array)
    return given


def _selected(source: Source, nodes: Any) -> dict[int, Any]:
    """The operators to read, by their place in the graph."""
    every = recurrent_nodes(source)
    if not every:
        raise ValueError(
            f"{WHERE}: {source.label} expected an operator RNN, LSTM or GRU, got none among "
            f"{len(source.model.graph.node)} nodes; those inside Loop, Scan, If and functions are not read"
        )
    if nodes is None:
        return every
    try:
        names = [nodes] if isinstance(nodes, str) else list(nodes if isinstance(nodes, Sequence) else ())
    except Exception as error:  # a sequence of the user's own may raise anything
        raise TypeError(f"{WHERE}: nodes expected a name or several, got {describe(nodes)} ({said(error)})") from error
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{WHERE}: nodes expected a name or several, got {describe(nodes)}")
    found = {}
    for name in names:
        places = [k for k, (known, node) in every.items() if name in (known, *filter(None, node.output))]
        if len(places) != 1:
            known = listed(known for known, _ in every.values())
            raise ValueError(
                f"{WHERE}: nodes expected one operator called {quote(name)} among {known}; got {len(places)}"
            )
        found[places[0]] = every[places[0]]
    return dict(sorted(found.items()))


# One operator


def _weights(values: Values, node: Node) -> layout.Weights:
    """The weights of all directions of a node, with their shapes checked."""
    where = f"{WHERE}: node {quote(node.name)}"
    directions = DIRECTIONS[node.direction]
    arrays: dict[str, np.ndarray] = {}
    for role in layout.Weights._fields:
        tensor = node.inputs.get(role)
        if tensor is None:
            continue
        array, name = values.constant(tensor), f"{where} input {role} ({quote(tensor)})"
        if array is None:
            raise ValueError(
                f"{where} input {role} expected a constant, got {quote(tensor)}, which the model computes or is given; "
                f"give it here, as weights={{{quote(tensor)}: array}}"
            )
        if array.dtype.name not in _checks.FLOATS:
            raise ValueError(f"{name} expected a floating-point array, got {cut(str(array.dtype), 40)}")
        check_dtype(where, f"input {role} ({quote(tensor)})", array)
        arrays[role] = array
        if array.ndim < 2 or len(array) != directions:
            raise ValueError(f"{name} expected {directions} along the first axis, got {shown(array.shape)}")
    weights = layout.Weights(**arrays)
    for d in range(directions):
        layout.check_shapes(where, node.forms[d], layout.one_direction(weights, d), node.inputs, node.hidden_size)
    return weights


def _check_direction(layer: Layer, reverse: bool) -> None:
    got = " and ".join(node.direction for node in layer.nodes)
    if reverse and got != "reverse":
        raise ValueError(f"{WHERE}: node {layer.name} attribute direction expected 'reverse' as asked, got {got!r}")
    if not reverse and got == "reverse":
        raise ValueError(
            f"{WHERE}: node {layer.name} attribute direction expected 'forward' or 'bidirectional', got 'reverse'; "
            "with reverse=True it is read, for unroll(..., reverse=True)"
        )


def _check_call(values: Values, node: Node, steps: int | None) -> None:
    """Raises if an initial state is a constant other than zeros, or lengths are constants other than all steps."""
    where = f"{WHERE}: node {quote(node.name)} input"
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
    graph = values.source.model.graph
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
                        f"{WHERE}: node {name} input {role} ({quote(node.inputs[role])}) expected what each call "
                        f"gives, got what node {origin} returns, which a stack does not hand on; read them apart, by "
                        f"nodes={origin} and nodes={name}"
                    )


def _layer(layer: Layer, num_heads: int) -> tuple[Cell | Bidirectional, Any]:
    """The cells of a layer and their params."""
    halves = [
        _cell(node, d, layout.one_direction(weights, d), None if w_proj is None else w_proj[d], num_heads)
        for node, weights, w_proj in zip(*layer, strict=True)
        for d in range(len(node.forms))
    ]
    cells, params = zip(*halves, strict=True)
    return from_directions(cells), from_directions(params)


def _cell(node: Node, d: int, weights: layout.Weights, w_proj: np.ndarray | None, num_heads: int) -> tuple[Cell, Any]:
    form, where = node.forms[d], f"{WHERE}: node {quote(node.name)}"
    fields = layout.from_weights(form, weights)
    if w_proj is not None:
        w_h = layout.unfold(w_proj, fields["w_h"])
        assert w_h is not None
        fields |= {"w_h": w_h, "w_proj": w_proj}
    if num_heads > 1 and w_proj is not None:
        raise ValueError(f"{where}: num_heads expected 1, got {num_heads}; its projection mixes the units of all heads")
    if num_heads > 1:
        fields["w_h"] = heads.blocks(where, f"input R ({quote(node.inputs['R'], 60)})", fields["w_h"], num_heads)
    params = layout.RECORDS[form.op](**{name: to_jax(where, name, array) for name, array in fields.items()})
    projection_size = None if w_proj is None else w_proj.shape[1]
    options = ("b" in fields, "peephole" in fields, projection_size, num_heads)
    return layout.cell_of(form, weights.R.shape[1], *options), params
