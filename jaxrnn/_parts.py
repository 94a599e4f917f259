"""A tree of networks, cells and read-outs, and their parameters among other arrays, as data that JSON holds.

What `save` writes of a tree, in the place of one network's configuration, is one of

    {"network": {...}, "input_size": I}    a network, a cell or a read-out, and its input size
    {"dict": {name: ...}}    {"list": [...]}    {"tuple": [...]}
    "array"    null
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxrnn import _checks, _files, configuration
from jaxrnn._describe import cut, describe, listed, quote
from jaxrnn._types import CELL_TYPES, AnyCell
from jaxrnn.cells._attention import memories
from jaxrnn.network import Network
from jaxrnn.readouts import Readout, readout

PARTS = (Network, *CELL_TYPES, Readout)
DEEPEST = 64  # containers in each other

Part = Network | AnyCell | Readout


class Node(NamedTuple):
    """A place in a tree: a part with its parameters, an array, nothing, or a container of nodes."""

    kind: str  # network, array, none, dict, list or tuple
    path: str  # of the names of its arrays
    network: Part | None = None
    input_size: int = 1
    children: Mapping[Any, "Node"] | None = None  # by name or place


# From a tree in memory


def split(where: str, network: Any, params: Any) -> Node:
    """The tree of the networks and the arrays beside them; raises for what is neither."""
    return _split(where, (), network, params)


def _split(where: str, at: tuple[str, ...], network: Any, params: Any) -> Node:
    path = ".".join(at)
    if isinstance(network, PARTS):
        _check_part(where, at, network)
        return Node("network", path, network)
    if len(at) > DEEPEST:
        raise ValueError(f"{where}: params expected at most {DEEPEST} containers in each other, got more")
    if network is not None or not at:
        _check_container(where, at, network, params)
    kind = type(params).__name__
    if type(params) is dict:
        for name in params:
            if not isinstance(name, str) or not name:
                raise TypeError(f"{where}: {_of('params', at)} expected texts as names, got {describe(name)}")
        inner = {} if network is None else network
        children = {name: _split(where, (*at, name), inner.get(name), part) for name, part in params.items()}
        return Node(kind, path, children=children)
    if type(params) in (list, tuple):
        inner = [None] * len(params) if network is None else network
        pairs = enumerate(zip(inner, params, strict=True))
        return Node(kind, path, children={k: _split(where, (*at, str(k)), *pair) for k, pair in pairs})
    if params is None:
        return Node("none", path)
    if jax.tree.structure(params) != jax.tree.structure(0):
        raise TypeError(
            f"{where}: {_of('params', at)} expected an array, or dictionaries, lists and tuples of arrays, got "
            f"{describe(params)}; of a network give it in the place of `network`"
        )
    return Node("array", path)


def _of(name: str, at: tuple[str, ...]) -> str:
    """A place in a tree, in messages."""
    return f"{name}: {cut('.'.join(at), 80)}" if at else name


def check_network(where: str, network: Any, at: tuple[str, ...] = ()) -> None:
    """Raises unless a value is a part, or a container that may hold some; the outermost is a dictionary."""
    if isinstance(network, PARTS):
        _check_part(where, at, network)
    elif not (type(network) is dict or (at and type(network) in (list, tuple))):
        expected = f"{where}: {_of('network', at)} expected one from jaxrnn.stack, or a cell, a read-out"
        raise TypeError(f"{expected} or a dictionary of them, got {describe(network)}{hint_of_network(where, network)}")


def _check_part(where: str, at: tuple[str, ...], part: Any) -> None:
    if not callable(part.init):
        raise TypeError(f"{where}: {_of('network', at)} expected one with a function init, got {describe(part.init)}")


def _check_container(where: str, at: tuple[str, ...], network: Any, params: Any) -> None:
    """Raises unless networks stand in a container like that of their params."""
    check_network(where, network, at)
    if type(params) is not type(network):
        raise TypeError(
            f"{where}: {_of('network', at)} expected what params are of, or params in a {type(network).__name__} as "
            f"networks are, got {cut(describe(network), 120)} and {cut(describe(params), 120)}{hint_of_params(params)}"
        )
    if isinstance(network, dict):
        missing = [key for key in network if key not in params]
        if missing:
            raise ValueError(
                f"{where}: {_of('params', at)} expected the parameters of {cut(listed(map(quote, missing)), 100)}, got "
                f"{cut(listed(map(quote, params)), 100)}"
            )
    elif len(network) != len(params):
        raise ValueError(
            f"{where}: {_of('params', at)} expected {len(network)} entries as the networks are, got {len(params)}; "
            "None stands for one without a network"
        )


def hint_of_network(where: str, given: Any) -> str:
    """What to give instead of what is no network."""
    parts = [name for name in ("network", "cell", "readout") if isinstance(_checks.attribute(given, name), PARTS)]
    if parts and _is_of_flax(given):
        return f"; give its `.{parts[0]}`" + (
            " and its `.params`" if where == "save" else ", then call its `load(params)`"
        )
    if given is readout:
        return "; call it: readout(...)"
    if any(given is factory for factory in configuration.FACTORIES.values()):
        return f"; call it to make a cell: {given.__name__}(...)"
    return "; make one of the cells with jaxrnn.stack" if isinstance(given, (list, tuple)) else ""


def hint_of_params(given: Any) -> str:
    if _has_memory(given):
        return "; a memory is bound for one call and not saved: give the params that were given to with_memory"
    return "; of a module give its `.params`" if _is_of_flax(given) else ""


def _has_memory(params: Any) -> bool:
    try:
        return bool(memories(params))
    except Exception:  # the classes in a tree may raise anything
        return False


def _is_of_flax(value: Any) -> bool:
    """Whether it is a module or a state of Flax, which is not imported for the question."""
    return any(str(kind.__module__).startswith("flax.") for kind in type(value).__mro__)


# As data


def describe_node(node: Node, params_only: bool) -> Any:
    """A tree as plain data: the inverse of `build`."""
    if node.kind == "network":
        configured = None if params_only else describe_part(node)
        return {"network": configured, "input_size": node.input_size}
    if node.children is None:
        return "array" if node.kind == "array" else None
    inner = {name: describe_node(child, params_only) for name, child in node.children.items()}
    return {node.kind: inner if node.kind == "dict" else list(inner.values())}


def describe_part(node: Node) -> Any:
    """The configuration of a network, a cell or a read-out."""
    part: Any = node.network
    where = _of("save: network", tuple(node.path.split(".")) if node.path else ())
    try:
        if not isinstance(part, Readout):
            return configuration.describe(part)
        if part.config is None:
            raise TypeError("expected one that jaxrnn.readout makes, got one of your own")
        return {"factory": "readout", **part.config.options}
    except (TypeError, ValueError) as error:
        remedy = "params_only=True saves without it, and load is then given the network"
        raise type(error)(f"{where}: {cut(str(error), 300)}; {remedy}") from error


def _build_part(entry: Any, most_layers: int) -> Part:
    if isinstance(entry, Mapping) and entry.get("factory") == "readout":
        return configuration.build_call(readout, entry)
    return configuration.build(entry, most_layers=most_layers)


def build(where: str, shown: str, saved: _files.Content, network: Any) -> Node:
    """The tree that a file describes, with the given networks in the place of its own."""
    if saved.version == 1:
        if not isinstance(network, (*PARTS, type(None))):
            raise ValueError(f"{where}: network expected one, as {shown} holds, got {describe(network)}")
        own = choose(where, shown, saved, "", saved.configuration, network)
        return Node("network", "", own, saved.input_size or 1)
    return _build(where, shown, saved, (), saved.configuration, network)


def _build(where: str, shown: str, saved: _files.Content, at: tuple[str, ...], entry: Any, network: Any) -> Node:
    path, label = ".".join(at), _of("configuration", at)
    if len(at) > DEEPEST:
        raise ValueError(
            f"{where}: {shown}: configuration expected at most {DEEPEST} containers in each other, got more"
        )
    if entry is None or entry == "array":
        if network is not None:
            raise ValueError(
                f"{where}: {_of('network', at)} expected None, as {shown} holds no network there, got "
                f"{describe(network)}"
            )
        return Node("none" if entry is None else "array", path)
    (kind, inner), *others = entry.items() if isinstance(entry, dict) and entry else [("", entry)]
    if kind == "network" and [name for name, _ in others] == ["input_size"]:
        size = entry["input_size"]
        if not (_checks.is_integer(size) and 1 <= size <= _checks.LARGEST_SIZE):
            raise ValueError(f"{where}: {shown}: {label}: input_size is missing or wrong, got {describe(size)}")
        return Node("network", path, choose(where, shown, saved, path, inner, network), size)
    if others or type(inner) is not {"dict": dict, "list": list, "tuple": list}.get(kind, Node):
        raise ValueError(
            f"{where}: {shown}: {label} expected a network, dict, list, tuple or array, got {describe(entry)}; is the "
            "file corrupted?"
        )
    _check_given(where, shown, at, kind, inner, network)
    items = inner.items() if kind == "dict" else enumerate(inner)
    given = {} if network is None else network if kind == "dict" else dict(enumerate(network))
    children = {name: _build(where, shown, saved, (*at, str(name)), child, given.get(name)) for name, child in items}
    return Node(kind, path, children=children)


def _check_given(where: str, shown: str, at: tuple[str, ...], kind: str, inner: Any, network: Any) -> None:
    """Raises unless the given networks stand in a container like that of the file."""
    if network is None:
        return
    name = _of("network", at)
    if type(network).__name__ != kind or isinstance(network, PARTS):
        raise ValueError(f"{where}: {name} expected a {kind}, as {shown} holds, got {describe(network)}")
    unknown = [key for key in network if key not in inner] if kind == "dict" else []
    if unknown or (kind != "dict" and len(network) != len(inner)):
        have = cut(listed(map(quote, inner)), 100) if kind == "dict" else f"{len(inner)} entries"
        got = cut(listed(map(quote, unknown)), 100) if kind == "dict" else len(network)
        raise ValueError(f"{where}: {name} expected {have}, as {shown} holds, got {got}")


def choose(where: str, shown: str, saved: _files.Content, path: str, entry: Any, network: Any) -> Part:
    """The network of the file, or the given one if it has the same equations."""
    name = _of("network", tuple(path.split(".")) if path else ())
    if network is not None and not isinstance(network, PARTS):
        raise ValueError(f"{where}: {name} expected one, as {shown} holds, got {describe(network)}")
    if entry is None:
        if network is None:
            raise ValueError(f"{where}: {name} expected one, got None; {shown} was saved with params_only")
        return network
    try:
        built = _build_part(entry, len(saved.arrays))  # a layer has an array or more
    except (ValueError, RecursionError) as error:
        remedy = "is it corrupted, or of a newer version of jaxrnn?"
        raise ValueError(f"{where}: {shown}: {cut(str(error), 280)}; {remedy}") from error
    if network is None:
        return built
    given = _equations(network)
    if given is not None and given != _equations(built):
        raise ValueError(
            f"{where}: {name} expected the equations of {shown}, {cut(repr(built), 100)}, "
            f"got {cut(repr(network), 100)}; load without a network gives params that can go with any"
        )
    return network


def _equations(network: Part) -> Any:
    """The equations of a network as data, or `None` if it cannot be described."""
    if isinstance(network, Readout):
        return network.config and network.config.options
    try:
        return configuration.equations(configuration.describe(network))
    except (TypeError, ValueError):
        return None


def networks_in(node: Node) -> Any:
    """The networks of a tree: of a dictionary those alone, of a list or a tuple `None` in the places of arrays."""
    if node.kind == "network":
        return node.network
    if node.children is None:
        return None
    inner = {name: networks_in(child) for name, child in node.children.items()}
    if node.path and all(value is None for value in inner.values()):
        return None
    if node.kind == "dict":
        return {name: value for name, value in inner.items() if value is not None}
    return (list if node.kind == "list" else tuple)(inner.values())
