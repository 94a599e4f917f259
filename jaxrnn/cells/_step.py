"""From a rule to a step: what every built-in cell's public `*_step` does around its equations."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from jaxrnn import _checks
from jaxrnn._types import Params, PyTree, Rule, State


def cast_floating(tree: PyTree, dtype: Any) -> PyTree:
    """Every floating-point leaf in `dtype`, complex ones with parts of that dtype; the others as they are."""

    def cast(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            return leaf.astype(_checks.COMPLEX.get(jnp.dtype(dtype).name, "complex64"))
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def is_complex(tree: PyTree) -> bool:
    """Whether any leaf is complex."""
    return any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jax.tree.leaves(tree))


def check_dtype_of_state(where: str, state: State, dtype: Any, given: str) -> None:
    """Raises if a state is complex, and `dtype`, that of the arguments `given`, has no complex counterpart."""
    if is_complex(state):
        _checks.complex_dtype(where, given, dtype)


BATCH_AXIS = "batch"  # of the mesh of `data_parallel`, its only one

_in_data_parallel = contextvars.ContextVar("in_data_parallel", default=False)


@contextlib.contextmanager
def inside_data_parallel() -> Iterator[None]:
    """While its function is traced: a mesh of the user's may have an axis of the same name."""
    token = _in_data_parallel.set(True)
    try:
        yield
    finally:
        _in_data_parallel.reset(token)


def vary_over_batch(state: State) -> State:
    """A new state, which inside of `data_parallel` differs between devices as the data do: a loop needs equal types."""
    if not _in_data_parallel.get():
        return state
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != (BATCH_AXIS,) or mesh.manual_axes != (BATCH_AXIS,):
        return state
    return jax.lax.pcast(state, BATCH_AXIS, to="varying")


def zeros_state(hidden_size: int, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> Inexact[Array, "*B H"]:
    """The initial state of a cell whose state is its output h."""
    return jnp.zeros((*batch_shape, hidden_size), jnp.result_type(float) if dtype is None else dtype)


def checked_step(
    where: str, check: Any, expected_state: Any, rule: Rule, params: Params, state: State, x: Any
) -> tuple[State, Array]:
    """`forward` after `project` of one step, in one dtype: that of params and x together.

    `check(where, params, input_shape)` checks the parameters, `None` nothing; `expected_state(batch_shape)`
    makes a state of the right structure and shapes.
    """
    x = _checks.floating(where, "x", x)
    if check is not None:
        check(where, params, x.shape)
    _checks.state_like(where, "state", state, jax.eval_shape(lambda: expected_state(x.shape[:-1])), "x")
    dtype = jnp.result_type(x, *jax.tree.leaves(params))
    check_dtype_of_state(where, state, dtype, "params and x")
    params, state, x = cast_floating(jax.tree.map(jnp.asarray, (params, state, x)), dtype)
    state, y, _ = rule.forward(params, state, rule.project(params, x))
    return state, y
