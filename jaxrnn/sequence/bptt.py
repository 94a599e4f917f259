"""Back-propagation through time, by hand: the driver of a cell's :class:`Rule`.

Forward, the loop holds `rule.forward` alone: what does not depend on the state was
projected for all steps before it. Backward, the loop holds `rule.backward` alone, for
t = T..1 (or the other way round):

    δs_t     = (δs_t from step t+1) + (cotangent of the returned s_t)
    δs_{t-1} = rule.backward(δs_t, δy_t)

and the cotangents of parameters and inputs are accumulated for all steps after it.
A step that takes no part hands δs_t through untouched; where a reset cut the state,
what would cross goes to the reset state instead. What crosses is clipped, and stopped at
the borders of windows, if the plan asks for that.

The forward rule calls the undecorated function, so that the gradient can itself be
differentiated, in either mode.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxrnn._types import PyTree, State, Tape
from jaxrnn.sequence.masking import clip, only, replace, select, shifted
from jaxrnn.sequence.plan import Inputs, Plan, operands, rule_of


def _position(state: State, y: PyTree) -> int | None:
    """Which leaf of the state the output is, if it is one: it is then not stored twice."""
    return next((k for k, leaf in enumerate(jax.tree.leaves(state)) if leaf is y), None)


def _forward(plan: Plan, inputs: Inputs, keep: bool) -> tuple[State, PyTree, State | None, PyTree]:
    """Final state, outputs, states, residuals; the last two only if `keep`, or as the plan asks."""
    rule = rule_of(plan)
    params = operands(plan, inputs.params)
    keep_states = keep or plan.return_states
    position = None

    def body(state, now):
        nonlocal position
        z, mask, reset = now
        before = replace(reset, state, inputs.reset_state)
        after, y, residual = rule.forward(params, before, z)
        position = _position(after, y)
        after = select(mask, after, before)
        y_apart = None if keep_states and position is not None else y
        return after, (y_apart, after if keep_states else None, residual if keep else None)

    zs = (rule.project(params, inputs.xs), inputs.mask, inputs.resets)
    final, (ys, states, residuals) = jax.lax.scan(body, inputs.state, zs, reverse=plan.reverse)
    if keep_states and position is not None:
        ys = jax.tree.leaves(states)[position]
    return final, ys, states, residuals


def _outputs(plan: Plan, final: State, ys: PyTree, states: State | None) -> tuple[State, PyTree, State | None]:
    return final, ys, states if plan.return_states else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def bptt(plan: Plan, inputs: Inputs) -> tuple[State, PyTree, State | None]:
    """Final state, outputs and, if the plan asks, the states after each step.

    Outputs at steps that take no part are not zeroed here; their cotangents must come as zeros.
    """
    final, ys, states, _ = _forward(plan, inputs, keep=False)
    return _outputs(plan, final, ys, states)


def _bptt_forward(plan: Plan, inputs: Inputs) -> tuple[Any, Any]:
    final, ys, states, residuals = _forward(plan, inputs, keep=True)
    return _outputs(plan, final, ys, states), (inputs, states, residuals)


def _bptt_backward(plan: Plan, saved: Any, cotangents: Any) -> tuple[Inputs]:
    inputs, states, residuals = saved
    dfinal, dys, dstates = cotangents
    rule = rule_of(plan)
    params = operands(plan, inputs.params)
    before = shifted(inputs.state, states, plan.reverse)
    before = replace(inputs.resets, before, _over_time(inputs.reset_state, states))
    tape = Tape(before, states, residuals)

    def body(carry, now):
        dstate, dreset = carry
        step, dy, dafter, mask, reset, cut = now
        if dafter is not None:
            dstate = jax.tree.map(jnp.add, dstate, dafter)
        dbefore, delta = rule.backward(params, step, only(mask, dstate), dy)
        dbefore = select(mask, dbefore, dstate)
        if reset is not None:
            dreset = jax.tree.map(jnp.add, dreset, only(reset, dbefore))
            dbefore = only(~reset, dbefore)
        dbefore = clip(plan.clip_gradient, dbefore)
        if cut is not None:
            dbefore = only(~cut, dbefore)
        return (dbefore, dreset), delta

    start = (dfinal, jax.tree.map(jnp.zeros_like, inputs.reset_state))
    now = (tape, dys, dstates, inputs.mask, inputs.resets, inputs.cuts)
    (dstate, dreset), deltas = jax.lax.scan(body, start, now, reverse=not plan.reverse)
    dparams, dxs = rule.accumulate(params, inputs.xs, tape, deltas)
    dparams, dxs = _cotangents((inputs.params, inputs.xs), (dparams, dxs))
    return (Inputs(dparams, dxs, dstate, None, None, dreset, None),)


def _cotangents(primals: PyTree, ds: PyTree) -> PyTree:
    """In the dtypes of the primals; what is not floating-point, such as a mask, has none."""

    def leaf(primal: Array, d: Array) -> Any:
        if jnp.issubdtype(primal.dtype, jnp.floating):
            return d.astype(primal.dtype)
        return np.zeros(primal.shape, jax.dtypes.float0)

    return jax.tree.map(leaf, primals, ds)


def _over_time(state: State | None, states: State) -> State | None:
    """A state as if it stood at every step, to be selected from."""
    return None if state is None else jax.tree.map(lambda s, ss: jnp.broadcast_to(s, ss.shape), state, states)


bptt.defvjp(_bptt_forward, _bptt_backward)
