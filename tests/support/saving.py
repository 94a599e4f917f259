"""Networks and params to save, and a bitwise comparison."""

from typing import NamedTuple

import chex
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


def assert_same_bits(a, b):
    """Checks that structures, shapes, dtypes and bits are equal, and that the leaves of `b` are arrays of JAX."""
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    bits = [jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), tree) for tree in (a, b)]
    assert bits[0] == bits[1]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(b))


def own_cell():
    def init(key, input_size):
        return OwnParams(
            jnp.ones(2 * input_size + 1), jnp.arange(2), {"a": jnp.zeros((0, 3)), "on": jnp.ones((), bool)}
        )

    return jaxrnn.Cell(init, lambda batch=(): jnp.zeros(batch), lambda p, s, x: (s, s), name="own")
