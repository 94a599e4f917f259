"""How Newton's method for all steps at once converges along a sequence."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrnn import _checks
from jaxrnn._types import AnyArray, AnyCell, Params, State
from jaxrnn.analysis._trajectory import check_arguments
from jaxrnn.sequence.arguments import Given, validate
from jaxrnn.sequence.implementations.newton import Newton, progress_of
from jaxrnn.sequence.implementations.newton_solve import window_length
from jaxrnn.sequence.masking import only


class NewtonConvergence(NamedTuple):
    """The iterations of `implementation="newton"`, window by window in the order of reading."""

    iterations: Int[Array, "windows *B"]
    residuals: Float[Array, "windows k *B"]  # of the guess, then after each iteration; NaN where none was made
    converged: Bool[Array, "windows *B"]
    by_steps: Bool[Array, "windows"]  # the window was run step by step, because not all its sequences converged
    window: int  # the steps of a window; the last may have fewer


def newton_convergence(
    cell: AnyCell,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    state: State | None = None,
    *,
    newton: Newton | None = None,
    lengths: Int[AnyArray, "*B"] | None = None,
    mask: Bool[AnyArray, "T *B"] | None = None,
    resets: Bool[AnyArray, "T *B"] | None = None,
    reset_state: State | None = None,
    reverse: bool = False,
) -> NewtonConvergence:
    """How many iterations :class:`jaxrnn.Newton` takes for each window and sequence, and how its residuals fall.

    A residual is the largest |f(s_{t-1}, x_t) - s_t| of the window, for each part of the state
    relative to that part's largest entry. Near the solution each is about the square of the one before.

    The largest of :func:`lyapunov_exponents` predicts the number: where it is below 0 nearby states
    converge, and a few iterations do, whatever T is. Where it is above 0 an error at one step grows
    with every step after it, and the window is run step by step.

    Costs a forward pass with `implementation="newton"`.

    Args:
        cell: any cell with a rule, whose state is all floating-point. The noise of a regularised cell is off.
        params, xs, state, lengths, mask, resets, reset_state, reverse: as for :func:`jaxrnn.unroll`.
        newton: the options of the method; by default `jaxrnn.Newton()`.

    Returns:
        :class:`NewtonConvergence`. The k of `residuals` is `max_iterations + 1`.

    Raises:
        TypeError, ValueError: for what :func:`jaxrnn.unroll` refuses, or a `newton` of another type.
        NotImplementedError: for a cell or dtype that Newton's method does not support.

    Example:
        >>> import jax, jaxrnn
        >>> from jaxrnn import analysis
        >>> cell = jaxrnn.gru(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> found = analysis.newton_convergence(cell, params, jax.random.normal(jax.random.key(1), (200, 2, 3)))
        >>> found.iterations.shape, bool(found.converged.all()), bool((found.iterations <= 5).all())
        ((1, 2), True, True)

    References:
        Lim et al. 2023, arXiv:2309.12252. On the largest Lyapunov exponent: Gonzalez et al. 2025,
        arXiv:2508.16817.
    """
    where = "newton_convergence"
    if newton is not None and not isinstance(newton, Newton):
        raise TypeError(f"{where}: newton expected a jaxrnn.Newton or None, got {_checks.describe(newton)}")
    newton = Newton() if newton is None else newton
    xs = check_arguments(where, cell, params, xs, state)
    given = Given(lengths=lengths, mask=mask, resets=resets, reset_state=reset_state, reverse=reverse)
    request = validate(cell, params, xs, state, given, where)
    reason = newton.unsupported(request)
    if reason is not None:
        raise NotImplementedError(f"{where}: {newton.name!r} does not support this call of {request.name}; {reason}")
    inputs = request.inputs._replace(xs=only(request.inputs.mask, request.inputs.xs))
    if not inputs.time:
        none = jnp.zeros((0, *inputs.batch_shape), jnp.int32)
        residuals = jnp.zeros((0, 1 + newton.max_iterations, *inputs.batch_shape), request.dtype)
        return NewtonConvergence(none, residuals, none > 0, jnp.zeros(0, bool), 0)
    progress = progress_of(newton.settings, request.options, inputs)
    return NewtonConvergence(**progress._asdict(), window=window_length(newton.settings, request.options, inputs))
