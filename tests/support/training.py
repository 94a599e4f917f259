"""What tests of trainings share: parameters that cost nothing to make, and Optax as it must be run."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np


@contextlib.contextmanager
def optax_promotes():
    """Adam raises a float to an integer power, which the strictness of these tests forbids; in every thread."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    try:
        yield
    finally:
        jax.config.update("jax_numpy_dtype_promotion", "strict")


def filled(model, seed=0):
    """Parameters of a model's shapes, drawn by NumPy; what `init` takes to compile is paid where models are trained."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape, leaf.dtype)), shapes)
