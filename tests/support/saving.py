"""Networks and params to save, and a bitwise comparison."""

import json
import zlib
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

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


def forge(path, change):
    """Applies `change(arrays, entry)` to a file and makes its checksums valid again, but for those it changes itself."""
    arrays = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        entry = json.loads(file.metadata()["jaxrnn"])
    before = json.dumps(entry["checksums"])
    entry = change(arrays, entry) or entry
    if isinstance(entry, dict) and json.dumps(entry.get("checksums")) == before:
        entry["checksums"] = {name: zlib.crc32(array.tobytes()) for name, array in arrays.items()}
    text = entry if isinstance(entry, str) else json.dumps(entry)
    metadata = {"jaxrnn": text, "jaxrnn_crc32": str(zlib.crc32(text.encode()))}
    path.write_bytes(safetensors.numpy.save(arrays, metadata))
