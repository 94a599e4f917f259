"""Strict settings for every test: shapes in signatures are checked, nothing is promoted in silence."""

import jax
import pytest
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

with install_import_hook("jaxrnn", "beartype.beartype"):
    import jaxrnn  # noqa: F401

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def x64():
    """Float64, the dtype of proofs."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unhooked():
    """Without the shape checks of the tests, so that the library's own errors are what is seen."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)
