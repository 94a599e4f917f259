"""Haiku: `hk.LSTM`, `hk.GRU`, `hk.VanillaRNN`, alone or in an `hk.DeepRNN`.

    lstm/linear          w (I + H, 4H), rows of x and then of h    b (4H,)    gates i g f o
    gru                  w_i (I, 3H)    w_h (H, 3H)    b (3H,)                gates z r a
    vanilla_rnn/linear   w (I, H)    b (H,)
    vanilla_rnn/linear_1 w (H, H)    b (H,), with double_bias

The LSTM also adds 1 to the forget gate. The GRU resets before the product, and
h_t = (1 - z) ⊙ h_{t-1} + z ⊙ a: its z is 1 - z of ours. As σ(-a) = 1 - σ(a), the parameters of z
change their sign.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxrnn._types import Params
from jaxrnn.interop import _layouts as lay
from jaxrnn.interop import _mappings as maps
from jaxrnn.interop._sizes import fit, shown

PEER = "Haiku"
NAMES = {"rnn": "vanilla_rnn", "lstm": "lstm", "gru": "gru"}
LSTM_GATES = (0, 2, 1, 3)  # i g f o in the places of i f g o
GRU_GATES = (1, 0, 2)  # z r a in the places of r z n
FORGET = 1  # the place of f in ours
HALVES = ("linear[x]", "linear[h]")  # an LSTM's w, split in two

LAYOUTS: dict[str, dict[str, lay.Part]] = {
    "rnn": {
        "linear/w": lay.Part("w_x", (0,)),
        "linear/b": lay.Part("b_x", (0,)),
        "linear_1/w": lay.Part("w_h", (0,)),
        "linear_1/b": lay.Part("b_h", (0,)),
    },
    "lstm": {
        HALVES[0]: lay.Part("w_x", LSTM_GATES),
        HALVES[1]: lay.Part("w_h", LSTM_GATES),
        "linear/b": lay.Part("b", LSTM_GATES),
    },
    "gru": {
        "w_i": lay.Part("w_x", GRU_GATES),
        "w_h": lay.Part("w_h", GRU_GATES),
        "b": lay.Part("b", GRU_GATES),
    },
}


def _shift_forget(fields: lay.Fields, by: int) -> lay.Fields:
    """`b` with a number added to the forget gate's."""
    b = fields["b"].copy()
    hidden = len(b) // 4
    b[FORGET * hidden : (FORGET + 1) * hidden] += np.asarray(by, b.dtype)
    return {**fields, "b": b}


def _complement_z(fields: lay.Fields) -> lay.Fields:
    """The fields with the sign of z changed; its own inverse."""
    flipped = {}
    for name, array in fields.items():
        r, z, n = np.split(array, 3, axis=-1)
        flipped[name] = np.concatenate([r, -z, n], axis=-1)
    return flipped


def _lstm(entries: maps.Entries) -> Params:
    maps.check_names(entries, ("linear/w", "linear/b"))
    entries = maps.arrays(entries)
    w, b = entries.values["linear/w"], entries.values["linear/b"]
    hidden = w.shape[-1] // 4 if w.ndim == 2 else 0
    if not hidden or w.shape[1] % 4 or len(w) <= hidden:
        raise ValueError(
            f"{entries.where}: {entries.label('linear/w')} expected shape (I + H, 4H), got {shown(w.shape)}"
        )
    cause = f"or {entries.label('linear/w')} is wrong, with {w.shape}"
    maps.check_shape(entries.where, entries.label("linear/b"), b, (4 * hidden,), cause)
    features = len(w) - hidden
    values = {HALVES[0]: w[:features], HALVES[1]: w[features:], "linear/b": b}
    fields = lay.gather(entries._replace(values=values), LAYOUTS["lstm"], lay.Sizes("lstm", features, hidden))
    return lay.record(entries.where, "lstm", _shift_forget(fields, by=1))


def _gru(entries: maps.Entries) -> Params:
    maps.check_names(entries, list(LAYOUTS["gru"]))
    return lay.record(entries.where, "gru", _complement_z(_fields(entries, LAYOUTS["gru"], "gru")))


def _fields(entries: maps.Entries, layout: lay.Layout, kind: str) -> lay.Fields:
    entries = maps.arrays(entries)
    found = fit(entries.where, {kind: lay.claims(entries.label, entries.values, layout, kind)})
    return lay.gather(entries, layout, lay.sizes_of(found))


def _rnn(entries: maps.Entries) -> Params:
    names = ("linear/w", "linear/b", "linear_1/w")
    maps.check_names(entries, names, optional=("linear_1/b",))
    layout = dict(LAYOUTS["rnn"])
    if "linear_1/b" not in entries.values:
        del layout["linear_1/b"]
        layout["linear/b"] = lay.Part("b", (0,))
    return lay.record(entries.where, "rnn", lay.fold_biases("rnn", _fields(entries, layout, "rnn")))


def _core(entries: maps.Entries) -> Params:
    if "w_i" in entries.values or "w_h" in entries.values:
        return _gru(entries)
    return _rnn(entries) if any(name.startswith("linear_1/") for name in entries.values) else _lstm(entries)


def _path_of_core(name: str) -> str:
    path = name.rpartition("/")[0]
    parent, _, last = path.rpartition("/")
    return parent if last in ("linear", "linear_1") else path


def _in_order(where: str, paths: list[str]) -> list[str]:
    """The paths, sorted by the number that Haiku gives to cores of one kind."""
    named = [(*re.fullmatch(r"(.*?)(?:_([0-9]{1,9}))?", path, re.S).groups("0"), path) for path in paths]  # type: ignore
    stems = list(dict.fromkeys(stem for stem, *_ in named))
    if len(stems) > 1:
        raise ValueError(
            f"{where}: params expected cores of one name and kind, got {maps.listed(stems[:1])} and "
            f"{maps.listed(stems[1:2])}, whose order is not to be seen; convert each with its prefix"
        )
    numbers = [int(number) for _, number, _ in named]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{where}: params expected one core of each number, got {maps.listed(paths)}")
    return [path for *_, path in sorted(named, key=lambda entry: int(entry[1]))]


def from_haiku(params: Mapping[str, Any], prefix: str = "", *, num_heads: int = 1) -> Params:
    """The parameters of Haiku's recurrent cores.

    The names tell the kind. The 1 that Haiku's LSTM adds to its forget gate is added to the
    bias, and the z of its GRU is converted to ours. The GRU is for
    `jaxrnn.gru(H, reset_after=False)`, the VanillaRNN for `jaxrnn.rnn(H, activation="relu")`. Two
    biases become their sum.

    Args:
        params: of a transformed function, or a flat mapping with "/" between all parts.
        prefix: the path of the module that holds the cores, such as "my_net/~"; other entries
            are ignored. The path of one core ("my_net/~/lstm") selects that core.
        num_heads: N; with more than 1 every `w_h` is returned as the blocks `(N, D, G*D)` of N heads, if all
            entries between units of different heads are exactly zero.

    Returns:
        The network's tuple over cores, in the order of their numbers; for the path of one core
        the record alone. Dtypes are kept.

    Raises:
        TypeError, ValueError: naming the entry that is missing, unexpected, or of a wrong shape
            or dtype; for cores of different kinds, whose order is unknown; for float64 where
            JAX does not enable it.

    Example:
        >>> import numpy as np, jaxrnn
        >>> weights = {"lstm/linear": {"w": np.ones((7, 16), "float32"), "b": np.zeros(16, "float32")}}
        >>> (params,) = jaxrnn.interop.from_haiku(weights)
        >>> params.w_x.shape, params.w_h.shape, float(params.b[4])  # f, after i
        ((3, 16), (4, 16), 1.0)
        >>> type(jaxrnn.interop.from_haiku(weights, "lstm")).__name__
        'LSTMParams'
    """
    entries = maps.read_mapping("from_haiku", "params", params, prefix, "/")
    paths = list(dict.fromkeys(map(_path_of_core, entries.values)))
    if "" in paths:
        return lay.by_head("from_haiku", _core(entries), num_heads)
    cores = tuple(_core(maps.child(entries, path)) for path in _in_order("from_haiku", paths))
    return lay.by_head("from_haiku", cores, num_heads)


def to_haiku(params: Params, prefix: str = "") -> dict[str, dict[str, jax.Array]]:
    """The parameters of the Haiku cores that compute the same.

    Haiku always has biases; missing ones are zeros. 1 is subtracted from the forget gate's bias,
    because Haiku adds it again. This rounds, so a round trip may change the last digit.
    The parameters of a GRU without biases do not show whether it resets before or after the
    product; Haiku resets before it.
    The blocks of heads are written as the block-diagonal matrix of the same function, zeros included.

    Args:
        params: a network's tuple over layers, for an `hk.DeepRNN`, or one record.
        prefix: for a network the path of the module that holds the cores; for a record that of
            the core itself, by default the name Haiku gives to the first: "lstm", "gru",
            "vanilla_rnn".

    Returns:
        Modules to names to JAX arrays that own their memory, for `transformed.apply`. A
        VanillaRNN, whose activation is ReLU, has a second bias of zeros.

    Raises:
        TypeError, ValueError: for what Haiku cannot hold: two directions, projections, peepholes,
            coupled gates, layer normalisation, and a GRU that resets after the product.

    Example:
        >>> import jax, jaxrnn
        >>> net = jaxrnn.stack([jaxrnn.lstm(4), jaxrnn.lstm(4)])
        >>> weights = jaxrnn.interop.to_haiku(net.init(jax.random.key(0), 3))
        >>> list(weights), weights["lstm_1/linear"]["w"].shape
        (['lstm/linear', 'lstm_1/linear'], (8, 16))
    """
    where = "to_haiku"
    path = maps.join_prefix(where, prefix, "/")
    if lay.is_record(params):
        layer = lay.read_record(where, "params", params, PEER)
        return _entries(where, path or NAMES[layer.sizes.kind] + "/", layer)
    modules: dict[str, dict[str, jax.Array]] = {}
    counts: dict[str, int] = {}
    for directions in lay.read_layers(where, params, PEER):
        if len(directions) > 1:
            raise ValueError(f"{where}: {directions[0].name} expected one direction, got two; convert each by itself")
        name = NAMES[directions[0].sizes.kind]
        count = counts.get(name, 0)
        counts[name] = count + 1
        modules |= _entries(where, f"{path}{name}_{count}/" if count else f"{path}{name}/", directions[0])
    return modules


def _entries(where: str, prefix: str, layer: lay.Layer) -> dict[str, dict[str, jax.Array]]:
    lay.check_reset(where, layer, PEER, after=False)
    layer, kind = lay.with_bias(layer), layer.sizes.kind
    if kind == "rnn":
        layer = lay.unfold_biases(layer)
    if kind == "lstm":
        layer = layer._replace(fields=_shift_forget(layer.fields, by=-1))
    if kind == "gru":
        layer = layer._replace(fields=_complement_z(layer.fields))
    entries = lay.scatter(layer, LAYOUTS[kind])
    if kind == "lstm":
        entries = {"linear/w": np.concatenate([entries.pop(half) for half in HALVES]), **entries}
    modules: dict[str, dict[str, jax.Array]] = {}
    for name, array in lay.jax_entries(where, {prefix + name: array for name, array in entries.items()}).items():
        module, _, leaf = name.rpartition("/")
        modules.setdefault(module, {})[leaf] = array
    return modules
