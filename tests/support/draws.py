"""Whether random draws are independent of each other."""

import inspect
import itertools

import jax
import numpy as np

from jaxrnn import initializers
from tests.support.compilation import compiled_quickly  # noqa: F401

KEY = jax.random.key(0)
H = 64
UNIFORM = {
    "kernel_init": initializers.torch_uniform(),
    "recurrent_init": initializers.torch_uniform(),
    "bias_init": initializers.torch_uniform_bias(),
}


def drawn_by(factory):
    """The initialisers that a factory takes."""
    wanted = {**UNIFORM, "gate_init": UNIFORM["kernel_init"]}
    return {name: init for name, init in wanted.items() if name in inspect.signature(factory).parameters}


def assert_independent(draws):
    """Asserts that no two of the named draws are correlated in the entries that both have."""
    for (one, a), (other, b) in itertools.combinations(draws.items(), 2):
        a, b = np.ravel(a), np.ravel(b)
        n = min(a.size, b.size)
        assert n >= H, (one, other)  # the bound below is then 0.6
        found = np.corrcoef(a[:n], b[:n])[0, 1]
        assert abs(found) < 4.8 / np.sqrt(n), (one, other, found)


def uniform(key, *shape):
    return np.asarray(jax.random.uniform(key, shape))


def blocks(name, tree, size=H):
    """Every array of a tree that is drawn, cut into the blocks of its heads and gates."""
    draws = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        if path[-1:] == (jax.tree_util.GetAttrKey("gamma_log"),):  # a function of ν
            continue
        leaf = np.asarray(leaf)
        heads, width = (leaf, leaf.shape[1]) if leaf.ndim == 3 else (leaf[None], size)
        count = leaf.shape[-1] // width if leaf.shape[-1] % width == 0 else 1
        for k, block in enumerate(block for head in heads for block in np.split(head, count, -1)):
            if block.std():
                draws[f"{name}{jax.tree_util.keystr(path)}, block {k}"] = block
    return draws
