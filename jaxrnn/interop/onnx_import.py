"""Recurrent operators of ONNX models, as networks."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrnn import _checks, heads
from jaxrnn._describe import describe, quote
from jaxrnn._types import Cell, Params
from jaxrnn.interop import _onnx_layout as layout
from jaxrnn.interop._mappings import as_numpy, items, to_jax
from jaxrnn.interop._onnx_chain import Layer
from jaxrnn.interop._onnx_files import Source, read_model
from jaxrnn.interop._onnx_reader import Node
from jaxrnn.interop._onnx_stack import read_stack
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

    Operators may be inside `If`, `Loop` and `Scan`, where a path names them: "If_0.then_branch/lstm" is the
    operator `lstm` of the graph that `If_0` holds as its `then_branch`. A network is read from one graph;
    :func:`onnx_recurrent` lists the operators of all.

    Operators that read one another's outputs become the layers of one :func:`stack`. The nodes
    between them are recognised by their result, however an exporter writes them: directions
    concatenated, their sum, product or mean, and a layer's input added to its output. Weights
    are initialisers, constants, joined slices of them, or quantised ones behind
    `DequantizeLinear`, which are read as the numbers that it computes. They may be in the graphs around that of
    the operator. `DynamicQuantizeLSTM` of ONNX Runtime is read as an LSTM with the weights (q - zero point) scale.

    Lengths and initial states belong to a call, not to a network: give them to `unroll`. Constant
    lengths that are the T of the model, for every sequence, change nothing. A decoder, whose
    initial state is what another operator returns, is read apart, by `nodes`.
    The network is time-first for any `layout` of the operators. Other parts of the model, such
    as an embedding before or a read-out after, are not read.

    Args:
        model: an `onnx.ModelProto`, or the path of a file. Arrays outside the file are read
            from its own folder alone.
        nodes: the paths or names of the operators to read, by default all; an operator without
            a name is given by one of its outputs. A name that several operators have is refused; a path
            is that of one.
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
            stack or of several graphs, and features that our cells do not have: the `clip` of an LSTM, an activation
            of its memory that is not that of its candidate, a constant initial state or other lengths. Without an
            operator the message says what the model has instead, such as a cell written as products.

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
        3. ONNX Runtime: its `DynamicQuantizeLSTM` also quantises x and h, so its outputs differ from those of an
           LSTM with the same weights, by 1 % of the largest output in the tests.
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
    _, _, layers, joined = read_stack(source, nodes, given, reverse)
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


# One layer


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
