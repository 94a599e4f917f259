"""Products of Jacobians with one vector, without forming a Jacobian."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrnn import _checks
from jaxrnn._types import AnyArray, Cell, Params, PyTree, State
from jaxrnn.analysis._logscale import unit
from jaxrnn.analysis._trajectory import Step, Steps, Trajectory, trajectory, widened
from jaxrnn.cells._step import cast_floating
from jaxrnn.sequence.masking import select


def tangent_norms(
    cell: Cell,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    state: State | None = None,
    *,
    tangent: State | None = None,
    key: Array | None = None,
    lengths: Int[AnyArray, "*B"] | None = None,
    mask: Bool[AnyArray, "T *B"] | None = None,
) -> Float[Array, "T *B"]:
    """How a small change of the initial state grows: log ‖(∂s_t/∂s_0) v‖ for every t, where ‖v‖ = 1.

    The change is carried as a vector of length 1 and the log of its length, so that nothing
    overflows or vanishes. Costs one forward derivative of every step, O(T B G H²), and the
    memory of the states. The mean over random v of ‖P v‖² is ‖P‖²_F / S: `jax.vmap` over
    keys estimates the Frobenius norm of a Jacobian that is too large to form.

    Args:
        cell, params, xs, state, lengths, mask: as for :func:`state_jacobians`.
        tangent: v, with the structure and shapes of the state; scaled to length 1 for each
            sequence.
        key: draws v at random; give either `tangent` or `key`.

    Returns:
        `(T, *B)` natural logs; entry t is for the state after step t. -inf is a length of 0.

    Raises:
        TypeError, ValueError: as :func:`state_jacobians`; for a tangent of another structure
            or shape, or unless one of `tangent` and `key` is given.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn import analysis
        >>> cell = jaxrnn.gru(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> analysis.tangent_norms(cell, params, jnp.ones((300, 2, 3)), key=jax.random.key(1)).shape
        (300, 2)
    """
    where = "tangent_norms"
    run = widened(trajectory(where, cell, params, xs, state, lengths, mask))
    return _forward(cell.step, run.params, run.steps, _direction(where, "tangent", tangent, key, run))


def cotangent_norms(
    cell: Cell,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    state: State | None = None,
    *,
    cotangent: State | None = None,
    key: Array | None = None,
    lengths: Int[AnyArray, "*B"] | None = None,
    mask: Bool[AnyArray, "T *B"] | None = None,
) -> Float[Array, "T *B"]:
    """How a gradient by the final state decays backward in time: log ‖(∂s_T/∂s_t)ᵀ u‖ for every t, where ‖u‖ = 1.

    The counterpart of :func:`tangent_norms`, at the cost of one backward derivative of every
    step: it back-propagates a gradient that enters only at the end. For the gradient of a loss
    use :func:`gradient_flow`.

    Args:
        cell, params, xs, state, lengths, mask: as for :func:`state_jacobians`.
        cotangent: u, with the structure and shapes of the state; scaled to length 1 for each
            sequence.
        key: draws u at random; give either `cotangent` or `key`.

    Returns:
        `(T, *B)` natural logs; entry t is for the state before step t, as in
        :func:`jacobian_products`. -inf is a length of 0.

    Raises:
        TypeError, ValueError: as :func:`tangent_norms`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn import analysis
        >>> cell = jaxrnn.lstm(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> analysis.cotangent_norms(cell, params, jnp.ones((300, 2, 3)), key=jax.random.key(1)).shape
        (300, 2)
    """
    where = "cotangent_norms"
    run = widened(trajectory(where, cell, params, xs, state, lengths, mask))
    return _backward(cell.step, run.params, run.steps, _direction(where, "cotangent", cotangent, key, run))


def _direction(where: str, name: str, given: Any, key: Array | None, run: Trajectory) -> State:
    """A vector of length 1 for each sequence."""
    if (given is None) == (key is None):
        raise ValueError(f"{where}: expected either {name} or key, got {'neither' if key is None else 'both'}")
    if key is not None:
        key = _checks.key(where, "key", key)
        leaves, structure = jax.tree.flatten(run.final)
        keys = jax.random.split(key, len(leaves))
        drawn = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
        given = jax.tree.unflatten(structure, drawn)
    _checks.state_like(where, name, given, run.final)
    given = cast_floating(jax.tree.map(jnp.asarray, given), run.steps.xs.dtype)
    return unit(given, run.steps.xs.ndim - 2)[0]


def _carried(
    direction: State, log_length: Array, image: PyTree, mask: Array | None
) -> tuple[tuple[State, Array], Array]:
    """Direction and log length after a step that maps the direction to `image`."""
    after, change = unit(image, log_length.ndim)
    carried = select(mask, (after, log_length + change), (direction, log_length))
    return carried, carried[1]


@functools.partial(jax.jit, static_argnums=0)
def _forward(step_of_cell: Step, params: Params, steps: Steps, direction: State) -> Float[Array, "T *B"]:
    def body(carry: tuple[State, Array], now: Steps) -> tuple[tuple[State, Array], Array]:
        step = lambda state: step_of_cell(params, state, now.xs)[0]  # noqa: E731
        _, image = jax.jvp(step, (now.before,), (carry[0],))
        return _carried(*carry, image, now.mask)

    start = (direction, jnp.zeros(steps.xs.shape[1:-1], steps.xs.dtype))
    return jax.lax.scan(body, start, steps)[1]


@functools.partial(jax.jit, static_argnums=0)
def _backward(step_of_cell: Step, params: Params, steps: Steps, direction: State) -> Float[Array, "T *B"]:
    def body(carry: tuple[State, Array], now: Steps) -> tuple[tuple[State, Array], Array]:
        step = lambda state: step_of_cell(params, state, now.xs)[0]  # noqa: E731
        _, pull = jax.vjp(step, now.before)
        return _carried(*carry, pull(carry[0])[0], now.mask)

    start = (direction, jnp.zeros(steps.xs.shape[1:-1], steps.xs.dtype))
    return jax.lax.scan(body, start, steps, reverse=True)[1]
