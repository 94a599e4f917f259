"""Networks and params of Keras's layers and models that come with their configuration."""

import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxrnn import _checks
from jaxrnn._describe import cut, describe
from jaxrnn._types import Params
from jaxrnn.interop import _keras_files as files
from jaxrnn.interop import _layouts as lay
from jaxrnn.interop import _mappings as maps
from jaxrnn.interop._keras_activations import MODULES
from jaxrnn.interop._keras_config import MODELS, RECURRENT, Configuration, choose, read_config
from jaxrnn.interop._keras_layers import Node, check_params, network_of, read_node
from jaxrnn.interop._keras_weights import paths_in, read_layers, read_weights
from jaxrnn.network import Network

Prefix = str | Sequence[str]
Weights = Callable[[Node], maps.Entries]


def from_mapping(where: str, weights: Any, prefix: Prefix, config: Any, num_heads: Any) -> tuple[Network, Params]:
    """Of a mapping of weights and a configuration."""
    found = read_config(where, config)
    if not found.is_model and not isinstance(prefix, str):
        raise TypeError(
            f"{where}: prefix expected a string beside the configuration of a layer, got {describe(prefix)}"
        )
    entries = read_weights(where, weights, "" if found.is_model else str(prefix))
    return _convert(found, prefix if found.is_model else "", num_heads, lambda node: _of_node(found, node, entries))


def from_file(where: str, path: Any, prefix: Prefix, config: Any, num_heads: Any) -> tuple[Network, Params]:
    """Of a `.keras` or `.h5` file."""
    with files.opened(where, path) as file:
        if config is None:
            files.check_configured(file)
        found = read_config(where, file.config if config is None else config, version=file.version)

        def weights(node: Node) -> maps.Entries:
            arrays, is_all = files.weights_of(file, node)
            entries = read_weights(where, arrays, "")
            return entries if is_all else _of_node(found, node, entries)

        return _convert(found, prefix, num_heads, weights)


def from_object(where: str, layer: Any, prefix: Prefix, config: Any, num_heads: Any) -> tuple[Network, Params]:
    """Of a layer, a cell or a model of Keras that is in memory."""
    kind, module = type(layer).__name__, str(type(layer).__module__).split(".")[0]
    if module not in MODULES or not callable(_checks.attribute(layer, "get_config")):
        raise TypeError(
            f"{where}: weights expected a mapping of names to arrays, a path, or a layer or model of Keras's own "
            f"class, got {describe(layer)}; of a model of your own class give one of its layers"
        )
    if kind not in (*RECURRENT, *MODELS):
        raise TypeError(f"{where}: weights expected one of {', '.join([*RECURRENT, *MODELS])}, got {cut(kind, 60)}")
    if config is None:
        try:
            config = layer.get_config()
        except Exception as error:  # of classes of the user's own inside it
            raise ValueError(f"{where}: {kind}: get_config() failed ({maps.said(error)})") from error
    version = getattr(sys.modules.get(module), "__version__", None) if module != "tensorflow" else "2.0"
    found = read_config(where, config, kind, version)
    if prefix and not found.is_model and prefix != found.name:
        raise ValueError(
            f"{where}: prefix expected none beside a layer, got {describe(prefix)}; it names layers of a model"
        )
    return _convert(found, prefix, num_heads, lambda node: _of_object(where, node, layer))


def _convert(found: Configuration, prefix: Prefix, num_heads: Any, weights: Weights) -> tuple[Network, Params]:
    """The network and the params of the layers that are chosen."""
    where, num_heads = found.where, _checks.size(found.where, "num_heads", num_heads)
    nodes = [read_node(found, entry, num_heads) for entry in choose(found, prefix)]
    network, layers = network_of(where, nodes), []
    for node in nodes:
        params = read_layers(_in_order(node, weights(node)), both_ways=node.merge is not None)
        params = (params,) if lay.is_record(params) else params
        check_params(where, node, params)
        layers += params
    return network, lay.by_head(where, tuple(layers), num_heads)


def _of_node(found: Configuration, node: Node, entries: maps.Entries) -> maps.Entries:
    """The weights of one layer of a model: those below its name, and the names of the models around it."""
    if not node.entry.names:
        return entries
    names = (found.name, *node.entry.names)
    for k in range(len(names)):
        own = names[k:]
        paths = [path for path in paths_in(entries) if tuple(path.split("/")[: len(own)]) == own]
        if paths:
            kept = {name: value for name, value in entries.values.items() if name.rpartition("/")[0] in paths}
            return entries._replace(values=kept)
    raise ValueError(
        f"{found.where}: weights expected entries below {node.entry.path!r}, the name of a layer in the "
        f"configuration, got {maps.listed(entries.values)}"
    )


def _in_order(node: Node, entries: maps.Entries) -> maps.Entries:
    """The weights of a layer with its cells in the order of the configuration, if their names tell it."""
    halves, paths = [half for layer in node.layers for half in layer], paths_in(entries)
    parts = [path.split("/") for path in paths]
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))
    common = len(list(shared))
    own = {path: names[common:] for path, names in zip(paths, parts, strict=True)}
    for matches in (
        lambda half, name: name in half.names,
        lambda half, name: bool(half.side) and name.startswith(f"{half.side}_"),
    ):
        found = [[path for path in paths if any(matches(half, name) for name in own[path])] for half in halves]
        order = [path for each in found for path in each]
        if all(len(each) == 1 for each in found) and sorted(order) == sorted(paths):
            ranked = sorted(entries.values, key=lambda name: order.index(name.rpartition("/")[0]))
            return entries._replace(values={name: entries.values[name] for name in ranked})
    return entries


def _of_object(where: str, node: Node, layer: Any) -> maps.Entries:
    """The weights of one layer in memory."""
    try:
        for name in node.entry.names:
            layer = layer.get_layer(name)
        strange = _strange_function(layer)
        given = [(str(getattr(w, "path", None) or w.name), w) for w in layer.weights]
    except Exception as error:  # Keras may raise anything
        raise ValueError(f"{where}: {node.entry.label}: its weights cannot be read ({maps.said(error)})") from error
    if strange:
        raise ValueError(f"{where}: {node.entry.label}: {strange}, which is not Keras's own function of that name")
    if not given:
        raise ValueError(f"{where}: {node.entry.label} expected weights, got none; build the layer first")
    named = {path: weight.numpy() if hasattr(weight, "numpy") else weight for path, weight in given}
    if len(named) != len(given):
        raise ValueError(f"{where}: {node.entry.label} expected weights of different paths, got {maps.listed(named)}")
    return read_weights(where, named, "")


def _strange_function(layer: Any) -> str:
    """An activation in a layer that is a function of the user's; the configuration tells its name alone."""
    halves = [getattr(layer, name, None) for name in ("forward_layer", "backward_layer")]
    outer = [getattr(part, "cell", part) for part in (layer, *halves) if part is not None]
    for cell in outer:
        for inner, name in itertools.product(getattr(cell, "cells", [cell]), ("activation", "recurrent_activation")):
            function = getattr(inner, name, None)
            module = str(getattr(function, "__module__", ""))
            if function is not None and module.split(".")[0] not in MODULES:
                return f"{name} expected a function of Keras, got {cut(describe(function), 60)} of {cut(module, 60)}"
    return ""


def is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def check_prefix(where: str, prefix: Any, config: Any, weights: Any) -> Prefix:
    """`prefix` as a string, or with a configuration perhaps a list of them."""
    bare = config is None and isinstance(weights, Mapping)
    if isinstance(prefix, str):
        return prefix
    if not bare and isinstance(prefix, (list, tuple)) and prefix and all(isinstance(name, str) for name in prefix):
        return prefix
    expected = "a string" if bare else "a string or a list of strings"
    raise TypeError(f"{where}: prefix expected {expected}, got {describe(prefix)}")
