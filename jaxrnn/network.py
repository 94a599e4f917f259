"""Stacks of cells: layers of any sizes and kinds, one or both directions, dropout between them."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _checks
from jaxrnn._types import AnyArray, Cell, Config, Params, PyTree, State, shown
from jaxrnn.backends import IMPLEMENTATIONS
from jaxrnn.backends.cudnn import in_one_call
from jaxrnn.sequence.unroll import unroll

MERGES: dict[str, Callable[[Array, Array], Array]] = {
    "concat": lambda forward, backward: jnp.concatenate([forward, backward], axis=-1),
    "sum": jnp.add,
    "mul": jnp.multiply,
    "average": lambda forward, backward: (forward + backward) / 2,
}


class Bidirectional(NamedTuple):
    """Two of a kind: cells, parameters or states of a layer read in both directions."""

    forward: Any
    backward: Any


class Network(NamedTuple):
    """A stack of layers as a record of pure functions; made by :func:`stack`.

    Parameters and states are tuples over layers, so that what one chunk of a stream leaves
    behind is what the next one takes.

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
    layers: tuple[Cell | Bidirectional, ...]
    merge: str | Callable[[Array, Array], Array] = "concat"
    dropout: float = 0.0
    residual: bool = False

    def __repr__(self) -> str:
        given = {"merge": self.merge, "dropout": self.dropout, "residual": self.residual}
        named = [f", {name}={shown(v)}" for name, v in given.items() if v != self._field_defaults[name]]
        return f"stack([{', '.join(map(repr, self.layers))}]{''.join(named)})"


class _Plan(NamedTuple):
    layers: tuple[Cell | Bidirectional, ...]
    merge: Callable[[Array, Array], Array]
    dropout: float
    residual: bool
    whole: Cell | None = None  # what "cudnn" runs in one call, if it can


def _per_cell(f: Callable[..., Any], layer: Cell | Bidirectional, *others: Any) -> Any:
    """`f` of a layer's cell, or of both of them as a `Bidirectional`."""
    if isinstance(layer, Bidirectional):
        pairs = (tuple(o[k] for o in others) for k in range(2))
        return Bidirectional(*(f(cell, *other) for cell, other in zip(layer, pairs, strict=True)))
    return f(layer, *others)


def _output_size(cell: Cell) -> int:
    """The last axis of a cell's output, which does not depend on what it reads."""

    def run(key: Array) -> Array:
        return cell.step(cell.init(key, 1), cell.initial_state(), jnp.zeros(1))[1]

    return jax.eval_shape(run, jax.random.key(0)).shape[-1]


def _layer_size(layer: Cell | Bidirectional, merge: Callable[[Array, Array], Array]) -> int:
    if isinstance(layer, Cell):
        return _output_size(layer)
    halves = [jax.ShapeDtypeStruct((_output_size(cell),), jnp.float32) for cell in layer]
    try:
        return jax.eval_shape(merge, *halves).shape[-1]
    except (TypeError, ValueError) as error:
        sizes = [half.shape[-1] for half in halves]
        raise ValueError(f"stack: merge expected directions of equal sizes, got {sizes[0]} and {sizes[1]}") from error


def _init(plan: _Plan, key: Array, input_size: int, dtype: Any = None) -> Params:
    """A tuple over layers of the cells' parameters."""
    size, params = _checks.positive_int("stack.init", "input_size", input_size), []
    for layer, key_layer in zip(plan.layers, jax.random.split(key, len(plan.layers)), strict=True):
        keys = jax.random.split(key_layer) if isinstance(layer, Bidirectional) else key_layer
        params.append(_per_cell(lambda cell, k, size=size: cell.init(k, size, dtype), layer, keys))
        size = _layer_size(layer, plan.merge)
    return tuple(params)


def _initial_state(plan: _Plan, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> State:
    """A tuple over layers of the cells' initial states."""
    return tuple(_per_cell(lambda cell: cell.initial_state(batch_shape, dtype), layer) for layer in plan.layers)


def _drop(rate: float, key: Array, ys: Array) -> Array:
    keep = jax.random.bernoulli(key, 1 - rate, ys.shape)
    return jnp.where(keep, ys / (1 - rate), jnp.zeros_like(ys))


def _run_layer(
    plan: _Plan, layer: Cell | Bidirectional, params: Params, xs: Any, state: State, key: Array | None, options: dict
) -> tuple[Any, ...]:
    """`unroll` of one layer, in one direction or both and merged."""
    if isinstance(layer, Cell):
        return unroll(layer, params, xs, state, key=key, **options)
    reset_state = options.pop("reset_state")
    keys = (None, None) if key is None else jax.random.split(key)
    halves = [
        unroll(
            layer[k], params[k], xs, state if state is None else state[k], reverse=bool(k), key=keys[k],
            reset_state=reset_state if reset_state is None else reset_state[k], **options,
        )
        for k in range(2)
    ]  # fmt: skip
    finals, outputs, *states = (Bidirectional(*both) for both in zip(*halves, strict=True))
    return finals, plan.merge(*outputs), *states


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
    if reverse and any(isinstance(layer, Bidirectional) for layer in plan.layers):
        raise ValueError(
            f"{where}: reverse expected False for a bidirectional network, which reads both ways; got True"
        )
    implementation = options.get("implementation")
    _checks.one_of(where, "implementation", implementation, (None, *IMPLEMENTATIONS))
    dropped = plan.dropout and key is not None and depth > 1
    if implementation == "cudnn" and plan.whole is not None and not dropped:
        return _unroll_whole(
            plan, plan.whole, params, xs, states, dict(options, reset_state=reset_state, reverse=reverse)
        )
    keys: Any = [(None, None)] * depth if key is None else jax.random.split(key, (depth, 2))
    outcomes = []
    for k, layer in enumerate(plan.layers):
        here = dict(options, reset_state=None if reset_state is None else reset_state[k])
        if not isinstance(layer, Bidirectional):
            here["reverse"] = reverse
        key_cell, key_drop = keys[k]
        outcome = _run_layer(plan, layer, params[k], xs, None if states is None else states[k], key_cell, here)
        ys = outcome[1] + xs if plan.residual and k else outcome[1]
        last = k == depth - 1
        xs = _drop(plan.dropout, key_drop, ys) if plan.dropout and key is not None and not last else ys
        outcomes.append(outcome)
    finals, _, *every = zip(*outcomes, strict=True)
    return (tuple(finals), xs, *(tuple(states) for states in every))


def _whole(plan: _Plan) -> Cell | None:
    """The network as one cell, if its layers have the form of one call of cuDNN."""
    layers = [tuple(layer) if isinstance(layer, Bidirectional) else (layer,) for layer in plan.layers]
    between = len(layers) > 1 and (plan.residual or (len(layers[0]) == 2 and plan.merge is not MERGES["concat"]))
    placed = any(cell.placement is not None for layer in layers for cell in layer)
    if placed or between or not in_one_call(layers):
        return None
    return Cell(
        init=functools.partial(_init, plan),
        initial_state=functools.partial(_initial_state, plan),
        step=functools.partial(_step, plan),
        check=functools.partial(_check_whole, layers),
        name=f"stack([{', '.join(map(repr, plan.layers))}])",
        config=Config("stack", (("cells", tuple(cell.config for layer in layers for cell in layer)),)),
    )


def _check_whole(layers: Sequence[tuple[Cell, ...]], where: str, params: Params, input_shape: tuple[int, ...]) -> None:
    """What the cells check one by one, each layer reading the directions below it side by side."""
    for cells, here in zip(layers, params, strict=True):
        for cell, record in zip(cells, here if isinstance(here, Bidirectional) else (here,), strict=True):
            assert cell.check is not None
            cell.check(where, record, input_shape)
        input_shape = (*input_shape[:-1], sum(_output_size(cell) for cell in cells))


def _unroll_whole(
    plan: _Plan, whole: Cell, params: Params, xs: AnyArray, states: State | None, options: dict
) -> tuple[Any, ...]:
    """All layers in one call."""
    finals, ys = unroll(whole, params, xs, states, **options)
    if isinstance(plan.layers[0], Bidirectional) and plan.merge is not MERGES["concat"]:
        ys = plan.merge(*jnp.split(ys, 2, axis=-1))
    return finals, ys


def _step(plan: _Plan, params: Params, states: State, x: Float[AnyArray, "*B I"]) -> tuple[State, Array]:
    """One step of every layer, the outputs of one being the inputs of the next."""
    where = "stack.step"
    if any(isinstance(layer, Bidirectional) for layer in plan.layers):
        raise ValueError(f"{where}: expected a unidirectional network; a bidirectional one needs the whole sequence")
    _check_layers(where, "params", params, plan.layers)
    _check_layers(where, "states", states, plan.layers)
    y, after = jnp.asarray(x), []
    for k, layer in enumerate(plan.layers):
        assert isinstance(layer, Cell)
        state, out = layer.step(params[k], states[k], y)
        y = out + y if plan.residual and k else out
        after.append(state)
    return tuple(after), y


def _check_layers(where: str, name: str, value: Any, layers: tuple[Cell | Bidirectional, ...]) -> None:
    if not isinstance(value, tuple) or hasattr(value, "_fields") or len(value) != len(layers):
        raise TypeError(
            f"{where}: {name} expected a tuple over {len(layers)} layers, got {_checks.describe(value)}; "
            "those of a single cell are one entry of it"
        )
    for k, (layer, entry) in enumerate(zip(layers, value, strict=True)):
        if isinstance(layer, Bidirectional) != isinstance(entry, Bidirectional):
            kind = "a Bidirectional(forward, backward)" if isinstance(layer, Bidirectional) else "one direction"
            raise TypeError(f"{where}: {name}[{k}] expected {kind}, got {_checks.describe(entry)}")


def _check_layer(k: int, layer: Any, bidirectional: bool) -> Cell | Bidirectional:
    pair = layer if isinstance(layer, Bidirectional) else (layer,)
    if not all(isinstance(cell, Cell) for cell in pair):
        raise TypeError(f"stack: cells[{k}] expected a Cell or a Bidirectional of two, got {_checks.describe(layer)}")
    return Bidirectional(layer, layer) if bidirectional and isinstance(layer, Cell) else layer


def stack(
    cells: Sequence[Cell | Bidirectional],
    *,
    bidirectional: bool = False,
    merge: str | Callable[[Array, Array], Array] = "concat",
    dropout: float = 0.0,
    residual: bool = False,
) -> Network:
    """A network of layers, each reading the outputs of the one below it.

    Args:
        cells: one a layer, of any kinds and sizes, from the input up. A layer with different
            cells for its two directions is given as `Bidirectional(forward, backward)`.
        bidirectional: reads every layer in both directions, with a cell of the same kind
            and parameters of its own for each. With `lengths` the backward direction
            begins at each sequence's own end.
        merge: makes one output of two: "concat", "sum", "mul", "average", or a callable of
            (forward, backward).
        dropout: the rate in [0, 1) at which outputs of every layer but the last are dropped,
            a fresh mask each step, when `unroll` is given a key. The rest is divided by
            1 - rate.
        residual: adds a layer's input to its output, from the second layer on.

    Returns:
        A :class:`Network`.

    Raises:
        TypeError, ValueError: for no layers, things that are not cells, a rate outside
            [0, 1), an unknown merge, a merge of unequal sizes that needs equal ones, or a
            residual between unequal sizes.

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
    if isinstance(cells, (Cell, Bidirectional)) or not isinstance(cells, Sequence):
        raise TypeError(f"stack: cells expected a sequence of cells, got {_checks.describe(cells)}; wrap one in a list")
    if not cells:
        raise ValueError("stack: cells expected at least one, got none")
    bidirectional = _checks.boolean("stack", "bidirectional", bidirectional)
    layers = tuple(_check_layer(k, cell, bidirectional) for k, cell in enumerate(cells))
    if not callable(merge):
        _checks.one_of("stack", "merge", merge, (*MERGES, "a callable"))
    combine = merge if callable(merge) else MERGES[merge]
    plan = _Plan(
        layers, combine, _checks.rate("stack", "dropout", dropout), _checks.boolean("stack", "residual", residual)
    )
    plan = plan._replace(whole=_whole(plan))
    sizes = [_layer_size(layer, combine) for layer in layers]
    for k, (below, size) in enumerate(itertools.pairwise(sizes), start=1):
        if plan.residual and below != size:
            raise ValueError(
                f"stack: residual expected layers of equal sizes, got {below} below and {size} at layer {k}"
            )
    return Network(
        init=functools.partial(_init, plan),
        initial_state=functools.partial(_initial_state, plan),
        unroll=functools.partial(_unroll, plan),
        step=functools.partial(_step, plan),
        layers=layers,
        merge=merge,
        dropout=plan.dropout,
        residual=plan.residual,
    )


def count_params(params: Params) -> int:
    """The number of parameters: the entries of all arrays of any pytree.

    RNN H(I + H + 1), LSTM 4 of those, GRU 3 of those and H for `b_hn`; LSTM with projection
    4H(I + P + 1) + HP. PyTorch counts a second bias for each layer and direction besides:
    H, 4H, and for the GRU 2H more than here.

    Args:
        params: of a cell, a network, or anything around them.

    Returns:
        A Python integer.

    Raises:
        TypeError: if a leaf is not an array.

    Example:
        >>> import jax, jaxrnn
        >>> jaxrnn.count_params(jaxrnn.lstm(256).init(jax.random.key(0), 128))
        394240
    """
    total = 0
    for leaf in jax.tree.leaves(params):
        if not hasattr(leaf, "shape"):
            raise TypeError(f"count_params: params expected arrays, got {_checks.describe(leaf)}")
        total += math.prod(leaf.shape)
    return total
