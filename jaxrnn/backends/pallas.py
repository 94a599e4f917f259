"""draft"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._types import Params, PyTree, State, Tape
from jaxrnn.backends import kernels, triton
from jaxrnn.backends.kernels import Back, Given, Read, Shape, Written
from jaxrnn.cells import _algebra as alg
from jaxrnn.sequence.bptt import bptt_backward, bptt_forward, cotangents_of
from jaxrnn.sequence.masking import replace, shifted
from jaxrnn.sequence.plan import Inputs, Plan, operands, rule_of

ROWS = 16  # sequences of a program: the fewest that a product of tensor cores takes


def _flat(tree: PyTree, lead: int, axes: int) -> PyTree:
    """Every leaf with its batch axes made one: `lead` axes stand before them."""
    return jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:lead], -1, *leaf.shape[lead + axes :]), tree)


def _vectors(params: Params) -> Params:
    return params._replace(w_x=None, w_h=None, b=None)


def _flags(inputs: Inputs, axes: int) -> Any:
    if inputs.mask is None and inputs.resets is None and inputs.cuts is None:
        return None
    time, batch = inputs.xs.shape[0], inputs.xs.shape[1:-1]
    ones = jnp.ones((time, *batch), bool)
    mask = ones if inputs.mask is None else inputs.mask
    flags = jnp.where(mask, kernels.TAKES_PART, 0)
    if inputs.resets is not None:
        flags += jnp.where(inputs.resets, kernels.BEGINS, 0)
    if inputs.cuts is not None:
        cuts = inputs.cuts.reshape(time, *(1 for _ in batch))
        flags += jnp.where(cuts, kernels.CUTS, 0)
    return _flat(flags.astype(jnp.int32), 1, axes)


def _shape(plan: Plan, inputs: Inputs) -> Shape:
    hidden, columns = inputs.params.w_h.shape
    batch = math.prod(inputs.xs.shape[1:-1])
    width = max(16, 1 << (hidden - 1).bit_length())
    return Shape(
        inputs.xs.shape[0], batch, hidden, columns // hidden, ROWS, width, plan.reverse, plan.clip_gradient
    )


def _given(plan: Plan, inputs: Inputs, steps: Any) -> Given:
    axes = inputs.xs.ndim - 2
    params = operands(plan, inputs.params)
    return Given(
        params.w_h,
        _vectors(inputs.params),
        _flat(inputs.state, 0, axes),
        None if inputs.resets is None else _flat(inputs.reset_state, 0, axes),
        _flags(inputs, axes),
        steps,
    )


def _like(tree: PyTree, *lead: int) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype), tree)


def _unflat(tree: PyTree, batch: tuple[int, ...], lead: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:lead], *batch, *leaf.shape[lead + 1 :]), tree)


def _run_forward(interpret: bool, plan: Plan, inputs: Inputs, keep_states: bool, keep_residuals: bool) -> Written:
    units = rule_of(plan).units
    shape = _shape(plan, inputs)
    params = operands(plan, inputs.params)
    axes = inputs.xs.ndim - 2
    z = _flat(alg.add(alg.dot(inputs.xs, params.w_x), params.b), 1, axes)
    given = _given(plan, inputs, z)
    state = given.state
    row = jax.ShapeDtypeStruct((shape.batch, shape.hidden), units.shown(state).dtype)
    rows = (row,) * shape.gates
    residual = jax.eval_shape(lambda v, s, a, b: units.forward(v, s, a, b)[1], given.vectors, state, rows, rows)
    t = shape.time
    written = Written(
        final=_like(state),
        ys=_like(row, t),
        states=_like(state, t) if keep_states else None,
        residual=_like(residual, t) if keep_residuals else None,
    )
    body = functools.partial(kernels.forward, units, shape, triton.memory())
    out = triton.launch(body, given, written, -(-shape.batch // shape.rows), 4, interpret, "rnn_forward")
    batch = inputs.xs.shape[1:-1]
    return Written(_unflat(out.final, batch, 0), *(_unflat(part, batch, 1) for part in out[1:]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def fused(interpret: bool, plan: Plan, inputs: Inputs) -> tuple[State, PyTree, State | None]:
    out = _run_forward(interpret, plan, inputs, plan.return_states, False)
    return out.final, out.ys, out.states


def _fused_forward(interpret: bool, plan: Plan, inputs: Inputs):
    out = _run_forward(interpret, plan, inputs, True, plan.keep_gates)
    states = out.states if plan.return_states else None
    return (out.final, out.ys, states), (inputs, out.states, out.residual)


def _fused_backward(interpret: bool, plan: Plan, saved: Any, cotangents: Any):
    inputs, states, residual = saved
    dfinal, dys, dstates = cotangents
    rule = rule_of(plan)
    params = operands(plan, inputs.params)
    axes = inputs.xs.ndim - 2
    batch = inputs.xs.shape[1:-1]
    before = shifted(inputs.state, states, plan.reverse)
    if inputs.resets is not None:
        over = jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape), inputs.reset_state, before)
        before = replace(inputs.resets, before, over)
    if not plan.keep_gates:
        residual = rule.forward(params, before, rule.project(params, inputs.xs))[2]
    shape = _shape(plan, inputs)
    read = Read(*_flat((states, residual, dys, dstates), 1, axes), _flat(dfinal, 0, axes))
    given = _given(plan, inputs, read)
    units = rule.units
    row = jax.ShapeDtypeStruct((shape.batch, shape.hidden), read.dys.dtype)
    tape = Tape(given.state, given.state, jax.tree.map(lambda leaf: leaf[0], read.residual))
    extra = jax.eval_shape(lambda v, tape, d: units.backward(v, tape, d)[2], given.vectors, tape, given.state)
    t = shape.time
    back = Back(
        dproducts=jax.ShapeDtypeStruct((t, shape.batch, shape.gates * shape.hidden), row.dtype),
        extra=_like(extra, t),
        dstate=_like(given.state),
        dreset=_like(given.reset_state),
    )
    body = functools.partial(kernels.backward, units, shape, triton.memory())
    out = triton.launch(body, given, back, -(-shape.batch // shape.rows), 4, interpret, "rnn_backward")
    delta = units.delta(*(_unflat(part, batch, 1) for part in (out.dproducts, out.extra)))
    dparams, dxs = rule.accumulate(params, inputs.xs, Tape(before, states, residual), delta)
    dparams, dxs = cotangents_of((inputs.params, inputs.xs), (dparams, dxs))
    dreset = None if inputs.reset_state is None else (jax.tree.map(jnp.zeros_like, inputs.reset_state) if out.dreset is None else _unflat(out.dreset, batch, 0))
    return (Inputs(dparams, dxs, _unflat(out.dstate, batch, 0), None, None, dreset, None),)


fused.defvjp(_fused_forward, _fused_backward)
