"""The bodies of the fused kernels: a whole sequence of a tile of the batch, forward and backward.

A program of the grid runs R sequences from the first step to the last; programs share
nothing. The recurrent weights are read once, before the loop. In the loop a step reads its
share of x W_x + b, which one large product made before, and what the kernel keeps goes to
memory; state and gates never leave the chip. The equations are those of the cell's
:class:`Units`, what happens around them is that of :mod:`jaxrnn.sequence.bptt`:

    forward     s ← reset state where an episode begins;  s' = cell(s);  s ← s' where the step takes part
    backward    δs ← δs + (cotangent of the returned s_t);  δs' = cellᵀ(δs, δy_t) where the step takes part;
                then to the reset state where an episode began, clipped, and stopped at a window's border

Nothing here names a kernel language: memory is read and written through a :class:`Memory`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Params, PyTree, State, Tape, Units
from jaxrnn.cells import _algebra as alg
from jaxrnn.sequence.masking import clip, only, replace, select

TAKES_PART, BEGINS, CUTS = 1, 2, 4  # bits of what is said of a step


class Shape(NamedTuple):
    """What a kernel is compiled for."""

    time: int
    batch: int
    hidden: int
    gates: int
    rows: int  # of the batch, in a program
    width: int  # H, up to a power of two
    reverse: bool
    clip_gradient: float | None


class Memory(NamedTuple):
    """How a kernel language reads and writes entries of an array, where the mask is true; reads zeros where not.

    An index is one number for each axis of the array, or an array of them in the shape of the mask.
    """

    program: Callable[[], Any]  # which tile of the batch this is
    load: Callable[[Any, tuple[Any, ...], jax.Array], jax.Array]
    store: Callable[[Any, tuple[Any, ...], jax.Array, jax.Array], None]


class Given(NamedTuple):
    """What a kernel reads, each leaf an array, or a reference to one inside."""

    weights: Any  # (H, GH)
    vectors: Params  # the params with everything but vectors of H entries removed
    state: State  # before the first step read (B, H)
    reset_state: State | None
    flags: Any  # (T, B) of the bits above, or None where every step is plain
    steps: Any  # Forward: z (T, B, GH). Backward: `Read`


class Read(NamedTuple):
    """What the backward pass reads of each step, leaves (T, B, H)."""

    after: State
    residual: PyTree
    dys: Any
    dstates: State | None
    dfinal: State  # (B, H), of the state after the last step read


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


class Tile(NamedTuple):
    """The block of each array that is a program's own: R sequences, and N >= H units, those beyond H being zeros."""

    shape: Shape
    memory: Memory
    first: Any  # its first sequence

    def _count(self, size: tuple[int, ...], axis: int) -> jax.Array:
        return jax.lax.broadcasted_iota(jnp.int32, size, axis)

    def _block(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Sequences and units (R, N), and which of them there are."""
        size = (self.shape.rows, self.shape.width)
        row, unit = self.first + self._count(size, 0), self._count(size, 1)
        return row, unit, (row < self.shape.batch) & (unit < self.shape.hidden)

    def units(self, ref: Any, *lead: Any, gate: int = 0) -> jax.Array:
        """(R, N) of an array (..., B, ·); `lead` are indices of the axes before."""
        row, unit, inside = self._block()
        return self.memory.load(ref, (*lead, row, gate * self.shape.hidden + unit), inside)

    def write(self, ref: Any, value: jax.Array, *lead: Any, gate: int = 0) -> None:
        row, unit, inside = self._block()
        self.memory.store(ref, (*lead, row, gate * self.shape.hidden + unit), inside, value)

    def read_tree(self, tree: PyTree, *lead: Any) -> PyTree:
        return jax.tree.map(lambda ref: self.units(ref, *lead), tree)

    def write_tree(self, refs: PyTree, values: PyTree, *lead: Any) -> None:
        jax.tree.map(lambda ref, value: self.write(ref, value, *lead), refs, values)

    def vector(self, ref: Any) -> jax.Array:
        """(N,) of an array (H,)."""
        unit = self._count((self.shape.width,), 0)
        return self.memory.load(ref, (unit,), unit < self.shape.hidden)

    def weight(self, ref: Any, gate: int) -> jax.Array:
        """A gate's block (N, N) of the weights (H, GH)."""
        size = (self.shape.width, self.shape.width)
        source, unit = self._count(size, 0), self._count(size, 1)
        inside = (source < self.shape.hidden) & (unit < self.shape.hidden)
        return self.memory.load(ref, (source, gate * self.shape.hidden + unit), inside)

    def flag(self, ref: Any, t: Any) -> Callable[[int], Any]:
        """Which of the R sequences have a bit set at step t; `None` where nothing was said."""
        if ref is None:
            return lambda bit: None
        row = self.first + self._count((self.shape.rows,), 0)
        bits = self.memory.load(ref, (t, row), row < self.shape.batch)
        return lambda bit: (bits & bit) != 0


def _started(shape: Shape, memory: Memory, given: Given) -> tuple[Tile, list[jax.Array], Params, State, State | None]:
    """The tile, and what is read once."""
    tile = Tile(shape, memory, memory.program() * shape.rows)
    weights = [tile.weight(given.weights, gate) for gate in range(shape.gates)]
    vectors = jax.tree.map(tile.vector, given.vectors)
    return tile, weights, vectors, tile.read_tree(given.state), tile.read_tree(given.reset_state)


def forward(units: Units, shape: Shape, memory: Memory, given: Given, written: Written) -> None:
    """All steps of a tile."""
    tile, weights, vectors, state, reset_state = _started(shape, memory, given)

    def step(k: Any, state: State) -> State:
        t = shape.time - 1 - k if shape.reverse else k
        flag = tile.flag(given.flags, t)
        before = replace(None if reset_state is None else flag(BEGINS), state, reset_state)
        h = units.shown(before)
        zs = tuple(tile.units(given.steps, t, gate=gate) for gate in range(shape.gates))
        after, residual = units.forward(vectors, before, zs, tuple(alg.dot(h, w) for w in weights))
        after = select(flag(TAKES_PART), after, before)
        if written.ys is not None:
            tile.write(written.ys, units.shown(after), t)
        if written.states is not None:
            tile.write_tree(written.states, after, t)
        if written.residual is not None:
            tile.write_tree(written.residual, residual, t)
        return after

    tile.write_tree(written.final, jax.lax.fori_loop(np.int32(0), np.int32(shape.time), step, state))


def backward(units: Units, shape: Shape, memory: Memory, given: Given, back: Back) -> None:
    """All steps of a tile, from the last read to the first."""
    tile, weights, vectors, initial, reset_state = _started(shape, memory, given)
    read: Read = given.steps

    def step(k: Any, carry: tuple[State, State | None]) -> tuple[State, State | None]:
        dstate, dreset = carry
        t = k if shape.reverse else shape.time - 1 - k
        flag = tile.flag(given.flags, t)
        begins = None if reset_state is None else flag(BEGINS)
        before = _entering(tile, read.after, initial, t, k == shape.time - 1)
        before = replace(begins, before, reset_state)
        if read.dstates is not None:
            dstate = jax.tree.map(jnp.add, dstate, tile.read_tree(read.dstates, t))

        live = units.received(only(flag(TAKES_PART), dstate), tile.units(read.dys, t))
        tape = Tape(before, tile.read_tree(read.after, t), tile.read_tree(read.residual, t))
        past, dproducts, extra = units.backward(vectors, tape, live)
        dh = sum(alg.dot_transposed(d, w) for d, w in zip(dproducts, weights, strict=True))
        dbefore = select(flag(TAKES_PART), units.received(past, dh), dstate)
        for gate, d in enumerate(dproducts):
            tile.write(back.dproducts, d, t, gate=gate)
        tile.write_tree(back.extra, extra, t)

        if begins is not None:
            dreset = jax.tree.map(jnp.add, dreset, only(begins, dbefore))
            dbefore = only(~begins, dbefore)
        dbefore = clip(shape.clip_gradient, dbefore)
        cut = flag(CUTS)
        return dbefore if cut is None else only(~cut, dbefore), dreset

    start = (tile.read_tree(read.dfinal), jax.tree.map(jnp.zeros_like, reset_state))
    dstate, dreset = jax.lax.fori_loop(np.int32(0), np.int32(shape.time), step, start)
    tile.write_tree(back.dstate, dstate)
    tile.write_tree(back.dreset, dreset)


def _entering(tile: Tile, after: State, initial: State, t: Any, is_first: Any) -> State:
    """The state that the step read before t left, or the initial one."""
    previous = t + 1 if tile.shape.reverse else t - 1
    previous = jnp.clip(previous, 0, tile.shape.time - 1)
    read = tile.read_tree(after, previous)
    return jax.tree.map(lambda first, left: jnp.where(is_first, first, left), initial, read)
