"""What an ONNX model has around its recurrent layers: an embedding, the last output, a read-out."""

from typing import Any, NamedTuple

import numpy as np

from jaxrnn import _checks
from jaxrnn._describe import describe
from jaxrnn.interop._mappings import as_numpy
from jaxrnn.interop._onnx_writer import Graph
from jaxrnn.readouts import Readout, ReadoutParams

OPERATORS = {"identity": None, "sigmoid": "Sigmoid", "softmax": "Softmax"}


class ReadOut(NamedTuple):
    """ŷ = ψ(h V + c)."""

    activation: str
    v: np.ndarray
    c: np.ndarray | None


class Around(NamedTuple):
    """What the model has besides the network."""

    embedding: np.ndarray | None  # (V, I)
    last_output: bool
    read_out: ReadOut | None

    @property
    def arrays(self) -> list[np.ndarray]:
        """Those whose dtypes the model computes in."""
        read_out = () if self.read_out is None else (self.read_out.v, self.read_out.c)
        return [array for array in (self.embedding, *read_out) if array is not None]


class Ends(NamedTuple):
    """At which steps the last outputs of the last layer are."""

    lengths: bool
    reverse: bool
    halves: tuple[int, ...]  # the outputs of each direction, side by side


def checked(where: str, embedding: Any, last_output: Any, readout: Any) -> Around:
    """The arguments of `to_onnx`, but for the sizes of the network."""
    last_output = _checks.boolean(where, "last_output", last_output)
    if embedding is not None:
        embedding = as_numpy(where, "embedding", embedding)
        if embedding.ndim != 2:
            raise ValueError(f"{where}: embedding expected shape (V, I), got {embedding.shape}")
    return Around(embedding, last_output, None if readout is None else _read_out(where, readout))


def _read_out(where: str, readout: Any) -> ReadOut:
    read, params = readout if type(readout) is tuple and len(readout) == 2 else (readout, None)
    if not isinstance(read, Readout) or not isinstance(params, ReadoutParams) or read.config is None:
        raise TypeError(
            f"{where}: readout expected a pair (jaxrnn.readout(...), its params), got {describe(readout)}; "
            "of a module give its .readout and its .params"
        )
    at, size = f"{where}: readout", read.config.output_size
    _checks.params_presence(at, params, {"c": read.config.use_bias})
    shapes: dict[str, tuple[int, ...]] = {"v": (_checks.rows(at, params, "v"), size), "c": (size,)}
    _checks.params_shapes(at, params, {name: shapes[name] for name in shapes if getattr(params, name) is not None})
    v, c = (None if a is None else as_numpy(where, f"readout params.{n}", a) for n, a in params._asdict().items())
    assert v is not None
    return ReadOut(read.config.activation, v, c)


def write_input(where: str, graph: Graph, around: Around, leading: tuple[str, str], features: int) -> str:
    """Adds the input of the model and returns the tensor that the first layer reads."""
    if around.embedding is None:
        return graph.input("x", *leading, features)
    if around.embedding.shape[1] != features:
        raise ValueError(
            f"{where}: embedding expected shape (V, {features}), the features that the first layer reads, "
            f"got {around.embedding.shape}"
        )
    table = graph.constant("embedding", around.embedding.astype(graph.dtype))
    return graph.node("Gather", [table, graph.input("tokens", *leading, dtype="int32")], "embedded", axis=0)


def write_last_output(graph: Graph, y: str, ends: Ends) -> str:
    """Adds what selects the outputs (batch, ·) of the steps that each direction reads last.

    They are zeros for a sequence of length 0, as the operators' outputs are past a length.
    """
    backwards = [ends.reverse] if len(ends.halves) == 1 else [False, True]
    halves = [y]
    if len(ends.halves) == 2:
        sizes = graph.constant("halves", np.array(ends.halves, np.int64))
        halves = ["y_forward", "y_backward"]
        graph.node("Split", [y, sizes], *halves, axis=2)
    parts = [_at_step(graph, half, at_start, ends.lengths) for half, at_start in zip(halves, backwards, strict=True)]
    return parts[0] if len(parts) == 1 else graph.node("Concat", parts, "last_both", axis=1)


def _at_step(graph: Graph, y: str, at_start: bool, lengths: bool) -> str:
    """The outputs of step 0, or of the last one of each sequence."""
    if at_start or not lengths:
        step = graph.constant("first_step" if at_start else "last_step", np.int64(0 if at_start else -1))
        return graph.node("Gather", [y, step], f"{y}.end", axis=0)
    zero, one = (graph.constant(name, np.int64(value)) for name, value in (("zero", 0), ("one", 1)))
    counts = graph.node("Cast", ["lengths"], "counts", to=int(graph.onnx.TensorProto.INT64))
    steps = graph.node("Max", [graph.node("Sub", [counts, one], "last_steps"), zero], "steps")
    size = graph.node("Gather", [graph.node("Shape", ["lengths"], "batch_shape"), zero], "batch_size", axis=0)
    rows, axis = graph.node("Range", [zero, size, one], "rows"), graph.constant("pair_axis", np.array([1], np.int64))
    pair = [graph.node("Unsqueeze", [index, axis], f"{index}.column") for index in (steps, rows)]
    return graph.node("GatherND", [y, graph.node("Concat", pair, "places", axis=1)], f"{y}.end")


def write_read_out(where: str, graph: Graph, read_out: ReadOut, y: str, features: int) -> tuple[str, int]:
    """Adds ψ(y V + c) and returns its tensor and its size."""
    if read_out.v.shape[0] != features:
        raise ValueError(
            f"{where}: readout expected params.v of {features} rows, the outputs of the network, "
            f"got shape {read_out.v.shape}"
        )
    a = graph.node("MatMul", [y, graph.constant("read_out.v", read_out.v.astype(graph.dtype))], "read_out.products")
    if read_out.c is not None:
        a = graph.node("Add", [a, graph.constant("read_out.c", read_out.c.astype(graph.dtype))], "read_out.logits")
    operator = OPERATORS[read_out.activation]
    if operator is not None:
        a = graph.node(operator, [a], "read_out.outputs", **({"axis": -1} if operator == "Softmax" else {}))
    return a, read_out.v.shape[1]
