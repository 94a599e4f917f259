"""Lyapunov exponents: how fast nearby states diverge or converge."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrnn import _checks
from jaxrnn._types import AnyArray, Cell, Params, State
from jaxrnn.analysis._trajectory import (
    Step,
    Steps,
    batched,
    factored_dtype,
    flat_step,
    per_sequence,
    state_size,
    trajectory,
)
from jaxrnn.sequence.masking import select


class LyapunovExponents(NamedTuple):
    """Lyapunov exponents, in natural logs per step."""

    exponents: Float[Array, "*B k"]  # the mean growth
    growth: Float[Array, "T *B k"]  # of each step: its running mean shows whether the exponents have settled


def lyapunov_exponents(
    cell: Cell,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    state: State | None = None,
    *,
    count: int | None = None,
    directions: Float[AnyArray, "S k"] | None = None,
    discard: int = 0,
    lengths: Int[AnyArray, "*B"] | None = None,
    mask: Bool[AnyArray, "T *B"] | None = None,
) -> LyapunovExponents:
    """The k largest Lyapunov exponents along a sequence.

    Q_t R_t = J_t Q_{t-1}    growth_t = log |diag R_t|    exponents = its mean over the steps

    The sum of the first j of them is the rate at which a j-dimensional volume grows. They are
    finite-time exponents, of one sequence of T steps. The first steps, in which the directions
    are not aligned yet, add an error of order 1/T, unless `discard` leaves them out. A direction
    that a singular step loses has a growth of about log(eps) in that step, -36 in float64, or -inf.

    Costs O(T B (k steps + S k²)): k forward derivatives and a QR factorisation of an (S, k)
    matrix each step. No Jacobian is formed; beside states and results the memory is O(B S k).

    Args:
        cell, params, xs, state, lengths, mask: as for :func:`state_jacobians`.
        count: k, by default all S.
        directions: `(S, k)` directions to start from, instead of `count`; by default random
            ones, the same in every call. Entries of a state are in the order of
            :func:`state_jacobians`.
        discard: the number of first steps that the mean leaves out.

    Returns:
        :class:`LyapunovExponents`. A masked step has growth 0 and is not counted; where no step
        is counted, the exponents are NaN.

    Raises:
        TypeError, ValueError: as :func:`state_jacobians`; for a count outside 1..S, both of
            `count` and `directions`, or a negative `discard`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn import analysis
        >>> line = jaxrnn.indrnn(2, activation=lambda a: a)
        >>> params = jaxrnn.IndRNNParams(jnp.ones((1, 2)), jnp.array([0.5, 0.25]), jnp.zeros(2))
        >>> found = analysis.lyapunov_exponents(line, params, jnp.ones((200, 1)), discard=50)
        >>> jnp.exp(found.exponents).round(3).tolist()
        [0.5, 0.25]

    References:
        Benettin, Galgani, Giorgilli & Strelcyn 1980. For recurrent networks: Engelken, Wolf &
        Abbott 2023, arXiv:2006.02427; Vogt, Puelma Touzel, Shlizerman & Lajoie 2022,
        arXiv:2006.14123.
    """
    where = "lyapunov_exponents"
    if not _checks.is_integer(discard):
        raise TypeError(f"{where}: discard expected a number of steps, got {_checks.describe(discard)}")
    if discard < 0:
        raise ValueError(f"{where}: discard expected a number of steps, at least 0; got {_checks.quote(discard)}")
    run = trajectory(where, cell, params, xs, state, lengths, mask)
    size = state_size(run.final, run.steps.xs.ndim - 2)
    start = _start(where, count, directions, size).astype(factored_dtype(run.steps.xs.dtype))
    growth = _growth(cell.step, run.params, run.steps, start)
    first = min(discard, growth.shape[0])
    counted = jnp.broadcast_to(jnp.arange(growth.shape[0])[(..., *[None] * (growth.ndim - 1))] >= first, growth.shape)
    if run.steps.mask is not None:
        counted = counted & run.steps.mask[..., None]
    total = jnp.sum(jnp.where(counted, growth, jnp.zeros_like(growth)), 0)
    return LyapunovExponents(total / jnp.sum(counted, 0).astype(growth.dtype), growth)


def _start(where: str, count: Any, directions: Any, size: int) -> Float[Array, "S k"]:
    """Orthonormal columns to start from."""
    if directions is None:
        count = size if count is None else _checks.positive_int(where, "count", count)
        if count > size:
            raise ValueError(
                f"{where}: count expected at most S = {size}, the entries of the state; got {_checks.quote(count)}"
            )
        directions = np.random.default_rng(0).standard_normal((size, count))
        return jnp.asarray(np.linalg.qr(directions)[0])
    if count is not None:
        raise ValueError(f"{where}: count and directions were both given, expected one; directions has k columns")
    directions = _checks.floating(where, "directions", directions)
    if directions.ndim != 2 or directions.shape[0] != size or not 1 <= directions.shape[1] <= size:
        raise ValueError(
            f"{where}: directions expected shape (S, k) with S = {size} and k from 1 to S, got {directions.shape}"
        )
    return jnp.linalg.qr(directions.astype(factored_dtype(directions.dtype)))[0]


@functools.partial(jax.jit, static_argnums=0)
def _growth(step_of_cell: Step, params: Params, steps: Steps, start: Float[Array, "S k"]) -> Float[Array, "T *B k"]:
    def body(directions: Array, now: Steps) -> tuple[Array, Array]:
        flat, step = flat_step(step_of_cell, params, now.before, now.xs)
        push = lambda direction: jax.jvp(step, (flat,), (direction,))[1]  # noqa: E731
        images = jax.vmap(push, in_axes=1, out_axes=1)(directions.astype(flat.dtype))
        after, scales = jnp.linalg.qr(images.astype(directions.dtype))
        growth = jnp.log(jnp.abs(jnp.diag(scales)))
        return select(now.mask, (after, growth), (directions, jnp.zeros_like(growth)))

    def sequence(steps: Steps) -> Array:
        return jax.lax.scan(body, start, steps)[1]

    return batched(jax.vmap(sequence, in_axes=1, out_axes=1)(per_sequence(steps)), steps)
