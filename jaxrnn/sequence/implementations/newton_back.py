"""The gradient at a solution of Newton's method, of all steps of a window at once: the backward pass of `newton.py`.

With λ_t the cotangent of s_t from step t+1 and from what is returned, u_t what the output's cotangent alone
hands to the state before step t, and J_t the exact Jacobian at the solution:

    λ_t = g_t + J_{t+1}ᵀ λ_{t+1} + u_{t+1}        g_t: the cotangent of the returned s_t

One reverse associative scan solves it. `rule.backward` is linear, so one call of it for all steps then gives what
`rule.accumulate` reads. At a reset and at the border of a window of `truncate` J and u are 0. A window whose λ is not
finite is run step by step, because 0 times infinity would carry NaN over a reset.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrnn._types import Params, PyTree, State
from jaxrnn.sequence.implementations.bptt import bptt_backward, cotangents_of, prepared_params, step_back
from jaxrnn.sequence.implementations.newton_solve import (
    Settings,
    flat,
    in_order,
    in_windows,
    jacobians,
    masked_jacobians,
    out_of_windows,
    padded_mask,
    solve_linear,
    state_size,
    step_everywhere,
    unflat,
    window_length,
)
from jaxrnn.sequence.masking import only, shifted
from jaxrnn.sequence.request import Inputs, Options, operands

LARGEST_STATE = 128  # entries of a state, up to which the gradient is computed at once; above, step by step


class _Steps(NamedTuple):
    """What the backward pass reads of each step, in the order of reading."""

    xs: PyTree
    dys: PyTree
    dstates: State | None
    mask: Array | None
    resets: Array | None
    borders: Array | None


def pull_back(settings: Settings, options: Options, inputs: Inputs, states: State, cotangents: Any) -> tuple[Any, ...]:
    """The cotangents of the fields of `Inputs`, as `bptt_backward` returns them."""
    if options.clip_gradient is not None or state_size(inputs) > LARGEST_STATE:
        return bptt_backward(options._replace(checkpoint="gates"), (inputs, states, None), cotangents)
    dfinal, dys, dstates = cotangents
    time, reverse = inputs.time, options.reverse
    size = window_length(settings._replace(jacobian="full"), options, inputs)
    steps = _Steps(inputs.xs, dys, dstates, padded_mask(inputs, size), inputs.resets, inputs.borders)
    steps = in_windows(in_order(reverse, steps), time, size)
    states = in_windows(in_order(reverse, states), time, size, hold=True)
    entering = shifted(inputs.state, jax.tree.map(lambda leaf: leaf[:, -1], states), False)
    back = functools.partial(_window_back, options._replace(reverse=False), inputs, prepared_params(options, inputs))

    def window(carry: PyTree, now: Any) -> tuple[PyTree, PyTree]:
        carry, total = carry
        carry, (dparams, dxs) = back(carry, *now)
        return (carry, jax.tree.map(jnp.add, total, dparams)), dxs

    carry = (dfinal, jax.tree.map(jnp.zeros_like, inputs.reset_state))
    now = (entering, states, steps)
    shapes = jax.eval_shape(lambda: back(carry, *jax.tree.map(lambda leaf: leaf[0], now))[1][0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    ((dstate, dreset), dparams), dxs = jax.lax.scan(window, (carry, zeros), now, reverse=True)
    dxs = in_order(reverse, out_of_windows(dxs, time))
    dparams, dxs = cotangents_of((inputs.params, inputs.xs), (dparams, dxs))
    return dparams, dxs, dstate, dreset, None, None, None


def _window_back(
    options: Options, inputs: Inputs, prepared: Params, carry: PyTree, entering: State, states: State, steps: _Steps
) -> tuple[PyTree, tuple[Params, PyTree]]:
    """The cotangents of the state that entered a window and of the reset state, and of parameters and inputs."""
    rule, params = options.rule, operands(options, inputs.params)
    here = inputs._replace(state=entering, xs=steps.xs, mask=steps.mask, resets=steps.resets, borders=steps.borders)
    tape, _, _ = step_everywhere(options, here, rule.project(params, steps.xs), states)
    dstate, dreset = carry
    no_dreset = jax.tree.map(jnp.zeros_like, dreset)

    def once(dstate: State, dafter: State | None) -> Any:
        """Every step back by itself, from the cotangent of its own state."""

        def step(dstate: State, now: Any) -> Any:
            return step_back(options, prepared, (dstate, no_dreset), now)

        return jax.vmap(step)(dstate, (tape, steps.dys, dafter, steps.mask, steps.resets, steps.borders))

    def step_by_step() -> State:
        now = (tape, steps.dys, steps.dstates, steps.mask, steps.resets, steps.borders)
        body = functools.partial(step_back, options, prepared)
        return jax.lax.scan(body, carry, now, reverse=True)[1][0]

    handed_back = once(jax.tree.map(jnp.zeros_like, states), None)[0][0]  # by the outputs' cotangents
    solved = _solve(options, prepared, here, tape, dstate, steps, handed_back)
    is_finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(solved)]))
    solved = jax.lax.cond(is_finite, lambda: solved, step_by_step)
    (dbefore, dresets), (_, deltas) = once(solved, None)
    carry = (
        jax.tree.map(lambda leaf: leaf[0], dbefore),
        jax.tree.map(lambda total, each: total + jnp.sum(each, 0), dreset, dresets),
    )
    return carry, rule.accumulate(params, steps.xs, tape, deltas)


def _solve(
    options: Options, prepared: Params, here: Inputs, tape: Any, dstate: State, steps: _Steps, handed_back: State
) -> State:
    """λ of every step, where `dstate` comes from the step after the last."""
    batch_axes = len(here.batch_shape)
    no_dys = jax.tree.map(jnp.zeros_like, steps.dys)
    made = jacobians(options, prepared, tape, no_dys, batch_axes, True)
    made = masked_jacobians(made, here.mask, here.resets, True)
    made = made if here.borders is None else only(~here.borders, made)
    right = shifted(dstate, handed_back, True)
    if steps.dstates is not None:
        right = jax.tree.map(jnp.add, right, steps.dstates)
    transposed = jnp.swapaxes(jnp.concatenate([made[1:], jnp.zeros_like(made[:1])]), -1, -2)
    return unflat(solve_linear(transposed, flat(right, 1 + batch_axes), True, reverse=True), tape.after)
