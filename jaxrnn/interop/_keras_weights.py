"""Weights of Keras by name.

    kernel (I, GH)    recurrent_kernel (H, GH)    bias (GH,), of a GRU with reset_after (2, 3H)

LSTM gates are i f c o, as ours; GRU gates are z r h. The path before the last "/" names the layer.
"""

import re
from typing import Any

from jaxrnn._describe import quote
from jaxrnn._types import Params
from jaxrnn.interop import _layouts as lay
from jaxrnn.interop import _mappings as maps
from jaxrnn.interop._sizes import Claim, fit
from jaxrnn.layers import Bidirectional

ORDER = {"rnn": (0,), "lstm": (0, 1, 2, 3), "gru": (1, 0, 2)}  # z r h in the places of r z n
KERAS_1 = re.compile(r".*_(?:[WUb]|W_[ifcozrh]|U_[ifcozrh]|b_[ifcozrh])")


def layout_of(kind: str, bias: str | None) -> dict[str, lay.Part]:
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
    fields = lay.gather(entries._replace(values=values), layout_of(sizes.kind, bias), sizes)
    return lay.record(entries.where, sizes.kind, lay.fold_biases(sizes.kind, fields))


def _claims(entries: maps.Entries, kind: str) -> list[Claim]:
    """What the shapes of a cell's entries say; a GRU with reset_after has two biases in one entry."""
    bias = entries.values.get("bias")
    made = lay.claims(entries.label, entries.values, layout_of(kind, None if bias is None else "one"), kind)
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


def read_weights(where: str, weights: Any, prefix: str) -> maps.Entries:
    """The entries of a mapping below `prefix`, without the ":0" with which TensorFlow's names end."""
    entries = maps.read_mapping(where, "weights", weights, prefix, "/")
    values = {}
    is_keras_1 = not any(name.removesuffix(":0").endswith("kernel") for name in entries.values)
    for name, value in entries.values.items():
        if is_keras_1 and KERAS_1.fullmatch(name):
            raise ValueError(
                f"{where}: {entries.label(name)} expected a kernel, recurrent_kernel or bias, got a weight as Keras 1 "
                "named them; load the model in Keras 2 and save it again"
            )
        bare = name.removesuffix(":0")
        if bare in values:
            raise ValueError(f"{where}: {entries.label(bare)} expected once, got it twice, with and without ':0'")
        values[bare] = value
    return entries._replace(values=values)


def read_layers(entries: maps.Entries, both_ways: bool | None = None) -> Any:
    """The params: a tuple over layers, or the record alone of names without a path.

    Args:
        entries: of the weights.
        both_ways: whether they are of one `Bidirectional`, forward first; `None`: the names tell.
    """
    paths = paths_in(entries)
    if "" in paths:
        return _cell(entries)
    pairs = _pairs(entries, paths) if both_ways is None else {}
    if both_ways and len(paths) == 2:
        pairs = {paths[0]: paths[1]}
    cells = {path: _cell(maps.child(entries, path)) for path in paths}
    for halves in pairs.items():
        features = {entries.label(f"{path}/kernel"): len(cells[path].w_x) for path in halves}
        lay.check_inputs(entries.where, features)
    return tuple(
        Bidirectional(cells[path], cells[pairs[path]]) if path in pairs else cells[path]
        for path in paths
        if path not in pairs.values()
    )


def paths_in(entries: maps.Entries) -> list[str]:
    """The paths of the cells."""
    return list(dict.fromkeys(name.rpartition("/")[0] for name in entries.values))
