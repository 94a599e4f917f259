"""Logs of the singular values of a long product of matrices, each to full relative accuracy.

The product P = A_n … A_2 A_1 is kept as

    P = Q diag(exp(l)) Wᵀ

with orthonormal columns Q, the logs l of the singular values, and an orthogonal W that is
never formed: singular values do not depend on it. Another factor A gives the columns

    exp(l_j) A q_j = exp(l_j + log |A q_j|) u_j,    |u_j| = 1

which one-sided Jacobi rotations make orthogonal again. A rotation of the columns a ≥ b, with
ρ = exp(l_b - l_a) <= 1 and γ = u_a·u_b, by the angle whose tangent is t = τ ρ:

    τ = 2γ / (1 - ρ² + √((1 - ρ²)² + 4γ²ρ²))       cos = 1 / √(1 + t²)
    u_a ← cos (u_a + t ρ u_b)                       u_b ← cos (u_b - τ u_a)

Nothing overflows, however much the lengths of the columns differ; for ρ → 0 it is a Gram-Schmidt
step. A sweep costs O(S³), and an orthogonalisation takes 2 to 13 sweeps for S from 2 to 256.

A singular A leaves a column of rounding errors alone, which no rotation makes orthogonal. The
rotations therefore also update the length of the errors, and a column that is not longer than
its errors is set to zero, with l = -inf.

References:
    Demmel & Veselić 1992, "Jacobi's method is more accurate than QR"; Hestenes 1958. The order
    of the pairs is that of a round-robin tournament (Brent & Luk 1985).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxrnn.analysis._logscale import unit
from jaxrnn.sequence.masking import select

MOST_SWEEPS = 40  # three times the most seen for S up to 256


class Axes(NamedTuple):
    """The axes, in no order, of the ellipsoid that is the image of the unit ball under a product."""

    directions: Float[Array, "S S"]  # row j is the direction of axis j
    log_lengths: Float[Array, "S"]


def ball(size: int, dtype: Any) -> Axes:
    """The axes of the unit ball, before any factor."""
    return Axes(jnp.eye(size, dtype=dtype), jnp.zeros(size, dtype))


def after(axes: Axes, images: Float[Array, "S S"]) -> Axes:
    """The axes after one more factor; the rows of `images` are its products with the directions."""
    directions, log_lengths = unit(images, 1)
    return _orthogonal(Axes(directions, axes.log_lengths + log_lengths))


def _next_order(size: int) -> np.ndarray:
    """The order of the rows in the next round, which pairs the first half with the second."""
    half = size // 2
    if half == 1:
        return np.arange(2)
    return np.asarray([0, half, *range(1, half - 1), *range(half + 1, size), half - 1])


class _Rows(NamedTuple):
    """Axes that are being made orthogonal."""

    directions: Float[Array, "N S"]
    log_lengths: Float[Array, "N"]
    noise: Float[Array, "N"]  # the squared length of the rounding errors in a direction


def _sorted(swap: Bool[Array, "N"], a: _Rows, b: _Rows) -> tuple[_Rows, _Rows]:
    """`a` and `b` with their entries exchanged where `swap`."""
    return select(swap, b, a), select(swap, a, b)


def _plus(a: _Rows, factor: Float[Array, "N"], b: _Rows, cosine: Float[Array, "N"]) -> _Rows:
    """cos (a + factor b) in units of the length of a, normalised; zeros where only rounding errors are left."""
    directions = cosine[:, None] * (a.directions + factor[:, None] * b.directions)
    squared = jnp.sum(directions * directions, -1)
    noise = cosine**2 * (a.noise + factor**2 * b.noise)
    squared = jnp.where(squared > noise, squared, jnp.zeros_like(squared))
    inverse = jnp.where(squared == 0, squared, jax.lax.rsqrt(jnp.where(squared == 0, jnp.ones_like(squared), squared)))
    return _Rows(directions * inverse[:, None], a.log_lengths + jnp.log(squared) / 2, noise * inverse**2)


def _rotated(rows: _Rows) -> tuple[_Rows, Array]:
    """The rows, with each pair of the two halves made orthogonal, and the largest cosine before that."""
    pair = [_Rows(*half) for half in zip(*(jnp.split(leaf, 2) for leaf in rows), strict=True)]
    swap = pair[1].log_lengths > pair[0].log_lengths
    u, v = _sorted(swap, *pair)
    rho = jnp.exp(jnp.where(v.log_lengths == -jnp.inf, v.log_lengths, v.log_lengths - u.log_lengths))
    gamma = jnp.sum(u.directions * v.directions, -1)
    apart = (1 - rho) * (1 + rho)
    below = apart + jnp.sqrt(apart**2 + (2 * gamma * rho) ** 2)
    tau = jnp.where(below == 0, below, 2 * gamma / jnp.where(below == 0, jnp.ones_like(below), below))
    cosine = jax.lax.rsqrt(1 + (tau * rho) ** 2)
    both = _sorted(swap, _plus(u, tau * rho**2, v, cosine), _plus(v, -tau, u, cosine))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *both), jnp.max(jnp.abs(gamma))


def _orthogonal(axes: Axes) -> Axes:
    """The axes after sweeps over all pairs, until all are orthogonal."""
    size, dtype = axes.log_lengths.shape[0], axes.log_lengths.dtype
    eps = jnp.finfo(dtype).eps
    rows = _Rows(*axes, jnp.full((size,), (4 * eps) ** 2, dtype))
    if size % 2:  # a row of zeros makes their number even
        zeros = _Rows(jnp.zeros((1, size), dtype), jnp.full((1,), -jnp.inf, dtype), jnp.zeros((1,), dtype))
        rows = jax.tree.map(lambda *parts: jnp.concatenate(parts), rows, zeros)
    order = _next_order(size + size % 2)

    def round_(_: Any, carry: tuple[_Rows, Array]) -> tuple[_Rows, Array]:
        rows, worst = carry
        rows, cosine = _rotated(rows)
        return jax.tree.map(lambda leaf: leaf[order], rows), jnp.maximum(worst, cosine)

    def sweep(carry: tuple[_Rows, Array, Array]) -> tuple[_Rows, Array, Array]:
        rows, _, count = carry
        return *jax.lax.fori_loop(0, len(order) - 1, round_, (rows, jnp.zeros((), dtype))), count + 1

    def unfinished(carry: tuple[_Rows, Array, Array]) -> Array:
        return (carry[1] > size * eps) & (carry[2] < MOST_SWEEPS)

    rows, _, _ = jax.lax.while_loop(unfinished, sweep, (rows, jnp.full((), jnp.inf, dtype), jnp.zeros((), int)))
    return Axes(rows.directions[:size], rows.log_lengths[:size])
