"""Stacks of cells: layers of any sizes and kinds, one or both directions, dropout between them."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _checks
from jaxrnn._bound import Bound
from jaxrnn._describe import cut
from jaxrnn._types import (
    CELL_TYPES,
    NOT_GIVEN,
    AnyArray,
    Cell,
    LayerRules,
    NotGiven,
    Params,
    PyTree,
    State,
    format_call,
)
from jaxrnn.cells._noise import dropped
from jaxrnn.layers import (
    MERGES,
    Bidirectional,
    Direction,
    Layer,
    Merge,
    check_layers,
    concat,
    directions,
    from_directions,
    merge_of,
    merged,
    run_layers,
    walk,
)
from jaxrnn.sequence import registry
from jaxrnn.sequence.arguments import warn_of_silence
from jaxrnn.sequence.inspection import is_own
from jaxrnn.sequence.unroll import unroll

MOST_LAYERS = 2**16  # each is a loop of its own in the compiled program


class Network(NamedTuple):
    """A stack of layers as a record of pure functions; made by :func:`stack`.

    Parameters and states are tuples over layers. The final states of one chunk of a stream are
    the initial states of the next.

    Attributes:
        init: ``(key, input_size, dtype=None) -> params``.
        initial_state: ``(batch_shape=(), dtype=None) -> states``.
        unroll: ``(params, xs, states=None, *, key, **options) -> (states, ys)``, with
            the options of :func:`jaxrnn.unroll`; ``reset_state`` has the structure of
            ``states``, and ``return_states=True`` adds the states of every layer after
            every step. ``key`` turns on dropout and the noise of regularised cells; ``None``
            evaluates, and so does a forgotten key, with a warning.
        step: ``(params, states, x) -> (states, y)``, for streaming; unidirectional only.
        layers: the cells, a :class:`Bidirectional` of two where a layer reads both ways.
        merge, dropout, residual: as given to :func:`stack`.
    """

    init: Callable[..., Params]
    initial_state: Callable[..., State]
    unroll: Callable[..., tuple[Any, ...]]
    step: Callable[[Params, State, PyTree], tuple[State, PyTree]]
    layers: tuple[Layer, ...]
    merge: str | Merge = "concat"
    dropout: float = 0.0
    residual: bool = False

    def __deepcopy__(self, memo: Any) -> "Network":
        return self  # immutable

    def __call__(self, *args: Any, **options: Any) -> Any:
        raise TypeError("Network: a network is not called; use net.unroll(params, xs), or net.step(params, states, x)")

    def __repr__(self) -> str:
        return _Plan(self.layers, self.merge, self.dropout, self.residual).name


DEFAULTS = {"merge": "concat", "dropout": 0.0, "residual": False}


class _Plan(NamedTuple):
    layers: tuple[Layer, ...]
    merge: str | Merge
    dropout: float
    residual: bool

    @property
    def name(self) -> str:
        """What messages call the network."""
        options = {"merge": self.merge, "dropout": self.dropout, "residual": self.residual}
        return format_call("stack", {"cells": list(self.layers), **options}, DEFAULTS)

    @property
    def has_noise(self) -> bool:
        """Whether a key changes what it computes."""
        cells = [cell for layer in self.layers for cell in directions(layer)]
        return (self.dropout > 0 and len(self.layers) > 1) or any(cell.sample is not None for cell in cells)

    @property
    def is_bidirectional(self) -> bool:
        """Whether any layer reads both ways."""
        return any(len(directions(layer)) == 2 for layer in self.layers)


def output_size(cell: Any) -> int:
    """The size of a cell's output, which does not depend on its input."""

    def run(key: Array) -> Array:
        return cell.step(cell.init(key, 1), cell.initial_state(), jnp.zeros(1))[1]

    if cell.output_size is not None:
        if cell.config is not None and is_own(cell.equations):  # an activation that does not fit is refused here
            jax.eval_shape(run, jax.random.key(0))
        return _checks.size("stack", f"output_size of {cell!r}", cell.output_size)
    try:
        return jax.eval_shape(run, jax.random.key(0)).shape[-1]
    except Exception as error:  # functions of the user's may raise anything
        raise ValueError(
            f"stack: output_size of {_checks.describe(cell)} is not given, and cannot be learnt from init(key, 1) and "
            f"step, which raised {type(error).__name__}: {cut(str(error), 150)}; give Cell(..., output_size=)"
        ) from error


def _layer_size(layer: Layer, merge: Merge) -> int:
    sizes = [output_size(cell) for cell in directions(layer)]
    if len(sizes) == 1:
        return sizes[0]
    try:
        return jax.eval_shape(merge, *(jax.ShapeDtypeStruct((size,), jnp.float32) for size in sizes)).shape[-1]
    except (TypeError, ValueError) as error:
        raise ValueError(f"stack: merge expected directions of equal sizes, got {sizes[0]} and {sizes[1]}") from error


def _init(plan: _Plan, key: Array, input_size: int, dtype: Any = None) -> Params:
    """A tuple over layers of the cells' parameters."""
    size, params = _checks.size("stack.init", "input_size", input_size), []
    dtype = _checks.float_dtype("stack.init", "dtype", dtype)
    keys = jax.random.split(_checks.key("stack.init", "key", key), len(plan.layers))
    for layer, key_layer in zip(plan.layers, keys, strict=True):
        cells = directions(layer)
        keys = jax.random.split(key_layer) if len(cells) == 2 else (key_layer,)
        params.append(from_directions([cell.init(k, size, dtype) for cell, k in zip(cells, keys, strict=True)]))
        size = _layer_size(layer, merge_of(plan.merge))
    return tuple(params)


def _initial_state(plan: _Plan, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> State:
    """A tuple over layers of the cells' initial states."""
    batch_shape = _checks.batch_shape("stack.initial_state", batch_shape)
    dtype = _checks.float_dtype("stack.initial_state", "dtype", dtype)
    return tuple(
        from_directions([cell.initial_state(batch_shape, dtype) for cell in directions(layer)]) for layer in plan.layers
    )


def _unroll(
    plan: _Plan,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    states: State | None = None,
    *,
    key: Array | NotGiven | None = NOT_GIVEN,
    reset_state: State | None = None,
    reverse: bool = False,
    **options: Any,
) -> tuple[Any, ...]:
    """Runs every layer over the outputs of the one below it."""
    where, depth = "stack.unroll", len(plan.layers)
    if key is NOT_GIVEN:
        warn_of_silence(where, plan.has_noise, plan.name)
        key = None
    elif key is not None:
        key = _checks.key(where, "key", key)
    reverse = _checks.boolean(where, "reverse", reverse)
    check_layers(where, "params", params, plan.layers)
    for name, given in (("states", states), ("reset_state", reset_state)):
        if given is not None:
            check_layers(where, name, given, plan.layers)
    if reverse and plan.is_bidirectional:
        raise ValueError(
            f"{where}: reverse expected False for a bidirectional network, which reads both ways; got True"
        )
    implementation = registry.named(where, options.get("implementation"))
    drops = bool(plan.dropout) and key is not None and depth > 1
    layers = tuple(directions(layer) for layer in plan.layers)
    if implementation is not None and not drops and _is_one_cell(plan) and implementation.supports_layers(layers):
        return _unroll_as_one_cell(plan, params, xs, states, dict(options, reset_state=reset_state, reverse=reverse))
    keys: Any = [(None, None)] * depth if key is None else jax.random.split(key, (depth, 2))
    cell_keys = [_split_key(layer, own) for layer, (own, _) in zip(plan.layers, keys, strict=True)]

    def run(way: Direction, xs: Any) -> tuple[Any, Array]:
        own, state, reset, cell_key = way.parts
        given = {"key": cell_key, "reset_state": reset, "reverse": reverse or way.reverse, **options}
        final, ys, *over_time = unroll(way.cell, own, xs, state, **given)
        return (final, *over_time), ys

    def between(k: int, ys: Array) -> Array:
        return dropped(keys[k][1], plan.dropout, ys) if drops else ys

    none = [from_directions([None] * len(cells)) for cells in layers]
    trees = (params, none if states is None else states, none if reset_state is None else reset_state, cell_keys)
    kept, ys = run_layers(plan, run, xs, *trees, between=between)
    by_layer = ([from_directions(part) for part in zip(*layer, strict=True)] for layer in kept)
    finals, *over_time = zip(*by_layer, strict=True)
    return (finals, ys, *over_time)


def _split_key(layer: Layer, key: Array | None) -> Any:
    """The keys of a layer's directions."""
    if len(directions(layer)) == 1:
        return key
    return Bidirectional(*((None, None) if key is None else jax.random.split(key)))


# A network as one cell, for an implementation that runs all layers in one call


def _is_one_cell(plan: _Plan) -> bool:
    """Whether its layers read the outputs below as they are, or two directions of them concatenated."""
    between = plan.residual or (plan.is_bidirectional and merge_of(plan.merge) is not concat)
    return len(plan.layers) == 1 or not between


def _unroll_as_one_cell(
    plan: _Plan, params: Params, xs: AnyArray, states: State | None, options: dict[str, Any]
) -> tuple[Any, ...]:
    """Runs all layers in one call."""
    layers = tuple(directions(layer) for layer in plan.layers)
    cell = Cell(
        init=Bound(_init, plan),
        initial_state=Bound(_initial_state, plan),
        step=Bound(_step, plan),
        rule=LayerRules(tuple(tuple(cell.rule for cell in layer) for layer in layers)),  # pyright: ignore
        check=Bound(_check_as_one_cell, plan),
        name=plan.name,
    )
    finals, ys = unroll(cell, params, xs, states, **options)
    return finals, merged(plan.merge, jnp.split(ys, len(layers[0]), axis=-1))


def _check_as_one_cell(plan: _Plan, where: str, params: Params, input_shape: tuple[int, ...]) -> None:
    """Runs the checks of the cells; each layer reads the concatenated directions below it."""
    for ways in walk(plan.layers, params):
        for way in ways:
            way.cell.check(where, *way.parts, input_shape)
        input_shape = (*input_shape[:-1], sum(output_size(way.cell) for way in ways))


def _step(plan: _Plan, params: Params, states: State, x: Float[AnyArray, "*B I"]) -> tuple[State, Array]:
    """One step of every layer; each reads the output of the one below it."""
    where = "stack.step"
    if plan.is_bidirectional:
        raise ValueError(f"{where}: expected a unidirectional network; a bidirectional one needs the whole sequence")
    check_layers(where, "params", params, plan.layers)
    check_layers(where, "states", states, plan.layers)
    kept, y = run_layers(
        plan, lambda way, y: way.cell.step(*way.parts, y), _checks.array(where, "x", x), params, states
    )
    return tuple(state for (state,) in kept), y


def _check_layer(k: int, layer: Any, bidirectional: bool) -> Layer:
    cells = directions(layer)
    if not all(isinstance(cell, CELL_TYPES) for cell in cells):
        raise TypeError(f"stack: cells[{k}] expected a Cell or a Bidirectional of two, got {_checks.describe(layer)}")
    return Bidirectional(layer, layer) if bidirectional and len(cells) == 1 else layer


def stack(
    cells: Sequence[Layer],
    *,
    bidirectional: bool = False,
    merge: str | Merge = "concat",
    dropout: float = 0.0,
    residual: bool = False,
) -> Network:
    """A network of layers, each reading the outputs of the one below it.

    Args:
        cells: one for each layer, of any kinds and sizes, from the input up. A layer with different
            cells for its two directions is given as `Bidirectional(forward, backward)`.
        bidirectional: every layer reads in both directions, with a cell of the same kind and
            separate parameters for each. With `lengths` the backward direction begins at the end
            of each sequence.
        merge: how two directions become one output: "concat", "sum", "mul", "average", or a
            callable of (forward, backward).
        dropout: the rate in [0, 1) at which outputs of every layer but the last are dropped,
            with a new dropout mask each step, when `unroll` is given a key. The rest is divided
            by 1 - rate. `key=None` evaluates.
        residual: adds a layer's input to its output, from the second layer on.

    Returns:
        A :class:`Network`.

    Raises:
        TypeError, ValueError: for no layers, entries that are not cells, a rate outside
            [0, 1), an unknown merge, or unequal sizes with a merge or residual that needs
            equal ones.

    Warns:
        UserWarning: for dropout with one layer, where it does nothing, as in PyTorch.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> net = jaxrnn.stack([jaxrnn.lstm(32), jaxrnn.gru(16)], bidirectional=True, dropout=0.1)
        >>> params = net.init(jax.random.key(0), 8)
        >>> states, ys = net.unroll(params, jnp.ones((20, 4, 8)), key=jax.random.key(1))
        >>> ys.shape, states[0].forward.c.shape
        ((20, 4, 32), (4, 32))

    References:
        Bidirectional: Schuster & Paliwal 1997. Dropout between layers: Zaremba, Sutskever &
        Vinyals 2014, arXiv:1409.2329.

    Differs from:
        1. PyTorch: layers may differ in size and kind; states are a tuple over layers.
        2. PyTorch: dropout is drawn from a key and off without one.
        3. Keras: `merge` is its `merge_mode`; "ave" is "average".
    """
    if isinstance(cells, (*CELL_TYPES, Bidirectional)):
        raise TypeError(f"stack: cells expected a list; write stack([cell]), got {_checks.describe(cells)}")
    if not isinstance(cells, (list, tuple)):
        raise TypeError(f"stack: cells expected a list of cells, got {_checks.describe(cells)}")
    if not cells:
        raise ValueError("stack: cells expected at least one, got none")
    _checks.size("stack", "the number of cells", len(cells), MOST_LAYERS)
    bidirectional = _checks.boolean("stack", "bidirectional", bidirectional)
    layers = tuple(_check_layer(k, cell, bidirectional) for k, cell in enumerate(cells))
    _checks.name_or_function("stack", "merge", merge, tuple(MERGES))
    plan = _Plan(
        layers, merge, _checks.rate("stack", "dropout", dropout), _checks.boolean("stack", "residual", residual)
    )
    if plan.dropout and len(layers) == 1:
        warnings.warn(
            f"stack: dropout = {plan.dropout} does nothing with one layer; it acts on the outputs of every layer but "
            "the last",
            stacklevel=2,
        )
    sizes = [_layer_size(layer, merge_of(merge)) for layer in layers]
    for k, (below, size) in enumerate(itertools.pairwise(sizes), start=1):
        if plan.residual and below != size:
            raise ValueError(
                f"stack: residual expected layers of equal sizes, got {below} below and {size} at layer {k}"
            )
    return Network(
        init=Bound(_init, plan),
        initial_state=Bound(_initial_state, plan),
        unroll=Bound(_unroll, plan),
        step=Bound(_step, plan),
        layers=layers,
        merge=merge,
        dropout=plan.dropout,
        residual=plan.residual,
    )
