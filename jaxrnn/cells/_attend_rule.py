"""The step of an attending cell, and its rule made of that of the cell inside.

    previous:  α_t, c_t from h_{t-1}    s_t, h_t = step(s_{t-1}, [x_t; c_t])
    current:   s_t, h_t = step(s_{t-1}, [x_t; h̃_{t-1}])    α_t, c_t from h_t
    y_t = h̃_t = tanh([c_t; h_t] W_c), or [c_t; h_t] without W_c

c_t or h̃_{t-1}, what the cell reads beside x_t, is called `fed`. Backward, with δh̃_t the sum of that of the
output and that of step t+1:

    δ[c_t; h_t] = (δh̃_t ⊙ (1 - h̃_t²)) W_cᵀ
    previous:  δh_t through the cell gives δs_{t-1} and the cotangent of its preactivations, which gives δc_t;
               δc_t through the attention gives δh_{t-1}
    current:   δc_t through the attention is added to δh_t; then through the cell, which gives δh̃_{t-1}

If the cell reads its input by an affine map x W_x + b, the part of x_t is projected for all steps at once,
and the loops have the product with the rows of W_x that `fed` meets. A cell that does something else with its
input projects [x_t; fed] in the loop.

The tape keeps the weights α_t beside what the cell keeps. c_t is computed from them for many steps at once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrnn._bound import Bound
from jaxrnn._types import Params, PyTree, Rule, State, Tape
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells import _attention as attention
from jaxrnn.cells.regularize import Zoned


class AttendParams(NamedTuple):
    """Parameters of :func:`attend`; what the cell does not have is `None`.

    `memory` is `None` but for the time of a call: see :func:`with_memory`.
    """

    cell: Params  # of the cell inside, whose input is x and what it is fed
    w_q: Any = None  # additive: (H, A)
    w_k: Any = None  # additive: (M, A); general: (M, H)
    v: Any = None  # additive: (A,)
    w_c: Any = None  # (M + H, N), if the output is h̃
    memory: attention.Memory | None = None


class AttendState(NamedTuple):
    """The state of :func:`attend`."""

    cell: State  # of the cell inside
    output: Any = None  # h̃, (*B, N), if the output is h̃
    query: Any = None  # h, (*B, H), if the next step asks with it and it is no part of the cell's state


class Plan(NamedTuple):
    """What an attending cell does, as a value that functions are bound to."""

    step: Any  # of the cell inside
    rule: Rule | None  # of the cell inside
    place: int | None  # which leaf of the cell's state its output is, if it is one
    score: str
    asks_before: bool  # whether the query is h_{t-1}
    mixes: bool  # whether the output is h̃
    fed: int  # features that the cell reads beside x: M, N or 0
    is_affine: bool  # whether the cell reads its input by x W_x + b


class Prepared(NamedTuple):
    """What the backward loop reads: parameters, and matrices transposed for products there."""

    params: AttendParams
    cell: Params
    w_q: Any
    w_c: Any


class Residual(NamedTuple):
    """What a step keeps."""

    cell: PyTree
    alpha: Array  # (*B, S)
    x: PyTree  # of a cell that projects in the loop
    h: Array | None  # the cell's output, if it is in no part of the state


class Deltas(NamedTuple):
    """What `accumulate` reads of a step."""

    cell: PyTree
    attention: attention.Deltas
    mixed: Any  # the cotangent of [c; h] W_c


def _scorer(plan: Plan, params: AttendParams) -> attention.Scorer:
    return attention.Scorer(plan.score, params.w_q, params.v)


def _memory(params: AttendParams) -> Any:
    return params.memory


def _joined(x: PyTree, fed: Any) -> PyTree:
    """[x; fed], also of inputs with zoneout's masks beside them."""
    if isinstance(x, Zoned):
        return x._replace(x=jnp.concatenate([x.x, fed.astype(x.x.dtype)], axis=-1))
    return jnp.concatenate([x, fed.astype(x.dtype)], axis=-1)


def _rows(plan: Plan, params: Params, of_fed: bool) -> Params:
    """The cell's parameters with the rows of W_x that meet x, or those that meet `fed`, which have no bias."""
    inputs = params.w_x.shape[0] - plan.fed
    if of_fed:
        return params._replace(w_x=params.w_x[inputs:], b=None)
    return params._replace(w_x=params.w_x[:inputs])


def _with_fed(z: PyTree, projected: PyTree) -> PyTree:
    """z plus the projection of `fed`; what stands beside the projections of x stays as it is."""

    def added(of_fed: Array | None, of_x: Any) -> Any:
        return of_x if of_fed is None else of_x + of_fed

    return jax.tree.map(added, projected, z, is_leaf=lambda leaf: leaf is None)


def _mixed(plan: Plan, params: AttendParams, context: Any, h: Array) -> Array:
    """y."""
    both = jnp.concatenate([context, h], axis=-1)
    return jnp.tanh(alg.dot(both, params.w_c)) if plan.mixes else both


def _hidden(plan: Plan, state: AttendState) -> Array:
    """h of a state."""
    return state.query if plan.place is None else jax.tree.leaves(state.cell)[plan.place]


def _attended(plan: Plan, params: AttendParams, query: Array) -> tuple[Array, Array]:
    alpha = attention.weights(_scorer(plan, params), _memory(params), query)
    return alpha, attention.context(_memory(params), alpha)


def _after(plan: Plan, cell: State, y: Array, h: Array) -> AttendState:
    carries = plan.asks_before and plan.place is None
    return AttendState(cell, y if plan.mixes else None, h if carries else None)


def step(plan: Plan, params: AttendParams, state: AttendState, x: PyTree) -> tuple[AttendState, Array]:
    """One step of a cell without a rule."""
    fed = _attended(plan, params, _hidden(plan, state))[1] if plan.asks_before else state.output
    cell, h = plan.step(params.cell, state.cell, _joined(x, fed) if plan.fed else x)
    context = fed if plan.asks_before else _attended(plan, params, h)[1]
    y = _mixed(plan, params, context, h)
    return _after(plan, cell, y, h), y


def weights_of(plan: Plan, params: AttendParams, state: AttendState, x: PyTree) -> Array:
    """α of a step, or of many whose states are given."""
    if plan.asks_before:
        return _attended(plan, params, _hidden(plan, state))[0]
    if plan.rule is None:
        x = _joined(x, state.output) if plan.fed else x
        h = plan.step(params.cell, state.cell, x)[1]
        return _attended(plan, params, h)[0]
    return _forward(plan, params, state, _project(plan, params, x))[2].alpha


def _rule(plan: Plan) -> Rule:
    assert plan.rule is not None
    return plan.rule


def _project(plan: Plan, params: AttendParams, xs: PyTree) -> PyTree:
    if not plan.fed:
        return _rule(plan).project(params.cell, xs)
    return _rule(plan).project(_rows(plan, params.cell, False), xs) if plan.is_affine else xs


def _forward(plan: Plan, params: AttendParams, state: AttendState, z: PyTree):
    rule, fed = _rule(plan), state.output
    alpha: Any = None
    x = z if plan.fed and not plan.is_affine else None
    if plan.asks_before:
        alpha, fed = _attended(plan, params, _hidden(plan, state))
    if plan.fed and plan.is_affine:
        z = _with_fed(z, rule.project(_rows(plan, params.cell, True), fed))
    elif plan.fed:
        z = rule.project(params.cell, _joined(z, fed))
    cell, h, residual = rule.forward(params.cell, state.cell, z)
    context = fed
    if not plan.asks_before:
        alpha, context = _attended(plan, params, h)
    y = _mixed(plan, params, context, h)
    kept = h if plan.place is None and not plan.asks_before else None
    return _after(plan, cell, y, h), y, Residual(residual, alpha, x, kept)


def _prepare(plan: Plan, params: AttendParams) -> Prepared:
    rule = _rule(plan)
    own = alg.transpose(("w_q", "w_c"), params)
    return Prepared(params, params.cell if rule.prepare is None else rule.prepare(params.cell), own.w_q, own.w_c)


def _h_after(plan: Plan, tape: Tape) -> Array:
    """h_t."""
    return _hidden(plan, tape.after) if tape.residual.h is None else tape.residual.h


def _cell_tape(tape: Tape) -> Tape:
    return Tape(tape.before.cell, tape.after.cell, tape.residual.cell)


def _cotangent_of_fed(plan: Plan, params: AttendParams, tape: Tape, like: Array, delta: PyTree) -> Array:
    """The part of the cell's `accumulate` for one step that is the cotangent of what it is fed, shaped as `like`."""
    cell = params.cell
    if plan.is_affine:
        cell, inputs = _rows(plan, cell, True), jnp.zeros_like(like)  # whose values an affine map does not read
    else:
        context = attention.context(_memory(params), tape.residual.alpha) if plan.asks_before else None
        inputs = _joined(tape.residual.x, tape.before.output if context is None else context)
    one = jax.tree.map(lambda leaf: leaf[None], (inputs, _cell_tape(tape), delta))
    _, dinputs = _rule(plan).accumulate(cell, *one)
    dinputs = dinputs.x if isinstance(dinputs, Zoned) else dinputs
    return dinputs[0, ..., dinputs.shape[-1] - plan.fed :]


def _backward(plan: Plan, prepared: Prepared, tape: Tape, dstate: AttendState, dy: Array):
    params, residual = prepared.params, tape.residual
    scorer, memory = _scorer(plan, params), _memory(params)
    dmixed, both = None, dy
    if plan.mixes:
        dmixed = (dy + dstate.output) * alg.tanh_slope(tape.after.output)
        both = alg.dot_transposed(dmixed, prepared.w_c)
    features = memory.values.shape[-1]
    dcontext, dh = both[..., :features], both[..., features:]
    dh = alg.plus(dstate.query, dh)
    asked: Any = None
    if not plan.asks_before:
        query = _h_after(plan, tape)
        dquery, asked = attention.backward(scorer, memory, query, residual.alpha, dcontext, prepared.w_q)
        dh = dh + dquery
    dcell, delta = _rule(plan).backward(prepared.cell, _cell_tape(tape), dstate.cell, dh)
    doutput = None if dstate.output is None else jnp.zeros_like(dstate.output)
    dquery = None
    if plan.fed and not plan.asks_before:
        doutput = _cotangent_of_fed(plan, params, tape, tape.before.output, delta)
    if plan.asks_before:
        dcontext = dcontext + _cotangent_of_fed(plan, params, tape, dcontext, delta)
        query = _hidden(plan, tape.before)
        dquery, asked = attention.backward(scorer, memory, query, residual.alpha, dcontext, prepared.w_q)
    if plan.asks_before and plan.place is not None:
        leaves, structure = jax.tree.flatten(dcell)
        leaves[plan.place] = leaves[plan.place] + dquery
        dcell, dquery = jax.tree.unflatten(structure, leaves), None
    return AttendState(dcell, doutput, dquery), Deltas(delta, asked, dmixed)


def _accumulate(plan: Plan, params: AttendParams, xs: PyTree, tape: Tape, deltas: Deltas):
    scorer, memory, alpha = _scorer(plan, params), _memory(params), tape.residual.alpha
    contexts: Any = attention.context(memory, alpha) if plan.mixes or plan.asks_before else None
    fed = contexts if plan.asks_before else tape.before.output
    dcell, dxs = _accumulate_cell(plan, params.cell, xs, fed, _cell_tape(tape), deltas.cell)
    query = _hidden(plan, tape.before) if plan.asks_before else _h_after(plan, tape)
    dmemory, dw_q, dv = attention.accumulate(scorer, memory, query, alpha, deltas.attention)
    dw_c = None
    if plan.mixes:
        of_c = alg.outer(contexts, deltas.mixed, params.w_c)
        dw_c = jnp.concatenate([of_c, alg.outer(_h_after(plan, tape), deltas.mixed, params.w_c)])
    dw_k = None if params.w_k is None else jnp.zeros_like(params.w_k)  # the keys are an argument
    return AttendParams(dcell, dw_q, dw_k, dv, dw_c, dmemory), dxs


def _accumulate_cell(plan: Plan, params: Params, xs: PyTree, fed: Any, tape: Tape, deltas: PyTree):
    """The cotangents of the cell's parameters and of x."""
    accumulate = _rule(plan).accumulate
    if not plan.fed:
        return accumulate(params, xs, tape, deltas)
    if plan.is_affine:
        dparams, dxs = accumulate(_rows(plan, params, False), xs, tape, deltas)
        of_fed, _ = accumulate(_rows(plan, params, True), fed, tape, deltas)
        return dparams._replace(w_x=jnp.concatenate([dparams.w_x, of_fed.w_x])), dxs
    dparams, dxs = accumulate(params, _joined(xs, fed), tape, deltas)
    inputs = dxs.x if isinstance(dxs, Zoned) else dxs
    inputs = inputs[..., : inputs.shape[-1] - plan.fed]
    return dparams, dxs._replace(x=inputs) if isinstance(dxs, Zoned) else inputs


def rule_of(plan: Plan) -> Rule | None:
    """The rule of an attending cell, `None` if the cell inside has none."""
    if plan.rule is None:
        return None
    own = ("w_q", "v", "w_c", "memory.values") + (() if plan.score == "additive" else ("memory.keys",))
    return Rule(
        project=Bound(_project, plan),
        forward=Bound(_forward, plan),
        backward=Bound(_backward, plan),
        accumulate=Bound(_accumulate, plan),
        matrices=(*(f"cell.{name}" for name in plan.rule.matrices), *own),
        prepare=Bound(_prepare, plan),
    )
