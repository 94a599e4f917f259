"""Converts networks and cells to plain data and back: the configuration in a saved file.

A cell is ``{"factory": "lstm", "hidden_size": 256, ...}``, every option of its factory by
name; a stack ``{"factory": "stack", "cells": [...], "merge": "concat", "dropout": 0.0,
"residual": false}``, where a layer that reads both ways is ``{"forward": ..., "backward":
...}``. Initialisers are left out: they are not needed once there are parameters.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from jaxrnn import _checks
from jaxrnn._types import CELL_TYPES, AnyCell, Cell, CellConfig, format_value
from jaxrnn.cells import gru, indrnn, lstm, mgu, regularize, rnn
from jaxrnn.network import Bidirectional, Network, stack, walk

FACTORIES: dict[str, Callable[..., Cell]] = {f.__name__: f for f in (rnn, lstm, gru, mgu, indrnn, regularize)}
STACK = ("cells", "merge", "dropout", "residual")


def describe(network: Network | AnyCell) -> dict[str, Any]:
    """`network` as dictionaries, lists, strings, numbers and booleans.

    Raises:
        TypeError, ValueError: naming the layer, for a cell that the library does not make, and
            for an activation or a merge that is a callable.
    """
    if isinstance(network, CELL_TYPES):
        return _describe_cell("", network)
    if callable(network.merge):
        given = format_value(network.merge)
        raise ValueError(f"merge expected a name, got {given}; a function cannot be written as data")
    layers = []
    for ways in walk(network.layers):
        entries = [_describe_cell(f"layers{way.path}", way.cell) for way in ways]
        layers.append(entries[0] if len(ways) == 1 else dict(zip(Bidirectional._fields, entries, strict=True)))
    values = (layers, network.merge, network.dropout, network.residual)
    return {"factory": "stack", **dict(zip(STACK, values, strict=True))}


def build(entry: Any) -> Network | Cell:
    """The network or cell that `entry` describes: the inverse of `describe`.

    Raises:
        ValueError: for a cell or an option that this version does not know, and for values
            that the factory refuses.
    """
    if not isinstance(entry, Mapping) or entry.get("factory") != "stack":
        return _build_cell(entry)
    options = _options("stack", entry, STACK)
    cells = options.get("cells")
    if not isinstance(cells, list):
        raise ValueError(f"stack: cells expected a list, got {_checks.describe(cells)}")
    return _called(stack, {**options, "cells": [_build_layer(cell) for cell in cells]})


def equations(entry: Any) -> Any:
    """The entries of `describe` that outputs depend on in evaluation: without dropout, but with zoneout's mean."""
    if isinstance(entry, list):
        return [equations(item) for item in entry]
    if not isinstance(entry, dict):
        return entry
    quiet = {"stack": ("dropout",), "regularize": ("input_dropout", "recurrent_dropout", "dropconnect")}
    left_out = quiet.get(entry.get("factory", ""), ())
    kept = {name: equations(value) for name, value in entry.items() if name not in left_out}
    if kept.get("factory") == "regularize" and not any(jax.tree.leaves(kept.get("zoneout"))):
        return kept["cell"]
    return kept


def _describe_cell(at: str, cell: AnyCell) -> dict[str, Any]:
    config = cell.config
    if config is None or config.factory not in FACTORIES:
        raise TypeError(f"{at or 'cell'} expected one that the library makes, got {cell!r}, which is your own")
    return _describe_config(at, config)


def _describe_config(at: str, config: CellConfig) -> dict[str, Any]:
    entry: dict[str, Any] = {"factory": config.factory}
    for name, value in config.options.items():
        path = f"{at}.{name}" if at else name
        if callable(value):
            raise ValueError(f"{path} expected a name, got {format_value(value)}; a function cannot be written as data")
        if isinstance(value, CellConfig):
            value = _describe_config(path, value)
        elif isinstance(value, tuple):  # one rate for each part of a state, by name
            value = dict(zip(getattr(value, "_fields", ()), value, strict=True))
        entry[name] = value
    return entry


def _build_layer(entry: Any) -> Cell | Bidirectional:
    if isinstance(entry, Mapping) and set(entry) == set(Bidirectional._fields):
        return Bidirectional(**{name: _build_cell(half) for name, half in entry.items()})
    return _build_cell(entry)


def _build_cell(entry: Any) -> Cell:
    name = entry.get("factory") if isinstance(entry, Mapping) else None
    if not isinstance(name, str) or name not in FACTORIES:
        raise ValueError(
            f"factory expected one of {', '.join(FACTORIES)}, got {_checks.describe(entry if name is None else name)}"
        )
    factory = FACTORIES[name]
    known = [option for option in inspect.signature(factory).parameters if not option.endswith("_init")]
    options = _options(name, entry, known)
    if "cell" in options:
        options["cell"] = _build_cell(options["cell"])
    if isinstance(options.get("zoneout"), Mapping) and "cell" in options:
        state = jax.eval_shape(options["cell"].initial_state)
        options["zoneout"] = _called(type(state), options["zoneout"])
    return _called(factory, options)


def _options(factory: str, entry: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """The options in a description; raises for one that the factory does not have."""
    options = {name: value for name, value in entry.items() if name != "factory"}
    for name in options:
        _checks.one_of(factory, "option", name, tuple(known))
    return options


def _called(factory: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """`factory(**options)`; its errors are raised as `ValueError`, as faults of the description."""
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ValueError(f"{factory.__name__}: {error}") from error
    try:
        return factory(**options)
    except (TypeError, NotImplementedError) as error:
        raise ValueError(str(error)) from error
