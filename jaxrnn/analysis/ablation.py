"""Ablation: a cell with one of its gates fixed.

A gate is σ(a), so it is fixed through the parameters: its blocks of the weights are replaced by
zero, and its bias by logit(value), ±∞ for a gate fixed open or closed. Layer normalisation
normalises x W_x and h W_h over all blocks together. There the gate's block of the scales is
replaced by zero instead of the weights, so that the other gates do not change.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxrnn import _checks
from jaxrnn._bound import Bound
from jaxrnn._types import Cell, Params, PyTree, Rule, State, Tape
from jaxrnn.analysis._families import gates_of_cell, values_of
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._algebra import Dropped


class _Fixed(NamedTuple):
    """Where the gate is in the parameters, and the logit of its value."""

    start: int
    stop: int
    peephole: int | None  # its row, if there are peepholes and it has one
    logit: tuple[float, ...]  # one entry for all units, or one for each


def _without(fixed: _Fixed, leaf: Any) -> Any:
    """A weight, scale or bias with the gate's block set to zero."""
    if leaf is None:
        return None
    if isinstance(leaf, Dropped):
        return leaf._replace(w=_without(fixed, leaf.w))
    heads = alg.heads(leaf)  # the columns of a gate are in every head
    return leaf.at[..., fixed.start // heads : fixed.stop // heads].set(0)


def _without_gate(fixed: _Fixed, params: Params) -> Params:
    """The parameters, or their cotangents, with those of the gate set to zero."""
    changes: dict[str, Any] = {"b": _without(fixed, params.b)}
    norm = getattr(params, "norm", None)
    if norm is None:
        changes |= {"w_x": _without(fixed, params.w_x), "w_h": _without(fixed, params.w_h)}
    else:
        scales = {"scale_x": _without(fixed, norm.scale_x), "scale_h": _without(fixed, norm.scale_h)}
        changes["norm"] = norm._replace(**scales)
    if fixed.peephole is not None:
        changes["peephole"] = params.peephole.at[fixed.peephole].set(0)
    return params._replace(**changes)


def _held(fixed: _Fixed, params: Params, dtype: Any) -> Params:
    """Parameters that give the gate its value for every input and state."""
    params = _without_gate(fixed, params)
    b = jnp.zeros(params.w_x.shape[-1:], dtype) if params.b is None else params.b
    logit = jnp.asarray(fixed.logit, b.dtype)
    return params._replace(b=b.at[fixed.start : fixed.stop].set(jnp.broadcast_to(logit, fixed.stop - fixed.start)))


def _step(step: Any, fixed: _Fixed, params: Params, state: State, x: Array) -> tuple[State, PyTree]:
    return step(_held(fixed, params, params.w_x.dtype), state, x)


# The rule of the cell with parameters in which the gate is fixed. Only `project` reads the bias.


def _project(rule: Rule, fixed: _Fixed, params: Params, xs: PyTree) -> PyTree:
    return rule.project(_held(fixed, params, xs.dtype), xs)


def _forward(rule: Rule, fixed: _Fixed, params: Params, state: State, z: PyTree) -> tuple[State, PyTree, PyTree]:
    return rule.forward(_without_gate(fixed, params), state, z)


def _accumulate(
    rule: Rule, fixed: _Fixed, params: Params, xs: PyTree, tape: Tape, deltas: PyTree
) -> tuple[Params, PyTree]:
    dparams, dxs = rule.accumulate(_without_gate(fixed, params), xs, tape, deltas)
    return _without_gate(fixed, dparams), dxs


def _prepare(rule: Rule, fixed: _Fixed, params: Params) -> Params:
    params = _without_gate(fixed, params)
    return params if rule.prepare is None else rule.prepare(params)


def _rule(rule: Rule, fixed: _Fixed) -> Rule:
    return Rule(
        project=Bound(_project, rule, fixed),
        forward=Bound(_forward, rule, fixed),
        backward=rule.backward,
        accumulate=Bound(_accumulate, rule, fixed),
        matrices=rule.matrices,
        prepare=Bound(_prepare, rule, fixed),
    )


def ablate_gates(cell: Cell, gate: str, value: Any) -> Cell:
    """The cell with a gate fixed: open (1), closed (0), or at its mean.

    Parameters and states are those of the cell. The parameters of the gate are not read, and
    their gradients are zero. Call it once for each gate to fix. A run costs as much as before.

    Args:
        cell: an LSTM, GRU or MGU; with noise, ablate it first and then :func:`jaxrnn.regularize` it. A cell of
            your own needs a rule, declared :class:`jaxrnn.Gates`, and parameters with the fields `w_x`, `w_h` and `b`;
            that the change fixes this gate and no other is checked with random numbers.
        gate: "i", "f" or "o" of an LSTM (coupled: "f" or "o"), "r" or "z" of a GRU, "f" of an MGU; of a cell of your
            own, one of its `Gates.gates`.
        value: a number in [0, 1], or an array `(H,)` of such, one for each unit, as
            `gate_statistics(...)["f"].mean`. Not traced: a cell is made outside of `jit`.

    Returns:
        A :class:`jaxrnn.Cell`, for :func:`jaxrnn.unroll` and `stack`.

    Raises:
        TypeError, ValueError: for a gate that the cell does not have, or a value outside [0, 1].
        NotImplementedError: for a cell without gates or with noise, or one of your own whose gate is not σ(a), with a
            from its block of `w_x`, `w_h` and `b` alone.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn import analysis
        >>> cell = jaxrnn.lstm(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> closed = analysis.ablate_gates(cell, "o", 0.0)
        >>> _, ys = jaxrnn.unroll(closed, params, jnp.ones((6, 2, 3)))
        >>> bool((ys == 0).all())
        True

    References:
        Greff, Srivastava, Koutník, Steunebrink & Schmidhuber 2017, arXiv:1503.04069, whose NIG,
        NFG and NOG are trained without a gate; this function removes it from a trained cell.
    """
    where = "ablate_gates"
    gates, shapes = gates_of_cell(where, cell, by_state=True)
    if not isinstance(cell, Cell):
        raise NotImplementedError(f"{where}: cell expected one that is not sharded, got one of model_parallel")
    if cell.sample is not None:
        raise NotImplementedError(
            f"{where}: cell expected one without noise, got {_checks.describe(cell)}; ablate it, then regularize"
        )
    if not isinstance(gate, str) or gate not in gates.gates or gate not in gates.blocks:
        coupled = isinstance(gate, str) and gate in gates.gates
        why = "; in a coupled LSTM it is 1 - f" if coupled else "; a candidate (tanh) is no gate"
        names = [name for name in gates.gates if name in gates.blocks]
        raise ValueError(
            f"{where}: gate expected one of {', '.join(map(repr, names))} of {_checks.describe(cell)}, "
            f"got {_checks.quote(gate)}{why}"
        )
    if cell.gates is not None:
        _check_fields(where, shapes)
    place = gates.blocks.index(gate)
    hidden = shapes.w_x.shape[-1] // len(gates.blocks)
    peephole = None
    if getattr(shapes, "peephole", None) is not None:
        peephole = [name for name in gates.blocks if name in gates.gates].index(gate)
    logit = _logit(where, value, hidden)
    fixed = _Fixed(place * hidden, (place + 1) * hidden, peephole, logit)
    assert isinstance(cell.rule, Rule)
    ablated = cell._replace(
        step=Bound(_step, cell.step, fixed),
        rule=_rule(cell.rule, fixed),
        name=f"ablate_gates({cell.name}, {gate!r})",
        config=None,
    )
    if cell.gates is not None:
        _check_fixed(where, cell, ablated, gate, value)
    return ablated


def _check_fields(where: str, shapes: Any) -> None:
    """Raises unless the parameters of a cell of the user's own have the fields whose columns are those of gates."""
    for name in ("w_x", "w_h", "b"):
        if name not in getattr(shapes, "_fields", ()) or getattr(shapes, name) is None:
            raise NotImplementedError(
                f"{where}: cell expected parameters with fields w_x, w_h and b of a NamedTuple, in which each gate has "
                f"its columns, got {_checks.describe(shapes)}"
            )


def _check_fixed(where: str, cell: Cell, ablated: Cell, gate: str, value: Any) -> None:
    """Raises unless the ablated cell has this gate at the value, and every other gate as before, at random numbers."""
    assert isinstance(cell.rule, Rule)
    assert isinstance(ablated.rule, Rule)
    assert cell.gates is not None
    gates = cell.gates
    rng = np.random.default_rng(0)

    def random(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(leaf.dtype), tree)

    with jax.ensure_compile_time_eval():
        params = random(cell.init(jax.random.key(0), 2, jnp.float32))
        state, x = random(cell.initial_state((3,), jnp.float32)), random(jnp.zeros((3, 2), jnp.float32))

        def values(rule: Rule) -> dict[str, Array]:
            residual = rule.forward(params, state, rule.project(params, x))[2]
            return values_of(where, gates, residual, (3,))

        before, after = values(cell.rule), values(ablated.rule)
    for name in gates.gates:
        expected = np.broadcast_to(value, np.shape(after[name])) if name == gate else before[name]
        if not np.allclose(after[name], expected, rtol=0, atol=1e-5):
            raise NotImplementedError(
                f"{where}: cell expected one in which a bias of logit(value), without weights, fixes the gate {gate!r} "
                f"and no other, got {_checks.describe(cell)}, whose {name!r} then differs; a gate must be σ of its "
                "columns of x W_x + h W_h + b"
            )


def _is_real_array(value: Any) -> bool:
    """Whether it is an array of real numbers; one with a mask is none, nor one of booleans."""
    if not _checks.is_array(value) or isinstance(value, np.ma.MaskedArray):
        return False
    return jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)


def _logit(where: str, value: Any, hidden: int) -> tuple[float, ...]:
    if isinstance(value, Tracer):
        raise TypeError(f"{where}: value expected a number or an array, got a traced one; make the cell outside of jit")
    if not (_is_real_array(value) or _checks.is_number(value)):
        raise TypeError(
            f"{where}: value expected a number in [0, 1] or an array of them, got {_checks.describe(value)}"
        )
    numbers = np.asarray(value if _is_real_array(value) else _checks.number(where, "value", value), np.float64)
    if numbers.shape not in ((), (hidden,)):
        raise ValueError(f"{where}: value expected a number or shape (H,) = ({hidden},), got {numbers.shape}")
    if not ((numbers >= 0) & (numbers <= 1)).all():
        raise ValueError(f"{where}: value expected numbers in [0, 1], got {_checks.describe(value)}")
    with np.errstate(divide="ignore"):
        return tuple(np.atleast_1d(np.log(numbers) - np.log1p(-numbers)).tolist())
