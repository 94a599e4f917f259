"""The derivative of the last state by each earlier one: ∂s_T/∂s_t, a product of T - t Jacobians."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrnn._types import AnyArray, Cell, Params, State
from jaxrnn.analysis._jacobi_svd import Axes, after, ball
from jaxrnn.analysis._trajectory import trajectory, widened
from jaxrnn.analysis.jacobians import jacobians_of


class JacobianProducts(NamedTuple):
    """Natural logs of norms and singular values of ∂s_T/∂s_t; entry t is for the state before step t."""

    log_norms: Float[Array, "T *B"]  # of the spectral norm: the largest singular value
    log_singular_values: Float[Array, "T *B S"]  # the largest first


def jacobian_products(
    cell: Cell,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    state: State | None = None,
    *,
    lengths: Int[AnyArray, "*B"] | None = None,
    mask: Bool[AnyArray, "T *B"] | None = None,
) -> JacobianProducts:
    """Singular values of ∂s_T/∂s_t for every t, as logs, so that nothing overflows or vanishes.

    ∂s_T/∂s_t = J_T J_{T-1} … J_{t+1}    J_t = ∂s_t/∂s_{t-1}    s_0 the initial state

    Every singular value has full relative accuracy, however far below the largest. Its error is
    about the rounding error times the condition number of each step's Jacobian. Where a step is
    singular to working precision, as with a dead ReLU unit, the values that it loses are -inf.

    Costs the T B S² numbers and the derivatives of :func:`state_jacobians`, and O(T B S³) with a
    factor of some tens: one-sided Jacobi rotations in every step, see `_jacobi_svd.py`. S is H, and
    2H for an LSTM. For large S use :func:`cotangent_norms`, at one derivative of every step. JAX
    differentiates it in forward mode only: the number of rotations depends on the data.

    Args:
        cell, params, xs, state, lengths, mask: as for :func:`state_jacobians`.

    Returns:
        :class:`JacobianProducts`. A masked step changes nothing.

    Raises:
        TypeError, ValueError: as :func:`state_jacobians`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn import analysis
        >>> cell = jaxrnn.rnn(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> found = analysis.jacobian_products(cell, params, jnp.ones((500, 3)))
        >>> found.log_singular_values.shape, bool(found.log_norms[0] < -100)
        ((500, 4), True)

    References:
        Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063, section 2.
    """
    run = widened(trajectory("jacobian_products", cell, params, xs, state, lengths, mask))
    logs = _log_singular_values(jacobians_of(cell.step, None, run.params, run.steps))
    return JacobianProducts(logs[..., 0], logs)


@jax.jit
def _log_singular_values(jacobians: Float[Array, "T *B S S"]) -> Float[Array, "T *B S"]:
    time, *batch_shape, size, _ = jacobians.shape

    def body(axes: Axes, jacobian: Array) -> tuple[Axes, Array]:
        axes = after(axes, axes.directions @ jacobian)  # the transpose of the product, from T to t
        return axes, axes.log_lengths

    def sequence(jacobians: Float[Array, "T S S"]) -> Array:
        return jax.lax.scan(body, ball(size, jacobians.dtype), jacobians, reverse=True)[1]

    sequences = jacobians.reshape(time, math.prod(batch_shape), size, size)
    logs = jax.vmap(sequence, in_axes=1, out_axes=1)(sequences)
    return -jnp.sort(-logs, axis=-1).reshape(time, *batch_shape, size)
