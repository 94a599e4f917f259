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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxrnn._types import Params, PyTree, State, Tape
from jaxrnn.sequence.masking import clip, only, replace, select, shifted
from jaxrnn.sequence.plan import Inputs, Plan, operands, rule_of
from jaxrnn.sequence.segments import joined, parted

GATES_SEGMENT = 64  # steps whose gates are computed anew at a time: one product, and little memory


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
    final, ys, states, _ = _forward(plan, inputs, plan.return_states, False)
    return _outputs(plan, final, ys, states)


def _bptt_forward(plan: Plan, inputs: Inputs) -> tuple[Any, Any]:
    final, ys, states, residuals = _forward(plan, inputs, True, plan.keep_gates)
    return _outputs(plan, final, ys, states), (inputs, states, residuals)


class _Steps(NamedTuple):
    """What the backward pass reads, every leaf with a leading axis T."""

    xs: PyTree
    before: State
    after: State
    residual: PyTree
    dys: PyTree
    dstates: State | None
    mask: Array | None
    resets: Array | None
    cuts: Array | None


def _back(plan: Plan, params: Params, steps: _Steps, carry: PyTree) -> tuple[PyTree, Params, PyTree]:
    """The cotangents of the states that entered these steps, and of parameters and inputs."""
    rule = rule_of(plan)
    residual = steps.residual
    if not plan.keep_gates:
        residual = rule.forward(params, steps.before, rule.project(params, steps.xs))[2]
    tape = Tape(steps.before, steps.after, residual)

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

    now = (tape, steps.dys, steps.dstates, steps.mask, steps.resets, steps.cuts)
    carry, deltas = jax.lax.scan(body, carry, now, reverse=not plan.reverse)
    return carry, *rule.accumulate(params, steps.xs, tape, deltas)


def _back_in_segments(plan: Plan, params: Params, steps: _Steps, carry: PyTree) -> tuple[PyTree, Params, PyTree]:
    """`_back`, with the gates of one segment at a time."""
    whole, rest = parted(steps, GATES_SEGMENT, plan.reverse)
    carry, dparams, dxs_of_rest = _back(plan, params, rest, carry)

    def segment(carry, steps):
        carry, total = carry
        carry, dparams, dxs = _back(plan, params, steps, carry)
        return (carry, jax.tree.map(jnp.add, total, dparams)), dxs

    (carry, dparams), dxs = jax.lax.scan(segment, (carry, dparams), whole, reverse=not plan.reverse)
    return carry, dparams, joined(dxs, dxs_of_rest, plan.reverse)


def _bptt_backward(plan: Plan, saved: Any, cotangents: Any) -> tuple[Inputs]:
    inputs, states, residuals = saved
    dfinal, dys, dstates = cotangents
    before = shifted(inputs.state, states, plan.reverse)
    before = replace(inputs.resets, before, _over_time(inputs.reset_state, states))
    masks = (inputs.mask, inputs.resets, inputs.cuts)
    steps = _Steps(inputs.xs, before, states, residuals, dys, dstates, *masks)
    start = (dfinal, jax.tree.map(jnp.zeros_like, inputs.reset_state))
    back = _back if plan.keep_gates else _back_in_segments
    (dstate, dreset), dparams, dxs = back(plan, operands(plan, inputs.params), steps, start)
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
