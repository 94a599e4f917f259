"""The layouts of the libraries as data, and the conversions that they share.

A library's entries and our records are converted through *fields*: NumPy arrays under our own
names, gates in our order. Beside those of the records there are `b_x` and `b_h`, the two
biases of a library that adds one to each product.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn import _checks, heads
from jaxrnn._describe import cut, describe, quote
from jaxrnn.cells import GRUParams, LSTMParams, RNNParams
from jaxrnn.interop._mappings import (
    Entries,
    as_numpy,
    check_dtype,
    check_names,
    check_shape,
    entry,
    hint_of_module,
    to_jax,
)
from jaxrnn.interop._sizes import Axis, Claim, Fit, fit
from jaxrnn.layers import walk_layer

RECORDS: dict[str, Any] = {"rnn": RNNParams, "lstm": LSTMParams, "gru": GRUParams}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
COUPLED = (0, 1, 2)  # the gates of a coupled LSTM
BOTH_WAYS = "; one layer in both directions is (Bidirectional(forward, backward),)"
NEEDED = ("w_x", "w_h")  # the fields that no record is without

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


def _axes(kind: str, part: Part, projected: bool, above: int) -> tuple[Axis, ...]:
    """What the axes of an entry stand for; `above` is the number of directions below it, 0 for the first layer."""
    out = "O" if projected else "H"
    columns = ("H", GATES[kind] if part.gates is None else len(part.gates))
    axes: tuple[Axis, ...] = {
        "w_x": ((out, above) if above else ("I", 1), columns),
        "w_h": ((out, 1), columns),
        "w_proj": (("H", 1), ("O", 1)),
        "b_hn": (("H", 1),),
    }.get(part.field, (columns,))
    return axes[::-1] if part.transposed else axes


def claims(
    label: Callable[[str], str],
    arrays: Mapping[str, np.ndarray],
    layout: Layout,
    kind: str,
    projected: bool = False,
    above: int = 0,
    projection: str = "",
) -> list[Claim]:
    """What the shapes of one layer's entries say of its sizes, for :func:`fit`; the recurrent weights first.

    `projection` is what messages call an entry that is absent, but whose absence may be the fault.
    """
    made = []
    for name, part in sorted(layout.items(), key=lambda item: item[1].field != "w_h"):
        shape = arrays[name].shape
        rows, columns = shape[:: -1 if part.transposed else 1] if len(shape) == 2 else (1, 1)
        narrow = part.field == "w_h" and kind == "lstm" and not projected and 4 * rows < columns
        note = f"is {projection} missing?" if narrow and projection else ""
        made.append(Claim(label(name), shape, _axes(kind, part, projected, above), note))
    return made


def sizes_of(found: Fit) -> Sizes:
    """The sizes of the first layer."""
    return Sizes(found.kind, found.sizes["I"], found.sizes["H"], found.sizes.get("O"))


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
        check_shape(entries.where, entries.label(name), array, part_shape(sizes, part))
        becomes = "b" if part.field in ("b_x", "b_h") else part.field
        first, dtype = firsts.setdefault(becomes, (name, array.dtype))
        if array.dtype != dtype:
            raise TypeError(
                f"{entries.where}: {entries.label(name)} expected {dtype} as {quote(entries.prefix + first, 80)}, "
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


def by_head(where: str, params: Any, num_heads: Any) -> Any:
    """The params that were read, with each recurrent matrix as the blocks of its heads."""
    num_heads = _checks.size(where, "num_heads", num_heads)
    return params if num_heads == 1 else heads.split(where, params, num_heads)


# Writing


def is_record(params: Any) -> bool:
    return isinstance(params, tuple(RECORDS.values()))


def read_record(where: str, name: str, params: Any, peer: str, projection: bool = False, in_jax: bool = True) -> Layer:
    """A record of ours as fields; raises for what `peer` cannot hold, and if `in_jax` for what JAX cannot.

    The blocks of heads become the block-diagonal matrix of the same function.
    """
    if not is_record(params):
        raise TypeError(
            f"{where}: {name} expected RNNParams, LSTMParams or GRUParams, got {_named(params)}"
            f"{hint_of_module(params, 'params') or f'; {peer} has no other cells of ours'}"
        )
    kind = next(kind for kind, record in RECORDS.items() if isinstance(params, record))
    for field, reason in (("norm", "layer normalisation"), ("peephole", "peephole connections")):
        _refuse(where, f"{name}.{field}", getattr(params, field, None), f"{peer} has no {reason}")
    if not projection:
        _refuse(where, f"{name}.w_proj", getattr(params, "w_proj", None), f"{peer} has no projection")
    given = {field: value for field, value in params._asdict().items() if value is not None or field in NEEDED}
    fields = {field: as_numpy(where, f"{name}.{field}", value) for field, value in given.items()}
    if in_jax:
        for field, array in fields.items():
            check_dtype(where, f"{name}.{field}", array)
    if fields["w_h"].ndim == 3:
        reason = "a projection mixes the units of all heads"
        _refuse(where, f"{name}.w_proj", fields.get("w_proj"), reason)
        heads.check_blocks(where, f"{name}.w_h", fields["w_h"])
        fields["w_h"] = heads.dense(fields["w_h"])
    if "b_hn" in fields and "b" not in fields:
        raise ValueError(f"{where}: {name}.b_hn expected None where b is, got {describe(fields['b_hn'])}")
    return Layer(name, _record_sizes(where, name, kind, fields, peer), fields)


def _named(params: Any) -> str:
    """A record by its name, another value by a description."""
    return cut(type(params).__name__, 60) if hasattr(type(params), "_fields") else describe(params)


def _record_sizes(where: str, name: str, kind: str, fields: Fields, peer: str) -> Sizes:
    """The sizes of a record; raises naming the field whose shape does not fit."""
    label, projected = f"{name}.{{}}".format, "w_proj" in fields
    layout, projection = {field: Part(field) for field in fields}, label("w_proj")
    kinds = {kind: claims(label, fields, layout, kind, projected, projection=projection)}
    if kind == "lstm":
        coupled = {field: Part(field, None if field == "w_proj" else COUPLED) for field in fields}
        kinds["coupled"] = claims(label, fields, coupled, kind, projected)
    found = fit(where, kinds)
    if found.kind == "coupled":
        raise ValueError(f"{where}: {name}.w_h expected 4 gates, got the 3 of coupled ones, which {peer} does not have")
    return sizes_of(found)


def _refuse(where: str, name: str, value: Any, reason: str) -> None:
    if value is not None:
        raise ValueError(f"{where}: {name} expected None, got {describe(value)}; {reason}")


def read_layers(where: str, params: Any, peer: str, projection: bool = False, in_jax: bool = True) -> list[list[Layer]]:
    """The layers of a network's parameters, each of one direction or two."""
    if not isinstance(params, tuple) or hasattr(params, "_fields") or not params:
        raise TypeError(
            f"{where}: params expected a record or a tuple over layers, got {describe(params)}"
            f"{hint_of_module(params, 'params') or BOTH_WAYS}"
        )
    layers: list[list[Layer]] = []
    for k, layer in enumerate(params):
        layers.append([
            read_record(where, f"params{way.path}", way.cell, peer, projection, in_jax)
            for way in walk_layer(k, layer)
        ])  # fmt: skip
        check_inputs(where, {f"{own.name}.w_x": own.sizes.input_size for own in layers[-1]})
    return layers


def check_inputs(where: str, features: Mapping[str, int]) -> None:
    """Raises unless the directions of a layer read inputs of one size; the names are those of messages."""
    (first, size), *others = features.items()
    for name, got in others:
        if got != size:
            raise ValueError(f"{where}: {name} expected {size} features of the input as {first}, got {got}")


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
            f"got {'None' if b_hn is None else describe(b_hn)}; "
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
