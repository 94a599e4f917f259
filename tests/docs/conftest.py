"""Tests of this folder compile many programs that run once."""

import jax
import pytest

from tests.support.compilation import compiled_quickly  # noqa: F401


@pytest.fixture
def settings_of_users(unhooked):
    """JAX promotes dtypes and ranks, as it does by default."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
