"""A sequence in segments: what `checkpoint` keeps for the backward pass.

The steps are read in segments of K; those that are left over are read last. Forward, the
state goes from segment to segment. Backward, each segment is run again from the state it
began with, then differentiated: T/K states are kept, and what the backward pass needs of
K steps at a time.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._types import PyTree, State
from jaxrnn.sequence.plan import Inputs, Plan

Run = Callable[[Plan, Inputs], tuple[State, PyTree, State | None]]


def steps_kept(checkpoint: int | str, time: int) -> int:
    """The length of a segment: K, or about √T, which keeps the fewest states and steps together."""
    return checkpoint if isinstance(checkpoint, int) else max(1, math.isqrt(time))


def parted(tree: PyTree, size: int, reverse: bool) -> tuple[PyTree, PyTree]:
    """Leaves `(T, ·)` as `(T // size, size, ·)`, and the steps left over, which are read last."""

    def whole(leaf: jax.Array) -> jax.Array:
        rest = leaf.shape[0] % size
        leaf = leaf[rest:] if reverse else leaf[: leaf.shape[0] - rest]
        return leaf.reshape(leaf.shape[0] // size, size, *leaf.shape[1:])

    def rest(leaf: jax.Array) -> jax.Array:
        count = leaf.shape[0] % size
        return leaf[:count] if reverse else leaf[leaf.shape[0] - count :]

    return jax.tree.map(whole, tree), jax.tree.map(rest, tree)


def joined(whole: PyTree, rest: PyTree, reverse: bool) -> PyTree:
    """The inverse of `parted`."""

    def leaf(segments: jax.Array, steps: jax.Array) -> jax.Array:
        segments = segments.reshape(segments.shape[0] * segments.shape[1], *segments.shape[2:])
        return jnp.concatenate([steps, segments] if reverse else [segments, steps])

    return jax.tree.map(leaf, whole, rest)


class Segmented(NamedTuple):
    """`run`, segment by segment; equal in values and gradients. A record, so that equal ones compile once."""

    run: Run
    checkpoint: int | str

    def __call__(self, plan: Plan, inputs: Inputs) -> tuple[State, PyTree, State | None]:
        time = jax.tree.leaves(inputs.xs)[0].shape[0]
        size = steps_kept(self.checkpoint, time)
        if size >= time:
            return jax.checkpoint(self.run, static_argnums=0)(plan, inputs)
        over_time = (inputs.xs, inputs.mask, inputs.resets, inputs.cuts)
        whole, rest = parted(over_time, size, plan.reverse)

        def segment(state: State, steps: PyTree) -> tuple[State, Any]:
            xs, mask, resets, cuts = steps
            here = inputs._replace(state=state, xs=xs, mask=mask, resets=resets, cuts=cuts)
            final, ys, states = self.run(plan, here)
            return final, (ys, states)

        in_loop = jax.checkpoint(segment, prevent_cse=False)
        state, made = jax.lax.scan(in_loop, inputs.state, whole, reverse=plan.reverse)
        final, made_of_rest = jax.checkpoint(segment)(state, rest)
        ys, states = joined(made, made_of_rest, plan.reverse)
        return final, ys, states
