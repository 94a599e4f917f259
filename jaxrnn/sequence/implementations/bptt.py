"""Back-propagation through time, by hand: the driver of a cell's :class:`Rule`.

Forward, the loop holds `rule.forward` alone: what does not depend on the state was
projected for many steps before it. Backward, the loop holds `rule.backward` alone, for
t = T..1 (or 1..T with `reverse`):

    δs_t     = (δs_t from step t+1) + (cotangent of the returned s_t)
    δs_{t-1} = rule.backward(δs_t, δy_t)

The cotangents of parameters and inputs are accumulated for many steps after it. "Many steps"
is a segment: long enough for fast products, short enough that what they make is still in
the cache when it is read (`segments.segment_length`).

A masked step passes δs_t through unchanged. At a reset the gradient goes to `reset_state`. What
crosses from a step to the one before is clipped with `clip_gradient`, and is zero at the borders
of windows.

The forward rule calls the undecorated function, so the gradient can be differentiated again, in
either mode.
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxrnn._types import Params, PyTree, Rule, State, Tape
from jaxrnn.sequence.implementations.protocol import BY_HAND, FORWARD_MODE, UNSEEN, Implementation
from jaxrnn.sequence.implementations.vmapped import as_one_equation, with_batch_axes
from jaxrnn.sequence.masking import clip, only, replace, select, shifted
from jaxrnn.sequence.request import CLOSURES, SYMBOLS, Inputs, Options, Outcome, Request, operands
from jaxrnn.sequence.segments import Segments, backward_through, forward_through, split_time
from jaxrnn.sequence.sharding import vary_like
from jaxrnn.sequence.structure import check_backward


@dataclasses.dataclass(frozen=True)
class Bptt(Implementation):
    """`jax.lax.scan` with the hand-written backward pass of a cell's rule."""

    name: ClassVar[str] = "bptt"
    supports: ClassVar = frozenset({
        "lengths", "mask", "resets", "reverse", "return_states", 'checkpoint="gates"', "checkpoint=K",
        "compute_dtype", "truncate", "clip_gradient", "shard_map with its checks", "model_parallel",
        "a batch on an explicit mesh", *SYMBOLS, "float32", "float64", "bfloat16, float16", "a complex state",
        "a CPU", "an NVIDIA GPU", "an AMD GPU", "a TPU",
    })  # fmt: skip
    reasons: ClassVar = {CLOSURES: UNSEEN}
    refused_transformations: ClassVar = {FORWARD_MODE: BY_HAND}

    def unsupported_cell(self, request: Request) -> str | None:
        if not isinstance(request.rule, Rule):
            return "the hand-written backward pass is that of a rule, which the cell does not have; 'scan' supports it"
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(request.inputs.state)]
        if not all(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes):
            return "the hand-written backward pass needs a state that is floating-point throughout; 'scan' does not"
        return None

    def run(self, options: Options, inputs: Inputs) -> Outcome:
        return with_batch_axes(bptt, options, inputs) if options.takes_batch_axes else bptt(options, *inputs)


def place_of_output(state: State, y: PyTree) -> int | None:
    """Which leaf of the state the output is, if it is one."""
    return next((k for k, leaf in enumerate(jax.tree.leaves(state)) if leaf is y), None)


def run_forward(
    options: Options, inputs: Inputs, keep_states: bool, keep_residuals: bool
) -> tuple[State, PyTree, State | None, PyTree]:
    """Final state, outputs, states, residuals; the last two only if they are kept.

    An output that is a part of the state is not stored twice.
    """
    rule = options.rule
    params = operands(options, inputs.params)
    position = None

    def body(state, now):
        nonlocal position
        z, mask, reset = now
        before = replace(reset, state, inputs.reset_state)
        after, y, residual = rule.forward(params, before, z)
        position = place_of_output(after, y)
        after = select(mask, after, before)
        y_kept = None if keep_states and position is not None else y
        return after, (y_kept, after if keep_states else None, residual if keep_residuals else None)

    def segment(state, steps):
        xs, mask, resets = steps
        return jax.lax.scan(body, state, (rule.project(params, xs), mask, resets), reverse=options.reverse)

    segments = split_time((inputs.xs, inputs.mask, inputs.resets), options.segment, options.reverse)
    final, (ys, states, residuals) = forward_through(segment, inputs.state, segments, options.reverse)
    if keep_states and position is not None:
        ys = jax.tree.leaves(states)[position]
    return final, ys, states, residuals


def _run_forward(options: Options, inputs: Inputs, *keep: bool) -> tuple[State, PyTree, State | None, PyTree]:
    """`run_forward`, in one equation where `with_batch_axes` runs it."""
    if not options.takes_batch_axes:
        return run_forward(options, inputs, *keep)
    return as_one_equation(lambda inputs: run_forward(options, inputs, *keep), inputs)


def _outcome(options: Options, final: State, ys: PyTree, states: State | None) -> Outcome:
    return final, ys, states if options.return_states else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def bptt(options: Options, *arrays: Any) -> Outcome:
    """What `Implementation.run` returns, of the fields of `Inputs` one by one."""
    final, ys, states, _ = _run_forward(options, Inputs(*arrays), options.return_states, False)
    return _outcome(options, final, ys, states)


def bptt_forward(options: Options, *arrays: Any) -> tuple[Any, Any]:
    """What `bptt` returns, and what the backward pass reads."""
    inputs = Inputs(*arrays)
    check_backward("unroll", options, inputs)
    final, ys, states, residuals = _run_forward(options, inputs, True, options.keep_gates)
    return _outcome(options, final, ys, states), (inputs, states, residuals)


class _Steps(NamedTuple):
    """What the backward pass reads of each step, every leaf with a leading axis T."""

    xs: PyTree
    after: State
    residual: PyTree  # None: recomputed
    dys: PyTree
    dstates: State | None
    mask: Array | None
    resets: Array | None
    borders: Array | None


def step_back(options: Options, prepared: Params, carry: PyTree, now: Any) -> tuple[PyTree, tuple[State, PyTree]]:
    """A step of the loop back through time.

    Args:
        options: of the request.
        prepared: what `rule.backward` reads in the place of the parameters.
        carry: δs_t from the step after it, and the cotangent of the reset state so far.
        now: of this step its tape, δy_t, the cotangent of the returned s_t or `None`, and whether
            it is valid, was reset, or begins a window; `None` for what no step has.

    Returns:
        The carry for the step before; δs_t, and what `rule.accumulate` reads.
    """
    dstate, dreset = carry
    tape, dy, dafter, mask, reset, border = now
    if dafter is not None:
        dstate = jax.tree.map(jnp.add, dstate, dafter)
    dbefore, delta = options.rule.backward(prepared, tape, only(mask, dstate), dy)
    dbefore = select(mask, dbefore, dstate)
    if reset is not None:
        dreset = jax.tree.map(jnp.add, dreset, only(reset, dbefore))
        dbefore = only(~reset, dbefore)
    dbefore = clip(options.clip_gradient, dbefore)
    if border is not None:
        dbefore = only(~border, dbefore)
    return (dbefore, dreset), (dstate, delta)


def _back(
    options: Options, inputs: Inputs, prepared: Params, entering: State, steps: _Steps, carry: PyTree
) -> tuple[PyTree, tuple[Params, PyTree]]:
    """The cotangents of the states that entered these steps, and of parameters and inputs.

    `prepared` is what `rule.backward` reads; `entering` is the state before the step read
    first, unless a reset replaced it.
    """
    rule, params = options.rule, operands(options, inputs.params)
    before = entering_states(options, inputs._replace(state=entering, resets=steps.resets), steps.after)
    residual = steps.residual
    if not options.keep_gates:
        residual = rule.forward(params, before, rule.project(params, steps.xs))[2]
    tape = Tape(before, steps.after, residual)

    def body(carry: PyTree, now: Any) -> tuple[PyTree, PyTree]:
        carry, (_, delta) = step_back(options, prepared, carry, now)
        return carry, delta

    now = (tape, steps.dys, steps.dstates, steps.mask, steps.resets, steps.borders)
    carry, deltas = jax.lax.scan(body, carry, now, reverse=not options.reverse)
    return carry, rule.accumulate(params, steps.xs, tape, deltas)


def prepared_params(options: Options, inputs: Inputs) -> Params:
    """What `rule.backward` reads in the place of the parameters."""
    params, prepare = operands(options, inputs.params), options.rule.prepare
    return params if prepare is None else prepare(params)


def _back_through_segments(
    options: Options, inputs: Inputs, steps: _Steps, carry: PyTree, size: int | None
) -> tuple[PyTree, tuple[Params, PyTree]]:
    """`_back` from the segment read last to the first, with the cotangents of parameters summed."""
    back = functools.partial(_back, options, inputs, prepared_params(options, inputs))
    whole, rest = split_time(steps, size, options.reverse)
    if whole is None:
        return back(inputs.state, rest, carry)
    last = 0 if options.reverse else -1
    ends = jax.tree.map(lambda leaf: leaf[:, last], whole.after)
    before_whole = shifted(inputs.state, ends, options.reverse)
    before_rest = jax.tree.map(lambda leaf: leaf[last], ends)
    segments = Segments((before_whole, whole), None if rest is None else (before_rest, rest))

    def segment(carry: PyTree, now: Any):
        carry, total = carry
        entering, steps = now
        carry, (dparams, dxs) = back(entering, steps, carry)
        return (carry, jax.tree.map(jnp.add, total, dparams)), dxs

    entering, first = jax.tree.map(lambda leaf: leaf[0], (before_whole, whole))
    shapes = jax.eval_shape(lambda: back(entering, first, carry)[1][0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (carry, dparams), dxs = backward_through(segment, (carry, vary_like(zeros, steps.xs)), segments, options.reverse)
    return carry, (dparams, dxs)


def bptt_backward(options: Options, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    """The cotangents of the fields of `Inputs`, in order; masks have none."""
    inputs, states, residuals = saved
    dfinal, dys, dstates = cotangents
    steps = _Steps(inputs.xs, states, residuals, dys, dstates, inputs.mask, inputs.resets, inputs.borders)
    start = (dfinal, jax.tree.map(jnp.zeros_like, inputs.reset_state))
    size = None if options.accumulate_once else options.segment
    (dstate, dreset), (dparams, dxs) = _back_through_segments(options, inputs, steps, start, size)
    dparams, dxs = cotangents_of((inputs.params, inputs.xs), (dparams, dxs))
    return dparams, dxs, dstate, dreset, None, None, None


def cotangents_of(primals: PyTree, ds: PyTree) -> PyTree:
    """Cotangents in the dtypes of the primals; what is not floating-point, such as a mask, has none."""

    def leaf(primal: Array, d: Array) -> Any:
        if jnp.issubdtype(primal.dtype, jnp.floating):
            return d.astype(primal.dtype)
        return np.zeros(primal.shape, jax.dtypes.float0)

    return jax.tree.map(leaf, primals, ds)


def entering_states(options: Options, inputs: Inputs, after: State) -> State:
    """The state that enters each step, resets included, from those after each step."""
    before = shifted(inputs.state, after, options.reverse)
    return replace(inputs.resets, before, _over_time(inputs.reset_state, before))


def _over_time(state: State | None, states: State) -> State | None:
    """A state repeated at every step, to select from."""
    return None if state is None else jax.tree.map(lambda s, ss: jnp.broadcast_to(s, ss.shape), state, states)


bptt.defvjp(bptt_forward, bptt_backward)
