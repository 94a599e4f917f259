"""A sequence in segments of K steps, with the steps left over in a shorter one that is read last.

`implementations/bptt.py` projects and accumulates a segment at a time, so that what a product
makes is still in the cache when it is read (`segment_length`).
`checkpoint=K` keeps only the state that each segment starts from: the backward pass runs the
segment again from there, then differentiates it. T/K states are kept, and what the backward
pass needs of K steps at a time.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxrnn._types import PyTree, State
from jaxrnn.sequence.request import Inputs, Options, Outcome

Segment = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]


@runtime_checkable
class Runs(Protocol):
    """Runs a cell over time: an implementation, or one with segments or a mesh around it."""

    def run(self, options: Options, inputs: Inputs) -> Outcome: ...


STEPS_KEPT = 32  # the length of a segment for "sqrt" where T is a symbol: about √T of a thousand steps


def is_symbolic(*sizes: Any) -> bool:
    """Whether any of these sizes is a symbol of `jax.export`, so that it cannot be compared while tracing."""
    return not all(isinstance(size, int) for size in sizes)


def steps_kept(checkpoint: int | str, time: int) -> int:
    """The length of a segment: K, or for "sqrt" about √T, which keeps the fewest states and steps together."""
    if isinstance(checkpoint, int):
        return checkpoint
    return STEPS_KEPT if is_symbolic(time) else max(1, math.isqrt(time))


SEGMENT_ROWS = 1024  # steps times sequences: enough rows for a product at full speed, few enough for the cache
SHORTEST_SEGMENT = 8  # steps; in shorter ones the loop over segments costs more than the cache saves


def segment_length(time: int, rows: int) -> int | None:
    """The steps to project and accumulate at a time, each of `rows` sequences; a divisor of T if one is near.

    `None` is the whole sequence: where T or the number of sequences is a symbol, no length is good for all sizes.
    """
    if is_symbolic(time, rows):
        return None
    size = max(SHORTEST_SEGMENT, SEGMENT_ROWS // max(rows, 1))
    if time < 2 * size:
        return max(time, 1)
    exact = [k for k in range(size // 2, 2 * size + 1) if time % k == 0]
    return min(exact, key=lambda k: abs(k - size)) if exact else size


class Segments(NamedTuple):
    """Leaves in whole segments `(n, K, ·)` and in the steps left over; `None` where there are none."""

    whole: Any
    rest: Any


def split_time(tree: PyTree, size: int | None, reverse: bool) -> Segments:
    """Leaves `(T, ·)` in segments; a sequence no longer than one segment is all left over.

    So is every sequence where `size` is `None`. A T that is a symbol is a multiple of `size`.
    """
    time = jax.tree.leaves(tree)[0].shape[0]
    if size is None:
        return Segments(None, tree)
    if is_symbolic(time):
        return Segments(jax.tree.map(lambda leaf: leaf.reshape(time // size, size, *leaf.shape[1:]), tree), None)
    count, left = divmod(time, size) if size < time else (0, time)

    def whole(leaf: jax.Array) -> jax.Array:
        leaf = leaf[left:] if reverse else leaf[: time - left]
        return leaf.reshape(count, size, *leaf.shape[1:])

    def rest(leaf: jax.Array) -> jax.Array:
        return leaf[:left] if reverse else leaf[time - left :]

    return Segments(
        whole=jax.tree.map(whole, tree) if count else None,
        rest=jax.tree.map(rest, tree) if left or not count else None,
    )


def join_time(segments: Segments, reverse: bool) -> PyTree:
    """The inverse of `split_time`."""
    if segments.whole is None:
        return segments.rest
    flat = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]), segments.whole)
    if segments.rest is None:
        return flat
    pair = (segments.rest, flat) if reverse else (flat, segments.rest)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *pair)


def forward_through(
    run: Segment, carry: PyTree, segments: Segments, reverse: bool, in_loop: Segment | None = None
) -> tuple[PyTree, PyTree]:
    """`run(carry, steps) -> (carry, made)` from the segment read first to the last.

    The loop over whole segments runs `in_loop` instead, if it is given.
    """
    made = made_of_rest = None
    if segments.whole is not None:
        carry, made = jax.lax.scan(in_loop or run, carry, segments.whole, reverse=reverse)
    if segments.rest is not None:
        carry, made_of_rest = run(carry, segments.rest)
    return carry, join_time(Segments(made, made_of_rest), reverse)


def backward_through(run: Segment, carry: PyTree, segments: Segments, reverse: bool) -> tuple[PyTree, PyTree]:
    """`run` from the segment read last to the first."""
    made = made_of_rest = None
    if segments.rest is not None:
        carry, made_of_rest = run(carry, segments.rest)
    if segments.whole is not None:
        carry, made = jax.lax.scan(run, carry, segments.whole, reverse=not reverse)
    return carry, join_time(Segments(made, made_of_rest), reverse)


class Checkpointed(NamedTuple):
    """Another run, segment by segment, which keeps the state before each; values and gradients are the same."""

    inner: Runs

    def run(self, options: Options, inputs: Inputs) -> Outcome:
        assert options.checkpoint is not None
        size, time = steps_kept(options.checkpoint, inputs.time), inputs.time
        if is_symbolic(time):
            inputs = _padded(inputs, size)
        over_time = (inputs.xs, inputs.mask, inputs.resets, inputs.borders)

        def segment(state: State, steps: PyTree) -> tuple[State, Any]:
            xs, mask, resets, borders = steps
            here = inputs._replace(state=state, xs=xs, mask=mask, resets=resets, borders=borders)
            final, ys, states = self.inner.run(options, here)
            return final, (ys, states)

        final, (ys, states) = forward_through(
            jax.checkpoint(segment),
            inputs.state,
            split_time(over_time, size, options.reverse),
            options.reverse,
            in_loop=jax.checkpoint(segment, prevent_cse=False),
        )
        if is_symbolic(time):
            ys, states = jax.tree.map(lambda leaf: leaf[:time], (ys, states))
        return final, ys, states


def _padded(inputs: Inputs, size: int) -> Inputs:
    """The inputs with masked steps after the last one, so that they are whole segments of `size` steps.

    It is for a T that is a symbol, whose last segment would be of unknown length.
    """
    time = inputs.time
    whole = (time + size - 1) // size * size

    def padded(leaf: jax.Array) -> jax.Array:
        return jnp.concatenate([leaf, jnp.zeros((whole - time, *leaf.shape[1:]), leaf.dtype)])

    mask = jnp.ones((time, *inputs.batch_shape), bool) if inputs.mask is None else inputs.mask
    over_time = (inputs.xs, mask, inputs.resets, inputs.borders)
    xs, mask, resets, borders = jax.tree.map(padded, over_time)
    return inputs._replace(xs=xs, mask=mask, resets=resets, borders=borders)
