"""The layouts of the libraries as data, and the conversions that they share.

A library's entries and our records are converted through *fields*: NumPy arrays under our own
names, gates in our order. Beside those of the records there are `b_x` and `b_h`, the two
biases of a library that adds one to each product.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn import _checks
from jaxrnn.cells import GRUParams, LSTMParams, RNNParams
from jaxrnn.interop._mappings import (
    Entries,
    as_numpy,
    check_names,
    check_shape,
    entry,
    to_jax,
)
from jaxrnn.network import walk_layer

RECORDS: dict[str, Any] = {"rnn": RNNParams, "lstm": LSTMParams, "gru": GRUParams}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}

Fields = dict[str, np.ndarray]


class Sizes(NamedTuple):
    """The sizes of one layer in one direction."""

    kind: str  # a key of RECORDS
    input_size: int
    hidden_size: int
    projection_size: int | None = None

    @property
    def output_size(self) -> int:
        return self.projection_size or self.hidden_size


class Part(NamedTuple):
    """The content of an entry: some gates of a field, side by side in the entry's order."""

    field: str
    gates: tuple[int, ...] | None = None  # their places in ours; None: the whole field as it is
    transposed: bool = False  # (out, in), where ours is (in, out)


Layout = Mapping[str, Part]  # by the entry's name


class Layer(NamedTuple):
    """A record of ours as fields, for export."""

    name: str  # in messages: "params[0].forward"
    sizes: Sizes
    fields: Fields


def field_shape(sizes: Sizes, field: str) -> tuple[int, ...]:
    columns = GATES[sizes.kind] * sizes.hidden_size
    return {
        "w_x": (sizes.input_size, columns),
        "w_h": (sizes.output_size, columns),
        "w_proj": (sizes.hidden_size, sizes.output_size),
        "b_hn": (sizes.hidden_size,),
    }.get(field, (columns,))


def all_gates(kind: str) -> tuple[int, ...]:
    return tuple(range(GATES[kind]))


def kind_of(entries: Entries, name: str, hidden_size: int, columns: int, kind: str | None = None) -> str:
    """The kind that has `columns` / `hidden_size` gates; `kind` if it is given."""
    if kind is not None:
        return kind
    for guess, gates in GATES.items():
        if hidden_size and columns == gates * hidden_size:
            return guess
    raise ValueError(
        f"{entries.where}: entry {entries.prefix + name!r} expected 1 (RNN), 3 (GRU) or 4 (LSTM) gates "
        f"of the hidden size, got {columns} for {hidden_size} units"
    )


# Reading


def gather(entries: Entries, layout: Layout, sizes: Sizes) -> Fields:
    """The fields of one layer: every entry of `layout`, checked, with its gates in our order.

    Entries that become one array must have one dtype, so that none is cast.
    """
    check_names(entries, list(layout))
    pieces: dict[str, dict[int, np.ndarray]] = {}
    firsts: dict[str, tuple[str, np.dtype]] = {}
    for name, part in layout.items():
        array = entry(entries, name)
        check_shape(entries.where, f"entry {entries.prefix + name!r}", array, part_shape(sizes, part))
        becomes = "b" if part.field in ("b_x", "b_h") else part.field
        first, dtype = firsts.setdefault(becomes, (name, array.dtype))
        if array.dtype != dtype:
            raise TypeError(
                f"{entries.where}: entry {entries.prefix + name!r} expected {dtype} as {entries.prefix + first!r}, "
                f"got {array.dtype}; they become one array"
            )
        array = array.T if part.transposed else array
        gates = (0,) if part.gates is None else part.gates
        blocks = np.split(array, len(gates), axis=-1)
        pieces.setdefault(part.field, {}).update(zip(gates, blocks, strict=True))
    return {field: np.concatenate([blocks[k] for k in sorted(blocks)], axis=-1) for field, blocks in pieces.items()}


def part_shape(sizes: Sizes, part: Part) -> tuple[int, ...]:
    shape = field_shape(sizes, part.field)
    if part.gates is not None:
        shape = (*shape[:-1], len(part.gates) * sizes.hidden_size)
    return shape[::-1] if part.transposed else shape


def fold_biases(kind: str, fields: Fields) -> Fields:
    """One bias for two: their sum, except the second of a GRU's n, which is inside r ⊙ (h W_hn + b_hn)."""
    if "b_x" not in fields:
        return fields
    rest = {name: array for name, array in fields.items() if name not in ("b_x", "b_h")}
    b_x, b_h = fields["b_x"], fields["b_h"]
    if kind != "gru":
        return {**rest, "b": b_x + b_h}
    both = 2 * len(b_x) // 3
    return {**rest, "b": np.concatenate([b_x[:both] + b_h[:both], b_x[both:]]), "b_hn": b_h[both:]}


def record(where: str, kind: str, fields: Fields) -> Any:
    """The record of these fields."""
    return RECORDS[kind](**{name: to_jax(where, name, array) for name, array in fields.items()})


# Writing


def is_record(params: Any) -> bool:
    return isinstance(params, tuple(RECORDS.values()))


def read_record(where: str, name: str, params: Any, peer: str, projection: bool = False) -> Layer:
    """A record of ours as fields; raises for what `peer` cannot hold."""
    if not is_record(params):
        raise TypeError(
            f"{where}: {name} expected RNNParams, LSTMParams or GRUParams, got {type(params).__name__}; "
            f"{peer} has no other cells of ours"
        )
    kind = next(kind for kind, record in RECORDS.items() if isinstance(params, record))
    for field, reason in (("norm", "layer normalisation"), ("peephole", "peephole connections")):
        _refuse(where, f"{name}.{field}", getattr(params, field, None), f"{peer} has no {reason}")
    if not projection:
        _refuse(where, f"{name}.w_proj", getattr(params, "w_proj", None), f"{peer} has no projection")
    given = {field: value for field, value in params._asdict().items() if value is not None}
    fields = {field: as_numpy(where, f"{name}.{field}", value) for field, value in given.items()}
    for field in ("w_x", "w_h", "w_proj"):
        if field in fields and fields[field].ndim != 2:
            raise ValueError(f"{where}: {name}.{field} expected a matrix, got shape {fields[field].shape}")
    w_h, w_proj = fields["w_h"], fields.get("w_proj")
    hidden = len(w_h if w_proj is None else w_proj)
    if kind == "lstm" and hidden and w_h.shape[1] == 3 * hidden:
        raise ValueError(f"{where}: {name}.w_h expected 4 gates, got the 3 of coupled ones, which {peer} does not have")
    sizes = Sizes(kind, len(fields["w_x"]), hidden, None if w_proj is None else w_proj.shape[1])
    for field, array in fields.items():
        check_shape(where, f"{name}.{field}", array, field_shape(sizes, field))
    if "b_hn" in fields and "b" not in fields:
        raise ValueError(f"{where}: {name}.b_hn expected None where b is, got {_checks.describe(fields['b_hn'])}")
    return Layer(name, sizes, fields)


def _refuse(where: str, name: str, value: Any, reason: str) -> None:
    if value is not None:
        raise ValueError(f"{where}: {name} expected None, got {_checks.describe(value)}; {reason}")


def read_layers(where: str, params: Any, peer: str, projection: bool = False) -> list[list[Layer]]:
    """The layers of a network's parameters, each of one direction or two."""
    if not isinstance(params, tuple) or hasattr(params, "_fields") or not params:
        raise TypeError(
            f"{where}: params expected a record or a tuple over layers, got {_checks.describe(params)}; "
            "one layer in both directions is (Bidirectional(forward, backward),)"
        )
    layers = []
    for k, layer in enumerate(params):
        layers.append([
            read_record(where, f"params{way.path}", way.cell, peer, projection) for way in walk_layer(k, layer)
        ])  # fmt: skip
    return layers


def check_alike(where: str, layers: list[list[Layer]], peer: str) -> None:
    """Raises unless all layers are of one kind and size, and each reads the concatenated outputs below it."""
    first = layers[0][0]
    traits = lambda layer: (layer.sizes._replace(input_size=0), sorted(layer.fields))  # noqa: E731
    for directions in layers:
        if len(directions) != len(layers[0]):
            raise ValueError(
                f"{where}: {directions[0].name} expected {_ways(layers[0])} as {first.name}, "
                f"got {_ways(directions)}; {peer} reads all layers the same way"
            )
        for layer in directions:
            if traits(layer) != traits(first):
                raise ValueError(
                    f"{where}: {layer.name} expected {_described(first)} as {first.name}, got {_described(layer)}; "
                    f"{peer} has layers of one kind and size"
                )
    features = first.sizes.input_size
    for layer in layers[0]:
        if layer.sizes.input_size != features:
            raise ValueError(
                f"{where}: {layer.name}.w_x expected {features} rows as {first.name}, got {layer.sizes.input_size}"
            )
    for below, above in itertools.pairwise(layers):
        features = len(below) * first.sizes.output_size
        for layer in above:
            if layer.sizes.input_size != features:
                raise ValueError(
                    f"{where}: {layer.name}.w_x expected {features} rows, the outputs below it side by side, "
                    f"got {layer.sizes.input_size}; {peer} merges directions in no other way"
                )


def _ways(directions: list[Layer]) -> str:
    return "two directions" if len(directions) == 2 else "one direction"


def _described(layer: Layer) -> str:
    sizes, fields = layer.sizes, ", ".join(layer.fields)
    size = (
        f"{sizes.hidden_size}, projection_size={sizes.projection_size}" if sizes.projection_size else sizes.hidden_size
    )
    return f"{sizes.kind}({size}) with {fields}"


def check_reset(where: str, layer: Layer, peer: str, after: bool) -> None:
    """Raises if a GRU's `b_hn` shows another form than the peer's; without biases it has the peer's form."""
    if layer.sizes.kind != "gru" or "b" not in layer.fields:
        return
    b_hn = layer.fields.get("b_hn")
    if (b_hn is not None) != after:
        raise ValueError(
            f"{where}: {layer.name}.b_hn expected {'an array' if after else 'None'}, "
            f"got {'None' if b_hn is None else _checks.describe(b_hn)}; "
            f"{peer} resets {'after' if after else 'before'} the product, this GRU {'before' if after else 'after'} it"
        )


def zeros_of(layer: Layer, field: str) -> np.ndarray:
    return np.zeros(field_shape(layer.sizes, field), layer.fields["w_x"].dtype)


def with_bias(layer: Layer) -> Layer:
    """The layer, with a bias of zeros if it has none, for a library that always has biases."""
    if "b" in layer.fields:
        return layer
    return layer._replace(fields={**layer.fields, "b": zeros_of(layer, "b")})


def unfold_biases(layer: Layer) -> Layer:
    """Two biases for one: the second is zeros, except for a GRU's `b_hn`."""
    if "b" not in layer.fields:
        return layer
    rest = {name: array for name, array in layer.fields.items() if name not in ("b", "b_hn")}
    b = layer.fields["b"]
    b_h = np.zeros_like(b)
    if layer.sizes.kind == "gru" and "b_hn" in layer.fields:
        b_h[2 * layer.sizes.hidden_size :] = layer.fields["b_hn"]
    return layer._replace(fields={**rest, "b_x": b, "b_h": b_h})


def scatter(layer: Layer, layout: Layout) -> dict[str, np.ndarray]:
    """The entries of `layout` from a layer's fields; the inverse of `gather`."""
    entries = {}
    for name, part in layout.items():
        array = layer.fields[part.field]
        if part.gates is not None:
            blocks = np.split(array, GATES[layer.sizes.kind], axis=-1)
            array = np.concatenate([blocks[k] for k in part.gates], axis=-1)
        entries[name] = array.T if part.transposed else array
    return entries


def jax_entries(where: str, entries: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    return {name: to_jax(where, f"entry {name!r}", array) for name, array in entries.items()}


def nested(entries: Mapping[str, Any], separator: str = ".") -> dict[Any, Any]:
    """Names with separators as a tree of dicts."""
    tree: dict[Any, Any] = {}
    for name, value in entries.items():
        *path, leaf = name.split(separator)
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree
