"""Shared by tests of trainings: params without compilation, and promotion as Optax needs it."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np


@contextlib.contextmanager
def optax_promotes():
    """Allows promotion in every thread: Adam raises a float to an integer power."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    try:
        yield
    finally:
        jax.config.update("jax_numpy_dtype_promotion", "strict")


def filled(model, seed=0):
    """Params in the shapes of a model, drawn by NumPy, which saves the compilation of `init`."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape, leaf.dtype)), shapes)
