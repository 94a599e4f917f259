"""Flax: the cells of NNX and of Linen, `RNN`, `Bidirectional`, and a `Sequential` of them.

=====================  ===================================================================
NNX LSTMCell           ii if_ ig io: kernel (I, H); hi hf hg ho: kernel (H, H), bias (H,)
NNX OptimizedLSTMCell  dense_i: kernel (I, 4H); dense_h: kernel (H, 4H), bias (4H,)
NNX GRUCell            dense_i: kernel (I, 3H), bias (3H,); dense_h: kernel (H, 3H)
NNX SimpleCell         dense_i: kernel (I, H), bias (H,); dense_h: kernel (H, H)
Linen, both LSTM cells ii if ig io: kernel; hi hf hg ho: kernel, bias
Linen GRUCell          ir iz in: kernel, bias; hr hz: kernel; hn: kernel, bias
Linen SimpleCell       i: kernel, bias; h: kernel
=====================  ===================================================================

Gates side by side are in our order. A cell's path names the modules that hold it: `cell` in an
`RNN`, `forward_rnn` and `backward_rnn` in a `Bidirectional`, `layers` in a `Sequential`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn import _checks
from jaxrnn._describe import quote
from jaxrnn._types import Params
from jaxrnn.interop import _layouts as lay
from jaxrnn.interop import _mappings as maps
from jaxrnn.interop._sizes import fit
from jaxrnn.layers import Bidirectional

Layout = dict[str, lay.Part]


def _gate_by_gate(*names: tuple[str, str, int]) -> Layout:
    return {name: lay.Part(field, (gate,)) for name, field, gate in names}


def _lstm_gates(forget: str) -> Layout:
    """One entry for each gate; `forget` is the name of the input's f."""
    inputs = zip(("ii", forget, "ig", "io"), range(4), strict=True)
    hidden = list(zip(("hi", "hf", "hg", "ho"), range(4), strict=True))
    return _gate_by_gate(
        *((f"{name}.kernel", "w_x", gate) for name, gate in inputs),
        *((f"{name}.kernel", "w_h", gate) for name, gate in hidden),
        *((f"{name}.bias", "b", gate) for name, gate in hidden),
    )


def _dense(kind: str, bias: str) -> Layout:
    """All gates in one entry; `bias` is the module that has the bias."""
    gates = lay.all_gates(kind)
    return {
        "dense_i.kernel": lay.Part("w_x", gates),
        "dense_h.kernel": lay.Part("w_h", gates),
        f"{bias}.bias": lay.Part("b", gates),
    }


NNX_GATES = _lstm_gates("if_")
NNX_DENSE = {
    "lstm": _dense("lstm", "dense_h"),
    "gru": _dense("gru", "dense_i"),
    "rnn": _dense("rnn", "dense_i"),
}
LINEN_GATES: dict[str, Layout] = {
    "lstm": _lstm_gates("if"),
    "gru": {
        **_gate_by_gate(
            *((f"i{gate}.{leaf}", field, k) for k, gate in enumerate("rzn") for leaf, field in
              (("kernel", "w_x"), ("bias", "b"))),
            *((f"h{gate}.kernel", "w_h", k) for k, gate in enumerate("rzn")),
        ),
        "hn.bias": lay.Part("b_hn"),
    },
    "rnn": _gate_by_gate(("i.kernel", "w_x", 0), ("h.kernel", "w_h", 0), ("i.bias", "b", 0)),
}  # fmt: skip


# Reading


class _Library(NamedTuple):
    """How NNX or Linen names the modules that hold cells, and the reader of its cells."""

    cell: Callable[[maps.Entries], Params]
    sequential: str  # the text before the number of a layer
    hint: str


def _read(entries: maps.Entries, library: _Library, above: int = 0) -> Params:
    """The record of a cell, or the tree of records of a module that holds cells; `above` are the modules around it."""
    if above > maps.DEEPEST:
        path = quote(entries.prefix, maps.LONGEST_NAME)
        raise ValueError(f"{entries.where}: expected at most {maps.DEEPEST} modules in each other, got more, at {path}")
    below = dict.fromkeys(_module(name, library.sequential) for name in entries.values)
    halves = ("forward_rnn", "backward_rnn")
    if any(half in below for half in halves):
        _check_modules(entries, below, halves, library.hint)
        both = [_read(maps.child(entries, half), library, above + 1) for half in halves]
        features = {entries.label(half): len(one.w_x) for half, one in zip(halves, both, strict=True)}
        lay.check_inputs(entries.where, features)
        return Bidirectional(*both)
    if "cell" in below:
        _check_modules(entries, below, ("cell",), library.hint)
        return library.cell(maps.child(entries, "cell"))
    layers = [name for name in below if name.startswith(library.sequential)]
    if layers:
        places = [f"{library.sequential}{k}" for k in range(len(layers))]
        _check_modules(entries, below, places, library.hint)
        return tuple(_read(maps.child(entries, place), library, above + 1) for place in places)
    return library.cell(entries)


def _module(name: str, sequential: str) -> str:
    """The first part of a name, or the two parts that name a layer of a `Sequential`."""
    layer = re.match(re.escape(sequential) + r"[0-9]+(?=\.)", name)
    return layer[0] if layer else name.split(".")[0]


def _check_modules(entries: maps.Entries, below: dict[str, None], expected: Sequence[str], hint: str) -> None:
    maps.check_names(entries._replace(values=below), expected, hint=hint)


def _nnx_cell(entries: maps.Entries) -> Params:
    if not any(name.startswith("dense_") for name in entries.values):
        return _gates_cell(entries, "lstm", NNX_GATES)
    biases = ("dense_i.bias", "dense_h.bias")  # the kind tells which of them there is
    maps.check_names(entries, ("dense_i.kernel", "dense_h.kernel"), optional=biases, hint=NNX_HINT)
    entries = maps.arrays(entries)
    kinds = {}
    for kind, layout in NNX_DENSE.items():
        given = {name: layout.get(name, lay.Part("b")) for name in entries.values}
        kinds[kind] = lay.claims(entries.label, entries.values, given, kind)
    sizes = lay.sizes_of(fit(entries.where, kinds))
    fields = lay.gather(entries, NNX_DENSE[sizes.kind], sizes)
    if sizes.kind == "gru":
        fields["b_hn"] = np.zeros_like(fields["b"][: sizes.hidden_size])
    return lay.record(entries.where, sizes.kind, fields)


def _linen_cell(entries: maps.Entries) -> Params:
    kinds = {"ii.kernel": "lstm", "ir.kernel": "gru", "i.kernel": "rnn"}
    kind = next((kind for name, kind in kinds.items() if name in entries.values), None)
    if kind is None:
        raise ValueError(
            f"{entries.where}: expected {entries.label('ii.kernel')} of an LSTM, 'ir.kernel' of a GRU or "
            f"'i.kernel' of a simple RNN, got {maps.listed(entries.values)}; {maps.SELECT}"
        )
    return _gates_cell(entries, kind, LINEN_GATES[kind])


def _gates_cell(entries: maps.Entries, kind: str, layout: Layout) -> Params:
    maps.check_names(entries, list(layout))
    entries = maps.arrays(entries)
    sizes = lay.sizes_of(fit(entries.where, {kind: lay.claims(entries.label, entries.values, layout, kind)}))
    return lay.record(entries.where, kind, lay.gather(entries, layout, sizes))


NNX_HINT = f"{maps.SELECT}, nnx.state(module, nnx.Param) the weights"
NNX = _Library(_nnx_cell, "layers.", NNX_HINT)
LINEN = _Library(_linen_cell, "layers_", maps.SELECT)


def from_nnx(weights: Mapping[Any, Any], prefix: str = "", *, num_heads: int = 1) -> Params:
    """The parameters in the state of a Flax NNX module.

    Args:
        weights: `nnx.state(module, nnx.Param)`, or names to arrays: nested, or flat with tuples
            or "." between the parts. The module is an `LSTMCell`, `OptimizedLSTMCell`,
            `GRUCell` or `SimpleCell`, an `nnx.RNN` or `nnx.Bidirectional` around them, or an
            `nnx.Sequential` of those.
        prefix: the path of that module in a larger one, with "." between its parts; other
            entries are ignored.
        num_heads: N; with more than 1 every `w_h` is returned as the blocks `(N, D, G*D)` of N heads, if all
            entries between units of different heads are exactly zero.

    Returns:
        The record of a cell or of an `nnx.RNN`; `Bidirectional` of two; for a `Sequential` the
        network's tuple over layers. A GRU's `b_hn`, which NNX does not have, is zeros. Dtypes are
        kept.

    Raises:
        TypeError, ValueError: naming the entry that is missing, unexpected, or of a wrong shape
            or dtype; for float64 where JAX does not enable it.

    Example:
        >>> import jaxrnn
        >>> from flax import nnx
        >>> cell = nnx.GRUCell(3, 4, rngs=nnx.Rngs(0))
        >>> jaxrnn.interop.from_nnx(nnx.state(cell, nnx.Param)).w_x.shape
        (3, 12)

    Differs from:
        1. Flax: activation functions and `residual` are not among the weights.
    """
    entries = maps.read_mapping("from_nnx", "weights", weights, prefix, ".")
    return lay.by_head("from_nnx", _read(entries, NNX), num_heads)


def from_linen(variables: Mapping[Any, Any], prefix: str = "", *, num_heads: int = 1) -> Params:
    """The parameters in the variables of a Flax Linen module.

    Args:
        variables: the result of `module.init`, or its collection "params" alone; nested, or
            flat with tuples or "." between the parts. The module is an `LSTMCell`,
            `OptimizedLSTMCell`, `GRUCell` or `SimpleCell`, a `linen.RNN` or
            `linen.Bidirectional` around them, or a `linen.Sequential` of those.
        prefix: the path of that module in a larger one, with "." between its parts and without
            "params"; other entries are ignored.
        num_heads: N; with more than 1 every `w_h` is returned as the blocks `(N, D, G*D)` of N heads, if all
            entries between units of different heads are exactly zero.

    Returns:
        The record of a cell or of a `linen.RNN`; `Bidirectional` of two; for a `Sequential` the
        network's tuple over layers. Dtypes are kept.

    Raises:
        TypeError, ValueError: naming the entry that is missing, unexpected, or of a wrong shape
            or dtype; for float64 where JAX does not enable it.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from flax import linen
        >>> cell, x = linen.GRUCell(4), jnp.ones(3)
        >>> variables = cell.init(jax.random.key(0), jnp.ones(4), x)
        >>> jaxrnn.interop.from_linen(variables).b_hn.shape
        (4,)

    Differs from:
        1. Flax: activation functions and `residual` are not among the weights.
    """
    entries = maps.read_mapping("from_linen", "variables", variables, prefix, ".", collection="params")
    return lay.by_head("from_linen", _read(entries, LINEN), num_heads)


# Writing


def _write(
    where: str, params: Params, peer: str, entries_of: Callable[[lay.Layer], dict[str, Any]], sequential: str
) -> dict[str, Any]:
    """Flat entries of a record, or of the modules that hold several."""
    if lay.is_record(params):
        return entries_of(lay.read_record(where, "params", params, peer))
    alone = isinstance(params, Bidirectional)
    entries = {}
    for k, directions in enumerate(lay.read_layers(where, (params,) if alone else params, peer)):
        halves = ("cell",) if len(directions) == 1 else ("forward_rnn.cell", "backward_rnn.cell")
        for layer, half in zip(directions, halves, strict=True):
            path = half if alone else f"{sequential}{k}.{half}"
            entries |= {f"{path}.{name}": array for name, array in entries_of(layer).items()}
    return entries


def _nnx_entries(where: str, optimized: bool, layer: lay.Layer) -> dict[str, Any]:
    kind = layer.sizes.kind
    lay.check_reset(where, layer, "Flax NNX", after=True)
    if kind == "gru" and "b_hn" in layer.fields and layer.fields["b_hn"].any():
        raise ValueError(
            f"{where}: {layer.name}.b_hn expected zeros, got others; nnx.GRUCell has no place for it, "
            "linen.GRUCell and jaxrnn's own modules do"
        )
    layout = NNX_GATES if kind == "lstm" and not optimized else NNX_DENSE[kind]
    return lay.scatter(lay.with_bias(layer), layout)


def _linen_entries(where: str, layer: lay.Layer) -> dict[str, Any]:
    lay.check_reset(where, layer, "Flax Linen", after=True)
    layer = lay.with_bias(layer)
    if layer.sizes.kind == "gru" and "b_hn" not in layer.fields:
        layer = layer._replace(fields={**layer.fields, "b_hn": lay.zeros_of(layer, "b_hn")})
    return lay.scatter(layer, LINEN_GATES[layer.sizes.kind])


def to_nnx(params: Params, *, optimized: bool = False) -> dict[Any, Any]:
    """The state of the Flax NNX module that computes the same.

    NNX always has biases; missing ones are zeros. The parameters of a GRU without biases do not
    show whether it resets before or after the product; NNX resets after it.
    The blocks of heads are written as the block-diagonal matrix of the same function, zeros included.

    Args:
        params: one record, for a cell; `Bidirectional` of two, for an `nnx.Bidirectional` of two
            `nnx.RNN`; a network's tuple over layers, for an `nnx.Sequential` of these.
        optimized: whether LSTMs are for `nnx.OptimizedLSTMCell`, whose gates are side by side,
            instead of `nnx.LSTMCell`.

    Returns:
        A nested dict of JAX arrays that own their memory: `nnx.update(module, to_nnx(params))`.

    Raises:
        TypeError, ValueError: for what NNX cannot hold: a GRU's `b_hn` that is not zero,
            a GRU that resets before the product, projections, peepholes, coupled gates,
            layer normalisation.

    Example:
        >>> import jax, jaxrnn
        >>> from flax import nnx
        >>> params = jaxrnn.lstm(4).init(jax.random.key(0), 3)
        >>> cell = nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0))
        >>> nnx.update(cell, jaxrnn.interop.to_nnx(params))
        >>> bool((cell.if_.kernel[...] == params.w_x[:, 4:8]).all())
        True
    """
    where = "to_nnx"
    optimized = _checks.boolean(where, "optimized", optimized)
    flat = _write(where, params, "Flax NNX", lambda layer: _nnx_entries(where, optimized, layer), "layers.")
    tree = lay.nested(lay.jax_entries(where, flat))
    if "layers" in tree:  # a Sequential numbers its layers with integers
        tree["layers"] = {int(k): layer for k, layer in tree["layers"].items()}
    return tree


def to_linen(params: Params) -> dict[str, dict[str, Any]]:
    """The variables of the Flax Linen module that computes the same.

    Linen always has biases; missing ones are zeros. The parameters of a GRU without biases do not
    show whether it resets before or after the product; Linen resets after it.
    The blocks of heads are written as the block-diagonal matrix of the same function, zeros included.

    Args:
        params: one record, for a cell; `Bidirectional` of two, for a `linen.Bidirectional` of two
            `linen.RNN`; a network's tuple over layers, for a `linen.Sequential` of these.

    Returns:
        `{"params": ...}` with a nested dict of JAX arrays that own their memory, for
        `module.apply`.

    Raises:
        TypeError, ValueError: for what Linen cannot hold: a GRU that resets before the product,
            projections, peepholes, coupled gates, layer normalisation.

    Example:
        >>> import jax, jaxrnn
        >>> params = jaxrnn.gru(4).init(jax.random.key(0), 3)
        >>> list(jaxrnn.interop.to_linen(params)["params"])
        ['ir', 'iz', 'in', 'hr', 'hz', 'hn']
    """
    where = "to_linen"
    flat: dict[str, jax.Array] = lay.jax_entries(
        where, _write(where, params, "Flax Linen", lambda layer: _linen_entries(where, layer), "layers_")
    )
    return {"params": lay.nested(flat)}
