"""Comparisons of the tests of the analysis."""

import jax
import numpy as np

# Relative. Measured at most 2e-12, and 5e-11 for singular values that brute force rounds away.
TOLERANCE = 1e-9


def close(got, wanted):
    got, wanted = (np.asarray(a, np.float64) for a in (got, wanted))
    assert got.shape == wanted.shape
    assert np.isfinite(got).all()
    assert np.abs(got - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def assert_logs(got, wanted):
    """Checks every norm to a relative error of TOLERANCE; -inf is a norm of 0."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE), got, wanted)


def log_of_norm(tree, leading):
    """Logs of the norms of leaves `(*leading, ·)`, by brute force."""
    norms = jax.tree.map(lambda a: np.linalg.norm(np.asarray(a).reshape(*a.shape[:leading], -1), axis=-1), tree)
    with np.errstate(divide="ignore"):
        return jax.tree.map(np.log, norms)
