"""Back-propagation through time, by hand: the driver of a cell's :class:`Rule`.

Forward, the loop holds `rule.forward` alone: what does not depend on the state was
projected for many steps before it. Backward, the loop holds `rule.backward` alone, for
t = T..1 (or the other way round):

    δs_t     = (δs_t from step t+1) + (cotangent of the returned s_t)
    δs_{t-1} = rule.backward(δs_t, δy_t)

and the cotangents of parameters and inputs are accumulated for many steps after it.
Many steps are a segment, so long that its products are large and so short that what they
make is still in the cache when it is read (`segments.segment_length`); a sequence that is not
much longer is one segment.

A step that takes no part hands δs_t through untouched; where a reset cut the state,
what would cross goes to the reset state instead. What crosses is clipped, and stopped at
the borders of windows, if the plan asks for that.

The forward rule calls the undecorated function, so that the gradient can itself be
differentiated, in either mode.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxrnn._types import Params, PyTree, State, Tape
from jaxrnn.sequence.masking import clip, only, replace, select, shifted
from jaxrnn.sequence.plan import Inputs, Plan, operands, rule_of
from jaxrnn.sequence.segments import Parts, backward_through, forward_through, parted
from jaxrnn.sequence.varying import vary_like


def _position(state: State, y: PyTree) -> int | None:
    """Which leaf of the state the output is, if it is one: it is then not stored twice."""
    return next((k for k, leaf in enumerate(jax.tree.leaves(state)) if leaf is y), None)


def _forward(
    plan: Plan, inputs: Inputs, keep_states: bool, keep_residuals: bool
) -> tuple[State, PyTree, State | None, PyTree]:
    """Final state, outputs, states, residuals; the last two only if they are kept."""
    rule = rule_of(plan)
    params = operands(plan, inputs.params)
    position = None

    def body(state, now):
        nonlocal position
        z, mask, reset = now
        before = replace(reset, state, inputs.reset_state)
        after, y, residual = rule.forward(params, before, z)
        position = _position(after, y)
        after = select(mask, after, before)
        y_apart = None if keep_states and position is not None else y
        return after, (y_apart, after if keep_states else None, residual if keep_residuals else None)

    def segment(state, steps):
        xs, mask, resets = steps
        return jax.lax.scan(body, state, (rule.project(params, xs), mask, resets), reverse=plan.reverse)

    parts = parted((inputs.xs, inputs.mask, inputs.resets), plan.segment, plan.reverse)
    final, (ys, states, residuals) = forward_through(segment, inputs.state, parts, plan.reverse)
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
    final, ys, states, _ = _forward(plan, inputs, plan.return_states, False)
    return _outputs(plan, final, ys, states)


def bptt_forward(plan: Plan, inputs: Inputs) -> tuple[Any, Any]:
    final, ys, states, residuals = _forward(plan, inputs, True, plan.keep_gates)
    return _outputs(plan, final, ys, states), (inputs, states, residuals)


class _Steps(NamedTuple):
    """What the backward pass reads of each step, every leaf with a leading axis T."""

    xs: PyTree
    after: State
    residual: PyTree  # None: computed anew
    dys: PyTree
    dstates: State | None
    mask: Array | None
    resets: Array | None
    cuts: Array | None


def _back(
    plan: Plan, inputs: Inputs, prepared: Params, entering: State, steps: _Steps, carry: PyTree
) -> tuple[PyTree, tuple[Params, PyTree]]:
    """The cotangents of the states that entered these steps, and of parameters and inputs.

    `prepared` is what `rule.backward` reads; `entering` is the state before the step read
    first, unless a reset replaced it.
    """
    rule, params = rule_of(plan), operands(plan, inputs.params)
    before = entering_states(plan, inputs._replace(state=entering, resets=steps.resets), steps.after)
    residual = steps.residual
    if not plan.keep_gates:
        residual = rule.forward(params, before, rule.project(params, steps.xs))[2]
    tape = Tape(before, steps.after, residual)

    def body(carry, now):
        dstate, dreset = carry
        step, dy, dafter, mask, reset, cut = now
        if dafter is not None:
            dstate = jax.tree.map(jnp.add, dstate, dafter)
        dbefore, delta = rule.backward(prepared, step, only(mask, dstate), dy)
        dbefore = select(mask, dbefore, dstate)
        if reset is not None:
            dreset = jax.tree.map(jnp.add, dreset, only(reset, dbefore))
            dbefore = only(~reset, dbefore)
        dbefore = clip(plan.clip_gradient, dbefore)
        if cut is not None:
            dbefore = only(~cut, dbefore)
        return (dbefore, dreset), delta

    now = (tape, steps.dys, steps.dstates, steps.mask, steps.resets, steps.cuts)
    carry, deltas = jax.lax.scan(body, carry, now, reverse=not plan.reverse)
    return carry, rule.accumulate(params, steps.xs, tape, deltas)


def _back_through_segments(
    plan: Plan, inputs: Inputs, steps: _Steps, carry: PyTree, size: int
) -> tuple[PyTree, tuple[Params, PyTree]]:
    """`_back` from the segment read last to the first, the cotangents of parameters summed on the way."""
    rule, params = rule_of(plan), operands(plan, inputs.params)
    back = functools.partial(_back, plan, inputs, params if rule.prepare is None else rule.prepare(params))
    whole, rest = parted(steps, size, plan.reverse)
    if whole is None:
        return back(inputs.state, rest, carry)
    last = 0 if plan.reverse else -1
    ends = jax.tree.map(lambda leaf: leaf[:, last], whole.after)
    before_whole = shifted(inputs.state, ends, plan.reverse)
    before_rest = jax.tree.map(lambda leaf: leaf[last], ends)
    parts = Parts((before_whole, whole), None if rest is None else (before_rest, rest))

    def segment(carry: PyTree, now: Any):
        carry, total = carry
        entering, steps = now
        carry, (dparams, dxs) = back(entering, steps, carry)
        return (carry, jax.tree.map(jnp.add, total, dparams)), dxs

    entering, first = jax.tree.map(lambda leaf: leaf[0], (before_whole, whole))
    shapes = jax.eval_shape(lambda: back(entering, first, carry)[1][0])
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (carry, dparams), dxs = backward_through(segment, (carry, vary_like(nothing, steps.xs)), parts, plan.reverse)
    return carry, (dparams, dxs)


def bptt_backward(plan: Plan, saved: Any, cotangents: Any) -> tuple[Inputs]:
    inputs, states, residuals = saved
    dfinal, dys, dstates = cotangents
    masks = (inputs.mask, inputs.resets, inputs.cuts)
    steps = _Steps(inputs.xs, states, residuals, dys, dstates, *masks)
    start = (dfinal, jax.tree.map(jnp.zeros_like, inputs.reset_state))
    size = jax.tree.leaves(states)[0].shape[0] if plan.accumulate_once else plan.segment
    (dstate, dreset), (dparams, dxs) = _back_through_segments(plan, inputs, steps, start, size)
    dparams, dxs = cotangents_of((inputs.params, inputs.xs), (dparams, dxs))
    return (Inputs(dparams, dxs, dstate, None, None, dreset, None),)


def cotangents_of(primals: PyTree, ds: PyTree) -> PyTree:
    """In the dtypes of the primals; what is not floating-point, such as a mask, has none."""

    def leaf(primal: Array, d: Array) -> Any:
        if jnp.issubdtype(primal.dtype, jnp.floating):
            return d.astype(primal.dtype)
        return np.zeros(primal.shape, jax.dtypes.float0)

    return jax.tree.map(leaf, primals, ds)


def entering_states(plan: Plan, inputs: Inputs, after: State) -> State:
    """The state that enters each step, resets included, from those after each step."""
    before = shifted(inputs.state, after, plan.reverse)
    return replace(inputs.resets, before, _over_time(inputs.reset_state, before))


def _over_time(state: State | None, states: State) -> State | None:
    """A state as if it stood at every step, to be selected from."""
    return None if state is None else jax.tree.map(lambda s, ss: jnp.broadcast_to(s, ss.shape), state, states)


bptt.defvjp(bptt_forward, bptt_backward)
