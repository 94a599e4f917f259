"""Layer normalisation inside a cell (Ba, Kiros & Hinton 2016, arXiv:1607.06450), and its derivative.

    μ = mean(a)    σ² = mean((a - μ)²)    â = (a - μ) / √(σ² + ε)

over the last axis, ε = 1e-5. The scale is applied to â; offsets are left to the cell's bias.
Backward:

    δa = (δâ - mean(δâ) - â mean(δâ ⊙ â)) / √(σ² + ε)
"""

from typing import Any, NamedTuple

from jax import lax
from jaxtyping import Array, Float

from jaxrnn.cells import _algebra as alg

EPSILON = 1e-5


class Normalised(NamedTuple):
    """â and 1/√(σ² + ε): what the derivative needs."""

    value: Float[Array, "*B M"]
    rate: Float[Array, "*B 1"]


def normalise(a: Float[Array, "*B M"]) -> Normalised:
    """â over the last axis."""
    centred = a - a.mean(-1, keepdims=True)
    rate = lax.rsqrt((centred * centred).mean(-1, keepdims=True) + EPSILON)
    return Normalised(centred * rate, rate)


def normalise_backward(kept: Normalised, d: Float[Array, "*B M"]) -> Float[Array, "*B M"]:
    """The cotangent of a from that of â."""
    along = (d * kept.value).mean(-1, keepdims=True)
    return (d - d.mean(-1, keepdims=True) - kept.value * along) * kept.rate


def product(
    x: Float[Array, "*B N"], w: alg.Weight, scale: Float[Array, "M"] | None
) -> tuple[Float[Array, "*B M"], Any]:
    """x w, normalised and scaled if there is a scale, and what its derivative needs: Normalised, or None."""
    a = alg.dot(x, w)
    if scale is None:
        return a, None
    kept = normalise(a)
    return alg.scale(kept.value, scale), kept


def product_backward(
    d: Float[Array, "*B M"], scale: Float[Array, "M"] | None, kept: Normalised | None
) -> Float[Array, "*B M"]:
    """The cotangent of x w from that of `product(x, w, scale)`."""
    if scale is None or kept is None:
        return d
    return normalise_backward(kept, alg.scale(d, scale))
