"""Helpers of tests that train: parameters without compilation, and the promotion that Optax needs."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np


@contextlib.contextmanager
def optax_promotes():
    """Allows promotion in every thread: Adam raises a float to an integer power, which strict promotion refuses."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    try:
        yield
    finally:
        jax.config.update("jax_numpy_dtype_promotion", "strict")


def filled(model, seed=0):
    """Random parameters of a model by NumPy, which saves the compilation of `init`."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape, leaf.dtype)), shapes)
