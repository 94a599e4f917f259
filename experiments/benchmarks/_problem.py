"""The problem that every contestant computes, and the check of its results."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.command.messages import one_line
from experiments.command.options import check_positive


class Form(NamedTuple):
    """One set of equations; libraries that call two of them by one name are compared under the right one."""

    cell: Callable[..., jaxrnn.Cell]  # of the hidden units
    gates: int
    kind: str  # lstm, gru or rnn


FORMS: dict[str, Form] = {
    "lstm": Form(jaxrnn.lstm, 4, "lstm"),
    "gru": Form(jaxrnn.gru, 3, "gru"),
    "rnn": Form(jaxrnn.rnn, 1, "rnn"),
    "gru-before": Form(lambda hidden: jaxrnn.gru(hidden, reset_after=False), 3, "gru"),
    "rnn-relu": Form(lambda hidden: jaxrnn.rnn(hidden, activation="relu"), 1, "rnn"),
}
# Steps that are affine in the state, with no product of the state; no other library here has them.
AFFINE: dict[str, Form] = {
    "min_gru": Form(jaxrnn.min_gru, 2, "affine"),
    "min_lstm": Form(jaxrnn.min_lstm, 3, "affine"),
    "rg_lru": Form(jaxrnn.rg_lru, 3, "affine"),
}
# The cells of `speed --heads`, by kind and number of heads; their weights are blocks.
HEADED: dict[str, Form] = {
    f"{kind}-heads{heads}": Form(partial(FORMS[kind].cell, num_heads=heads), FORMS[kind].gates, kind)
    for kind in ("lstm", "gru")
    for heads in (2, 8)
}
ALL = FORMS | AFFINE | HEADED


class Shape(NamedTuple):
    """T, B, I, H."""

    steps: int
    batch: int
    features: int
    hidden: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


class Problem(NamedTuple):
    """The inputs of every contestant: float32, time first."""

    form: str
    shape: Shape
    params: Any  # jaxrnn's, whose layout the gradients are compared in
    xs: jax.Array  # (T, B, I)
    target: jax.Array  # (T, B, H)

    @property
    def cell(self) -> jaxrnn.Cell:
        return ALL[self.form].cell(self.shape.hidden)


def parse_shape(option: str, text: str) -> Shape:
    """T,B,I,H; a `ValueError` with one line of text for anything else."""
    given = one_line(repr(text), 80)
    try:
        shape = Shape(*(int(part) for part in text.split(",")))
    except (ValueError, TypeError):
        raise ValueError(f"{option} expected T,B,I,H such as 128,32,128,256; got {given}") from None
    if min(shape) < 1:
        raise ValueError(f"{option} expected positive sizes, got {given}")
    for size in shape:
        check_positive(option, size)
    return shape


def make_problem(form: str, shape: Shape) -> Problem:
    """Weights and biases are uniform on ± 1/√H; but `b_hn` is 0, which `nnx.GRUCell` does not have.

    Random biases, because one in a wrong place is then seen; NumPy's, because no generator has to be compiled.
    """
    steps, batch, features, hidden = shape
    rng = np.random.default_rng(0)
    cell = ALL[form].cell(hidden)
    empty = jax.eval_shape(lambda key: cell.init(key, features), jax.random.key(0))
    draw = lambda leaf: jnp.asarray(rng.uniform(-1, 1, leaf.shape) / hidden**0.5, jnp.float32)  # noqa: E731
    params = jax.tree.map(draw, empty)
    if getattr(params, "b_hn", None) is not None:
        params = params._replace(b_hn=jnp.zeros_like(params.b_hn))
    xs, target = (rng.standard_normal((steps, batch, size), np.float32) for size in (features, hidden))
    # Finished before the timing starts, or the first contestant would wait for it
    return jax.block_until_ready(Problem(form, shape, params, jnp.asarray(xs), jnp.asarray(target)))


def operations(form: str, shape: Shape, task: str) -> float:
    """Multiplications and additions of the matrix products: 6TB(I + H)GH for a train step, a third of it forward.

    Of an affine cell, and of one with heads, every entry of a matrix counts once a step, in the place of (I + H)GH.
    """
    steps, batch, features, hidden = shape
    entries = (features + hidden) * ALL[form].gates * hidden
    if form in AFFINE or form in HEADED:
        shapes = jax.eval_shape(lambda key: ALL[form].cell(hidden).init(key, features), jax.random.key(0))
        entries = sum(leaf.size for leaf in jax.tree.leaves(shapes) if leaf.ndim > 1)
    forward = 2.0 * steps * batch * entries
    return forward if task == "forward" else 3 * forward


def mean_square(ys: jax.Array, target: jax.Array) -> jax.Array:
    """The loss of a train step."""
    return jnp.mean(jnp.square(ys - target))


def difference(found: Any, expected: Any) -> float:
    """The largest deviation in two equal trees, as a share of the largest entry of its array."""

    def of_leaf(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape:
            return float("nan")
        return float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), np.finfo(np.float64).tiny))

    # NumPy's maximum, unlike Python's, does not lose a NaN
    return float(np.max(jax.tree.leaves(jax.tree.map(of_leaf, found, expected))))
