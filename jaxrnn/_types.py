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

Cells compare and hash by value, because jit keeps compiled programs by the value of their
static arguments. A function that depends on options is therefore a :class:`jaxrnn._bound.Bound`, never a
closure.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxrnn._bound import picklable

AnyArray = jax.Array | np.ndarray | np.generic  # what users may pass; inside the library all is jax.Array
PyTree = Any
Params = PyTree
State = PyTree
DType = Any


class NotGiven:
    """The default of an argument for which `None` means something else."""

    def __repr__(self) -> str:
        return "<not given>"


NOT_GIVEN = NotGiven()


class Tape(NamedTuple):
    """What the forward pass keeps of a step, or of all steps with a leading axis T."""

    before: State  # the state that entered the step
    after: State  # the state that left it
    residual: PyTree  # what `Rule.forward` chose to keep


class Pointwise(NamedTuple):
    """The part of a rule that works on every unit by itself, around its one recurrent product h W_h.

    A kernel that holds the whole loop over time calls these functions. The rule's ``forward`` and
    ``backward`` call them too, so that the equations stand once. Arrays are ``(*B, N)``, for any N
    of the H units. What exists for every gate is a tuple of G. Of ``params`` only vectors ``(N,)``
    are read, never matrices.

    Attributes:
        hidden: ``(state) -> h``, which the product reads, and which is the output.
        forward: ``(params, state, zs, products) -> (state, residual)``, from each gate's share
            of ``project`` and of h W_h.
        backward: ``(params, tape, dstate) -> (dstate_before, dproducts, extra)``: the cotangent
            that does not go through the product, the cotangent of the product, and what ``delta``
            needs besides.
        add_to_hidden: ``(dstate, dh) -> dstate``, with ``dh`` added to the part that ``hidden`` reads.
        delta: ``(dproducts, extra) -> delta``: what ``Rule.accumulate`` reads, from the gates side
            by side ``(T, *B, GH)``.
        stands_for: the rule's own ``forward`` and ``backward``. In a rule with other ones these
            functions are not its equations, and kernels refuse it.
    """

    hidden: Callable[[State], Array]
    forward: Callable[[Params, State, tuple[Array, ...], tuple[Array, ...]], tuple[State, PyTree]]
    backward: Callable[[Params, Tape, State], tuple[State, tuple[Array, ...], PyTree]]
    add_to_hidden: Callable[[State, Array], State]
    delta: Callable[[Array, PyTree], PyTree]
    stands_for: tuple[Callable[..., Any], Callable[..., Any]]


class Affine(NamedTuple):
    """A step that is affine and diagonal in the state: s_t = a_t ⊙ s_{t-1} + b_t, y_t of s_t and x_t.

    a_t and b_t depend on parameters and x_t alone, so all steps can be run at once. Every function
    takes many steps, with any leading axes, and knows nothing of time.
    :func:`jaxrnn.affine_rule` makes the rule that runs the same lines step by step.

    Attributes:
        coefficients: ``(params, xs) -> (a, b, kept)``. a and b have the structure, shapes and dtypes
            of the state at these steps; ``kept`` is any pytree that ``coefficients_backward`` reads,
            whose leaves have the leading axes too.
        coefficients_backward: ``(params, xs, kept, da, db) -> (dparams, dxs)``. The transpose, by
            hand; the cotangents of parameters are summed over the leading axes.
        read: ``(params, states, xs) -> ys``, or ``None`` where the output is the state, one array.
        read_backward: ``(params, states, xs, dys) -> (dstates, dparams, dxs)``. The transpose of
            ``read``, by hand.

    Cotangents of complex numbers are JAX's: a real loss changes by Re(Σ δs ds), without a conjugate.
    """

    coefficients: Callable[[Params, PyTree], tuple[State, State, PyTree]]
    coefficients_backward: Callable[[Params, PyTree, PyTree, State, State], tuple[Params, PyTree]]
    read: Callable[[Params, State, PyTree], PyTree] | None = None
    read_backward: Callable[[Params, State, PyTree, PyTree], tuple[State, Params, PyTree]] | None = None

    def __reduce__(self) -> Any:
        return Affine, tuple(map(picklable, self))


class Rule(NamedTuple):
    """A cell split into four parts for back-propagation through time.

    ``forward`` and ``backward`` run inside the loops over time, so they hold only
    what depends on the state. ``project`` and ``accumulate`` see all steps at once
    and turn T small products into a large one. ``project`` and ``forward`` must
    accept any leading axes, so that a step, and a whole sequence whose states are
    known, go through the same lines.

    Attributes:
        project: ``(params, xs) -> zs``. Everything that does not depend on the state.
        forward: ``(params, state, z) -> (state, y, residual)``. The rest of the step.
        backward: ``(params, tape, dstate, dy) -> (dstate_before, delta)``. The
            transpose of ``forward`` in the state, by hand. ``dstate`` is the cotangent
            of ``tape.after``. ``delta`` is any pytree that ``accumulate`` reads. It must
            be linear in ``(dstate, dy)``: a masked step gets zeros.
        accumulate: ``(params, xs, tape, deltas) -> (dparams, dxs)``. The cotangents of
            parameters and inputs of many steps at once, of all or of a segment; those of
            parameters are summed over segments. Every argument but ``params`` has a
            leading axis of steps.
        matrices: names of the fields of ``params`` that enter matrix products:
            what ``compute_dtype`` casts. "cell.w" is the field ``w`` of the record ``params.cell``.
        prepare: ``(params) -> params``, or ``None``: what ``backward`` gets instead of the
            parameters, made once before its loop, such as a transposed matrix.
        pointwise: the part that works on every unit by itself, or ``None``. Fused kernels need it.
        affine: the step as a_t ⊙ s_{t-1} + b_t, or ``None``. "associative" needs it, in a rule of
            :func:`jaxrnn.affine_rule`.
    """

    project: Callable[[Params, PyTree], PyTree]
    forward: Callable[[Params, State, PyTree], tuple[State, PyTree, PyTree]]
    backward: Callable[[Params, Tape, State, PyTree], tuple[State, PyTree]]
    accumulate: Callable[[Params, PyTree, Tape, PyTree], tuple[Params, PyTree]]
    matrices: tuple[str, ...] = ()
    prepare: Callable[[Params], Params] | None = None
    pointwise: Pointwise | None = None
    affine: Affine | None = None

    def __reduce__(self) -> Any:
        return Rule, tuple(map(picklable, self))


class LayerRules(NamedTuple):
    """The rules of a network that runs as one cell: of each layer, one a direction."""

    layers: tuple[tuple[Rule | None, ...], ...]


class Equations(NamedTuple):
    """The part of a cell that a compiled program depends on, without its initialisers."""

    step: Callable[[Params, State, PyTree], tuple[State, PyTree]]
    rule: Rule | LayerRules | None


def format_value(value: Any) -> str:
    """A value in the name of a cell: functions by their names."""
    return getattr(value, "__name__", repr(value)) if callable(value) else repr(value)


def format_call(name: str, options: dict[str, Any], defaults: dict[str, Any]) -> str:
    """The call `name(...)` with these options, without those that have their default value."""
    words = [
        f"{option}={format_value(value)}" if option in defaults else format_value(value)
        for option, value in options.items()
        if option not in defaults or value != defaults[option]
    ]
    return f"{name}({', '.join(words)})"


@dataclasses.dataclass(frozen=True)
class CellConfig:
    """How a cell of the library was made: the options of its factory, but for the initialisers.

    Each family has its own subclass, with a field for each option.
    """

    factory: ClassVar[str]  # the name of the function that makes the cell

    @property
    def options(self) -> dict[str, Any]:
        """The options by name, in the order of the factory's signature."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __reduce__(self) -> Any:
        return type(self), tuple(map(picklable, self.options.values()))

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)
        defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
        return format_call(self.factory, self.options, defaults)


class Cell(NamedTuple):
    """The equations of one step of a recurrent network, as a record of pure functions.

    The first three fields are all a cell of your own needs: it is then differentiated through
    the scan. A :class:`Rule` makes it fast. Cells that the library makes with equal
    options are equal, and share every compiled program. A cell of your own is equal to itself.
    Cells can be pickled if the functions in them can: a lambda needs cloudpickle.

    Attributes:
        init: ``(key, input_size, dtype=None) -> params``.
        initial_state: ``(batch_shape=(), dtype=None) -> state``, whose leaves start with
            the axes of ``batch_shape``.
        step: ``(params, state, x) -> (state, y)``.
        rule: the same step split into four parts, or ``None``.
        check: ``(where, params, input_shape) -> None``: raises if ``params`` is not
            this cell's, or does not fit inputs of that shape. ``None`` checks nothing.
        sample: ``(key, params, xs) -> (params, xs)`` with the random masks of one sequence
            in them, or ``None`` for a cell without noise.
        name: what messages call the cell.
        config: how it was made, which :func:`jaxrnn.save` writes; ``None`` for a cell of your own.
        output_size: features of the output, or ``None``: :func:`jaxrnn.stack` then traces ``init`` and ``step``
            to learn them.

    Example:
        >>> import jaxrnn
        >>> jaxrnn.lstm(256), jaxrnn.lstm(256) == jaxrnn.lstm(256)
        (lstm(256), True)
    """

    init: Callable[..., Params]
    initial_state: Callable[..., State]
    step: Callable[[Params, State, PyTree], tuple[State, PyTree]]
    rule: Rule | None = None
    check: Callable[[str, Params, tuple[int, ...]], None] | None = None
    sample: Callable[[Array, Params, Array], tuple[Params, PyTree]] | None = None
    name: str = "cell"
    config: CellConfig | None = None
    output_size: int | None = None

    def __repr__(self) -> str:
        return self.name

    def __call__(self, *args: Any, **options: Any) -> Any:
        raise TypeError(f"{self.name}: a cell is not called; use jaxrnn.unroll(cell, params, xs), or cell.step")

    def __deepcopy__(self, memo: Any) -> "Cell":
        return self  # nothing in it changes

    def __reduce__(self) -> Any:
        return Cell, tuple(map(picklable, self))

    @property
    def equations(self) -> Equations:
        """What programs that run the cell are compiled for."""
        return Equations(self.step, self.rule)


class Placement(NamedTuple):
    """The axes of a mesh over which the work of a cell is sharded."""

    mesh: Mesh
    hidden: str | None  # the axis of the hidden units
    batch: tuple[Any, ...]  # for each batch axis that of the mesh, or `None`; those left out are whole


class PlacedCell(NamedTuple):
    """A cell and the devices that :func:`jaxrnn.unroll` runs it on. In all else it is that cell."""

    cell: Cell
    placement: Placement

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cell, name)

    def __deepcopy__(self, memo: Any) -> "PlacedCell":
        return self

    def __repr__(self) -> str:
        return repr(self.cell)


AnyCell = Cell | PlacedCell
CELL_TYPES = (Cell, PlacedCell)
