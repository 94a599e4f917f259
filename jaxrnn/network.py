"""Stacks of cells: layers of any sizes and kinds, one or both directions, dropout between them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _checks
from jaxrnn._bound import Bound
from jaxrnn._describe import cut
from jaxrnn._types import CELL_TYPES, AnyArray, AnyCell, Cell, LayerRules, Params, PyTree, State, format_call
from jaxrnn.sequence import registry
from jaxrnn.sequence.unroll import unroll


def _concat(forward: Array, backward: Array) -> Array:
    return jnp.concatenate([forward, backward], axis=-1)


def _average(forward: Array, backward: Array) -> Array:
    return (forward + backward) / 2


Merge = Callable[[Array, Array], Array]
MERGES: dict[str, Merge] = {"concat": _concat, "sum": jnp.add, "mul": jnp.multiply, "average": _average}


class Bidirectional(NamedTuple):
    """The two cells, parameters or states of a layer that reads in both directions."""

    forward: Any
    backward: Any


Layer = AnyCell | Bidirectional

# The walk over layers and directions. An entry is a layer, its parameters or its states.


def directions(entry: Any) -> tuple[Any, ...]:
    """The parts of an entry, one a direction: two of a :class:`Bidirectional`, else the entry itself."""
    return tuple(entry) if isinstance(entry, Bidirectional) else (entry,)


def from_directions(parts: Sequence[Any]) -> Any:
    """The inverse of `directions`."""
    return Bidirectional(*parts) if len(parts) == 2 else parts[0]


class Direction(NamedTuple):
    """One cell of a network, with its parts of other trees, such as its parameters."""

    path: str  # after the name of a tuple over layers, such as "[0].forward"
    reverse: bool
    cell: Any
    parts: tuple[Any, ...]  # one of each tree that is walked with the layers


def walk_layer(k: int, layer: Any, *entries: Any) -> list[Direction]:
    """The directions of layer `k`, with their parts of its entries."""
    cells = directions(layer)
    parts = zip(*map(directions, entries), strict=True) if entries else ((),) * len(cells)
    names = [f".{name}" for name in Bidirectional._fields] if len(cells) == 2 else [""]
    return [
        Direction(f"[{k}]{name}", reverse, cell, tuple(own))
        for name, reverse, cell, own in zip(names, (False, True), cells, parts, strict=False)
    ]


def walk(layers: Sequence[Any], *trees: Sequence[Any]) -> Iterator[list[Direction]]:
    """The directions of every layer of a network, from the input up."""
    for k, (layer, *entries) in enumerate(zip(layers, *trees, strict=True)):
        yield walk_layer(k, layer, *entries)


class Network(NamedTuple):
    """A stack of layers as a record of pure functions; made by :func:`stack`.

    Parameters and states are tuples over layers. The final states of one chunk of a stream are
    the initial states of the next.

    Attributes:
        init: ``(key, input_size, dtype=None) -> params``.
        initial_state: ``(batch_shape=(), dtype=None) -> states``.
        unroll: ``(params, xs, states=None, *, key=None, **options) -> (states, ys)``, with
            the options of :func:`jaxrnn.unroll`; ``reset_state`` has the structure of
            ``states``, and ``return_states=True`` adds the states of every layer after
            every step. ``key`` turns on dropout and the noise of regularised cells.
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

    def __repr__(self) -> str:
        options = {"merge": self.merge, "dropout": self.dropout, "residual": self.residual}
        return format_call("stack", {"cells": list(self.layers), **options}, self._field_defaults)


class _Plan(NamedTuple):
    layers: tuple[Layer, ...]
    merge: str | Merge
    dropout: float
    residual: bool

    @property
    def is_bidirectional(self) -> bool:
        """Whether any layer reads both ways."""
        return any(len(directions(layer)) == 2 for layer in self.layers)


def merge_of(merge: str | Merge) -> Merge:
    """The function that merges the outputs of two directions."""
    return MERGES[merge] if isinstance(merge, str) else merge


def merged(merge: str | Merge, outputs: Sequence[Array]) -> Array:
    """One output of those of a layer's directions."""
    return merge_of(merge)(*outputs) if len(outputs) == 2 else outputs[0]


def _output_size(cell: Any) -> int:
    """The size of a cell's output, which does not depend on its input."""

    def run(key: Array) -> Array:
        return cell.step(cell.init(key, 1), cell.initial_state(), jnp.zeros(1))[1]

    return jax.eval_shape(run, jax.random.key(0)).shape[-1]


def _layer_size(layer: Layer, merge: Merge) -> int:
    sizes = [_output_size(cell) for cell in directions(layer)]
    if len(sizes) == 1:
        return sizes[0]
    try:
        return jax.eval_shape(merge, *(jax.ShapeDtypeStruct((size,), jnp.float32) for size in sizes)).shape[-1]
    except (TypeError, ValueError) as error:
        raise ValueError(f"stack: merge expected directions of equal sizes, got {sizes[0]} and {sizes[1]}") from error


def _init(plan: _Plan, key: Array, input_size: int, dtype: Any = None) -> Params:
    """A tuple over layers of the cells' parameters."""
    size, params = _checks.positive_int("stack.init", "input_size", input_size), []
    for layer, key_layer in zip(plan.layers, jax.random.split(key, len(plan.layers)), strict=True):
        cells = directions(layer)
        keys = jax.random.split(key_layer) if len(cells) == 2 else (key_layer,)
        params.append(from_directions([cell.init(k, size, dtype) for cell, k in zip(cells, keys, strict=True)]))
        size = _layer_size(layer, merge_of(plan.merge))
    return tuple(params)


def _initial_state(plan: _Plan, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> State:
    """A tuple over layers of the cells' initial states."""
    return tuple(
        from_directions([cell.initial_state(batch_shape, dtype) for cell in directions(layer)]) for layer in plan.layers
    )


def _drop(rate: float, key: Array, ys: Array) -> Array:
    keep = jax.random.bernoulli(key, 1 - rate, ys.shape)
    return jnp.where(keep, ys / (1 - rate), jnp.zeros_like(ys))


def run_layers(
    plan: Any,
    run: Callable[[Direction, Any], tuple[Any, Array]],
    xs: Any,
    *trees: Sequence[Any],
    between: Callable[[int, Array], Array] = lambda k, ys: ys,
) -> tuple[list[list[Any]], Array]:
    """Runs every layer over the outputs of the one below it.

    `run(direction, xs) -> (kept, ys)` runs one direction, with its parts of the trees; `between(k, ys)`
    changes what the next layer reads. `plan` is a network or its plan.

    Returns:
        What was kept, by layer and direction, and the outputs of the last layer.
    """
    kept = []
    for k, ways in enumerate(walk(plan.layers, *trees)):
        found = [run(way, xs) for way in ways]
        kept.append([own for own, _ in found])
        outputs = [ys for _, ys in found]
        ys = merged(plan.merge, outputs)
        ys = ys + xs if plan.residual and k else ys
        xs = between(k, ys) if k < len(plan.layers) - 1 else ys
    return kept, xs


def _unroll(
    plan: _Plan,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    states: State | None = None,
    *,
    key: Array | None = None,
    reset_state: State | None = None,
    reverse: bool = False,
    **options: Any,
) -> tuple[Any, ...]:
    """Runs every layer over the outputs of the one below it."""
    where, depth = "stack.unroll", len(plan.layers)
    _check_layers(where, "params", params, plan.layers)
    for name, given in (("states", states), ("reset_state", reset_state)):
        if given is not None:
            _check_layers(where, name, given, plan.layers)
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

    def dropped(k: int, ys: Array) -> Array:
        return _drop(plan.dropout, keys[k][1], ys) if drops else ys

    none = [from_directions([None] * len(cells)) for cells in layers]
    trees = (params, none if states is None else states, none if reset_state is None else reset_state, cell_keys)
    kept, ys = run_layers(plan, run, xs, *trees, between=dropped)
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
    between = plan.residual or (plan.is_bidirectional and merge_of(plan.merge) is not _concat)
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
        name=f"stack([{', '.join(map(repr, plan.layers))}])",
    )
    finals, ys = unroll(cell, params, xs, states, **options)
    return finals, merged(plan.merge, jnp.split(ys, len(layers[0]), axis=-1))


def _check_as_one_cell(plan: _Plan, where: str, params: Params, input_shape: tuple[int, ...]) -> None:
    """Runs the checks of the cells; each layer reads the concatenated directions below it."""
    for ways in walk(plan.layers, params):
        for way in ways:
            way.cell.check(where, *way.parts, input_shape)
        input_shape = (*input_shape[:-1], sum(_output_size(way.cell) for way in ways))


def _step(plan: _Plan, params: Params, states: State, x: Float[AnyArray, "*B I"]) -> tuple[State, Array]:
    """One step of every layer; each reads the output of the one below it."""
    where = "stack.step"
    if plan.is_bidirectional:
        raise ValueError(f"{where}: expected a unidirectional network; a bidirectional one needs the whole sequence")
    _check_layers(where, "params", params, plan.layers)
    _check_layers(where, "states", states, plan.layers)
    kept, y = run_layers(plan, lambda way, y: way.cell.step(*way.parts, y), jnp.asarray(x), params, states)
    return tuple(state for (state,) in kept), y


def _check_layers(where: str, name: str, value: Any, layers: tuple[Layer, ...]) -> None:
    if not isinstance(value, tuple) or hasattr(value, "_fields") or len(value) != len(layers):
        raise TypeError(
            f"{where}: {name} expected a tuple over {len(layers)} layers, got {_checks.describe(value)}; "
            "those of a single cell are one entry of it"
        )
    for k, (layer, entry) in enumerate(zip(layers, value, strict=True)):
        check_directions(where, f"{name}[{k}]", layer, entry)


def check_directions(where: str, name: str, layer: Any, entry: Any) -> None:
    """Raises unless an entry has the directions of the layer it belongs to."""
    if len(directions(layer)) != len(directions(entry)):
        kind = "one direction" if len(directions(layer)) == 1 else "a Bidirectional(forward, backward)"
        raise TypeError(f"{where}: {name} expected {kind}, got {_checks.describe(entry)}")


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
            by 1 - rate.
        residual: adds a layer's input to its output, from the second layer on.

    Returns:
        A :class:`Network`.

    Raises:
        TypeError, ValueError: for no layers, entries that are not cells, a rate outside
            [0, 1), an unknown merge, or unequal sizes with a merge or residual that needs
            equal ones.

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
    if isinstance(cells, (*CELL_TYPES, Bidirectional)) or not isinstance(cells, Sequence):
        raise TypeError(f"stack: cells expected a sequence of cells, got {_checks.describe(cells)}; wrap one in a list")
    if not cells:
        raise ValueError("stack: cells expected at least one, got none")
    bidirectional = _checks.boolean("stack", "bidirectional", bidirectional)
    layers = tuple(_check_layer(k, cell, bidirectional) for k, cell in enumerate(cells))
    _checks.name_or_function("stack", "merge", merge, tuple(MERGES))
    plan = _Plan(
        layers, merge, _checks.rate("stack", "dropout", dropout), _checks.boolean("stack", "residual", residual)
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


def count_params(params: Params) -> int:
    """The number of parameters: the entries of all arrays of any pytree.

    RNN H(I + H + 1), LSTM 4 times that, GRU 3 times that and H for `b_hn`; LSTM with projection
    4H(I + P + 1) + HP. PyTorch also has a second bias for each layer and direction: H, 4H, and
    for the GRU 2H more than here.

    Args:
        params: any pytree of arrays, such as those of a cell or a network.

    Returns:
        A Python integer.

    Raises:
        TypeError: naming the leaf, if one is no array of numbers, as random keys are none.

    Example:
        >>> import jax, jaxrnn
        >>> jaxrnn.count_params(jaxrnn.lstm(256).init(jax.random.key(0), 128))
        394240
    """
    where, total = "count_params", 0
    for path, leaf in _checks.leaves_with_path(where, "params", params):
        size = _checks.size_of(leaf)
        if size is None:
            at = f"params{cut(jax.tree_util.keystr(path), 80)}"
            hint = "; give the params, such as `init` returns" if isinstance(params, (Network, *CELL_TYPES)) else ""
            hint = (
                "; of a module count its `.params`" if isinstance(_checks.attribute(params, "params"), tuple) else hint
            )
            raise TypeError(f"{where}: {at} expected an array of numbers, got {_checks.describe(leaf)}{hint}")
        total += size
    return total
