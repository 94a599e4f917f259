"""The derivative of each step's state by the one before it: ∂s_t/∂s_{t-1}."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrnn._types import AnyArray, Cell, Params, PyTree, State
from jaxrnn.analysis._trajectory import Step, Steps, batched, check_reduce, flat_step, per_sequence, trajectory
from jaxrnn.sequence.masking import select

Reduce = Callable[[Array], PyTree]


def state_jacobians(
    cell: Cell,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    state: State | None = None,
    *,
    lengths: Int[AnyArray, "*B"] | None = None,
    mask: Bool[AnyArray, "T *B"] | None = None,
    reduce: Reduce | None = None,
) -> PyTree:
    """The Jacobian of every step: ∂s_t/∂s_{t-1}, as s_t = step(params, s_{t-1}, x_t).

    Entry [i, j] is the derivative of entry i of s_t by entry j of s_{t-1}. The S entries of a
    state are those of its leaves one after another, in the order of `jax.tree.leaves`: the H of
    h for an RNN or GRU; for an LSTM the H of h (P with a projection), then the H of c. Those of an
    sLSTM (h, c, n, m) are derivatives at a constant m_t, as its gradients are: the rows of m are 0.

    The result holds T B S² numbers. A step costs S forward derivatives of itself, O(S G H²) a
    sequence, and their memory; steps are taken one after another. Where T B S² numbers do not
    fit, `reduce` each Jacobian as it is computed, or use :func:`tangent_norms` and
    :func:`cotangent_norms`, which form no Jacobian.

    Args:
        cell: any cell whose state is all floating-point. The noise of a regularised cell is off.
        params: the cell's parameters.
        xs: `(T, *B, I)`, floating-point, time first.
        state: the state before the first step; by default `cell.initial_state`.
        lengths: `(*B,)` integers in 0..T. At a masked step the state is held, and its Jacobian
            is the identity.
        mask: `(T, *B)` booleans, the general form of `lengths`; give one of the two.
        reduce: a pure function of one `(S, S)` Jacobian, called inside the loop, such as
            `lambda j: jnp.linalg.norm(j, 2)`.

    Returns:
        `(T, *B, S, S)`, or the results of `reduce` with `(T, *B)` before their axes.

    Raises:
        TypeError, ValueError: for what :func:`jaxrnn.unroll` refuses, or a state with entries
            that are not floating-point.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn import analysis
        >>> cell = jaxrnn.lstm(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> analysis.state_jacobians(cell, params, jnp.ones((6, 2, 3))).shape
        (6, 2, 8, 8)
    """
    where = "state_jacobians"
    check_reduce(where, reduce, "of one Jacobian")
    run = trajectory(where, cell, params, xs, state, lengths, mask)
    return jacobians_of(cell.step, reduce, run.params, run.steps)


@functools.partial(jax.jit, static_argnums=(0, 1))
def jacobians_of(step_of_cell: Step, reduce: Reduce | None, params: Params, steps: Steps) -> PyTree:
    """The Jacobian of each of these steps, reduced if `reduce` is given."""

    def at(now: Steps) -> PyTree:
        flat, step = flat_step(step_of_cell, params, now.before, now.xs)
        jacobian = select(now.mask, jax.jacfwd(step)(flat), jnp.eye(flat.shape[0], dtype=flat.dtype))
        return jacobian if reduce is None else reduce(jacobian)

    made = jax.lax.map(jax.vmap(at), per_sequence(steps))
    return batched(made, steps)
