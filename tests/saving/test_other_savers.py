"""Records of parameters and states in the formats of Flax and Orbax: the values, the types and the dtypes."""

import flax.serialization
import jax
import jax.numpy as jnp
import orbax.checkpoint
import pytest

import jaxrnn
from tests.support.registry import numpy_of, random_like

NETWORK = jaxrnn.stack(
    [jaxrnn.lstm(4, layer_norm=True, peephole=True), jaxrnn.gru(3), jaxrnn.slstm(4, num_heads=2), jaxrnn.lru(2)],
    bidirectional=True,
)


def params_and_state():
    """Of a network whose layers are of several kinds, in both directions, one in bfloat16."""
    shapes = jax.eval_shape(
        lambda key: (NETWORK.init(key, 3), NETWORK.initial_state((2,)), jaxrnn.ReadoutParams(*(jnp.zeros(2),) * 2)),
        jax.random.key(0),
    )
    params, *others = random_like(0, shapes, jnp.float32)
    first = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params[0])
    return ((first, *params[1:]), *others)


def by_flax(tree, folder):
    return flax.serialization.from_bytes(jax.tree.map(jnp.zeros_like, tree), flax.serialization.to_bytes(tree))


def by_orbax(tree, folder):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "tree", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "tree", jax.tree.map(jnp.zeros_like, tree))


@pytest.mark.parametrize("save", [by_flax, by_orbax])
def test_records_keep_their_values_types_and_dtypes(save, tmp_path):
    tree = params_and_state()
    restored = save(tree, tmp_path)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    for got, want in zip(*map(jax.tree.leaves, map(numpy_of, (restored, tree))), strict=True):
        assert got.dtype == want.dtype
        assert got.tobytes() == want.tobytes()
