"""Lists the recurrent operators of ONNX models."""

import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from jaxrnn.interop._onnx_files import Source, read_model
from jaxrnn.interop._onnx_reader import OUTPUTS, QUANTISED, Found, inputs_of, recurrent_nodes
from jaxrnn.interop._onnx_values import Values, ancestors

if TYPE_CHECKING:
    import onnx


class OnnxRecurrent(NamedTuple):
    """A recurrent operator of an ONNX model, and the names of the tensors that it reads and writes."""

    path: str  # for `from_onnx(nodes=...)`
    kind: str  # "RNN", "LSTM", "GRU" or "DynamicQuantizeLSTM"
    direction: str  # "forward", "reverse" or "bidirectional"
    input_size: int | None  # I; None if the model computes W, or is given it
    hidden_size: int | None  # H
    X: str | None  # (T, B, I), or (B, T, I) with ONNX's layout=1
    sequence_lens: str | None  # (B,)
    initial_h: str | None  # (D, B, H)
    initial_c: str | None
    Y: str | None  # (T, D, B, H)
    Y_h: str | None  # (D, B, H)
    Y_c: str | None
    function: str | None  # the name of the ONNX function that it is in, where it is not read


def onnx_recurrent(model: "onnx.ModelProto | str | os.PathLike[str]") -> tuple[OnnxRecurrent, ...]:
    """The operators RNN, LSTM and GRU of an ONNX model, and `DynamicQuantizeLSTM` of ONNX Runtime.

    Those inside `If`, `Loop`, `Scan` and functions are listed too. A path such as "If_0.then_branch/lstm" names the
    operator `lstm` of the graph that `If_0` holds as its `then_branch`; it selects the operator in
    :func:`from_onnx`. An operator is listed even if :func:`from_onnx` refuses it.

    The names of tensors tell what to feed and what to compare in a runtime. Tensors of an inner graph are
    computed only where that graph runs.

    Args:
        model: an `onnx.ModelProto`, or the path of a file.

    Returns:
        A record for each operator, in the order of the model. What an operator does not have is `None`.

    Raises:
        ImportError: without the package `onnx`.
        OSError: if the file does not exist or cannot be read.
        TypeError, ValueError: for something that is not an ONNX model.

    Example:
        >>> import jax, jaxrnn
        >>> net = jaxrnn.stack([jaxrnn.gru(16)])
        >>> model = jaxrnn.interop.to_onnx(net, net.init(jax.random.key(0), 8), lengths=True)
        >>> (node,) = jaxrnn.interop.onnx_recurrent(model)
        >>> node.path, node.kind, node.input_size, node.hidden_size, node.X, node.sequence_lens
        ('layer_0', 'GRU', 8, 16, 'x', 'lengths')
    """
    source = read_model("onnx_recurrent", model)
    records = []
    for _, group in itertools.groupby(recurrent_nodes(source.model), lambda one: (one.scope.function, one.scope.steps)):
        nodes = list(group)
        values = _values(source, nodes)
        records += [_record(values, one) for one in nodes]
    return tuple(records)


def _values(source: Source, nodes: Sequence[Found]) -> Values:
    """What is known of the weights of the operators of one graph."""
    scope = nodes[0].scope
    weights = [inputs_of(one.proto).get(role, "") for one in nodes for role in ("W", "R")]
    values = Values(source._replace(scope=scope), {})
    if not scope.function:
        needed = ancestors(scope.nodes(), weights)
        with suppress(ValueError):  # constants that cannot be read are refused by `from_onnx`; their sizes stay unknown
            values.enter(needed)
            for node in scope.graph.node:
                values.follow(node, needed)
    return values


def _record(values: Values, found: Found) -> OnnxRecurrent:
    proto, inputs = found.proto, inputs_of(found.proto)
    outputs = {role: tensor for role, tensor in zip(OUTPUTS, proto.output, strict=False) if tensor}
    attributes = {attribute.name: attribute for attribute in proto.attribute}
    direction = attributes["direction"].s.decode("utf-8", "replace") if "direction" in attributes else "forward"
    hidden_size = attributes["hidden_size"].i if "hidden_size" in attributes else 0
    axis = 1 if proto.op_type == QUANTISED else 2
    sizes = {role: _size(values, inputs.get(role, ""), axis) for role in ("W", "R")}
    return OnnxRecurrent(
        path=found.path,
        kind=proto.op_type,
        direction=direction or "forward",
        input_size=sizes["W"],
        hidden_size=hidden_size if hidden_size > 0 else sizes["R"],
        **{role: inputs.get(role) for role in ("X", "sequence_lens", "initial_h", "initial_c")},
        **{role: outputs.get(role) for role in OUTPUTS},
        function=found.scope.function or None,
    )


def _size(values: Values, tensor: str, axis: int) -> int | None:
    """One of the three sizes of a weight; `None` if it is not known."""
    if tensor in values.stored:
        shape = tuple(values.stored[tensor].dims)
    else:
        array = values.constant(tensor)
        shape = () if array is None else array.shape
    return int(shape[axis]) if len(shape) == 3 and shape[axis] >= 0 else None
