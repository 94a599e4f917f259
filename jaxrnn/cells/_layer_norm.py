"""Layer normalisation inside a cell (Ba, Kiros & Hinton 2016, arXiv:1607.06450), and its derivative.

    μ = mean(a)    σ² = mean((a - μ)²)    â = (a - μ) / √(σ² + ε)

over the last axis, or over all gates of each head of it, ε = 1e-5. The scale is applied to â;
offsets are left to the cell's bias. Backward:

    δa = (δâ - mean(δâ) - â mean(δâ ⊙ â)) / √(σ² + ε)
"""

from typing import Any, NamedTuple

from jax import lax
from jaxtyping import Array, Float

from jaxrnn.cells import _algebra as alg

EPSILON = 1e-5


class Normalised(NamedTuple):
    """â and 1/√(σ² + ε): what the derivative needs."""

    value: Float[Array, "*B GH"]
    rate: Float[Array, "*B 1 N 1"]


def _by_head(a: Float[Array, "*B GH"], gates: int, heads: int) -> Float[Array, "*B G N D"]:
    gates = gates if heads > 1 else 1  # one mean over a contiguous axis is faster than one over two axes
    return a.reshape(*a.shape[:-1], gates, heads, a.shape[-1] // (gates * heads))


def _mean(a: Float[Array, "*B G N D"]) -> Float[Array, "*B 1 N 1"]:
    return a.mean((-3, -1), keepdims=True)


def normalise(a: Float[Array, "*B GH"], gates: int = 1, heads: int = 1) -> Normalised:
    """â, from the blocks of this number of gates, each with the units of all heads side by side."""
    by_head = _by_head(a, gates, heads)
    centred = by_head - _mean(by_head)
    rate = lax.rsqrt(_mean(centred * centred) + EPSILON)
    return Normalised((centred * rate).reshape(a.shape), rate)


def normalise_backward(kept: Normalised, d: Float[Array, "*B GH"], gates: int = 1) -> Float[Array, "*B GH"]:
    """The cotangent of a from that of â."""
    value, by_head = (_by_head(v, gates, kept.rate.shape[-2]) for v in (kept.value, d))
    along = _mean(by_head * value)
    return ((by_head - _mean(by_head) - value * along) * kept.rate).reshape(d.shape)


def product(
    x: Float[Array, "*B K"], w: alg.Weight, scale: Float[Array, "GH"] | None, gates: int = 1, heads: int = 1
) -> tuple[Float[Array, "*B GH"], Any]:
    """x w, normalised and scaled if there is a scale, and what its derivative needs: Normalised, or None."""
    a = alg.dot(x, w)
    if scale is None:
        return a, None
    kept = normalise(a, gates, heads)
    return alg.scale(kept.value, scale), kept


def product_backward(
    d: Float[Array, "*B GH"], scale: Float[Array, "GH"] | None, kept: Normalised | None, gates: int = 1
) -> Float[Array, "*B GH"]:
    """The cotangent of x w from that of `product(x, w, scale, gates)`."""
    if scale is None or kept is None:
        return d
    return normalise_backward(kept, alg.scale(d, scale), gates)
