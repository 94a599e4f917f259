"""Noise inside the recurrence, around any cell: dropout, zoneout, DropConnect.

All masks of a sequence are drawn before the loop. Masks that hold for the whole sequence are
kept in the parameters, masks that change with every step in the inputs. The driver and the
cell's own equations know nothing of either.

Zoneout holds a part of the state back, with d = 1 where it does:

    s_t = d ⊙ s_{t-1} + (1 - d) ⊙ s̃_t            evaluation: d is its mean, the rate
    δs̃_t = (1 - d) ⊙ δs_t                        δs_{t-1} += d ⊙ δs_t
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrnn import _checks
from jaxrnn._bound import Bound
from jaxrnn._describe import cut
from jaxrnn._types import CELL_TYPES, Cell, CellConfig, Params, PlacedCell, PyTree, Rule, State, Tape, format_call
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._noise import bernoulli, dropped, sharding_of
from jaxrnn.cells._step import cast_floating, checked_step


class Zoned(NamedTuple):
    """Inputs, and for every step which parts of the state are held back."""

    x: PyTree  # (T, *B, I)
    hold: State  # booleans (T, *B, ·)


class ZonedResidual(NamedTuple):
    """What the forward pass keeps of a step with zoneout."""

    own: PyTree  # the residual of the cell itself
    hold: State | None
    new: State  # the state before a part of it is held back


class Rates(NamedTuple):
    """Probabilities of dropping, or of holding back; `zoneout` has the structure of the state."""

    input_dropout: float
    recurrent_dropout: float
    dropconnect: float
    zoneout: State


@dataclasses.dataclass(frozen=True, repr=False)
class RegularizeConfig(CellConfig):
    """The options of :func:`regularize`, and how its cell was made."""

    factory: ClassVar[str] = "regularize"
    cell: CellConfig
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    dropconnect: float = 0.0
    zoneout: Any = 0.0  # a rate, or one for each part of the state

    @property
    def has_zoneout(self) -> bool:
        """Whether any part of the state is held back."""
        return any(jax.tree.leaves(self.zoneout))


def _project(inner: Rule, params: Params, xs: PyTree) -> PyTree:
    x, hold = xs if isinstance(xs, Zoned) else (xs, None)
    return inner.project(params, x), hold


def _mix(rates: State, hold: State | None, held: State, new: State) -> State:
    """d ⊙ held + (1 - d) ⊙ new."""
    if hold is None:
        return jax.tree.map(lambda r, a, b: r * a + (1 - r) * b, rates, held, new)
    return jax.tree.map(jnp.where, hold, held, new)


def _forward(inner: Rule, rates: State, params: Params, state: State, z: PyTree):
    z, hold = z
    new, y, residual = inner.forward(params, state, z)
    if jax.tree.leaves(new)[0] is not y:
        raise NotImplementedError("regularize: zoneout needs a cell whose output is the first part of its state")
    after = _mix(rates, hold, state, new)
    return after, jax.tree.leaves(after)[0], ZonedResidual(residual, hold, new)


def _backward(inner: Rule, rates: State, params: Params, tape: Tape, dstate: State, dy: Array):
    residual, hold, new = tape.residual
    first, *rest = jax.tree.leaves(dstate)
    dafter = jax.tree.unflatten(jax.tree.structure(dstate), [first + dy, *rest])
    zeros = jax.tree.map(jnp.zeros_like, dafter)
    dnew = _mix(rates, hold, zeros, dafter)
    dheld = _mix(rates, hold, dafter, zeros)
    dbefore, delta = inner.backward(params, Tape(tape.before, new, residual), dnew, jnp.zeros_like(dy))
    return jax.tree.map(jnp.add, dbefore, dheld), delta


def _accumulate(inner: Rule, zoned: bool, params: Params, xs: PyTree, tape: Tape, deltas: PyTree):
    x = xs.x if isinstance(xs, Zoned) else xs
    if zoned:
        residual, _, new = tape.residual
        tape = Tape(tape.before, new, residual)
    dparams, dx = inner.accumulate(params, x, tape, deltas)
    if isinstance(params.w_h, alg.Dropped):
        dparams = dparams._replace(w_h=params.w_h._replace(w=dparams.w_h))
    return dparams, xs._replace(x=dx) if isinstance(xs, Zoned) else dx


def _rule(inner: Rule, rates: Rates) -> Rule:
    if not any(jax.tree.leaves(rates.zoneout)):
        return inner._replace(accumulate=Bound(_accumulate, inner, False))
    return Rule(
        project=Bound(_project, inner),
        forward=Bound(_forward, inner, rates.zoneout),
        backward=Bound(_backward, inner, rates.zoneout),
        accumulate=Bound(_accumulate, inner, True),
        matrices=inner.matrices,
        prepare=inner.prepare,
    )


def _sample(initial_state: Any, rates: Rates, key: Array, params: Params, xs: Array) -> tuple[Params, PyTree]:
    """The parameters and inputs of one call with its random masks in them."""
    key_x, key_h, key_w, key_z = jax.random.split(key, 4)
    batch_shape, batch = xs.shape[1:-1], range(1, xs.ndim - 1)
    if rates.input_dropout:
        xs = dropped(key_x, rates.input_dropout, xs, shared_axes=1)
    w_h = params.w_h
    if rates.dropconnect:
        w_h = dropped(key_w, rates.dropconnect, w_h)
    if rates.recurrent_dropout:
        kept = 1 - rates.recurrent_dropout
        keep = bernoulli(key_h, kept, (*batch_shape, alg.units(w_h)), sharding_of(xs, (*batch, None)))
        w_h = alg.Dropped(w_h / kept, keep)
    params = params._replace(w_h=w_h)
    if not any(jax.tree.leaves(rates.zoneout)):
        return params, xs
    state = jax.eval_shape(lambda: initial_state(batch_shape))
    keys = jax.tree.unflatten(jax.tree.structure(state), list(jax.random.split(key_z, len(jax.tree.leaves(state)))))

    def held(key: Array, rate: float, leaf: Any) -> Array:
        return bernoulli(key, rate, (xs.shape[0], *leaf.shape), sharding_of(xs, (0, *batch, None)))

    return params, Zoned(xs, jax.tree.map(held, keys, rates.zoneout, state))


def _step(where: str, check: Any, initial_state: Any, rule: Rule, params: Params, state: State, x: PyTree):
    if isinstance(x, Zoned) or isinstance(getattr(params, "w_h", None), alg.Dropped):
        state, y, _ = rule.forward(params, state, rule.project(params, x))
        return state, y
    return checked_step(where, check, initial_state, rule, params, state, x)


def _zoneout_rates(cell: Cell, zoneout: Any) -> State:
    rates = _rates_by_part(cell, zoneout)
    config = cell.config
    while isinstance(config, RegularizeConfig):
        config = config.cell
    together = getattr(config, "in_one_unit", ())
    if any(getattr(rates, part) for part in together):
        parts = ", ".join(f"{part}=0" for part in together)
        raise ValueError(
            f"regularize: zoneout expected {type(rates).__name__}(h=rate, {parts}) for {cell.name}, "
            f"got {_checks.describe(zoneout)}; its {', '.join(together)} have a meaning only together, "
            "so that none can be held back or mixed by itself"
        )
    return rates


def _rates_by_part(cell: Cell, zoneout: Any) -> State:
    state = jax.eval_shape(cell.initial_state)
    if not isinstance(zoneout, tuple):
        rate = _checks.rate("regularize", "zoneout", zoneout)
        return jax.tree.map(lambda _: rate, state)
    if jax.tree.structure(zoneout) != jax.tree.structure(state):
        raise TypeError(
            f"regularize: zoneout expected a rate, or one for each part of {_checks.describe(state)}; "
            f"got {_checks.describe(zoneout)}"
        )
    return jax.tree.map(lambda rate: _checks.rate("regularize", "zoneout", rate), zoneout)


def _without_noise(cell: Cell) -> tuple[Rule, Rates | None]:
    """The rule without noise, and the rates of a cell that is regularised already."""
    assert cell.rule is not None
    if cell.sample is None:
        return cell.rule, None
    if not isinstance(cell.sample, Bound) or cell.sample.func is not _sample:
        raise NotImplementedError(
            f"regularize: cell {_checks.describe(cell)} draws noise of its own, which another would replace; "
            "draw all of it in your `sample`"
        )
    accumulate = cell.rule.accumulate
    assert isinstance(accumulate, Bound)
    return accumulate.args[0], cell.sample.args[1]


def _check_products(cell: Cell, rule: Rule) -> None:
    """Raises unless the rule of a cell of the user's own runs with units dropped where they meet `w_h`."""

    def run(key: Array) -> Any:
        given = cell.init(key, 1), cell.initial_state((1,)), jnp.zeros((1, 1))
        params, state, x = cast_floating(given, jnp.float32)
        keep = jnp.ones((1, alg.units(params.w_h)), bool)
        params = params._replace(w_h=alg.Dropped(params.w_h, keep))
        after, y, residual = rule.forward(params, state, rule.project(params, x))
        tape, prepared = Tape(state, after, residual), params if rule.prepare is None else rule.prepare(params)
        delta = rule.backward(prepared, tape, after, y)[1]
        return rule.accumulate(params, *jax.tree.map(lambda leaf: leaf[None], (x, tape, delta)))

    try:
        jax.eval_shape(run, jax.random.key(0))
    except Exception as error:  # functions of the user's may raise anything
        raise NotImplementedError(
            f"regularize: recurrent_dropout expected a rule whose products with w_h are jaxrnn.dot, dot_transposed and "
            f"weight_gradient, which can drop units; that of {_checks.describe(cell)} raised {type(error).__name__}: "
            f"{cut(str(error), 150)}"
        ) from error


def _both(inner: float, outer: float) -> float:
    """The rate of two independent draws together; exactly one of them if the other is 0."""
    return inner + outer if 0 in (inner, outer) else 1 - (1 - inner) * (1 - outer)


def regularize(
    cell: Cell,
    *,
    input_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    dropconnect: float = 0.0,
    zoneout: Any = 0.0,
) -> Cell:
    """A cell with noise in its recurrence, drawn from the `key` that `unroll` is given.

    With `key=None` the cell is evaluated: nothing is dropped, and zoneout mixes by its mean.
    Parameters and states are those of the cell itself. What is kept by dropout and
    DropConnect is divided by the probability of keeping, so that expectations stay.

    Args:
        cell: any cell of this library, or one of your own that has a rule, parameters
            with a field `w_h`, for recurrent dropout products with it by :func:`jaxrnn.dot`, and for zoneout
            an output that is the first part of its state.
            A regularised cell keeps its noise: of two rates p and q of one kind, what is
            kept has the probability (1 - p)(1 - q).
        input_dropout: drops features of x, for each sequence the same at every step.
        recurrent_dropout: drops units of h where it meets `w_h`, for each sequence the
            same at every step. What a gate carries over from h is not dropped.
        dropconnect: drops entries of `w_h`, the same for every sequence and step.
        zoneout: holds units of the state back, anew at every step: a rate for all of it,
            or one for each part, as `LSTMState(h=0.05, c=0.5)`. Of an sLSTM h alone can be held back, as
            `SLSTMState(h=0.05, c=0, n=0, m=0)`.

    Returns:
        A :class:`Cell`; give :func:`unroll` a `key` to turn the noise on.

    Raises:
        TypeError, ValueError: for rates that are not numbers in [0, 1), or zoneout of c, n or m of an sLSTM.
        NotImplementedError: for a cell without a rule or without `w_h`, or with a `sample` of its own; recurrent
            dropout of a rule of your own whose products do not support it.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.regularize(jaxrnn.lstm(8), recurrent_dropout=0.25, zoneout=jaxrnn.LSTMState(h=0.05, c=0.5))
        >>> params = cell.init(jax.random.key(0), 3)
        >>> final, ys = jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)), key=jax.random.key(1))
        >>> ys.shape
        (5, 2, 8)

    References:
        Dropout: Gal & Ghahramani 2016, arXiv:1512.05287, section 4. Zoneout: Krueger et
        al. 2017, arXiv:1606.01305, section 3. DropConnect: Merity, Keskar & Socher
        2018, arXiv:1708.02182, section 2.

    Differs from:
        1. PyTorch: `torch.nn.LSTM(dropout=)` is between layers; that is `stack(dropout=)`.
        2. Keras: `recurrent_dropout` of a layer with `implementation=1` draws a mask for each
           gate; here all gates share one.
        3. Flax has none of the three.
    """
    if not isinstance(cell, CELL_TYPES):
        raise TypeError(f"regularize: cell expected a jaxrnn.Cell, got {_checks.describe(cell)}")
    if isinstance(cell, PlacedCell):
        raise NotImplementedError(f"regularize: cell {cell!r} is sharded by units, which noise does not support")
    params = None if cell.rule is None else jax.eval_shape(lambda k: cell.init(k, 1), jax.random.key(0))
    if "w_h" not in getattr(params, "_fields", ()):
        raise NotImplementedError(
            f"regularize: cell expected one with a rule and a parameter w_h, got {_checks.describe(cell)}; w_h is a "
            "field of a NamedTuple"
        )
    rates = Rates(
        _checks.rate("regularize", "input_dropout", input_dropout),
        _checks.rate("regularize", "recurrent_dropout", recurrent_dropout),
        _checks.rate("regularize", "dropconnect", dropconnect),
        _zoneout_rates(cell, zoneout),
    )
    options = rates._replace(zoneout=rates.zoneout if isinstance(zoneout, tuple) else float(zoneout))._asdict()
    plain, inner = _without_noise(cell)
    if rates.recurrent_dropout and cell.config is None:
        _check_products(cell, plain)
    rates = rates if inner is None else jax.tree.map(_both, inner, rates)
    rule = _rule(plain, rates)
    return cell._replace(
        step=Bound(_step, f"{cell.name} step", cell.check, cell.initial_state, rule),
        rule=rule,
        sample=Bound(_sample, cell.initial_state, rates) if any(jax.tree.leaves(rates)) else None,
        name=format_call("regularize", {"cell": cell, **options}, dict.fromkeys(options, 0.0)),
        config=None if cell.config is None else RegularizeConfig(cell.config, **options),
    )
