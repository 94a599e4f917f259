"""Inputs of the NNX modules."""

import numpy as np
from flax import nnx

from tests.support.registry import B, I, T, bits

SEED = 0
MASK, RESETS = bits(4, (T, B), 0.6), bits(5, (T, B), 0.4)


def rngs(seed=SEED):
    return nnx.Rngs(seed)


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


XS = numbers(1, T, B, I)
