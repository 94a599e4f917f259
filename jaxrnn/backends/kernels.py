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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Params, PyTree, State, Tape, Units
from jaxrnn.backends.blocks import Block, Memory, Shape, Weights, flags_of
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
    steps: Any  # forward: x W_x + b, (T, B, GH); backward: a `Read`


class Read(NamedTuple):
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


def forward(units: Units, shape: Shape, memory: Memory, given: Given, written: Written) -> None:
    """All steps of a program's sequences."""
    start = _start(shape, memory, given)
    gates = range(shape.gates)

    def step(n: Any, state: tuple[State, ...]) -> tuple[State, ...]:
        t = shape.time - 1 - n if shape.reverse else n
        flag = flags_of(shape, memory, given.flags, start.blocks[0].first, t)
        begins = None if given.reset_state is None else flag(BEGINS)
        before = [replace(begins, s, r) for s, r in zip(state, start.reset_state, strict=True)]
        hs = [units.shown(s) for s in before]
        weights = start.weights.stream()

        def block_step(block: Block) -> State:
            zs = tuple(block.load(given.steps, t, gate=gate) for gate in gates)
            products = tuple(_total(alg.dot(h, next(weights)) for h in hs) for _ in gates)
            after, residual = units.forward(start.vectors[block.j], before[block.j], zs, products)
            after = select(flag(TAKES_PART), after, before[block.j])
            if written.ys is not None:
                block.store(written.ys, units.shown(after), t)
            if written.states is not None:
                block.store_tree(written.states, after, t)
            if written.residual is not None:
                block.store_tree(written.residual, residual, t)
            return after

        return tuple(block_step(block) for block in start.blocks)

    final = jax.lax.fori_loop(np.int32(0), np.int32(shape.time), step, start.state)
    for block, state in zip(start.blocks, final, strict=True):
        block.store_tree(written.final, state)


def backward(units: Units, shape: Shape, memory: Memory, given: Given, back: Back) -> None:
    """All steps of a program's sequences, from the one read last to the first."""
    start, read = _start(shape, memory, given), given.steps

    def step(n: Any, carry: tuple[tuple[State, State | None], ...]) -> tuple[tuple[State, State | None], ...]:
        t = n if shape.reverse else shape.time - 1 - n
        flag = flags_of(shape, memory, given.flags, start.blocks[0].first, t)
        begins = None if given.reset_state is None else flag(BEGINS)
        weights = start.weights.stream()
        dhs: list[Any] = [None] * len(start.blocks)
        held, past = [], []

        for block, (dstate, _) in zip(start.blocks, carry, strict=True):
            if read.dstates is not None:
                dstate = jax.tree.map(jnp.add, dstate, block.load_tree(read.dstates, t))
            before = _entering(block, read.after, start.state[block.j], t, n == shape.time - 1)
            before = replace(begins, before, start.reset_state[block.j])
            live = units.received(only(flag(TAKES_PART), dstate), block.load(read.dys, t))
            tape = Tape(before, block.load_tree(read.after, t), block.load_tree(read.residual, t))
            passed, dproducts, extra = units.backward(start.vectors[block.j], tape, live)
            for gate, d in enumerate(dproducts):
                block.store(back.dproducts, d, t, gate=gate)
                dhs = [alg.plus(dh, alg.dot_transposed(d, next(weights))) for dh in dhs]
            block.store_tree(back.extra, extra, t)
            held.append(dstate)
            past.append(passed)

        def crossing(dstate: State, passed: State, dh: jax.Array, dreset: State | None) -> tuple[State, State | None]:
            dbefore = select(flag(TAKES_PART), units.received(passed, dh), dstate)
            if begins is not None:
                dreset = jax.tree.map(jnp.add, dreset, only(begins, dbefore))
                dbefore = only(~begins, dbefore)
            dbefore = clip(shape.clip_gradient, dbefore)
            cuts = flag(CUTS)
            return dbefore if cuts is None else only(~cuts, dbefore), dreset

        return tuple(map(crossing, held, past, dhs, [dreset for _, dreset in carry]))

    def cotangents_at_the_end(block: Block) -> tuple[State, State | None]:
        return block.load_tree(read.dfinal), jax.tree.map(jnp.zeros_like, start.reset_state[block.j])

    carry = tuple(cotangents_at_the_end(block) for block in start.blocks)
    carry = jax.lax.fori_loop(np.int32(0), np.int32(shape.time), step, carry)
    for block, (dstate, dreset) in zip(start.blocks, carry, strict=True):
        block.store_tree(back.dstate, dstate)
        block.store_tree(back.dreset, dreset)


def _total(terms: Any) -> jax.Array:
    """The sum of at least one."""
    first, *others = terms
    for term in others:
        first = first + term
    return first


def _entering(block: Block, after: State, initial: State, t: Any, is_first: Any) -> State:
    """What the step read before t left behind, or the initial state."""
    previous = jnp.clip(t + 1 if block.shape.reverse else t - 1, 0, block.shape.time - 1)
    return jax.tree.map(lambda s, left: jnp.where(is_first, s, left), initial, block.load_tree(after, previous))
