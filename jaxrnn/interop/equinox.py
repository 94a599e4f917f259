"""Equinox: `eqx.nn.LSTMCell` and `GRUCell`.

    weight_ih (GH, I)    weight_hh (GH, H)    bias (GH,)    GRU: bias_n (H,)

with G gates in our order.
"""

from collections.abc import Mapping
from typing import Any

import jax

from jaxrnn._describe import describe, quote
from jaxrnn._types import Params
from jaxrnn.interop import _layouts as lay
from jaxrnn.interop import _mappings as maps
from jaxrnn.interop._sizes import Claim, fit

PEER = "Equinox"
FIELDS = ("input_size", "hidden_size", "use_bias")  # a cell's fields beside its weights


def _layout(kind: str, biases: bool) -> lay.Layout:
    gates = lay.all_gates(kind)
    layout = {
        "weight_ih": lay.Part("w_x", gates, transposed=True),
        "weight_hh": lay.Part("w_h", gates, transposed=True),
    }
    if biases:
        layout["bias"] = lay.Part("b", gates)
        if kind == "gru":
            layout["bias_n"] = lay.Part("b_hn")
    return layout


def from_equinox(weights: Mapping[str, Any], prefix: str = "", *, num_heads: int = 1) -> Params:
    """The parameters of an Equinox cell.

    The rows of `weight_hh` tell the kind: 3H for a GRU, 4H for an LSTM.

    Args:
        weights: names to arrays: `vars(cell)` of an `eqx.nn.LSTMCell` or `GRUCell`, with the
            `None` and sizes beside the arrays; or the arrays alone.
        prefix: the path of the cell in a larger mapping, with "." between its parts.
        num_heads: N; with more than 1 every `w_h` is returned as the blocks `(N, D, G*D)` of N heads, if all
            entries between units of different heads are exactly zero.

    Returns:
        `LSTMParams` or `GRUParams`. Dtypes are kept.

    Raises:
        TypeError, ValueError: naming the entry that is missing, unexpected, or of a wrong shape
            or dtype; for float64 where JAX does not enable it.

    Example:
        >>> import numpy as np, jaxrnn
        >>> weights = {"weight_ih": np.ones((16, 3), "float32"), "weight_hh": np.ones((16, 4), "float32")}
        >>> params = jaxrnn.interop.from_equinox(weights)
        >>> type(params).__name__, params.w_x.shape
        ('LSTMParams', (3, 16))
    """
    where = "from_equinox"
    entries = maps.read_mapping(where, "weights", weights, prefix, ".")
    stated = {name: entries.values[name] for name in FIELDS if isinstance(entries.values.get(name), (bool, int))}
    arrays = {name: v for name, v in entries.values.items() if v is not None and name not in stated}
    entries = entries._replace(values=arrays)
    maps.check_names(entries, ("weight_hh", "weight_ih"), optional=("bias", "bias_n"))
    entries = maps.arrays(entries)
    sizes = lay.sizes_of(fit(where, {kind: _claims(entries, kind) for kind in lay.GATES}))
    if sizes.kind == "rnn":
        raise ValueError(f"{where}: {entries.label('weight_hh')} expected 3 or 4 gates, got 1")
    biases = any(name.startswith("bias") for name in entries.values)
    _check_stated(entries, stated, sizes, biases)
    record = lay.record(where, sizes.kind, lay.gather(entries, _layout(sizes.kind, biases), sizes))
    return lay.by_head(where, record, num_heads)


def _claims(entries: maps.Entries, kind: str) -> list[Claim]:
    layout = {**_layout(kind, biases=True), "bias_n": lay.Part("b_hn")}
    given = {name: part for name, part in layout.items() if name in entries.values}
    return lay.claims(entries.label, entries.values, given, kind)


def _check_stated(entries: maps.Entries, stated: Mapping[str, int], sizes: lay.Sizes, biases: bool) -> None:
    """Raises unless the other fields of the cell say what its weights do."""
    found = {
        "input_size": (sizes.input_size, "weight_ih"),
        "hidden_size": (sizes.hidden_size, "weight_hh"),
        "use_bias": (biases, "bias"),
    }
    for name, value in stated.items():
        expected, source = found[name]
        if value != expected:
            raise ValueError(
                f"{entries.where}: {entries.label(name)} expected {expected}, "
                f"as {entries.label(source)} has it, got {quote(value)}"
            )


def to_equinox(params: Params, prefix: str = "") -> dict[str, jax.Array]:
    """The weights of the Equinox cell that computes the same.

    The parameters of a GRU without biases do not show whether it resets before or after the
    product; Equinox resets after it.
    The blocks of heads are written as the block-diagonal matrix of the same function, zeros included.

    Args:
        params: one record; Equinox has no stacks, so convert a network layer by layer.
        prefix: the path of the cell in a larger mapping, with "." between its parts.

    Returns:
        Names to JAX arrays that own their memory. To put them into a cell made with the same
        sizes and use_bias:
        `eqx.tree_at(lambda cell: [getattr(cell, name) for name in weights], cell, list(weights.values()))`.

    Raises:
        TypeError, ValueError: for what Equinox cannot hold: a simple RNN, projections, peepholes,
            coupled gates, layer normalisation, and a GRU that resets before the product.

    Example:
        >>> import jax, jaxrnn
        >>> params = jaxrnn.gru(4).init(jax.random.key(0), 3)
        >>> list(jaxrnn.interop.to_equinox(params))
        ['weight_ih', 'weight_hh', 'bias', 'bias_n']
    """
    where = "to_equinox"
    prefix = maps.join_prefix(where, prefix, ".")
    if isinstance(params, tuple) and not hasattr(params, "_fields"):
        raise TypeError(f"{where}: params expected one record, got {describe(params)}; convert them one by one")
    layer = lay.read_record(where, "params", params, PEER)
    if layer.sizes.kind == "rnn":
        raise TypeError(f"{where}: params expected LSTMParams or GRUParams, got RNNParams; {PEER} has no simple RNN")
    lay.check_reset(where, layer, PEER, after=True)
    entries = lay.scatter(layer, _layout(layer.sizes.kind, "b" in layer.fields))
    return lay.jax_entries(where, {prefix + name: array for name, array in entries.items()})
