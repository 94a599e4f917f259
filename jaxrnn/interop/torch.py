"""PyTorch: state dicts of `torch.nn.RNN`, `LSTM`, `GRU` and of their cells.

    weight_ih_l{k}{_reverse} (GH, in)    weight_hh_ (GH, H or P)    bias_ih_, bias_hh_ (GH,)    weight_hr_ (P, H)

with G gates in our order. A cell's names have no `_l{k}`.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrnn import _checks
from jaxrnn._describe import quote
from jaxrnn._types import Params
from jaxrnn.interop import _layouts as lay
from jaxrnn.interop import _mappings as maps
from jaxrnn.interop._sizes import fit
from jaxrnn.layers import from_directions

PEER = "PyTorch"
WRAPPERS = ("module", "_orig_mod")  # what DataParallel and torch.compile put into the names
RECURRENT = re.compile(r"((?:.*\.)?)weight_hh(?:_l0)?")
OF_A_LAYER = re.compile(r"(?:weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l([0-9]{1,18})(_reverse)?")


def _layout(suffix: str, kind: str, biases: bool, projection: bool) -> lay.Layout:
    gates = lay.all_gates(kind)
    layout = {
        "weight_ih": lay.Part("w_x", gates, transposed=True),
        "weight_hh": lay.Part("w_h", gates, transposed=True),
    }
    if biases:
        layout |= {"bias_ih": lay.Part("b_x", gates), "bias_hh": lay.Part("b_h", gates)}
    if projection:
        layout |= {"weight_hr": lay.Part("w_proj", transposed=True)}
    return {name + suffix: part for name, part in layout.items()}


def _beginnings(entries: maps.Entries) -> list[str]:
    """The prefixes below which a recurrent layer or cell has its weights."""
    return list(dict.fromkeys(match[1] for match in map(RECURRENT.fullmatch, entries.values) if match))


def _bare(prefix: str) -> list[str]:
    """The parts of a prefix without those of wrappers."""
    return [part for part in prefix.split(".")[:-1] if part not in WRAPPERS]


def _select(entries: maps.Entries, prefix: Any) -> maps.Entries:
    """The entries below the prefix, which may lack the names of wrappers.

    Raises:
        ValueError: with the prefixes of the layers, if there is none at this one.
    """
    where, prefix = entries.where, maps.join_prefix(entries.where, prefix, ".")
    beginnings = _beginnings(entries)
    alike = [other for other in beginnings if _bare(other) == _bare(prefix)]
    if prefix not in beginnings and len(alike) == 1:
        prefix = alike[0]
    if prefix in beginnings or not any(beginnings):
        return maps.select(entries, "state_dict", prefix)
    below = [other for other in beginnings if _bare(other)[: len(_bare(prefix))] == _bare(prefix)]
    listed = maps.listed([other.removesuffix(".") for other in below or beginnings], 240)
    if not below:
        raise ValueError(
            f"{where}: state_dict expected entries below {quote(prefix, 60)}, got {listed}, below which layers begin; "
            "does prefix lead to them?"
        )
    raise ValueError(
        f"{where}: state_dict expected the weights of one layer below {quote(prefix, 60)}, got those of layers below "
        f"{listed}; prefix selects one"
    )


class _Names(NamedTuple):
    """What the names of a state dict tell of a module."""

    suffixes: list[list[str]]  # of every layer, one a direction
    biases: bool
    projected: bool

    def layout(self, suffix: str, kind: str) -> lay.Layout:
        return _layout(suffix, kind, self.biases, self.projected)


def _names(entries: maps.Entries, cell: bool) -> _Names:
    """The layers and directions that the names tell of; raises for names that are missing or unexpected."""
    found = [match for match in map(OF_A_LAYER.fullmatch, entries.values) if match]
    directions = ("", "_reverse") if any(match[2] for match in found) else ("",)
    has = lambda start: any(name.startswith(start) for name in entries.values)  # noqa: E731
    names = _Names([[""]] if cell else [], has("bias"), has("weight_hr") and not cell)
    depth = 1 + max((int(match[1]) for match in found), default=0)
    for k in range(0 if cell else depth):  # stops at the first layer that is missing
        names.suffixes.append([f"_l{k}{direction}" for direction in directions])
        maps.check_present(entries, [name for suffix in names.suffixes[k] for name in names.layout(suffix, "lstm")])
    maps.check_names(entries, [n for layer in names.suffixes for s in layer for n in names.layout(s, "lstm")])
    return names


def _sizes(entries: maps.Entries, names: _Names, kind: str | None) -> lay.Sizes:
    """The sizes of the first layer."""
    kinds = {}
    for guess in ("lstm",) if names.projected else lay.GATES:
        kinds[guess] = [
            claim
            for k, suffixes in enumerate(names.suffixes)
            for suffix in suffixes
            for claim in lay.claims(
                entries.label, entries.values, names.layout(suffix, guess), guess, names.projected,
                above=len(suffixes) if k else 0, projection=entries.label(f"weight_hr{suffix}"),
            )
        ]  # fmt: skip
    sizes = lay.sizes_of(fit(entries.where, kinds))
    if kind not in (None, sizes.kind):
        raise ValueError(
            f"{entries.where}: kind expected {sizes.kind!r}, which the shapes have, got {kind!r}; "
            f"{entries.label('weight_hh' + names.suffixes[0][0])} has {lay.GATES[sizes.kind]} gates"
        )
    return sizes


def _layer(entries: maps.Entries, layout: lay.Layout, sizes: lay.Sizes) -> Params:
    here = entries._replace(values={name: entries.values[name] for name in layout})
    fields = lay.fold_biases(sizes.kind, lay.gather(here, layout, sizes))
    return lay.record(entries.where, sizes.kind, fields)


def from_torch(
    state_dict: Mapping[str, Any], prefix: str = "", *, kind: str | None = None, num_heads: int = 1
) -> Params:
    """The parameters in a state dict of PyTorch.

    The rows of `weight_hh` tell the kind: H for an RNN, 3H for a GRU, 4H for an LSTM. `weight_hr`
    is an LSTM's projection. PyTorch's two biases become one, their sum, except for a GRU's n,
    whose second bias is `b_hn`.

    Args:
        state_dict: names to arrays, from `module.state_dict()` or :func:`read`. Tensors may
            require a gradient, be on another device, or be bfloat16, which is converted exactly.
        prefix: the path of the module in a larger dict, such as "encoder.rnn"; other entries
            are ignored. "module" and "_orig_mod", which DataParallel and `torch.compile` put into names, may be
            left out.
        kind: "rnn", "lstm" or "gru", to require that kind.
        num_heads: N; with more than 1 every `w_h` is returned as the blocks `(N, D, G*D)` of N heads, if all
            entries between units of different heads are exactly zero.

    Returns:
        The network's tuple over layers, of `RNNParams`, `LSTMParams` or `GRUParams`, or
        `Bidirectional` of two where there is a `_reverse`. For a cell, whose names have no
        `_l0`, the record alone. Dtypes are kept.

    Raises:
        TypeError, ValueError: naming the entry that is missing, unexpected, or of a wrong shape
            or dtype; for float64 where JAX does not enable it; with the prefixes of the layers in a larger dict,
            if `prefix` leads to none of them.

    Example:
        >>> import numpy as np, jaxrnn
        >>> weights = {"rnn.weight_ih_l0": np.ones((12, 3)), "rnn.weight_hh_l0": np.ones((12, 4))}
        >>> weights = {name: w.astype("float32") for name, w in weights.items()}
        >>> (params,) = jaxrnn.interop.from_torch(weights, prefix="rnn")
        >>> type(params).__name__, params.w_x.shape
        ('GRUParams', (3, 12))

    Differs from:
        1. PyTorch: an RNN's nonlinearity is not among the weights; `jaxrnn.rnn(H, activation="relu")` sets it.
    """
    where = "from_torch"
    if kind is not None:
        _checks.one_of(where, "kind", kind, (*lay.RECORDS, None))
    entries = _select(maps.read_mapping(where, "state_dict", state_dict, "", "."), prefix)
    if kind not in (None, "lstm") and any(name.startswith("weight_hr") for name in entries.values):
        raise ValueError(f"{where}: kind expected 'lstm' with a projection (weight_hr), got {kind!r}")
    cell = not any(map(OF_A_LAYER.fullmatch, entries.values)) and {"weight_ih", "weight_hh"} & {*entries.values}
    names = _names(entries, bool(cell))
    entries = maps.arrays(entries)
    sizes, layers = _sizes(entries, names, kind), []
    for suffixes in names.suffixes:
        halves = [_layer(entries, names.layout(suffix, sizes.kind), sizes) for suffix in suffixes]
        layers.append(from_directions(halves))
        sizes = sizes._replace(input_size=len(suffixes) * sizes.output_size)
    return lay.by_head(where, layers[0] if cell else tuple(layers), num_heads)


def to_torch(params: Params, prefix: str = "") -> dict[str, np.ndarray]:
    """The state dict of the PyTorch module that computes the same.

    The bias becomes `bias_ih`; `bias_hh` is zeros, except for a GRU's n, where it is `b_hn`.
    The parameters of a GRU without biases do not show whether it resets before or after the
    product; PyTorch resets after it.
    The blocks of heads are written as the block-diagonal matrix of the same function, zeros included.

    Args:
        params: a network's tuple over layers, for `torch.nn.RNN`, `LSTM` or `GRU`; or one
            record, for `RNNCell`, `LSTMCell` or `GRUCell`.
        prefix: the path of the module in a larger dict.

    Returns:
        Names to NumPy arrays that own their memory, in the order of PyTorch. Load them with
        `module.load_state_dict({name: torch.from_numpy(a) for name, a in ....items()})`.
        `from_numpy` does not support bfloat16; convert by `a.astype("float32")`.

    Raises:
        TypeError, ValueError: for what PyTorch cannot hold: peepholes, coupled gates, layer
            normalisation, a GRU that resets before the product, a projection in a cell or one
            that is not smaller than H, layers that differ in kind, size or directions, and
            directions that are not merged by concatenation.

    Example:
        >>> import jax, jaxrnn
        >>> net = jaxrnn.stack([jaxrnn.lstm(4), jaxrnn.lstm(4)], bidirectional=True)
        >>> weights = jaxrnn.interop.to_torch(net.init(jax.random.key(0), 3), prefix="lstm")
        >>> len(weights), weights["lstm.weight_ih_l1_reverse"].shape
        (16, (16, 8))
    """
    where = "to_torch"
    prefix = maps.join_prefix(where, prefix, ".")
    if lay.is_record(params):
        return _entries(where, prefix, "", lay.read_record(where, "params", params, f"{PEER}'s cell", in_jax=False))
    layers = lay.read_layers(where, params, PEER, projection=True, in_jax=False)
    lay.check_alike(where, layers, PEER)
    sizes = layers[0][0].sizes
    if sizes.projection_size is not None and sizes.projection_size >= sizes.hidden_size:
        raise ValueError(
            f"{where}: {layers[0][0].name}.w_proj expected fewer than {sizes.hidden_size} columns, "
            f"got {sizes.projection_size}; {PEER} takes proj_size below hidden_size"
        )
    entries = {}
    for k, directions in enumerate(layers):
        for layer, suffix in zip(directions, (f"_l{k}", f"_l{k}_reverse"), strict=False):
            entries |= _entries(where, prefix, suffix, layer)
    return entries


def _entries(where: str, prefix: str, suffix: str, layer: lay.Layer) -> dict[str, np.ndarray]:
    lay.check_reset(where, layer, PEER, after=True)
    layout = _layout(suffix, layer.sizes.kind, "b" in layer.fields, "w_proj" in layer.fields)
    entries = lay.scatter(lay.unfold_biases(layer), layout)
    return {prefix + name: maps.to_numpy(array) for name, array in entries.items()}
