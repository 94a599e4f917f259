"""The singular values of a long product of matrices, every one to full relative accuracy, by its log.

The product P = A_n … A_2 A_1 is kept as

    P = Q diag(exp(l)) Wᵀ

with orthonormal columns Q, the logs l of the singular values, and an orthogonal W that is
never formed: singular values do not depend on it. Another factor A gives the columns

    exp(l_j) A q_j = exp(l_j + log |A q_j|) u_j,    |u_j| = 1

which one-sided Jacobi rotations make orthogonal again. A rotation of the columns a ≥ b, with
ρ = exp(l_b - l_a) <= 1 and γ = u_a·u_b, by the angle whose tangent is t = τ ρ:

    τ = 2γ / (1 - ρ² + √((1 - ρ²)² + 4γ²ρ²))       cos = 1 / √(1 + t²)
    u_a ← cos (u_a + t ρ u_b)                       u_b ← cos (u_b - τ u_a)

in which nothing overflows, however far apart the columns are; for ρ → 0 it is Gram and Schmidt's.
An orthogonalisation costs O(S³) for each sweep, and takes a handful of sweeps.

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

MOST_SWEEPS = 40  # twice as many as were ever seen


class Axes(NamedTuple):
    """The image of the unit ball under a product: an ellipsoid, by its axes, in no order."""

    directions: Float[Array, "S S"]  # row j is the direction of axis j
    log_lengths: Float[Array, "S"]


def ball(size: int, dtype: Any) -> Axes:
    """The unit ball itself: of no factors."""
    return Axes(jnp.eye(size, dtype=dtype), jnp.zeros(size, dtype))


def after(axes: Axes, images: Float[Array, "S S"]) -> Axes:
    """The axes with one factor more, whose products with the directions are the rows of `images`."""
    directions, log_lengths = unit(images, 1)
    return _orthogonal(Axes(directions, axes.log_lengths + log_lengths))


def _seating(size: int) -> np.ndarray:
    """Who sits where in the next round: the first half of the seats face the second half."""
    half = size // 2
    if half == 1:
        return np.arange(2)
    return np.asarray([0, half, *range(1, half - 1), *range(half + 1, size), half - 1])


def _sorted(swap: Bool[Array, "N"], a: Axes, b: Axes) -> tuple[Axes, Axes]:
    """The two, their entries exchanged where `swap`."""
    return select(swap, b, a), select(swap, a, b)


def _normalised(rows: Float[Array, "N S"]) -> tuple[Array, Array]:
    """Rows of length 1, and the logs of their lengths; a row of zeros stays one."""
    length = jnp.sqrt(jnp.sum(rows * rows, -1))
    return rows / jnp.where(length == 0, jnp.ones_like(length), length)[:, None], jnp.log(length)


def _rotated(axes: Axes) -> tuple[Axes, Array]:
    """The first half of the axes made orthogonal to the second, pair by pair; the largest cosine that there was."""
    pair = [Axes(*half) for half in zip(*(jnp.split(leaf, 2) for leaf in axes), strict=True)]
    swap = pair[1].log_lengths > pair[0].log_lengths
    (u, log_u), (v, log_v) = _sorted(swap, *pair)
    rho = jnp.exp(jnp.where(log_v == -jnp.inf, log_v, log_v - log_u))
    gamma = jnp.sum(u * v, -1)
    apart = (1 - rho) * (1 + rho)
    below = apart + jnp.sqrt(apart**2 + (2 * gamma * rho) ** 2)
    tau = jnp.where(below == 0, below, 2 * gamma / jnp.where(below == 0, jnp.ones_like(below), below))
    tangent = tau * rho
    cosine = jax.lax.rsqrt(1 + tangent**2)
    longer, log_longer = _normalised(cosine[:, None] * (u + (tangent * rho)[:, None] * v))
    shorter, log_shorter = _normalised(cosine[:, None] * (v - tau[:, None] * u))
    longer, shorter = Axes(longer, log_u + log_longer), Axes(shorter, log_v + log_shorter)
    rotated = jax.tree.map(lambda *parts: jnp.concatenate(parts), *_sorted(swap, longer, shorter))
    return rotated, jnp.max(jnp.abs(gamma))


def _orthogonal(axes: Axes) -> Axes:
    """Sweeps over all pairs until all are orthogonal."""
    size, dtype = axes.log_lengths.shape[0], axes.log_lengths.dtype
    if size % 2:  # a row of zeros, to sit out against
        nobody = Axes(jnp.zeros((1, size), dtype), jnp.full((1,), -jnp.inf, dtype))
        axes = jax.tree.map(lambda *parts: jnp.concatenate(parts), axes, nobody)
    seats = _seating(size + size % 2)
    enough = size * jnp.finfo(dtype).eps

    def round_(_: Any, carry: tuple[Axes, Array]) -> tuple[Axes, Array]:
        axes, worst = carry
        axes, cosine = _rotated(axes)
        return jax.tree.map(lambda leaf: leaf[seats], axes), jnp.maximum(worst, cosine)

    def sweep(carry: tuple[Axes, Array, Array]) -> tuple[Axes, Array, Array]:
        axes, _, count = carry
        return *jax.lax.fori_loop(0, len(seats) - 1, round_, (axes, jnp.zeros((), dtype))), count + 1

    def unfinished(carry: tuple[Axes, Array, Array]) -> Array:
        return (carry[1] > enough) & (carry[2] < MOST_SWEEPS)

    axes, _, _ = jax.lax.while_loop(unfinished, sweep, (axes, jnp.full((), jnp.inf, dtype), jnp.zeros((), int)))
    return jax.tree.map(lambda leaf: leaf[:size], axes)
