"""Changes of a gradient before the optimiser reads it, beside those that Optax has."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def raise_global_norm(least: float) -> optax.GradientTransformation:
    """Scales up a gradient whose norm over all parameters is below `least`, to that norm; zero stays zero."""

    def raised(gradient: Any, _: Any) -> Any:
        norm = optax.tree.norm(gradient)
        scale = jnp.where((norm > 0) & (norm < least), least / norm, 1)
        return jax.tree.map(lambda leaf: leaf * jnp.broadcast_to(scale.astype(leaf.dtype), leaf.shape), gradient)

    return optax.stateless(raised)


def raise_entries(least: float) -> optax.GradientTransformation:
    """Moves every entry nearer to zero than `least` away from it, to ±`least`; zero stays zero."""

    def raised(gradient: Any, _: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.sign(leaf) * jnp.maximum(jnp.abs(leaf), least), gradient)

    return optax.stateless(raised)
