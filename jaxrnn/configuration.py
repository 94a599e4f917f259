"""Converts networks and cells to plain data and back: the configuration in a saved file.

A cell is ``{"factory": "lstm", "hidden_size": 256, ...}``, every option of its factory by
name; a stack ``{"factory": "stack", "cells": [...], "merge": "concat", "dropout": 0.0,
"residual": false}``, where a layer that reads both ways is ``{"forward": ..., "backward":
...}``. No option is left to a default, which another version could change. Initialisers are
left out: they are not needed once there are parameters. Files from before an option existed lack
it, and have its value in `BEFORE`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from jaxrnn import _checks
from jaxrnn._describe import cut, quote
from jaxrnn._types import CELL_TYPES, AnyCell, Cell, CellConfig, format_value
from jaxrnn.cells import FAMILIES, Activation, attend, regularize
from jaxrnn.layers import Bidirectional, walk
from jaxrnn.network import Network, stack

FACTORIES: dict[str, Callable[..., Cell]] = {
    factory.__name__: factory for factory in (*(family.factory for family in FAMILIES), regularize, attend)
}
STACK = ("cells", "merge", "dropout", "residual")
MOST_NESTED = 64  # of `regularize` around each other
_HEADS = {"num_heads": 1}
_ACTIVATIONS = {"activation": "tanh", "recurrent_activation": "sigmoid"}
BEFORE = {  # what cells were before they had the option
    "rnn": _HEADS,
    "mgu": _HEADS,
    "lstm": _HEADS | _ACTIVATIONS,
    "gru": _HEADS | _ACTIVATIONS,
}


def describe(network: Network | AnyCell) -> dict[str, Any]:
    """`network` as dictionaries, lists, strings, numbers and booleans.

    Raises:
        TypeError, ValueError: naming the layer, for a cell that the library does not make,
            for an activation or a merge that is a callable, and for more than `MOST_NESTED`
            of `regularize` around each other.
    """
    if isinstance(network, CELL_TYPES):
        return _describe_cell("", network)
    if callable(network.merge):
        given = cut(str(format_value(network.merge)), 80)
        raise ValueError(f"merge expected a name, got {given}; a function cannot be written as data")
    layers = []
    for ways in walk(network.layers):
        entries = [_describe_cell(f"layers{way.path}", way.cell) for way in ways]
        layers.append(entries[0] if len(ways) == 1 else dict(zip(Bidirectional._fields, entries, strict=True)))
    values = (layers, network.merge, network.dropout, network.residual)
    return {"factory": "stack", **dict(zip(STACK, values, strict=True))}


def build(entry: Any, most_layers: int | None = None) -> Network | Cell:
    """The network or cell that `entry` describes: the inverse of `describe`.

    Args:
        entry: plain data, of any kind.
        most_layers: raises for a stack of more layers, before any of them is made.

    Raises:
        ValueError: naming the entry, for a cell or an option that this version does not know,
            and for values that the factory refuses.
    """
    at = "configuration"
    if not isinstance(entry, Mapping) or entry.get("factory") != "stack":
        return _build_cell(at, entry)
    options = _options(at, "stack", entry, STACK)
    cells = options.get("cells")
    if not isinstance(cells, list):
        raise ValueError(f"{at}: stack: cells expected a list, got {_checks.describe(cells)}")
    if most_layers is not None and len(cells) > most_layers:
        raise ValueError(f"{at}: stack: cells expected at most {most_layers}, got {len(cells)}")
    layers = [_build_layer(f"{at}.cells[{k}]", cell) for k, cell in enumerate(cells)]
    return _called(at, stack, {**options, "cells": layers})


def build_call(factory: Callable[..., Any], entry: Mapping[str, Any]) -> Any:
    """What a factory makes with the options in `entry`, all of them and no others.

    Raises:
        ValueError: naming the option.
    """
    known = [option for option in inspect.signature(factory).parameters if not option.endswith("_init")]
    return _called("configuration", factory, _options("configuration", factory.__name__, entry, known))


def equations(entry: Any) -> Any:
    """The entries of `describe` that outputs depend on in evaluation: without dropout, or what draws parameters."""
    if isinstance(entry, list):
        return [equations(item) for item in entry]
    if not isinstance(entry, dict):
        return entry
    quiet = {
        "stack": ("dropout",),
        "regularize": ("input_dropout", "recurrent_dropout", "dropconnect"),
        "lru": ("r_min", "r_max", "max_phase"),  # of the initial parameters alone
    }
    left_out = quiet.get(entry.get("factory", ""), ())
    kept = {name: equations(value) for name, value in entry.items() if name not in left_out}
    if kept.get("factory") == "regularize" and not any(jax.tree.leaves(kept.get("zoneout"))):
        return kept["cell"]
    return kept


def _describe_cell(at: str, cell: AnyCell) -> dict[str, Any]:
    config = cell.config
    if config is None or config.factory not in FACTORIES:
        raise TypeError(
            f"{at or 'cell'} expected one that the library makes, got {cut(repr(cell), 80)}, which is your own"
        )
    return _describe_config(at, config)


def _describe_config(at: str, config: CellConfig, nested: int = 0) -> dict[str, Any]:
    if nested > MOST_NESTED:
        raise ValueError(f"{cut(at, 60)} expected at most {MOST_NESTED} of regularize around each other")
    entry: dict[str, Any] = {"factory": config.factory}
    for name, value in config.options.items():
        path = f"{at}.{name}" if at else name
        if isinstance(value, Activation):
            value = dataclasses.asdict(value)
        elif callable(value):
            given = cut(str(format_value(value)), 80)
            raise ValueError(f"{cut(path, 60)} expected a name, got {given}; a function cannot be written as data")
        if isinstance(value, CellConfig):
            value = _describe_config(path, value, nested + 1)
        elif isinstance(value, tuple):  # one rate for each part of a state, by name
            value = dict(zip(getattr(value, "_fields", ()), value, strict=True))
        entry[name] = value
    return entry


def _build_layer(at: str, entry: Any) -> Cell | Bidirectional:
    if isinstance(entry, Mapping) and set(entry) == set(Bidirectional._fields):
        return Bidirectional(**{name: _build_cell(f"{at}.{name}", half) for name, half in entry.items()})
    return _build_cell(at, entry)


def _build_cell(at: str, entry: Any, nested: int = 0) -> Cell:
    if nested > MOST_NESTED:
        raise ValueError(f"{cut(at, 60)}: expected at most {MOST_NESTED} of regularize around each other")
    name = entry.get("factory") if isinstance(entry, Mapping) else None
    if not isinstance(name, str) or name not in FACTORIES:
        given = _checks.describe(entry if name is None else name)
        raise ValueError(f"{cut(at, 60)}: factory expected one of {', '.join(FACTORIES)}, got {given}")
    factory = FACTORIES[name]
    known = [option for option in inspect.signature(factory).parameters if not option.endswith("_init")]
    options = _options(at, name, entry, known)
    if "cell" in options:
        options["cell"] = _build_cell(f"{at}.cell", options["cell"], nested + 1)
    for option in ("activation", "recurrent_activation"):
        if isinstance(options.get(option), Mapping):
            options[option] = _called(f"{at}.{option}", Activation, options[option])
    if isinstance(options.get("zoneout"), Mapping) and "cell" in options:
        options["zoneout"] = _build_rates(f"{at}.zoneout", options["cell"], options["zoneout"])
    return _called(at, factory, options)


def _build_rates(at: str, cell: Cell, entry: Mapping[str, Any]) -> Any:
    """The rates of the parts of a state, by name."""
    state = jax.eval_shape(cell.initial_state)
    if not hasattr(state, "_fields"):
        raise ValueError(f"{cut(at, 60)} expected a rate, got {_checks.describe(entry)}; the state is one array")
    return _called(at, type(state), entry)


def _options(at: str, factory: str, entry: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """The options in a description, all that the factory has and no others; raises for integers that no size is."""
    options = {name: value for name, value in entry.items() if name != "factory"}
    where, most = f"{cut(at, 60)}: {factory}", _checks.LARGEST_SIZE
    for name in options:
        _checks.one_of(where, "option", name, tuple(known))
    options = BEFORE.get(factory, {}) | options
    for name in known:
        if name not in options:
            raise ValueError(f"{where}: {name} is missing")
    for name, value in options.items():
        if _checks.is_integer(value) and value > most:
            raise ValueError(f"{where}: {name} expected at most {most}, got {quote(value)}")
    return options


def _called(at: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """`factory(**options)`; its errors are raised as `ValueError`, as faults of the description."""
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ValueError(f"{cut(at, 60)}: {factory.__name__}: {error}") from error
    try:
        return factory(**options)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{cut(at, 60)}: {error}") from error
