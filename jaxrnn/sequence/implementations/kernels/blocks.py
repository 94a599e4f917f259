"""What a program of a fused kernel holds: R sequences and all units, in blocks of N of them.

A kernel language computes with blocks whose sides are powers of two, so the H units are J
blocks of N, those beyond H being zeros that nothing is written back of. A product h W_h is
then Σ_k h_k W_kj for each block j and gate, of blocks of the weights `(N, N)`. The first of
those stay on the chip from the first step to the last; the others are read again at every step.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._types import PyTree

AHEAD = 1  # blocks of weights that are asked for before they are needed, where they are read again


class Shape(NamedTuple):
    """What a kernel is compiled for."""

    time: int  # T
    batch: int  # B
    hidden: int  # H
    gates: int  # G
    rows: int  # R
    width: int  # N
    resident: int  # blocks of weights that stay on the chip
    reverse: bool
    clip_gradient: float | None
    early: bool  # whether a step is read during the one before it

    @property
    def blocks(self) -> range:
        """0..J-1."""
        return range(-(-self.hidden // self.width))

    @property
    def programs(self) -> int:
        """How many programs the batch takes."""
        return -(-self.batch // self.rows)


class Memory(NamedTuple):
    """How a kernel language reads and writes entries of an array, where the mask is true; reads zeros where not.

    An index is one number for each axis of the array, or an array of them in the shape of the mask.
    """

    program: Callable[[], Any]  # which R sequences of the batch this is
    load: Callable[[Any, tuple[Any, ...], jax.Array], jax.Array]
    store: Callable[[Any, tuple[Any, ...], jax.Array, jax.Array], None]


def _count(size: tuple[int, ...], axis: int) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, size, axis)


class Block(NamedTuple):
    """The units jN..(j+1)N of the sequences of a program."""

    shape: Shape
    memory: Memory
    first: Any  # its first sequence
    j: int

    def _entries(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Sequences and units (R, N), and which of them there are."""
        size = (self.shape.rows, self.shape.width)
        row, unit = self.first + _count(size, 0), self.j * self.shape.width + _count(size, 1)
        return row, unit, (row < self.shape.batch) & (unit < self.shape.hidden)

    def load(self, ref: Any, *lead: Any, gate: int = 0) -> jax.Array:
        """(R, N) of an array (..., B, GH); `lead` are indices of the axes before."""
        row, unit, inside = self._entries()
        return self.memory.load(ref, (*lead, row, gate * self.shape.hidden + unit), inside)

    def store(self, ref: Any, value: jax.Array, *lead: Any, gate: int = 0) -> None:
        """The reverse of `load`."""
        row, unit, inside = self._entries()
        self.memory.store(ref, (*lead, row, gate * self.shape.hidden + unit), inside, value)

    def load_tree(self, tree: PyTree, *lead: Any) -> PyTree:
        """`load` of every leaf."""
        return jax.tree.map(lambda ref: self.load(ref, *lead), tree)

    def store_tree(self, refs: PyTree, values: PyTree, *lead: Any) -> None:
        """`store` of every leaf."""
        jax.tree.map(lambda ref, value: self.store(ref, value, *lead), refs, values)

    def vector(self, ref: Any) -> jax.Array:
        """(N,) of an array (H,)."""
        unit = self.j * self.shape.width + _count((self.shape.width,), 0)
        return self.memory.load(ref, (unit,), unit < self.shape.hidden)

    def flags(self, ref: Any, t: Any) -> jax.Array | None:
        """The bits of the R sequences at step t, of an array (T, B); `None` where there is none."""
        if ref is None:
            return None
        row = self.first + _count((self.shape.rows,), 0)
        return self.memory.load(ref, (t, row), row < self.shape.batch)


class Weights:
    """The blocks of W_h, some held and some read when they are needed."""

    def __init__(self, shape: Shape, memory: Memory, ref: Any):
        self._shape, self._memory, self._ref = shape, memory, ref
        j, g, k = shape.blocks, range(shape.gates), shape.blocks
        self.order = [(to, gate, source) for to in j for gate in g for source in k]
        self._held = {at: self._load(at) for at in self.order[: shape.resident]}

    def _load(self, at: tuple[int, int, int]) -> jax.Array:
        to, gate, source = at
        size, hidden = (self._shape.width, self._shape.width), self._shape.hidden
        row = source * self._shape.width + _count(size, 0)
        unit = to * self._shape.width + _count(size, 1)
        return self._memory.load(self._ref, (row, gate * hidden + unit), (row < hidden) & (unit < hidden))

    def stream(self) -> Iterator[jax.Array]:
        """All blocks W_kj of gate g, k running fastest, then g, then j."""
        ready = dict(self._held)
        for n, at in enumerate(self.order):
            for later in self.order[n : n + 1 + AHEAD]:
                if later not in ready:
                    ready[later] = self._load(later)
            yield ready.pop(at)
