"""Networks and parameters to save, and their comparison after loading."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from tests.support.registry import I, random_like


class OwnParams(NamedTuple):
    scale: jax.Array  # (I + 1,)
    order: jax.Array  # integers
    table: dict


TINY = jaxrnn.rnn(1)


def params_of(network, dtype=jnp.float32, input_size=I):
    shapes = jax.eval_shape(lambda key: network.init(key, input_size), jax.random.key(0))
    return random_like(0, shapes, dtype)


def same(a, b):
    """Asserts that two pytrees have equal structures, dtypes, shapes and bits, and that the second holds JAX arrays."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert isinstance(y, jax.Array)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    return True


def own_cell():
    def init(key, input_size):
        return OwnParams(
            jnp.ones(2 * input_size + 1), jnp.arange(2), {"a": jnp.zeros((0, 3)), "on": jnp.ones((), bool)}
        )

    return jaxrnn.Cell(init, lambda batch=(): jnp.zeros(batch), lambda p, s, x: (s, s), name="own")
