"""The bodies of the fused kernels: a whole sequence of R sequences of the batch, forward and backward.

A program runs them from the first step to the last; programs share nothing. In the loop, a
step reads its share of x W_x + b, which one large product made before, and what is kept
goes to memory; the state stays on the chip. The equations are those of the cell's
:class:`Units`, what happens around them is that of :mod:`jaxrnn.sequence.bptt`:

    forward     s ← reset state where an episode begins;  s' = cell(s);  s ← s' where the step takes part
    backward    δs ← δs + (cotangent of the returned s_t);  δs' = cellᵀ(δs, δy_t) where the step takes part;
                then to the reset state where an episode began, clipped, and stopped at a window's border

Nothing here names a kernel language: memory is read and written through a :class:`Memory`.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Params, PyTree, State, Tape, Units
from jaxrnn.backends.blocks import Block, Memory, Shape, Weights
from jaxrnn.cells import _algebra as alg
from jaxrnn.sequence.masking import clip, only, replace, select

TAKES_PART, BEGINS, CUTS = 1, 2, 4  # bits of what is said of a step


class Given(NamedTuple):
    """What a kernel reads: arrays outside, references to them inside."""

    weights: Any  # (H, GH)
    vectors: Params  # the params with nothing in them but vectors (H,)
    state: State  # before the first step read, (B, H)
    reset_state: State | None
    flags: Any  # (T, B) of the bits above; `None`: every step takes part, and nothing else happens
    steps: Any  # forward: x W_x + b, (T, B, GH); backward: an `OverTime`


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
    """`carry = step(n, read(n), carry)` for n = 0..T-1; if it is to be early, n + 1 is read before step n."""
    first, length = np.int32(0), np.int32(shape.time)
    if not shape.early:
        return jax.lax.fori_loop(first, length, lambda n, carry: step(n, read(n), carry), carry)

    def body(n: Any, both: tuple[Any, Any]) -> tuple[Any, Any]:
        now, carry = both
        later = read(jnp.minimum(n + 1, shape.time - 1))
        return later, step(n, now, carry)

    return jax.lax.fori_loop(first, length, body, (read(first), carry))[1]


def _says(flags: jax.Array | None, bit: int) -> Any:
    """Of which sequences a bit is set; `None` where nothing is said."""
    return None if flags is None else (flags & bit) != 0


def forward(units: Units, shape: Shape, memory: Memory, given: Given, written: Written) -> None:
    """All steps of a program's sequences."""
    start = _start(shape, memory, given)
    gates = range(shape.gates)

    def time(n: Any) -> Any:
        return shape.time - 1 - n if shape.reverse else n

    def read(n: Any) -> tuple[Any, Any]:
        t = time(n)
        zs = [tuple(block.load(given.steps, t, gate=gate) for gate in gates) for block in start.blocks]
        return start.blocks[0].flags(given.flags, t), zs

    def step(n: Any, now: tuple[Any, Any], state: tuple[State, ...]) -> tuple[State, ...]:
        t, (flags, zs) = time(n), now
        takes_part = _says(flags, TAKES_PART)
        begins = None if given.reset_state is None else _says(flags, BEGINS)
        before = [replace(begins, s, r) for s, r in zip(state, start.reset_state, strict=True)]
        hs = [units.shown(s) for s in before]
        weights = start.weights.stream()

        def block_step(block: Block) -> State:
            products = tuple(_total(alg.dot(h, next(weights)) for h in hs) for _ in gates)
            after, residual = units.forward(start.vectors[block.j], before[block.j], zs[block.j], products)
            after = select(takes_part, after, before[block.j])
            if written.ys is not None:
                block.store(written.ys, units.shown(after), t)
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


def backward(units: Units, shape: Shape, memory: Memory, given: Given, back: Back) -> None:
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
        takes_part, cuts = _says(flags, TAKES_PART), _says(flags, CUTS)
        begins = None if given.reset_state is None else _says(flags, BEGINS)
        weights = start.weights.stream()
        dhs: list[Any] = [None] * len(start.blocks)
        held, past = [], []

        for block, own, (dstate, _) in zip(start.blocks, of_blocks, carry, strict=True):
            if own.dafter is not None:
                dstate = jax.tree.map(jnp.add, dstate, own.dafter)
            at_first = n == shape.time - 1
            before = jax.tree.map(functools.partial(jnp.where, at_first), start.state[block.j], own.previous)
            tape = Tape(replace(begins, before, start.reset_state[block.j]), own.after, own.residual)
            live = units.received(only(takes_part, dstate), own.dy)
            passed, dproducts, extra = units.backward(start.vectors[block.j], tape, live)
            for gate, d in enumerate(dproducts):
                block.store(back.dproducts, d, t, gate=gate)
                dhs = [alg.plus(dh, alg.dot_transposed(d, next(weights))) for dh in dhs]
            block.store_tree(back.extra, extra, t)
            held.append(dstate)
            past.append(passed)

        def crossing(dstate: State, passed: State, dh: jax.Array, dreset: State | None) -> tuple[State, State | None]:
            dbefore = select(takes_part, units.received(passed, dh), dstate)
            if begins is not None:
                dreset = jax.tree.map(jnp.add, dreset, only(begins, dbefore))
                dbefore = only(~begins, dbefore)
            dbefore = clip(shape.clip_gradient, dbefore)
            return dbefore if cuts is None else only(~cuts, dbefore), dreset

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
