"""Compilation without optimisation, for tests whose programs run once."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly():
    """Disables most optimisations of the compiler."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
