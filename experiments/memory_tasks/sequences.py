"""Adding, copy memory and temporal order: how their sequences are drawn.

Numbers are drawn step by step for all sequences, and transposed to examples first.
"""

import numpy as np

from experiments.memory_tasks.batch import Batch

COPIED, ALPHABET = 10, 8  # symbols to be copied, each one of eight
BLANK, GO = 0, 9
START, END, X, Y = 4, 5, 6, 7  # of the temporal order; 0 to 3 distract


def draw_adding(rng: np.random.Generator, length: int, count: int) -> Batch:
    """Numbers in [0, 1), two of them marked, whose sum is the answer.

    One is marked in the first tenth of the sequence, one in its second half (Neil 2016, Campos 2018).
    """
    numbers = rng.random((length, count), np.float32).T
    marks = np.zeros((count, length), np.float32)
    rows = np.arange(count)
    marks[rows, rng.integers(0, max(1, length // 10), count)] = 1
    marks[rows, rng.integers(length // 2, length, count)] = 1
    return Batch(np.stack([numbers, marks], -1), (numbers * marks).sum(1))


def draw_copy(rng: np.random.Generator, blanks: int, count: int) -> Batch:
    """Ten symbols 1 to 8, blanks, and a sign to repeat the symbols, `(B, blanks + 20)` (Bai 2018)."""
    symbols = rng.integers(1, ALPHABET + 1, (COPIED, count), dtype=np.int32).T
    xs = np.full((count, blanks + 2 * COPIED), BLANK, np.int32)
    xs[:, :COPIED] = symbols
    xs[:, -COPIED - 1 :] = GO
    targets = np.full_like(xs, BLANK)
    targets[:, -COPIED:] = symbols
    return Batch(xs, targets)


def draw_order(rng: np.random.Generator, length: int, count: int) -> Batch:
    """Two symbols X or Y among distractors; the class is which they are, in their order.

    It is task 6a of Hochreiter & Schmidhuber 1997; theirs is that of length 100, with a start, an
    end after 100 to 110 steps, the first X or Y at step 10 to 20 and the second at 50 to 60.
    """
    tenth = length // 10
    lengths = rng.integers(length, length + tenth + 1, count, dtype=np.int32)
    xs = rng.integers(0, START, (length + tenth, count), dtype=np.int32).T
    rows = np.arange(count)
    first, second = rng.integers(0, 2, (2, count), dtype=np.int32)
    xs[:, 0] = START
    xs[rows, lengths - 1] = END
    xs[rows, rng.integers(tenth, 2 * tenth + 1, count)] = X + first
    xs[rows, rng.integers(5 * tenth, 6 * tenth + 1, count)] = X + second
    return Batch(xs, 2 * first + second, lengths)
