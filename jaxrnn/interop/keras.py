"""Keras: `SimpleRNN`, `LSTM`, `GRU`, their cells, and `Bidirectional`.

    kernel (I, GH)    recurrent_kernel (H, GH)    bias (GH,), of a GRU with reset_after (2, 3H)

LSTM gates are i f c o, as ours; GRU gates are z r h. The path before the last "/" names the layer.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrnn._describe import quote
from jaxrnn._types import Params
from jaxrnn.interop import _layouts as lay
from jaxrnn.interop import _mappings as maps
from jaxrnn.interop._sizes import Claim, fit
from jaxrnn.layers import Bidirectional

PEER = "Keras"
ORDER = {"rnn": (0,), "lstm": (0, 1, 2, 3), "gru": (1, 0, 2)}  # z r h in the places of r z n
NAMES = {"rnn": "simple_rnn", "lstm": "lstm", "gru": "gru"}
LEAVES = ("kernel", "recurrent_kernel", "bias")


def _layout(kind: str, bias: str | None) -> dict[str, lay.Part]:
    gates = ORDER[kind]
    layout = {"kernel": lay.Part("w_x", gates), "recurrent_kernel": lay.Part("w_h", gates)}
    if bias == "one":
        layout["bias"] = lay.Part("b", gates)
    if bias == "two":
        layout |= {"bias[0]": lay.Part("b_x", gates), "bias[1]": lay.Part("b_h", gates)}
    return layout


def _cell(entries: maps.Entries) -> Params:
    maps.check_names(entries, ("kernel", "recurrent_kernel"), optional=("bias",))
    entries = maps.arrays(entries)
    sizes = lay.sizes_of(fit(entries.where, {kind: _claims(entries, kind) for kind in lay.GATES}))
    values, bias = dict(entries.values), "one" if "bias" in entries.values else None
    if bias and values["bias"].ndim == 2:
        values["bias[0]"], values["bias[1]"] = values.pop("bias")
        bias = "two"
    fields = lay.gather(entries._replace(values=values), _layout(sizes.kind, bias), sizes)
    return lay.record(entries.where, sizes.kind, lay.fold_biases(sizes.kind, fields))


def _claims(entries: maps.Entries, kind: str) -> list[Claim]:
    """What the shapes of a cell's entries say; a GRU with reset_after has two biases in one entry."""
    bias = entries.values.get("bias")
    made = lay.claims(entries.label, entries.values, _layout(kind, None if bias is None else "one"), kind)
    if kind == "gru" and bias is not None and bias.ndim == 2:
        made[-1] = made[-1]._replace(axes=(("", 2), *made[-1].axes), note="of a GRU with reset_after")
    return made


def _pairs(entries: maps.Entries, paths: list[str]) -> dict[str, str]:
    """The path of the backward half of every `Bidirectional`, by that of its forward half."""
    parents = [match[1] for path in paths if (match := re.match(r"(|.*?/)forward_", path))]
    pairs = {}
    for parent in dict.fromkeys(parents):
        below = [path for path in paths if path.startswith(parent)]
        if len(below) == 1:  # a layer whose own name begins with "forward_"
            continue
        forward = [path for path in below if path.startswith(f"{parent}forward_")]
        backward = [path for path in below if path.startswith(f"{parent}backward_")]
        if not len(forward) == len(backward) == 1 or len(below) > 2:
            raise ValueError(
                f"{entries.where}: expected one cell below {quote(entries.prefix + parent + 'forward_')} and one "
                f"below {quote(entries.prefix + parent + 'backward_')}, got "
                f"{maps.listed((entries.prefix + path for path in below), 160)}; convert each with its prefix"
            )
        pairs[forward[0]] = backward[0]
    return pairs


def from_keras(weights: Mapping[str, Any], prefix: str = "", *, num_heads: int = 1) -> Params:
    """The parameters in a mapping of Keras's weights.

    The columns of `recurrent_kernel` tell the kind: H for a SimpleRNN, 3H for a GRU, 4H for an
    LSTM. A GRU's bias (2, 3H) is that of `reset_after=True` and gives a `b_hn`; one of (3H,) is
    that of `reset_after=False`, for `jaxrnn.gru(H, reset_after=False)`. Two biases of one gate are
    summed, except for n.

    Args:
        weights: paths to arrays: `{w.path: w for w in layer.weights}` of a layer or of a model
            that has only recurrent layers.
        prefix: the beginning of the paths, such as "sequential/lstm"; other entries are ignored.
        num_heads: N; with more than 1 every `w_h` is returned as the blocks `(N, D, G*D)` of N heads, if all
            entries between units of different heads are exactly zero.

    Returns:
        The network's tuple over layers, in the order of the mapping, with a `Bidirectional` where
        a path continues with `forward_` and `backward_`. Names without a path ("kernel",
        "recurrent_kernel", "bias", after the prefix) give the record alone. Dtypes are kept.

    Raises:
        TypeError, ValueError: naming the entry that is missing, unexpected, or of a wrong shape
            or dtype; for a `Bidirectional` of stacked cells, or with a `backward_layer` of another
            name; for float64 where JAX does not enable it.

    Example:
        >>> import numpy as np, jaxrnn
        >>> weights = {"lstm/lstm_cell/kernel": np.ones((3, 16)), "lstm/lstm_cell/recurrent_kernel": np.ones((4, 16))}
        >>> weights = {path: w.astype("float32") for path, w in weights.items()}
        >>> (params,) = jaxrnn.interop.from_keras(weights)
        >>> params.w_x.shape, jaxrnn.interop.from_keras(weights, "lstm/lstm_cell").w_x.shape
        ((3, 16), (3, 16))

    Differs from:
        1. Keras: activations are not among the weights; an RNN's is `jaxrnn.rnn(H, activation=...)`,
           the others have tanh and the sigmoid, which are Keras's defaults.
        2. Keras: whether a GRU without biases resets before or after the product is not among
           the weights; `reset_after` of :func:`gru` sets it.
    """
    entries = maps.read_mapping("from_keras", "weights", weights, prefix, "/")
    paths = list(dict.fromkeys(name.rpartition("/")[0] for name in entries.values))
    if "" in paths:
        return lay.by_head(entries.where, _cell(entries), num_heads)
    pairs = _pairs(entries, paths)
    cells = {path: _cell(maps.child(entries, path)) for path in paths}
    for halves in pairs.items():
        features = {entries.label(f"{path}/kernel"): len(cells[path].w_x) for path in halves}
        lay.check_inputs(entries.where, features)
    layers = tuple(
        Bidirectional(cells[path], cells[pairs[path]]) if path in pairs else cells[path]
        for path in paths
        if path not in pairs.values()
    )
    return lay.by_head(entries.where, layers, num_heads)


def to_keras(params: Params, prefix: str = "") -> dict[str, np.ndarray]:
    """The weights of the Keras layers that compute the same.

    A GRU with `b_hn` is one with `reset_after=True`, a GRU with `b` alone one with
    `reset_after=False`. Layers may differ in kind and size, and directions may be merged in any
    way. The blocks of heads are written as the block-diagonal matrix of the same function, zeros included.

    Args:
        params: a network's tuple over layers, or one record.
        prefix: the beginning of the paths.

    Returns:
        Paths to NumPy arrays that own their memory, in the order of Keras. Keras numbers its
        layers from the start of the program, so rely on the order, not on the paths:
        `layer.set_weights(list(to_keras(params).values()))`, for one layer, one
        `Bidirectional`, or a model that has only these layers. A record's names have no path.

    Raises:
        TypeError, ValueError: for what Keras cannot hold: projections, peepholes, coupled gates,
            layer normalisation.

    Example:
        >>> import jax, jaxrnn
        >>> net = jaxrnn.stack([jaxrnn.gru(4)])
        >>> weights = jaxrnn.interop.to_keras(net.init(jax.random.key(0), 3))
        >>> [(path, w.shape) for path, w in weights.items()][2]
        ('gru/gru_cell/bias', (2, 12))
    """
    where = "to_keras"
    prefix = maps.join_prefix(where, prefix, "/")
    if lay.is_record(params):
        return _entries(prefix, lay.read_record(where, "params", params, PEER, in_jax=False))
    entries: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for directions in lay.read_layers(where, params, PEER, in_jax=False):
        kinds = [NAMES[layer.sizes.kind] for layer in directions]
        base = kinds[0] if len(kinds) == 1 else "bidirectional"
        count = counts.get(base, 0)
        counts[base] = count + 1
        path = f"{base}_{count}/" if count else f"{base}/"
        halves = [""] if len(kinds) == 1 else [f"forward_{kinds[0]}/", f"backward_{kinds[1]}/"]
        for layer, kind, half in zip(directions, kinds, halves, strict=True):
            entries |= _entries(f"{prefix}{path}{half}{kind}_cell/", layer)
    return entries


def _entries(prefix: str, layer: lay.Layer) -> dict[str, np.ndarray]:
    kind = layer.sizes.kind
    if kind == "gru" and "b_hn" in layer.fields:
        entries = lay.scatter(lay.unfold_biases(layer), _layout(kind, "two"))
        entries["bias"] = np.stack([entries.pop("bias[0]"), entries.pop("bias[1]")])
    else:
        entries = lay.scatter(layer, _layout(kind, "one" if "b" in layer.fields else None))
    return {prefix + name: maps.to_numpy(array) for name, array in entries.items()}
