"""The records the library is made of, and the axis letters its signatures use.

========  =======================================================================
letter    meaning
========  =======================================================================
``T``     time steps
``*B``    batch: any number of axes, none included
``I``     features of the input
``H``     hidden units
``P``     features of a projected output
``G``     gates of a cell (LSTM 4, GRU 3, RNN 1)
``L``     layers
========  =======================================================================

A *cell* holds the equations of one step and knows nothing of time. The *driver*
in :mod:`jaxrnn.sequence` knows time and nothing of a cell's equations. A
:class:`Rule` is the wall between them.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

AnyArray = jax.Array | np.ndarray | np.generic  # what users may pass; inside the library all is jax.Array
PyTree = Any
Params = PyTree
State = PyTree
DType = Any


@runtime_checkable
class Initializer(Protocol):
    """Draws an array: the signature of everything in :mod:`jax.nn.initializers`."""

    def __call__(self, key: Array, shape: Any, dtype: Any = ..., /) -> Array: ...


@runtime_checkable
class BiasInitializer(Protocol):
    """Draws the biases of all gates of a cell, in the order of ``gates``: ``(G*H,)``."""

    def __call__(self, key: Array, gates: tuple[str, ...], hidden_size: int, dtype: Any, /) -> Array: ...


class Tape(NamedTuple):
    """What the forward pass leaves behind of a step, or of all steps with a leading axis T."""

    before: State  # the state that entered the step
    after: State  # the state that left it
    residual: PyTree  # what `Rule.forward` chose to keep


class Units(NamedTuple):
    """What a rule does unit by unit, around its one recurrent product h W_h: for kernels that hold the whole loop.

    ``forward`` and ``backward`` of the rule call these very functions, so that the equations
    stand once. Arrays are ``(*B, N)``, of any N of the H units, and what there is of every gate
    is a tuple of G; ``params`` are read for vectors ``(N,)`` alone, never for matrices.

    Attributes:
        shown: ``(state) -> h``: what the product reads, which is also the output.
        forward: ``(params, state, zs, products) -> (state, residual)``, from a gate's share of
            ``project`` and of h W_h.
        backward: ``(params, tape, dstate) -> (dstate_before, dproducts, extra)``: the cotangent
            that passes by the product, that of the product, and what ``delta`` needs besides.
        received: ``(dstate, dh) -> dstate`` with ``dh`` added where ``shown`` reads.
        delta: ``(dproducts, extra) -> delta``: what ``Rule.accumulate`` reads, from the gates side
            by side ``(T, *B, GH)``.
    """

    shown: Callable[[State], Array]
    forward: Callable[[Params, State, tuple[Array, ...], tuple[Array, ...]], tuple[State, PyTree]]
    backward: Callable[[Params, Tape, State], tuple[State, tuple[Array, ...], PyTree]]
    received: Callable[[State, Array], State]
    delta: Callable[[Array, PyTree], PyTree]


class Rule(NamedTuple):
    """A cell taken apart for back-propagation through time.

    ``forward`` and ``backward`` run inside the loops over time, so they hold only
    what depends on the state; ``project`` and ``accumulate`` see all steps at once
    and turn T small products into a large one. ``project`` and ``forward`` must
    accept any leading axes, so that a step, and a whole sequence whose states are
    known, go through the same lines.

    Attributes:
        project: ``(params, xs) -> zs``. Everything that does not depend on the state.
        forward: ``(params, state, z) -> (state, y, residual)``. The rest of the step.
        backward: ``(params, tape, dstate, dy) -> (dstate_before, delta)``. The
            transpose of ``forward`` in the state, by hand. ``dstate`` is the cotangent
            of ``tape.after``. ``delta`` is any pytree that ``accumulate`` reads. It must
            be linear in ``(dstate, dy)``: a step that takes no part gets zeros.
        accumulate: ``(params, xs, tape, deltas) -> (dparams, dxs)``. The cotangents of
            parameters and inputs of many steps at once, of all or of a segment; those of
            parameters are summed over segments. Every argument but ``params`` has a
            leading axis of steps.
        matrices: names of the fields of ``params`` that enter matrix products:
            what ``compute_dtype`` casts.
        prepare: ``(params) -> params``, or ``None``: what ``backward`` gets in their place, laid
            out once before its loop, as a transposed matrix.
        units: the part of it that goes unit by unit, or ``None``: what a fused kernel needs. It is
            the library's own, of no public type: where another field is replaced, give ``None``.
    """

    project: Callable[[Params, PyTree], PyTree]
    forward: Callable[[Params, State, PyTree], tuple[State, PyTree, PyTree]]
    backward: Callable[[Params, Tape, State, PyTree], tuple[State, PyTree]]
    accumulate: Callable[[Params, PyTree, Tape, PyTree], tuple[Params, PyTree]]
    matrices: tuple[str, ...] = ()
    prepare: Callable[[Params], Params] | None = None
    units: Units | None = None


class Config(NamedTuple):
    """How a cell was made: a call of one of the library's factories, but for the initialisers.

    Attributes:
        factory: its name, as "lstm".
        options: pairs of a name and a value, in the order of the factory's signature, those
            with their default value included. A cell among them is there as its own
            :class:`Config`.
    """

    factory: str
    options: tuple[tuple[str, Any], ...]


class Placement(NamedTuple):
    """Over which axes of a mesh a cell's work is shared out, wherever it is unrolled."""

    mesh: Mesh
    units: str | None  # the axis of the hidden units
    batch: tuple[Any, ...]  # for each batch axis that of the mesh, or `None`; those left out are whole


class Cell(NamedTuple):
    """The equations of one step of a recurrent network, as a record of pure functions.

    The first three are all a cell of your own needs: it is then differentiated through
    the scan. Giving it a :class:`Rule` makes it fast.

    Attributes:
        init: ``(key, input_size, dtype=None) -> params``.
        initial_state: ``(batch_shape=(), dtype=None) -> state``, whose leaves start with
            the axes of ``batch_shape``.
        step: ``(params, state, x) -> (state, y)``.
        rule: the same step taken apart, or ``None``.
        check: ``(where, params, input_shape) -> None``: raises where ``params`` is not
            this cell's, or does not fit inputs of that shape. ``None`` checks nothing.
        sample: ``(key, params, xs) -> (params, xs)`` with the random masks of one sequence
            in them, or ``None`` for a cell without noise.
        name: how the cell calls itself in messages.
        config: how it was made, what :func:`jaxrnn.save` writes; ``None`` for a cell of your own.
        placement: the devices of a cell from :func:`jaxrnn.model_parallel`; ``None`` elsewhere. Within a
            call, `unroll` sets it itself for a batch on an explicit mesh.

    Example:
        >>> import jaxrnn
        >>> jaxrnn.lstm(256)
        lstm(256)
    """

    init: Callable[..., Params]
    initial_state: Callable[..., State]
    step: Callable[[Params, State, PyTree], tuple[State, PyTree]]
    rule: Rule | None = None
    check: Callable[[str, Params, tuple[int, ...]], None] | None = None
    sample: Callable[[Array, Params, Array], tuple[Params, PyTree]] | None = None
    name: str = "cell"
    config: Config | None = None
    placement: Placement | None = None

    def __repr__(self) -> str:
        return self.name


def shown(value: Any) -> str:
    """A value as it stands in a name: functions by theirs."""
    return getattr(value, "__name__", repr(value)) if callable(value) else repr(value)


def made_by(factory: Callable[..., Cell], **options: Any) -> dict[str, Any]:
    """The fields `name` and `config` of a cell that `factory` makes of these options.

    The name is the call itself, without the options that have their default value. A cell
    around a cell of the user's own has no configuration.
    """
    options = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
    defaults = {name: parameter.default for name, parameter in inspect.signature(factory).parameters.items()}
    words = [
        shown(value) if defaults[name] is inspect.Parameter.empty else f"{name}={shown(value)}"
        for name, value in options.items()
        if value != defaults[name]
    ]
    config = tuple((name, value.config if isinstance(value, Cell) else value) for name, value in options.items())
    known = not any(isinstance(value, Cell) and value.config is None for value in options.values())
    return {
        "name": f"{factory.__name__}({', '.join(words)})",
        "config": Config(factory.__name__, config) if known else None,
    }
