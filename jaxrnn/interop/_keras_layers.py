"""The cells that compute what Keras's recurrent layers do, from their configuration."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxrnn import _checks
from jaxrnn._describe import cut, describe, quote
from jaxrnn._types import Cell, Params
from jaxrnn.cells import gru, lstm, rnn
from jaxrnn.interop._keras_activations import activation
from jaxrnn.interop._keras_config import CELLS, LAYERS, Configuration, Entry, numbered, part, snake_case
from jaxrnn.layers import directions, from_directions
from jaxrnn.network import Network, stack

MERGES = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "average"}
FACTORIES: dict[str, Any] = {"rnn": rnn, "lstm": lstm, "gru": gru}
REVERSED = "set it to False in the configuration, and run the network with reverse=True"


class Half(NamedTuple):
    """One direction of a layer."""

    label: str  # in messages
    cell: Cell
    stored: str  # its path in a file of weights of Keras 3, below the layer's
    names: tuple[str, ...] = ()  # of which its path among weights with names has one
    side: str = ""  # of a Bidirectional, "forward" or "backward"


class Node(NamedTuple):
    """A recurrent layer of Keras: its layers, which are several if it runs stacked cells."""

    entry: Entry
    layers: tuple[tuple[Half, ...], ...]  # each of one direction or two
    merge: str | None  # of two directions


class _Reader(NamedTuple):
    """What all cells of a configuration have in common."""

    where: str
    major: int | None
    num_heads: int


def read_node(config: Configuration, entry: Entry, num_heads: int) -> Node:
    """The layer of an entry of a recurrent kind."""
    reader = _Reader(config.where, config.major, num_heads)
    if entry.kind != "Bidirectional":
        layers = _layers(reader, entry.label, entry.kind, entry.options)
        return Node(entry, tuple((half,) for half in layers), None)
    where = f"{reader.where}: {entry.label}"
    mode = entry.options.get("merge_mode", "concat")
    _checks.one_of(where, "merge_mode", mode, tuple(MERGES))
    forward = part(where, "layer", entry.options.get("layer"))
    backward = forward
    if entry.options.get("backward_layer") is not None:
        backward = part(where, "backward_layer", entry.options["backward_layer"])
    halves = []
    for side, (kind, options) in (("forward", forward), ("backward", backward)):
        given = backward is not forward and side == "backward"
        if given and options.get("go_backwards") is not True:
            raise ValueError(f"{where}: backward_layer: go_backwards expected True, got {_shown(options)}")
        own = {**options, "go_backwards": False} if side == "backward" else options
        layers = _layers(reader, f"{entry.label}: {side} {cut(kind, 40)}", kind, own)
        if len(layers) != 1:
            raise ValueError(f"{where} expected one cell in each direction, got {len(layers)} stacked ones")
        name = str(options.get("name"))
        halves.append(Half(*layers[0][:2], f"{side}_layer/{layers[0].stored}", (name, f"{side}_{name}"), side))
    return Node(entry, (tuple(halves),), MERGES[mode])


def _shown(options: Mapping[str, Any]) -> str:
    return describe(options.get("go_backwards"))


def _layers(reader: _Reader, label: str, kind: str, options: Mapping[str, Any]) -> list[Half]:
    """The layers of one direction."""
    where = f"{reader.where}: {label}"
    if kind in CELLS:
        return [Half(label, _cell(reader, where, CELLS[kind], options), "")]
    if kind == "StackedRNNCells":
        return _stacked(reader, label, options.get("cells"))
    if kind not in (*LAYERS, "RNN"):
        raise ValueError(f"{where} expected one of {', '.join([*LAYERS, 'RNN'])}, got {quote(kind, 40)}")
    if options.get("go_backwards", False) is not False:
        raise ValueError(f"{where}: go_backwards expected False, got {_shown(options)}; {REVERSED}")
    if kind in LAYERS:
        return [Half(label, _cell(reader, where, LAYERS[kind], options), "cell")]
    inner = options.get("cell")
    if isinstance(inner, list):  # of StackedRNNCells in Keras 2
        found = _stacked(reader, label, inner)
    else:
        kind, options = part(where, "cell", inner)
        if kind not in (*CELLS, "StackedRNNCells"):
            raise ValueError(
                f"{where}: cell expected one of {', '.join(CELLS)} or StackedRNNCells, got {quote(kind, 40)}, whose "
                "equations are not in the configuration"
            )
        found = _layers(reader, label, kind, options)
    return [half._replace(stored="/".join(filter(None, ("cell", half.stored)))) for half in found]


def _stacked(reader: _Reader, label: str, cells: Any) -> list[Half]:
    """The layers of `StackedRNNCells`."""
    where = f"{reader.where}: {label}"
    if not isinstance(cells, list) or not cells:
        raise ValueError(f"{where}: cells expected a list of cells, got {describe(cells)}")
    parts = [part(where, f"cells[{k}]", cell) for k, cell in enumerate(cells)]
    halves = []
    for k, (place, (kind, options)) in enumerate(
        zip(numbered([snake_case(kind) for kind, _ in parts]), parts, strict=True)
    ):
        own = f"{label}: cells[{k}]"
        if kind not in CELLS:
            raise ValueError(f"{reader.where}: {own} expected one of {', '.join(CELLS)}, got {quote(kind, 40)}")
        cell = _cell(reader, f"{reader.where}: {own}", CELLS[kind], options)
        halves.append(Half(own, cell, f"cells/{place}", (str(options.get("name")),)))
    return halves


def _cell(reader: _Reader, where: str, kind: str, options: Mapping[str, Any]) -> Cell:
    """Our cell with the options of one of Keras's."""
    if "units" not in options and "output_dim" in options:
        raise ValueError(
            f"{where}: units expected an integer, got output_dim, as Keras 1 called it; load the model in Keras 2 and "
            "save it again"
        )
    size = _checks.size(where, "units", options.get("units"))
    own: dict[str, Any] = {"num_heads": reader.num_heads}
    own["use_bias"] = _checks.boolean(where, "use_bias", options.get("use_bias", True))
    for name in ("activation",) if kind == "rnn" else ("activation", "recurrent_activation"):
        if name not in options:
            raise ValueError(f"{where}: {name} expected an entry in the configuration, got none")
        own[name] = activation(f"{where}: {name}", options[name], reader.major)
    if kind == "gru":  # the versions that did not write it had the form before the product
        own["reset_after"] = _checks.boolean(where, "reset_after", options.get("reset_after", False))
    try:
        return FACTORIES[kind](size, **own)
    except (TypeError, ValueError) as error:  # of options that do not go together
        raise type(error)(f"{where}: {cut(str(error), 300)}") from error


# Networks


def network_of(where: str, nodes: Sequence[Node]) -> Network:
    """The layers, one over the other."""
    merges = {node.merge: node for node in nodes if node.merge}
    if len(merges) > 1:
        (first, one), (second, other) = list(merges.items())[:2]
        raise ValueError(
            f"{where}: merge_mode expected {quote(first)} of {other.entry.label}, as of {one.entry.label}, got "
            f"{quote(second)}; a network merges in one way: convert each with prefix="
        )
    layers = [from_directions([half.cell for half in halves]) for node in nodes for halves in node.layers]
    return stack(layers, merge=next(iter(merges), "concat"))


def check_params(where: str, node: Node, params: tuple[Params, ...]) -> None:
    """Raises unless the weights of a node are those of its configuration."""
    if len(params) != len(node.layers):
        raise ValueError(
            f"{where}: {node.entry.label} expected weights of {len(node.layers)} layers, got those of {len(params)}"
        )
    for halves, layer in zip(node.layers, params, strict=True):
        own = directions(layer)
        if len(own) != len(halves):
            one, two = "weights of one direction", "weights of two directions"
            wanted, got = (one, two) if len(halves) == 1 else (two, one)
            raise ValueError(f"{where}: {node.entry.label} expected {wanted}, got {got}")
        for half, record in zip(halves, own, strict=True):
            _check_record(where, half, record)


def _check_record(where: str, half: Half, record: Any) -> None:
    config: Any = half.cell.config
    expected = config.shapes(len(record.w_x))
    if type(record) is not type(expected):
        got = type(record).__name__
        raise ValueError(f"{where}: {half.label} expected weights of {type(expected).__name__}, got {got}")
    for name, want in expected._asdict().items():
        array = getattr(record, name)
        got = None if array is None else array.shape
        if name != "w_h" and got != want:  # w_h is split into heads later, and has the units of w_x
            hint = "" if name == "w_x" else "; do use_bias and reset_after of the configuration go with these weights?"
            raise ValueError(f"{where}: {half.label}: {name} expected shape {want}, got {got}{hint}")
