"""Random masks of what is kept, sharded as what they multiply."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool


def sharding_of(x: Array, axes: Sequence[int | None]) -> NamedSharding | None:
    """The sharding of an array whose axes are those of `x`, `None` for one that `x` does not have.

    `None` where the type of `x` shows no sharding: outside of a mesh with axes of `AxisType.Explicit`,
    and for an `x` that is replicated.
    """
    sharding = jax.typeof(x).sharding
    spec = tuple(sharding.spec)
    spec = PartitionSpec(*(None if axis is None else spec[axis] for axis in axes))
    return NamedSharding(sharding.mesh, spec) if any(spec) else None


def bernoulli(key: Array, p: float, shape: tuple[int, ...], sharding: NamedSharding | None) -> Bool[Array, "..."]:
    """True with probability `p`, the same draws whatever the sharding."""
    return jax.random.bernoulli(key, p, shape, out_sharding=sharding)


def dropped(key: Array, rate: float, x: Array, shared_axes: int = 0) -> Array:
    """`x` with entries dropped at a rate, and the others divided by 1 - rate; one mask for all of the first axes."""
    scaled = x / (1 - rate)
    keep = bernoulli(key, 1 - rate, x.shape[shared_axes:], sharding_of(scaled, range(shared_axes, x.ndim)))
    keep = jnp.broadcast_to(keep, x.shape, out_sharding=sharding_of(scaled, range(x.ndim)))
    return jnp.where(keep, scaled, jnp.zeros_like(scaled))
