"""Compilation without optimisation, for folders whose tests spend their time compiling programs that run once."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly():
    """Switches most optimisations off."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
