"""Parity, words of a permutation group, and selective copying: how their sequences are drawn."""

import functools
import itertools
from typing import NamedTuple

import numpy as np

from experiments.memory_tasks.batch import Batch

SELECTED, KINDS = 4, 8  # symbols to be copied, each one of eight
NOISE, WRITE = 0, KINDS + 1


class Group(NamedTuple):
    """All permutations of a few objects, and those of them that are read as symbols."""

    objects: int
    symbols: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        return len(elements(self.objects))


GROUPS = {
    "s3": Group(3, tuple(itertools.permutations(range(3)))),
    "s5": Group(5, ((1, 0, 2, 3, 4), (1, 2, 3, 4, 0))),  # a transposition and a cycle, which generate it
}


def draw_parity(rng: np.random.Generator, length: int, count: int) -> Batch:
    """Bits, and at every step the parity of the ones so far, `(B, T)`."""
    bits = rng.integers(0, 2, (length, count), dtype=np.int32).T
    return Batch(bits, np.cumsum(bits, axis=1, dtype=np.int32) % 2)


def draw_words(group: Group, rng: np.random.Generator, length: int, count: int) -> Batch:
    """Symbols of a group, and at every step the number of the product so far, `(B, T)`.

    The product x_1 x_2 … x_t maps object k to x_1(x_2(… x_t(k))). Elements are numbered in lexicographic order.
    """
    xs = rng.integers(0, len(group.symbols), (length, count), dtype=np.int32).T
    products, state = np.empty_like(xs), np.zeros(count, np.int32)  # 0 is the identity
    for t, step in enumerate(xs.T):
        state = after(group)[state, step]
        products[:, t] = state
    return Batch(xs, products)


def draw_selective(rng: np.random.Generator, length: int, count: int) -> Batch:
    """Four symbols 1 to 8 at random places among noise, then four signs to write them, `(B, length + 4)`.

    The symbols are to be written in their order, one at each sign (Gu & Dao 2023); targets count them from 0.
    """
    symbols = rng.integers(1, KINDS + 1, (SELECTED, count), dtype=np.int32).T
    places = np.sort(np.argsort(rng.random((length, count)).T, axis=1)[:, :SELECTED], axis=1)
    xs = np.full((count, length + SELECTED), NOISE, np.int32)
    np.put_along_axis(xs, places, symbols, axis=1)
    xs[:, length:] = WRITE
    targets = np.zeros_like(xs)
    targets[:, length:] = symbols - 1
    return Batch(xs, targets)


def elements(objects: int) -> list[tuple[int, ...]]:
    """All permutations in lexicographic order."""
    return list(itertools.permutations(range(objects)))


@functools.cache
def after(group: Group) -> np.ndarray:
    """The number of the element p x, for the number of p and that of the symbol x."""
    every = elements(group.objects)
    number = {element: k for k, element in enumerate(every)}
    return np.array([[number[tuple(p[k] for k in x)] for x in group.symbols] for p in every], np.int32)
