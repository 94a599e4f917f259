"""A sequence in segments of K steps, those left over read last: for memory, and for the cache.

The driver of :mod:`bptt` projects and accumulates a segment at a time (`segment_length`).

`checkpoint` keeps, of each segment, the state it began with alone: backward, the segment is
run again from there, then differentiated. T/K states are kept, and what the backward pass
needs of K steps at a time.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._types import PyTree, State
from jaxrnn.sequence.plan import Inputs, Plan

Segment = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
Run = Callable[[Plan, Inputs], tuple[State, PyTree, State | None]]


def steps_kept(checkpoint: int | str, time: int) -> int:
    """The length of a segment: K, or about √T, which keeps the fewest states and steps together."""
    return checkpoint if isinstance(checkpoint, int) else max(1, math.isqrt(time))


SEGMENT_ROWS = 1024  # steps times sequences: enough rows for a product at full speed, few enough for the cache
SHORTEST_SEGMENT = 8  # steps, or the loop over segments costs more than the cache saves


def segment_length(time: int, rows: int) -> int:
    """The steps that are projected and accumulated at a time, each of `rows` sequences; if it can, it divides T."""
    size = max(SHORTEST_SEGMENT, SEGMENT_ROWS // max(rows, 1))
    if time < 2 * size:
        return max(time, 1)
    exact = [k for k in range(size // 2, 2 * size + 1) if time % k == 0]
    return min(exact, key=lambda k: abs(k - size)) if exact else size


class Parts(NamedTuple):
    """Leaves in whole segments `(n, K, ·)` and in the steps left over; `None` where there are none."""

    whole: Any
    rest: Any


def parted(tree: PyTree, size: int, reverse: bool) -> Parts:
    """Leaves `(T, ·)` in segments; what is not longer than one is left over as it stands."""
    time = jax.tree.leaves(tree)[0].shape[0]
    count, left = divmod(time, size) if size < time else (0, time)

    def whole(leaf: jax.Array) -> jax.Array:
        leaf = leaf[left:] if reverse else leaf[: time - left]
        return leaf.reshape(count, size, *leaf.shape[1:])

    def rest(leaf: jax.Array) -> jax.Array:
        return leaf[:left] if reverse else leaf[time - left :]

    return Parts(
        whole=jax.tree.map(whole, tree) if count else None,
        rest=jax.tree.map(rest, tree) if left or not count else None,
    )


def joined(parts: Parts, reverse: bool) -> PyTree:
    """The inverse of `parted`."""
    if parts.whole is None:
        return parts.rest
    flat = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]), parts.whole)
    if parts.rest is None:
        return flat
    pair = (parts.rest, flat) if reverse else (flat, parts.rest)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *pair)


def forward_through(run: Segment, carry: PyTree, parts: Parts, reverse: bool, in_loop: Segment | None = None) -> Any:
    """`run(carry, steps) -> (carry, made)` from the segment read first to the last; in the loop `in_loop`, if given."""
    made = made_of_rest = None
    if parts.whole is not None:
        carry, made = jax.lax.scan(in_loop or run, carry, parts.whole, reverse=reverse)
    if parts.rest is not None:
        carry, made_of_rest = run(carry, parts.rest)
    return carry, joined(Parts(made, made_of_rest), reverse)


def backward_through(run: Segment, carry: PyTree, parts: Parts, reverse: bool) -> Any:
    """`run` from the segment read last to the first."""
    made = made_of_rest = None
    if parts.rest is not None:
        carry, made_of_rest = run(carry, parts.rest)
    if parts.whole is not None:
        carry, made = jax.lax.scan(run, carry, parts.whole, reverse=not reverse)
    return carry, joined(Parts(made, made_of_rest), reverse)


class Segmented(NamedTuple):
    """`run`, segment by segment; equal in values and gradients. A record, so that equal ones compile once."""

    run: Run
    checkpoint: int | str

    def __call__(self, plan: Plan, inputs: Inputs) -> tuple[State, PyTree, State | None]:
        time = jax.tree.leaves(inputs.xs)[0].shape[0]
        size = steps_kept(self.checkpoint, time)
        over_time = (inputs.xs, inputs.mask, inputs.resets, inputs.cuts)

        def segment(state: State, steps: PyTree) -> tuple[State, Any]:
            xs, mask, resets, cuts = steps
            here = inputs._replace(state=state, xs=xs, mask=mask, resets=resets, cuts=cuts)
            final, ys, states = self.run(plan, here)
            return final, (ys, states)

        final, (ys, states) = forward_through(
            jax.checkpoint(segment),
            inputs.state,
            parted(over_time, size, plan.reverse),
            plan.reverse,
            in_loop=jax.checkpoint(segment, prevent_cse=False),
        )
        return final, ys, states
