"""The two programs that most tests call: `unroll` of a cell, differentiated by hand and by JAX.

Each is compiled once in a process. Masks, resets, operands and cotangents are arguments, so that a test that calls
one of these compiles nothing of its own.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxrnn
from jaxrnn import Cell
from tests.support.registry import (
    AFFINE,
    CELLS,
    COMPLEX,
    FAMILIES,
    B,
    T,
    cell_of,
    make,
    numpy_of,
    of_cell,
    output_of,
    quick_jit,
    random_like,
)

ALL, NONE = np.ones((T, B), bool), np.zeros((T, B), bool)


@functools.cache
def step_of(name: str) -> Callable[..., Any]:
    """The step of a cell, compiled."""
    return quick_jit(cell_of(name).step)


def differentiated(cell: Cell, implementation: str | None, jit: Any = quick_jit, **options: Any) -> Callable[..., Any]:
    """A compiled function that returns the values of `unroll` and their gradients.

    Its arguments are (params, xs, state, reset_state), mask, resets, cotangents, and a key for noise.
    """

    def run_back(operands: Any, mask: Any, resets: Any, cotangents: Any, key: Any = None) -> tuple[Any, Any]:
        def outcome(params: Any, xs: jax.Array, state: Any, reset_state: Any) -> Any:
            masks = {"mask": mask, "resets": resets, "reset_state": reset_state, "key": key}
            given = {"return_states": True, "implementation": implementation, **options}
            return jaxrnn.unroll(cell, params, xs, state, **masks, **given)

        values, pullback = jax.vjp(outcome, *operands)
        return values, pullback(cotangents)

    return jit(run_back)


@functools.cache
def _program(name: str, implementation: str | None, options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    return differentiated(cell_of(name), implementation, **dict(options))


def program(name: str, implementation: str | None, **options: Any) -> Callable[..., Any]:
    """`differentiated` for a cell of the registry, one for all tests of a process."""
    return _program(name, implementation, tuple(sorted(options.items())))


def operands_of(name: str) -> tuple[Any, ...]:
    """Parameters, inputs, initial state and reset state."""
    case = make(name)
    return case.params, case.xs, case.state, make(name, seed=7).state


def cotangents_of(name: str, emphasis: Any = (1.0, 1.0, 1.0)) -> Any:
    """Random cotangents of final state, outputs and states. `emphasis` multiplies the three."""
    case = make(name)
    shapes = (output_of(case), case.state)
    over_time = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((T, *leaf.shape), leaf.dtype), shapes)
    parts = (case.state, *over_time)
    return tuple(random_like(9 + k, part, parts[1].dtype, emphasis[k]) for k, part in enumerate(parts))


# Every implementation with a hand-written backward pass, with the cells of the registry that it supports.
FUSED = ("rnn-tanh", "rnn-relu", "rnn-sigmoid", "lstm", "lstm-coupled", "gru")
PAIRS = [of_cell(name, "bptt") for name in CELLS] + [of_cell(name, "pallas_interpret") for name in FUSED]
PAIRS += [of_cell(name, "associative") for name in AFFINE]
PAIRS += [of_cell(name, "newton") for name in CELLS if name not in COMPLEX]


def backward_program(name: str, implementation: str = "bptt", reverse: bool = False) -> Callable[..., Any]:
    """The program of a hand-written backward pass: of one cell of each family as users compile it, of others quickly."""
    jit = jax.jit if implementation == "bptt" and name in FAMILIES else quick_jit
    return program(name, implementation, jit=jit, reverse=reverse)


def by_hand(name, operands, cotangents, mask=ALL, resets=NONE, reverse=False, implementation="bptt"):
    """Values and gradients through a hand-written backward pass."""
    return backward_program(name, implementation, reverse)(operands, mask, resets, cotangents)


def by_jax(name, operands, cotangents, mask=ALL, resets=NONE, reverse=False, key=None):
    """Values and gradients by JAX's derivative of the plain scan.

    For `reverse`, it reads the reversed sequence forward.
    """
    f = program(name, "scan", reverse=False)
    if not reverse:
        return f(operands, mask, resets, cotangents, key)
    assert key is None  # noise belongs to the steps in their own order
    flip = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf)[::-1], tree)  # noqa: E731
    params, xs, *states = operands
    resets = np.concatenate([NONE[:1], flip(resets)[:-1]])  # the same pairs of steps, numbered from the other end
    dfinal, *over_time = cotangents
    values, (dparams, dxs, *dstates) = f((params, flip(xs), *states), flip(mask), resets, (dfinal, *flip(over_time)))
    return (values[0], *flip(values[1:])), (dparams, flip(dxs), *dstates)


def windowed(name, size, operands, cotangents, mask=ALL, resets=NONE, reverse=False, key=None):
    """Values and gradients of windows of `size` steps, each differentiated by itself from the state of the last.

    A call for a window masks all other steps, and has no cotangents and no resets of theirs.
    """
    (params, xs, state, reset_state), (dfinal, dys, dstates) = operands, numpy_of(cotangents)
    values, gradients = [], []
    for first in range(0, T, size):
        steps = np.arange(first, min(first + size, T))
        steps = T - 1 - steps if reverse else steps
        here, entered = (np.isin(np.arange(T), s)[:, None] for s in (steps, steps + reverse))
        last = first + size >= T
        only = lambda tree, here=here: jax.tree.map(lambda d: np.where(here[..., None], d, 0), tree)  # noqa: E731
        asked = (jax.tree.map(lambda d, last=last: last * d, dfinal), only(dys), only(dstates))
        outcome, pulled_back = by_jax(
            name, (params, xs, state, reset_state), asked, mask & here, resets & entered, reverse, key
        )
        state, ys, states = numpy_of(outcome)
        values.append((only(ys), only(states)))
        gradients.append(numpy_of(pulled_back))
    added = lambda trees: jax.tree.map(lambda *leaves: sum(leaves), *trees)  # noqa: E731
    dparams, dxs, _, dreset = added(gradients)
    return (state, *added(values)), (dparams, dxs, gradients[0][2], dreset)


# Relative. Measured: 6e-13 to 5e-12 for second derivatives of all of `families`.
TOLERANCE_OF_SLOPE = 1e-10


def slope(f: Callable[[float], np.ndarray], h: float = 2e-4) -> np.ndarray:
    """The derivative of f at 0 by finite differences of fourth order."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)
