"""All steps at once, for cells whose step is s_t = a_t ⊙ s_{t-1} + b_t: two associative scans.

Such steps compose to another of the same form,

    (a₂, b₂) ∘ (a₁, b₁) = (a₂ ⊙ a₁, a₂ ⊙ b₁ + b₂)

so that T of them take about 2 log₂ T operations in sequence. Masks, resets and the initial state
act on a and b alone:

    masked:          a_t = 1,  b_t = 0
    reset on entry:  b_t += a_t ⊙ s_reset,  then a_t = 0
    first step:      b_1 += a_1 ⊙ s_0

Backward, with g_t for the cotangent of s_t from y_t and from the returned states:

    δs_t = g_t + a_{t+1} ⊙ δs_{t+1}        δb_t = δs_t        δa_t = δs_t ⊙ s_{t-1}

a_{t+1} is 0 where step t+1 was reset or begins a window. The complex case has no conjugate,
because JAX's cotangent of z is ∂L/∂(Re z) - i ∂L/∂(Im z).

Where a is set to 0, the operands carry a flag that drops what is before instead of multiplying it
by 0: neither values nor NaN cross a reset.

Products of many a must be finite, which |a| <= 1 ensures.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxrnn._types import PyTree, Rule, State
from jaxrnn.cells._affine import is_affine, plus, read, read_backward, times
from jaxrnn.sequence.implementations.bptt import cotangents_of, entering_states
from jaxrnn.sequence.implementations.protocol import BY_HAND, FORWARD_MODE, UNSEEN, Implementation
from jaxrnn.sequence.masking import only, select
from jaxrnn.sequence.request import CLOSURES, SYMBOLIC_BATCH, Inputs, Options, Outcome, Request, operands


@dataclasses.dataclass(frozen=True)
class Associative(Implementation):
    """`jax.lax.associative_scan`, with a hand-written backward pass that is one more."""

    name: ClassVar[str] = "associative"
    supports: ClassVar = frozenset({
        "lengths", "mask", "resets", "reverse", "return_states", 'checkpoint="gates"', "checkpoint=K",
        "compute_dtype", "truncate", "shard_map with its checks",
        "a batch on an explicit mesh", SYMBOLIC_BATCH, "float32", "float64", "bfloat16, float16", "a complex state",
        "a CPU", "an NVIDIA GPU", "an AMD GPU", "a TPU",
    })  # fmt: skip
    reasons: ClassVar = {
        CLOSURES: UNSEEN,
        "clip_gradient": "clipping between two steps is not linear, so steps do not compose; 'bptt' supports it",
        "model_parallel": "a cell sharded by units runs step by step; 'bptt' supports it",
    }
    refused_transformations: ClassVar = {FORWARD_MODE: BY_HAND}

    def unsupported_cell(self, request: Request) -> str | None:
        if not isinstance(request.rule, Rule) or not is_affine(request.rule):
            return "the step is not affine and diagonal in the state, or does not say so in Rule.affine"
        return None

    def run(self, options: Options, inputs: Inputs) -> Outcome:
        return associative(options, *inputs)


def _at(tree: PyTree, index: int) -> PyTree:
    """One step."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _with_step(tree: PyTree, index: int, value: PyTree) -> PyTree:
    """The tree with one step replaced."""
    return jax.tree.map(lambda leaf, new: leaf.at[index].set(new), tree, value)


def _compose(first: PyTree, second: PyTree) -> PyTree:
    """The step that is `first`, then `second`. A step with the flag does not depend on the state before it."""
    (a, b, cut), (a_next, b_next, cut_next) = first, second
    composed = times(a_next, a), plus(times(a_next, b), b_next)
    if cut is None:
        return *composed, None
    return *select(cut_next, (a_next, b_next), composed), cut | cut_next


def _solve(a: State, b: State, cut: Bool[Array, "T *B"] | None, reverse: bool) -> State:
    """s_t of s_t = a_t ⊙ s_{t-1} + b_t for every t, with s_{t-1} = 0 before the first; a_t is 0 where `cut`."""
    return jax.lax.associative_scan(_compose, (a, b, cut), reverse=reverse)[1]


def _masked(options: Options, inputs: Inputs) -> tuple[State, State, PyTree]:
    """Coefficients of all steps, those of masked steps 1 and 0, and what their transpose reads."""
    affine = options.rule.affine
    assert affine is not None
    a, b, kept = affine.coefficients(operands(options, inputs.params), inputs.xs)
    return select(inputs.mask, a, jax.tree.map(jnp.ones_like, a)), only(inputs.mask, b), kept


def _run(options: Options, inputs: Inputs) -> tuple[State, PyTree, State, PyTree]:
    """Final state, outputs, states, and what the backward pass reads: a before resets, and what its transpose reads."""
    affine = options.rule.affine
    assert affine is not None
    a, b, kept = _masked(options, inputs)
    residual = a, kept
    if inputs.resets is not None:
        b = select(inputs.resets, plus(b, times(a, _over_time(inputs.reset_state, a))), b)
        a = only(~inputs.resets, a)
    states = b
    if inputs.time:
        first = -1 if options.reverse else 0
        entered = times(_at(a, first), inputs.state)
        if inputs.resets is not None:
            entered = only(~inputs.resets[first], entered)
        b = _with_step(b, first, plus(_at(b, first), entered))
        states = _solve(a, b, inputs.resets, options.reverse)
    final = _at(states, 0 if options.reverse else -1) if inputs.time else inputs.state
    ys = read(affine, operands(options, inputs.params), states, inputs.xs)
    return final, ys, states, residual


def _over_time(state: State | None, states: State) -> State:
    return jax.tree.map(lambda s, ss: jnp.broadcast_to(s, ss.shape), state, states)


def _outcome(options: Options, final: State, ys: PyTree, states: State) -> Outcome:
    return final, ys, states if options.return_states else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def associative(options: Options, *arrays: Any) -> Outcome:
    """What `Implementation.run` returns, of the fields of `Inputs` one by one."""
    final, ys, states, _ = _run(options, Inputs(*arrays))
    return _outcome(options, final, ys, states)


def _forward(options: Options, *arrays: Any) -> tuple[Any, Any]:
    inputs = Inputs(*arrays)
    final, ys, states, residual = _run(options, inputs)
    return _outcome(options, final, ys, states), (inputs, states, residual if options.keep_gates else None)


def _cotangents_of_states(options: Options, inputs: Inputs, a: State, g: State) -> State:
    """δs_t = g_t + a_{t+1} ⊙ δs_{t+1} for every t."""
    cut = inputs.resets
    if inputs.borders is not None:
        borders = jnp.reshape(inputs.borders, (-1, *(1 for _ in inputs.batch_shape)))
        borders = jnp.broadcast_to(borders, (inputs.time, *inputs.batch_shape))
        cut = borders if cut is None else cut | borders
    a = a if cut is None else only(~cut, a)

    def of_next_step(leaf: Array) -> Array:
        return jnp.roll(leaf, 1 if options.reverse else -1, axis=0)

    a, cut = jax.tree.map(of_next_step, (a, cut))  # that of the last step read is multiplied by nothing
    return _solve(a, g, cut, not options.reverse)


def _backward(options: Options, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    """The cotangents of the fields of `Inputs`, in order; masks have none."""
    inputs, states, residual = saved
    dfinal, dys, dstates = cotangents
    affine, params = options.rule.affine, operands(options, inputs.params)
    assert affine is not None
    if residual is None:
        a, _, kept = _masked(options, inputs)
    else:
        a, kept = residual
    g, of_read = read_backward(affine, params, states, inputs.xs, dys)
    g = g if dstates is None else plus(g, dstates)
    dstate, dreset = dfinal, jax.tree.map(jnp.zeros_like, inputs.reset_state)
    deltas = g
    if inputs.time:
        first, last = (-1, 0) if options.reverse else (0, -1)
        g = _with_step(g, last, plus(_at(g, last), dfinal))
        deltas = _cotangents_of_states(options, inputs, a, g)
        entering = times(a, deltas)
        dstate = _at(entering, first)
        if inputs.resets is not None:
            dreset = jax.tree.map(lambda leaf: leaf.sum(0), only(inputs.resets, entering))
            dstate = only(~inputs.resets[first], dstate)
        if inputs.borders is not None:
            dstate = only(~inputs.borders[first], dstate)
    db = only(inputs.mask, deltas)
    da = times(db, entering_states(options, inputs, states))
    found = affine.coefficients_backward(params, inputs.xs, kept, da, db)
    if of_read is not None:
        found = jax.tree.map(jnp.add, found, of_read)
    dparams, dxs = cotangents_of((inputs.params, inputs.xs), found)
    return dparams, dxs, dstate, dreset, None, None, None


associative.defvjp(_forward, _backward)
