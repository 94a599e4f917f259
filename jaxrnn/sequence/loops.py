"""The two plain ways through time: the scan, and the Python loop that is the oracle.

Both call the cell's `step` as a person would write it, products and all inside the loop,
and leave the derivative to JAX. They serve forward-mode and every other transformation.
"""

import jax
import jax.numpy as jnp

from jaxrnn._types import PyTree, State
from jaxrnn.sequence.masking import crossing, replace, select
from jaxrnn.sequence.plan import Inputs, Plan, step


def scan(plan: Plan, inputs: Inputs) -> tuple[State, PyTree, State | None]:
    """`jax.lax.scan` over the cell's step, under plain automatic differentiation."""

    def body(state, now):
        x, mask, reset, cut = now
        before = replace(reset, crossing(plan.clip_gradient, cut, state), inputs.reset_state)
        after, y = step(plan, inputs.params, before, x)
        after = select(mask, after, before)
        return after, (y, after if plan.return_states else None)

    xs = (inputs.xs, inputs.mask, inputs.resets, inputs.cuts)
    final, (ys, states) = jax.lax.scan(body, inputs.state, xs, reverse=plan.reverse)
    return final, ys, states


def reference(plan: Plan, inputs: Inputs) -> tuple[State, PyTree, State | None]:
    """A Python loop over the cell's step: slow, obvious, and what the others are compared with."""
    time = jax.tree.leaves(inputs.xs)[0].shape[0]
    state, ys, states = inputs.state, [], []
    for t in range(time - 1, -1, -1) if plan.reverse else range(time):
        state = crossing(plan.clip_gradient, None if inputs.cuts is None else inputs.cuts[t], state)
        if inputs.resets is not None:
            state = replace(inputs.resets[t], state, inputs.reset_state)
        after, y = step(plan, inputs.params, state, jax.tree.map(lambda leaf, t=t: leaf[t], inputs.xs))
        state = after if inputs.mask is None else select(inputs.mask[t], after, state)
        ys.append(y)
        states.append(state)
    if plan.reverse:
        ys, states = ys[::-1], states[::-1]
    if not time:
        return _nothing(plan, inputs)
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
    return state, stack(ys), stack(states) if plan.return_states else None


def _nothing(plan: Plan, inputs: Inputs) -> tuple[State, PyTree, State | None]:
    """The outputs of no steps: of the right shapes and dtypes, with a first axis of 0."""
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs.xs)
    shapes = jax.eval_shape(lambda p, s, x: step(plan, p, s, x), inputs.params, inputs.state, first)
    states, ys = jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), shapes)
    return inputs.state, ys, states if plan.return_states else None
