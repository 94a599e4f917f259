"""Jacobians, their products, directions and gradient flow of every cell: against `jax.jacobian` of `unroll`."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import analysis
from tests.registry import CELLS, I, T, make, random_like, weighed

# Relative. Measured at most 1e-13; 5e-11 for singular values far below the first, which brute force loses.
TOLERANCE = 1e-9
BY_NAME = pytest.mark.parametrize("name", CELLS)


@pytest.fixture(autouse=True)
def compiled_quickly():
    """Compiling is nearly all of the time here, and nothing runs for long."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def sequence(name):
    """One sequence, without batch axes; the same cell for every test, so that a function compiles once."""
    return make(name, ())


def close(got, wanted):
    got, wanted = (np.asarray(a, np.float64) for a in (got, wanted))
    assert got.shape == wanted.shape
    assert np.isfinite(got).all()
    assert np.abs(got - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def flat(state):
    return np.asarray(jax.flatten_util.ravel_pytree(state)[0])


def size_of(case):
    return sum(leaf.size for leaf in jax.tree.leaves(case.state))


def perturbed(cell):
    """The cell with a number added to every entry of the state after each step, read from more columns of xs."""

    def step(params, state, x):
        after, y = cell.step(params, state, x[..., :I])
        vector, unravel = jax.flatten_util.ravel_pytree(after)
        moved = unravel(vector + x[..., I:])
        return moved, jax.tree.leaves(moved)[0] if jax.tree.leaves(after)[0] is y else y

    return jaxrnn.Cell(cell.init, cell.initial_state, step)


@functools.cache
def brute_force(name):
    """∂s_t/∂s_k for all t and k, `(T, S, T + 1, S)`; and the gradients of a loss by states and parameters."""
    case = sequence(name)
    start, unravel = jax.flatten_util.ravel_pytree(case.state)

    def states(params, start, changes):
        xs = jnp.concatenate([case.xs, changes], axis=-1)
        cell = perturbed(case.cell)
        out = jaxrnn.unroll(cell, params, xs, unravel(start), return_states=True, implementation="scan")
        return jax.vmap(lambda s: jax.flatten_util.ravel_pytree(s)[0])(out[2]), weighed(out[:2])

    changes = jnp.zeros((T, start.size), start.dtype)
    of_states, of_loss = jax.jit(jax.jacobian(states, (0, 1, 2)))(case.params, start, changes)
    return np.concatenate([np.asarray(of_states[1])[:, :, None], of_states[2]], axis=2), of_loss[::2]


# ---- every cell of the registry


@BY_NAME
def test_state_jacobians_equal_brute_force(name, x64):
    case, (every, _) = sequence(name), brute_force(name)
    found = analysis.state_jacobians(case.cell, case.params, case.xs, case.state)
    close(found, np.stack([every[t, :, t] for t in range(T)]))


@BY_NAME
def test_jacobian_products_equal_brute_force(name, x64):
    case, (every, _) = sequence(name), brute_force(name)
    found = analysis.jacobian_products(case.cell, case.params, case.xs, case.state)
    wanted = np.stack([np.linalg.svd(every[-1, :, t], compute_uv=False) for t in range(T)])
    got = np.exp(np.asarray(found.log_singular_values))
    seen = wanted > 1e-6 * wanted[:, :1]  # what a singular value decomposition of the product can tell
    np.testing.assert_allclose(got[seen], wanted[seen], rtol=TOLERANCE)
    assert (got[~seen] <= 1e-6 * np.broadcast_to(wanted[:, :1], wanted.shape)[~seen]).all()
    np.testing.assert_array_equal(found.log_norms, found.log_singular_values[:, 0])


@BY_NAME
def test_directions_and_exponents_equal_brute_force(name, x64):
    case, (every, _) = sequence(name), brute_force(name)
    vector = random_like(3, case.state, jnp.float64)
    unit = flat(vector) / np.linalg.norm(flat(vector))
    operands = (case.cell, case.params, case.xs, case.state)
    forward = analysis.tangent_norms(*operands, tangent=vector)
    close(np.exp(forward), [np.linalg.norm(every[t, :, 0] @ unit) for t in range(T)])
    back = analysis.cotangent_norms(*operands, cotangent=vector)
    close(np.exp(back), [np.linalg.norm(unit @ every[-1, :, t]) for t in range(T)])
    directions = np.random.default_rng(1).standard_normal((size_of(case), 2))
    found = analysis.lyapunov_exponents(*operands, directions=directions)
    start = np.linalg.qr(directions)[0]
    for t in range(T):  # volumes of one and two dimensions
        volumes = np.cumprod(np.abs(np.diag(np.linalg.qr(every[t, :, 0] @ start)[1])))
        np.testing.assert_allclose(np.exp(np.cumsum(found.growth[: t + 1].sum(0))), volumes, rtol=TOLERANCE)
    np.testing.assert_allclose(found.exponents, found.growth.mean(0), rtol=1e-12)


@BY_NAME
def test_gradient_flow_equals_brute_force(name, x64):
    case, (_, (by_params, by_changes)) = sequence(name), brute_force(name)
    flow = analysis.gradient_flow(
        case.cell, case.params, case.xs, lambda *out: weighed(out), case.state, contributions=True
    )
    sizes = [leaf.size for leaf in jax.tree.leaves(case.state)]
    parts = np.split(np.asarray(by_changes), np.cumsum(sizes)[:-1], axis=-1)
    for got, part in zip(jax.tree.leaves(flow.log_state_norms), parts, strict=True):
        close(np.exp(got), np.linalg.norm(part, axis=-1))
    jax.tree.map(lambda parts, whole: close(parts.sum(0), whole), flow.contributions, by_params)
    norms = jax.tree.map(lambda leaf: np.linalg.norm(np.reshape(leaf, (T, -1)), axis=-1), flow.contributions)
    jax.tree.map(lambda got, norm: close(np.exp(got), norm), flow.log_weight_norms, norms)
