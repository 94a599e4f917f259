"""The bodies of the fused kernels: a whole sequence of R sequences of the batch, forward and backward.

A program runs them from the first step to the last; programs share nothing. In the loop, a
step reads its share of the rule's `project`, which one large product made before, and what is kept
goes to memory. The state stays on the chip. The equations are those of the cell's
:class:`jaxrnn._types.Pointwise`. Around them the kernels do what `implementations/bptt.py` does:

    forward     s ← reset state at a reset;  s' = cell(s);  s ← s' unless the step is masked
    backward    δs ← δs + (cotangent of the returned s_t);  δs' = cellᵀ(δs, δy_t) unless the step is masked;
                then to the reset state at a reset, clipped, and zero at the border of a window

Nothing here names a kernel language: memory is read and written through a :class:`Memory`.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Params, Pointwise, PyTree, State, Tape
from jaxrnn.cells import _algebra as alg
from jaxrnn.sequence.implementations.kernels.blocks import Block, Memory, Shape, Weights
from jaxrnn.sequence.masking import clip, only, replace, select

VALID, RESET, BORDER = 1, 2, 4  # the bits of a step's flags


class Given(NamedTuple):
    """What a kernel reads: arrays outside, references to them inside."""

    weights: Any  # (H, GH)
    vectors: Params  # the params with nothing in them but vectors (H,)
    state: State  # before the first step read, (B, H)
    reset_state: State | None
    flags: Any  # (T, B) of the bits above; `None`: all steps are valid, without resets and borders
    steps: Any  # forward: what `project` gives for each gate, a tuple of (T, B, H); backward: an `OverTime`


class OverTime(NamedTuple):
    """What the backward pass reads of each step, leaves (T, B, H)."""

    after: State
    residual: PyTree
    dys: Any
    dstates: State | None
    dfinal: State  # (B, H)


class Written(NamedTuple):
    """What the forward pass writes, leaves (T, B, H); what is not kept is `None`."""

    final: State  # (B, H)
    ys: Any
    states: State | None
    residual: PyTree


class Back(NamedTuple):
    """What the backward pass writes."""

    dproducts: Any  # (T, B, GH)
    extra: PyTree  # (T, B, H)
    dstate: State  # (B, H)
    dreset: State | None  # (B, H)


class _Started(NamedTuple):
    """What a program has before its loop; lists have an entry for each block of units."""

    blocks: list[Block]
    weights: Weights
    vectors: list[Params]
    state: tuple[State, ...]
    reset_state: tuple[State | None, ...]


def _start(shape: Shape, memory: Memory, given: Given) -> _Started:
    first = memory.program() * shape.rows
    blocks = [Block(shape, memory, first, j) for j in shape.blocks]
    return _Started(
        blocks,
        Weights(shape, memory, given.weights),
        [jax.tree.map(block.vector, given.vectors) for block in blocks],
        tuple(block.load_tree(given.state) for block in blocks),
        tuple(block.load_tree(given.reset_state) for block in blocks),
    )


def _through_time(shape: Shape, read: Callable[[Any], Any], step: Callable[[Any, Any, Any], Any], carry: Any) -> Any:
    """`carry = step(n, read(n), carry)` for n = 0..T-1; with `shape.early`, n + 1 is read before step n."""
    first, length = np.int32(0), np.int32(shape.time)
    if not shape.early:
        return jax.lax.fori_loop(first, length, lambda n, carry: step(n, read(n), carry), carry)

    def body(n: Any, both: tuple[Any, Any]) -> tuple[Any, Any]:
        now, carry = both
        later = read(jnp.minimum(n + 1, shape.time - 1))
        return later, step(n, now, carry)

    return jax.lax.fori_loop(first, length, body, (read(first), carry))[1]


def _bit(flags: jax.Array | None, bit: int) -> Any:
    """The sequences that have a bit set; `None` where there are no flags."""
    return None if flags is None else (flags & bit) != 0


def forward(pointwise: Pointwise, shape: Shape, memory: Memory, given: Given, written: Written) -> None:
    """All steps of a program's sequences."""
    start = _start(shape, memory, given)
    gates = range(shape.gates)

    def time(n: Any) -> Any:
        return shape.time - 1 - n if shape.reverse else n

    def read(n: Any) -> tuple[Any, Any]:
        t = time(n)
        zs = [tuple(block.load(share, t) for share in given.steps) for block in start.blocks]
        return start.blocks[0].flags(given.flags, t), zs

    def step(n: Any, now: tuple[Any, Any], state: tuple[State, ...]) -> tuple[State, ...]:
        t, (flags, zs) = time(n), now
        valid = _bit(flags, VALID)
        reset = None if given.reset_state is None else _bit(flags, RESET)
        before = [replace(reset, s, r) for s, r in zip(state, start.reset_state, strict=True)]
        hs = [pointwise.hidden(s) for s in before]
        weights = start.weights.stream()

        def block_step(block: Block) -> State:
            products = tuple(_total(alg.dot(h, next(weights)) for h in hs) for _ in gates)
            after, residual = pointwise.forward(start.vectors[block.j], before[block.j], zs[block.j], products)
            after = select(valid, after, before[block.j])
            if written.ys is not None:
                block.store(written.ys, pointwise.hidden(after), t)
            if written.states is not None:
                block.store_tree(written.states, after, t)
            if written.residual is not None:
                block.store_tree(written.residual, residual, t)
            return after

        return tuple(block_step(block) for block in start.blocks)

    final = _through_time(shape, read, step, start.state)
    for block, state in zip(start.blocks, final, strict=True):
        block.store_tree(written.final, state)


class _Now(NamedTuple):
    """What the backward pass reads of a step and of a block of units."""

    previous: State  # after the step read before; of no meaning at the first
    after: State
    residual: PyTree
    dy: jax.Array
    dafter: State | None


def backward(pointwise: Pointwise, shape: Shape, memory: Memory, given: Given, back: Back) -> None:
    """All steps of a program's sequences, from the one read last to the first."""
    start, over_time = _start(shape, memory, given), given.steps

    def time(n: Any) -> Any:
        return n if shape.reverse else shape.time - 1 - n

    def read(n: Any) -> tuple[Any, list[_Now]]:
        t = time(n)
        before = jnp.clip(t + 1 if shape.reverse else t - 1, 0, shape.time - 1)

        def of_block(block: Block) -> _Now:
            return _Now(
                block.load_tree(over_time.after, before),
                block.load_tree(over_time.after, t),
                block.load_tree(over_time.residual, t),
                block.load(over_time.dys, t),
                block.load_tree(over_time.dstates, t),
            )

        return start.blocks[0].flags(given.flags, t), [of_block(block) for block in start.blocks]

    def step(n: Any, now: Any, carry: tuple[tuple[State, State | None], ...]) -> tuple[tuple[State, State | None], ...]:
        t, (flags, of_blocks) = time(n), now
        valid, border = _bit(flags, VALID), _bit(flags, BORDER)
        reset = None if given.reset_state is None else _bit(flags, RESET)
        weights = start.weights.stream()
        dhs: list[Any] = [None] * len(start.blocks)
        held, past = [], []

        for block, own, (dstate, _) in zip(start.blocks, of_blocks, carry, strict=True):
            if own.dafter is not None:
                dstate = jax.tree.map(jnp.add, dstate, own.dafter)
            at_first = n == shape.time - 1
            before = jax.tree.map(functools.partial(jnp.where, at_first), start.state[block.j], own.previous)
            tape = Tape(replace(reset, before, start.reset_state[block.j]), own.after, own.residual)
            live = pointwise.add_to_hidden(only(valid, dstate), own.dy)
            passed, dproducts, extra = pointwise.backward(start.vectors[block.j], tape, live)
            for gate, d in enumerate(dproducts):
                block.store(back.dproducts, d, t, gate=gate)
                dhs = [alg.plus(dh, alg.dot_transposed(d, next(weights))) for dh in dhs]
            block.store_tree(back.extra, extra, t)
            held.append(dstate)
            past.append(passed)

        def crossing(dstate: State, passed: State, dh: jax.Array, dreset: State | None) -> tuple[State, State | None]:
            dbefore = select(valid, pointwise.add_to_hidden(passed, dh), dstate)
            if reset is not None:
                dreset = jax.tree.map(jnp.add, dreset, only(reset, dbefore))
                dbefore = only(~reset, dbefore)
            dbefore = clip(shape.clip_gradient, dbefore)
            return dbefore if border is None else only(~border, dbefore), dreset

        return tuple(map(crossing, held, past, dhs, [dreset for _, dreset in carry]))

    def cotangents_at_the_end(block: Block) -> tuple[State, State | None]:
        return block.load_tree(over_time.dfinal), jax.tree.map(jnp.zeros_like, start.reset_state[block.j])

    carry = _through_time(shape, read, step, tuple(map(cotangents_at_the_end, start.blocks)))
    for block, (dstate, dreset) in zip(start.blocks, carry, strict=True):
        block.store_tree(back.dstate, dstate)
        block.store_tree(back.dreset, dreset)


def _total(terms: Iterable[jax.Array]) -> jax.Array:
    """The sum of at least one."""
    return functools.reduce(jnp.add, terms)
