"""Networks as ONNX models, for any runtime: one recurrent operator a layer."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import _checks, _files
from jaxrnn._describe import cut, describe, quote
from jaxrnn._types import CELL_TYPES, AnyCell, Params
from jaxrnn.interop import _onnx_head as head
from jaxrnn.interop import _onnx_layout as layout
from jaxrnn.interop._mappings import as_numpy, hint_of_module, items, listed
from jaxrnn.interop._onnx_files import require_onnx
from jaxrnn.interop._onnx_head import Around
from jaxrnn.interop._onnx_put import put
from jaxrnn.interop._onnx_writer import Graph, Operator, Options, write_layer
from jaxrnn.layers import MERGES, check_directions, directions, walk_layer
from jaxrnn.network import Network
from jaxrnn.readouts import Readout, ReadoutParams

if TYPE_CHECKING:
    import onnx

# A given h_0 goes through the pseudo-inverse of W_p, which multiplies its rounding by the condition number.
CONDITION_LIMIT = 100.0
OPSET = 17


def to_onnx(
    network: Network | AnyCell,
    params: Params,
    *,
    path: str | os.PathLike[str] | None = None,
    lengths: bool = False,
    initial_state: str = "zeros",
    batch_first: bool = False,
    reverse: bool = False,
    embedding: Any = None,
    last_output: bool = False,
    readout: tuple[Readout, ReadoutParams] | None = None,
    names: Mapping[str, str] | None = None,
    opset: int = OPSET,
    into: "onnx.ModelProto | str | os.PathLike[str] | None" = None,
    nodes: str | Sequence[str] | None = None,
) -> "onnx.ModelProto":
    """A network as an ONNX model of the operators RNN, LSTM and GRU, with time and batch of any size.

    =================  ===============================================================
    input              shape and meaning
    =================  ===============================================================
    ``x``              (time, batch, I); with ``embedding``, ``tokens`` (time, batch) int32 in its place
    ``lengths``        (batch,) int32, with ``lengths=True``
    ``h_0_l{k}``       (D, batch, H), with ``initial_state="inputs"``, for each layer k;
                       D is 2 for a layer that reads both ways, else 1
    ``c_0_l{k}``       (D, batch, H), of an LSTM
    =================  ===============================================================

    The outputs are ``y`` (time, batch, ·), zero past a sequence's length before the read-out, or with
    ``last_output`` (batch, ·), and the final states ``h_n_l{k}`` and ``c_n_l{k}``, shaped as the
    initial ones. The states of a single cell have no ``_l{k}`` in their names. If the two directions
    of a layer differ in kind or size, their states are separate, the backward ones as
    ``h_0_l{k}_reverse``, each with D = 1.

    Every variant that the operators support is written so that ONNX Runtime computes what
    :func:`jaxrnn.unroll` does: biases, peepholes, both forms of the GRU, coupled gates,
    projections, merged directions, residual layers. Dropout is left out, as in evaluation.
    Heads are written as the block-diagonal matrix of the same function, zeros included.

    Args:
        network: from :func:`stack`, or a cell of :func:`lstm`, :func:`gru` or :func:`rnn`.
        params: its parameters, in the floating-point dtype that the model computes in.
        path: a file to write the model to; it is written as a whole or not at all.
        lengths: whether the lengths of the sequences are an input.
        initial_state: "zeros", or "inputs" to give the states with each call.
        batch_first: makes ``x`` and ``y`` (batch, time, ·); the states stay as they are.
        reverse: reads from the last step to the first, as ``unroll(reverse=True)``.
        embedding: a table `(V, I)`, whose rows are the inputs of tokens 0 to V - 1.
        last_output: whether ``y`` is the output of each sequence's last step, as
            :func:`jaxrnn.last_output` reads it, of both halves of a last layer that reads both ways;
            with `reverse` that of step 0, which is read last. Zeros for a sequence of length 0.
        readout: a pair `(jaxrnn.readout(...), its params)`: ``y`` is then ŷ = ψ(h V + c). For
            logits give a read-out with `activation="identity"`.
        names: other names for inputs and outputs, as ``{"x": "audio", "y": "features"}``.
        opset: the version of ONNX's operators to write, 14 or later.
        into: another model, or the path of its file. The result is a copy of it in which the operators that
            :func:`from_onnx` reads have the weights of `params`, in their dtype. The rest stays as it is, even
            nodes that computed an old weight and are no longer read. Operators of several graphs get theirs one
            after another, each `into` the last result. Only `path`, `reverse` and `nodes` may be given with it.
        nodes: with `into`, the paths or names of the operators, as for :func:`from_onnx`; by default all.

    Returns:
        The `onnx.ModelProto`.

    Raises:
        ImportError: without the package `onnx`.
        TypeError, ValueError: for params of another network, and for what ONNX does not
            have: other cells, layer normalisation, zoneout, activations and merges of your
            own; and an initial state given to a projection that is nearly singular. With `into`, naming the
            operator, for a network of other sizes, forms or layers, and for quantised weights.

    Example:
        >>> import jax, jaxrnn
        >>> from jaxrnn.interop.onnx_export import to_onnx
        >>> net = jaxrnn.stack([jaxrnn.lstm(32), jaxrnn.gru(16)], bidirectional=True)
        >>> model = to_onnx(net, net.init(jax.random.key(0), 8), lengths=True)
        >>> [x.name for x in model.graph.input], [y.name for y in model.graph.output]
        (['x', 'lengths'], ['y', 'h_n_l0', 'c_n_l0', 'h_n_l1'])

        >>> read = jaxrnn.readout(10, activation="softmax")
        >>> head = (read, read.init(jax.random.key(1), 32))
        >>> table = jax.random.normal(jax.random.key(2), (100, 8))
        >>> whole = to_onnx(net, net.init(jax.random.key(0), 8), embedding=table, last_output=True, readout=head)
        >>> [x.name for x in whole.graph.input], whole.graph.node[-1].op_type
        (['tokens'], 'Softmax')

        >>> trained = to_onnx(net, net.init(jax.random.key(1), 8), into=model)  # the same model, other weights
        >>> trained.graph.node == model.graph.node, trained == model
        (True, False)

    Differs from:
        1. ONNX computes with one W_h for each operator and feeds back all of h. An LSTM with a
           projection W_p is written with the product W_p W_h and a product with W_p after it,
           which is the same function, rounded once more; a given h_0 enters as m_0 = h_0 W_p⁺.
        2. ONNX says that coupled gates are coupled, not how: f = 1 - i is ONNX Runtime's way.
        3. ONNX Runtime returns zeros as the final state of a sequence of length 0; the model
           returns the initial state there, as `unroll` does.
        4. ONNX Runtime's operators run in float32 (and float16); float64 is for other runtimes.
        5. T = 0 and an empty batch are legal here; ONNX Runtime 1.31 ends the process on them.
        6. ONNX Runtime's Softplus inside an operator is infinite above 88, where e^a is; that of JAX is a.
    """
    where = "to_onnx"
    onnx = require_onnx(where)
    target = None if path is None else _files.checked_path(where, path)
    lengths, batch_first, reverse = (
        _checks.boolean(where, name, value)
        for name, value in (("lengths", lengths), ("batch_first", batch_first), ("reverse", reverse))
    )
    _checks.one_of(where, "initial_state", initial_state, ("zeros", "inputs"))
    opset = _checked_opset(where, opset, onnx.defs.onnx_opset_version())
    around = head.checked(where, embedding, last_output, readout)
    parts = _parts(where, network, params)
    if reverse and any(len(entries) == 2 for entries in parts.entries):
        raise ValueError(f"{where}: reverse expected False for a network that reads both ways, got True")
    if into is not None:
        _check_alone(where, lengths, initial_state, batch_first, around, names, opset)
        model = put(where, parts.entries, parts.merge, parts.residual, into, nodes, reverse)
        if target is not None:
            _files.write_whole(where, target, model.SerializeToString())
        return model
    if nodes is not None:
        raise ValueError(f"{where}: nodes expected a model as into, whose operators they are, got none")
    options = Options(lengths, initial_state == "inputs", parts.merge)
    graph = _graph(where, onnx, network, parts, options, _Reading(batch_first, reverse), around, opset)
    model = graph.model(_checked_names(where, names, graph), opset)
    if target is not None:
        _files.write_whole(where, target, model.SerializeToString())
    return model


def _check_alone(
    where: str, lengths: bool, initial_state: str, batch_first: bool, around: Around, names: Any, opset: int
) -> None:
    """Raises for options that a given model has already decided."""
    options = {"lengths": lengths, "batch_first": batch_first, "names": names is not None, "opset": opset != OPSET}
    options |= {"last_output": around.last_output, "initial_state": initial_state != "zeros"}
    options |= {"embedding": around.embedding is not None, "readout": around.read_out is not None}
    for name, changed in options.items():
        if changed:
            raise ValueError(f"{where}: {name} expected its default with into, whose inputs and outputs stay")


class _Entry(NamedTuple):
    """The form of a cell, and its params as NumPy arrays that fit it."""

    name: str  # of the params, in messages
    form: layout.Form
    fields: layout.Fields


class _Parts(NamedTuple):
    """A network to export."""

    entries: list[list[_Entry]]  # of every layer, one a direction
    merge: str
    residual: bool


class _Reading(NamedTuple):
    """How the sequences are laid and read."""

    batch_first: bool
    reverse: bool


def _graph(
    where: str, onnx: Any, network: Any, parts: _Parts, options: Options, reading: _Reading, around: Around, opset: int
) -> Graph:
    """The nodes of the whole model."""
    dtype = _dtype(where, parts.entries, around, opset)
    operators = [_operators(where, entry, reading.reverse, dtype, options.given) for entry in parts.entries]
    _check_sizes(where, parts, operators)
    graph = Graph(onnx, dtype)
    leading = ("batch", "time") if reading.batch_first else ("time", "batch")
    x = head.write_input(where, graph, around, leading, operators[0][0].weights[0].W.shape[1])
    if options.lengths:
        graph.input("lengths", "batch", dtype="int32")
    if reading.batch_first:
        x = graph.node("Transpose", [x], "x_time_first", perm=[1, 0, 2])
    for k, layer in enumerate(operators):
        states = "" if isinstance(network, CELL_TYPES) else f"_l{k}"
        y = write_layer(graph, f"layer_{k}", states, x, layer, options)
        x = graph.node("Add", [y, x], f"layer_{k}.residual") if parts.residual and k else y
    size = _output_size(operators[-1], parts.merge)
    if around.last_output:
        x = head.write_last_output(graph, x, _ends(where, parts, operators[-1], options, reading))
    if around.read_out is not None:
        x, size = head.write_read_out(where, graph, around.read_out, x, size)
    if reading.batch_first and not around.last_output:
        x = graph.node("Transpose", [x], "y_batch_first", perm=[1, 0, 2])
    graph.output("y", x, *(("batch",) if around.last_output else leading), size)
    return graph


def _ends(where: str, parts: _Parts, layer: list[Operator], options: Options, reading: _Reading) -> head.Ends:
    """Where the last outputs of the last layer are."""
    sizes = tuple(operator.output_size for operator in layer for _ in operator.forms)
    if len(sizes) == 2 and (parts.merge != "concat" or sizes[0] != sizes[1]):
        raise ValueError(
            f"{where}: last_output expected a last layer of one direction, or of two of one size with merge='concat', "
            f"got sizes {sizes} and merge={parts.merge!r}; jaxrnn.last_output reads each half at its own end"
        )
    return head.Ends(options.lengths, reading.reverse, sizes)


def _parts(where: str, network: Any, params: Any) -> _Parts:
    if isinstance(network, CELL_TYPES):
        return _Parts([[_entry(where, "params", network, params)]], "concat", False)
    if not isinstance(network, Network):
        raise TypeError(
            f"{where}: network expected a Network or a Cell, got {describe(network)}{_hint_of_network(network)}"
        )
    merge = next((name for name, f in MERGES.items() if network.merge in (name, f)), None)
    if merge is None and any(len(directions(layer)) == 2 for layer in network.layers):
        raise ValueError(
            f"{where}: merge expected one of {', '.join(MERGES)}, got the function of {cut(repr(network))}"
        )
    depth = len(network.layers)
    if not isinstance(params, tuple) or hasattr(params, "_fields") or len(params) != depth:
        raise TypeError(
            f"{where}: params expected a tuple over {depth} layers, got {describe(params)}"
            f"{hint_of_module(params, 'params')}"
        )
    entries = [_entries(where, k, network.layers[k], params[k]) for k in range(depth)]
    return _Parts(entries, merge or "concat", network.residual)


def _hint_of_network(value: Any) -> str:
    hint = hint_of_module(value, "network", "cell")
    return f"{hint} and its .params" if hint else ""


def _entries(where: str, k: int, layer: Any, params: Any) -> list[_Entry]:
    check_directions(where, f"params[{k}]", layer, params)
    return [_entry(where, f"params{way.path}", way.cell, *way.parts) for way in walk_layer(k, layer, params)]


def _entry(where: str, name: str, cell: AnyCell, params: Any) -> _Entry:
    form = layout.form_of(f"{where}: {name}", cell)
    w_x: Any = params.w_x if hasattr(type(params), "w_x") else None
    if cell.check is not None:
        cell.check(f"{where}: {name}", params, w_x.shape[:1] if _checks.is_array(w_x) else ())
    given = {field: value for field, value in params._asdict().items() if value is not None}
    return _Entry(name, form, {field: as_numpy(where, f"{name}.{field}", value) for field, value in given.items()})


def _checked_opset(where: str, opset: Any, newest: int) -> int:
    if _checks.positive_int(where, "opset", opset) not in range(14, newest + 1):
        raise ValueError(f"{where}: opset expected 14 to {newest}, the newest that this onnx knows; got {quote(opset)}")
    return int(opset)


def _dtype(where: str, entries: list[list[_Entry]], around: Around, opset: int) -> Any:
    """The promoted dtype of all params."""
    every = [array.dtype for layer in entries for entry in layer for array in entry.fields.values()]
    every += [array.dtype for array in around.arrays]
    dtype = functools.reduce(jnp.promote_types, every)
    if dtype not in (jnp.float16, jnp.float32, jnp.float64) and not (dtype == jnp.bfloat16 and opset >= 22):
        raise ValueError(
            f"{where}: params expected float16, float32 or float64 (or bfloat16 from opset 22 on), got {dtype}; "
            "cast them with astype"
        )
    return dtype


def _operators(where: str, entries: list[_Entry], reverse: bool, dtype: Any, given: bool) -> list[Operator]:
    """The nodes of a layer: one, or two where the directions are not alike."""
    parts = []
    for name, form, fields in entries:
        fields = {field: array.astype(dtype) for field, array in fields.items()}
        projection = fields.pop("w_proj", None)
        if projection is not None:
            if given:
                _check_condition(f"{where}: {name}.w_proj", projection)
            fields["w_h"] = layout.fold(projection, fields["w_h"])
        parts.append((form, layout.to_weights(form, fields), projection))
    if len(parts) == 1:
        return [_operator("reverse" if reverse else "forward", "", parts)]
    alike = [(layout.without_activations(form), jax.tree.map(np.shape, arrays)) for form, *arrays in parts]
    if alike[0] == alike[1]:
        return [_operator("bidirectional", "", parts)]
    return [_operator("forward", "", parts[:1]), _operator("reverse", "_reverse", parts[1:])]


def _operator(direction: str, suffix: str, parts: list[Any]) -> Operator:
    forms, weights, projections = zip(*parts, strict=True)
    return Operator(direction, suffix, forms, weights, None if projections[0] is None else projections)


def _output_size(operators: list[Operator], merge: str) -> int:
    sizes = [operator.output_size for operator in operators for _ in operator.forms]
    return sum(sizes) if merge == "concat" else sizes[0]


def _check_sizes(where: str, parts: _Parts, operators: list[list[Operator]]) -> None:
    """Raises unless every layer's input has the size of the outputs below it."""
    size = operators[0][0].weights[0].W.shape[1]
    for k, layer in enumerate(operators):
        inputs = [weights.W.shape[1] for operator in layer for weights in operator.weights]
        for entry, got in zip(parts.entries[k], inputs, strict=True):
            if got != size:
                origin = f"the outputs of layer {k - 1}" if k else f"as {parts.entries[0][0].name}.w_x has"
                raise ValueError(f"{where}: {entry.name}.w_x expected {size} rows, {origin}; got {got}")
        size = _output_size(layer, parts.merge)


def _check_condition(name: str, w_proj: np.ndarray) -> None:
    exact = w_proj.astype(np.float64)
    condition = np.linalg.cond(exact) if np.isfinite(exact).all() else np.nan
    if not condition <= CONDITION_LIMIT:
        raise ValueError(
            f"{name} expected a condition number of at most {CONDITION_LIMIT:g} where the initial state is an input, "
            f"got {condition:.3g}; ONNX's operator takes the state before the projection, which it would not determine"
        )


def _checked_names(where: str, names: Any, graph: Graph) -> Mapping[str, str]:
    """The caller's names of inputs and outputs, checked."""
    if names is None:
        return {}
    if not isinstance(names, Mapping):
        raise TypeError(f"{where}: names expected a mapping of names to names, got {describe(names)}")
    public = [*graph.inputs, *graph.outputs]
    chosen: dict[str, str] = {}
    for name, new in items(where, "names", names):
        if not isinstance(name, str) or name not in public:
            raise ValueError(f"{where}: names expected one of {listed(public)}; got {quote(name)}")
        if not isinstance(new, str) or not new:
            raise TypeError(f"{where}: names expected a name for {quote(name)}, got {describe(new)}")
        if new != new.encode("utf-8", "replace").decode():
            raise ValueError(f"{where}: names expected text that UTF-8 can hold, got {quote(new)}")
        chosen[name] = new
    used = [chosen.get(name, name) for name in public] + list(graph.constants)
    used += [tensor for node in graph.nodes for tensor in node.output]
    for name in chosen.values():
        if used.count(name) > 1:
            raise ValueError(f"{where}: names expected {quote(name)} for one tensor, got it for two")
    return chosen
