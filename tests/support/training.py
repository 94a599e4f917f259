"""What tests of trainings share: parameters that cost nothing to make, quick compilation, and Optax as it must be run."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@contextlib.contextmanager
def optax_promotes():
    """Adam raises a float to an integer power, which the strictness of these tests forbids; in every thread."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    try:
        yield
    finally:
        jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly():
    """Compiling is nearly all of the time here, and nothing runs for long."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def filled(model, seed=0):
    """Parameters of a model's shapes, drawn by NumPy; what `init` takes to compile is paid where models are trained."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape, leaf.dtype)), shapes)
