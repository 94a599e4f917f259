"""Strings of the embedded Reber grammar (Hochreiter & Schmidhuber 1997, task 1).

A string is B, then T or P, then a string of the inner grammar, then the same T or P again, then E.
The inner grammar begins with B and ends with E too; from every node two edges lead on with equal
probability, and the loops at two nodes make strings of any length.
"""

import numpy as np

from experiments.memory_tasks.batch import Batch

SYMBOLS = "BTPSXVE"
B, T, P, S, X, V, E = range(len(SYMBOLS))

# Two edges from each node of the inner grammar: (symbol, next node).
EDGES = (
    ((B, 1), (B, 1)),
    ((T, 2), (P, 3)),
    ((S, 2), (X, 4)),
    ((T, 3), (V, 5)),
    ((X, 3), (S, 6)),
    ((P, 4), (V, 6)),
    ((E, 7), (E, 7)),
    ((E, 7), (E, 7)),  # the inner string has ended; its edges are not followed
)
ENDED = len(EDGES) - 1
SYMBOL, NEXT = np.moveaxis(np.array(EDGES, np.int32), -1, 0)  # (nodes, 2) each
FOLLOWS = (SYMBOL[..., None] == np.arange(len(SYMBOLS))).any(1)  # (nodes, symbols)
SHORTEST = 9  # B T BTXSE T E


def draw_reber(rng: np.random.Generator, longest: int, count: int) -> Batch:
    """`count` strings of at most `longest` symbols; longer ones are drawn again.

    The target of a step is the symbol that follows; `legal` says which could; `distance` is that
    from the second symbol to the step that has to foresee the last but one.
    """
    nodes, symbols = _walk(rng, longest, count)
    while (again := np.flatnonzero(nodes[:, -1] != ENDED)).size:
        nodes[again], symbols[again] = _walk(rng, longest, len(again))
    rows = np.arange(count)
    inner = (nodes != ENDED).sum(1, dtype=np.int32)  # symbols of the inner string
    second = rng.choice(np.array([T, P], np.int32), count)
    begin = np.full((count, 1), B, np.int32)
    strings = np.concatenate([begin, second[:, None], symbols, begin, begin], axis=1)
    strings[rows, inner + 2], strings[rows, inner + 3] = second, E

    legal = np.zeros((count, longest, len(SYMBOLS)), bool)
    legal[:, 0, [T, P]] = True
    legal[:, 1:-2] = FOLLOWS[nodes]
    legal[:, -2:, E] = True
    legal[rows, inner + 1] = second[:, None] == np.arange(len(SYMBOLS))
    targets = np.concatenate([strings[:, 1:], begin], axis=1)
    return Batch(strings, targets, inner + 4, legal, distance=inner)


def _walk(rng: np.random.Generator, longest: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Walks through the inner grammar: the nodes `(B, longest - 3)` and the symbols `(B, longest - 4)` between them."""
    choices = rng.integers(0, 2, (longest - 4, count)).T
    nodes = np.full((count, longest - 3), ENDED, np.int32)
    nodes[:, 0] = 0
    for t in range(longest - 4):
        if (nodes[:, t] == ENDED).all():
            break
        nodes[:, t + 1] = NEXT[nodes[:, t], choices[:, t]]
    return nodes, SYMBOL[nodes[:, :-1], choices]
