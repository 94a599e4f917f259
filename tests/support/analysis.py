"""Comparisons of the tests of `jaxrnn.analysis`."""

import chex
import jax
import numpy as np

# Relative. Measured at most 2e-12; 5e-11 for singular values far below the first, which brute force loses.
TOLERANCE = 1e-9


def close(got, wanted):
    """Asserts that two arrays are equal within TOLERANCE, relative to the largest entry."""
    got, wanted = (np.asarray(a, np.float64) for a in (got, wanted))
    chex.assert_equal_shape((got, wanted))
    chex.assert_tree_all_finite(got)
    assert np.abs(got - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def assert_logs(got, wanted):
    """Asserts that logarithms of lengths are equal: every length to a relative error of TOLERANCE, -inf for a length of 0."""
    chex.assert_trees_all_close(got, wanted, rtol=0, atol=TOLERANCE)


def log_of_norm(tree, leading):
    """Logarithms of the norms of leaves `(*leading, ...)`, over all but the leading axes."""
    norms = jax.tree.map(lambda a: np.linalg.norm(np.asarray(a).reshape(*a.shape[:leading], -1), axis=-1), tree)
    with np.errstate(divide="ignore"):
        return jax.tree.map(np.log, norms)
