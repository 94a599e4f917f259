"""Jacobians, their products, norms and gradient flow of every cell over a thousand steps equal brute force.

Brute force is `jax.jacobian` and `jax.grad` of `unroll` where these do not underflow, and
products in extended precision with a separate exponent elsewhere.
"""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import analysis
from tests.support.analysis import TOLERANCE, assert_logs, close, log_of_norm
from tests.support.registry import CELLS, COMPLEX, I, T, make, numpy_of, of_cell, random_like, weighed

LONG = 1000
BY_NAME = pytest.mark.parametrize("name", [of_cell(name) for name in CELLS if name not in COMPLEX])


@functools.cache
def sequence(name):
    """One sequence without batch axes; all tests use one cell, so that each function compiles once."""
    return make(name, (), LONG)


def flat(tree, leading=0):
    """Joins leaves `(*leading, ·)` along the last axis, in NumPy."""
    return np.concatenate([np.reshape(a, (*a.shape[:leading], -1)) for a in jax.tree.leaves(numpy_of(tree))], axis=-1)


def unflat(like, vectors):
    """Splits vectors `(T, ·)` into a tree like `like` at each step."""
    leaves, structure = jax.tree.flatten(like)
    parts = np.split(np.asarray(vectors), np.cumsum([leaf.size for leaf in leaves])[:-1], axis=-1)
    shaped = [part.reshape(-1, *leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def perturbed(cell):
    """The cell adds further columns of xs to its params in each step, and to the state after it."""

    def step(params, state, x):
        weights, unravel_weights = jax.flatten_util.ravel_pytree(params)
        after, y = cell.step(unravel_weights(weights + x[..., -weights.size :]), state, x[..., :I])
        vector, unravel = jax.flatten_util.ravel_pytree(after)
        moved = unravel(vector + x[..., I : I + vector.size])
        return moved, jax.tree.leaves(moved)[0] if jax.tree.leaves(after)[0] is y else y

    return jaxrnn.Cell(cell.init, cell.initial_state, step)


@functools.cache
def states_after(name):
    """States after each step, `(T, S)`."""
    case = sequence(name)
    return flat(jaxrnn.unroll(case.cell, case.params, case.xs, case.state, return_states=True, key=None)[2], 1)


@functools.cache
def brute_force(name):
    """∂s_t/∂s_k for all t and k among the first six steps, and among the last six: `(6, S, 7, S)` each."""
    case = sequence(name)
    start, unravel = jax.flatten_util.ravel_pytree(case.state)
    weights = jnp.zeros((T, flat(case.params).size))

    def states(xs, start, changes):
        xs = jnp.concatenate([xs, changes, weights], axis=-1)
        options = {"return_states": True, "implementation": "scan", "key": None}
        out = jaxrnn.unroll(perturbed(case.cell), case.params, xs, unravel(start), **options)
        return jax.vmap(lambda s: jax.flatten_util.ravel_pytree(s)[0])(out[2])

    jacobian = jax.jit(jax.jacobian(states, (1, 2)))

    def window(xs, start):
        by_start, by_changes = jacobian(xs, start, jnp.zeros((T, start.size)))
        return np.concatenate([np.asarray(by_start)[:, :, None], by_changes], axis=2)

    return window(case.xs[:T], start), window(case.xs[-T:], jnp.asarray(states_after(name)[-T - 1]))


@functools.cache
def jacobians(name):
    case = sequence(name)
    return np.asarray(analysis.state_jacobians(case.cell, case.params, case.xs, case.state))


# ---- products in extended precision, scaled by a power of two after each step, so that nothing underflows


def log_lengths(name, start, transposed):
    """Logs of the norms of `start` ∂s_T/∂s_t from the last t to the first, or of ∂s_t/∂s_0 `start` from the first.

    The norm of a matrix is its spectral norm.
    """
    found, factors = [], jacobians(name).astype(np.longdouble)
    product, exponent = np.asarray(start, np.longdouble), 0
    for factor in factors[::-1] if transposed else factors:
        product = product @ factor if transposed else factor @ product
        largest = np.abs(product).max()
        if not largest:
            return np.asarray(found + [-np.inf] * (len(factors) - len(found)))
        power = int(np.frexp(largest)[1])
        product, exponent = np.ldexp(product, -power), exponent + power
        found.append(np.log(np.linalg.norm(product.astype(float), 2)) + exponent * np.log(2.0))
    return np.asarray(found)


# ---- every cell of the registry


@BY_NAME
def test_state_jacobians_equal_brute_force(name, x64):
    for window, every in zip((slice(T), slice(-T, None)), brute_force(name), strict=True):
        close(jacobians(name)[window], np.stack([every[t, :, t] for t in range(T)]))


@BY_NAME
def test_jacobian_products_equal_brute_force(name, x64):
    case, (_, every) = sequence(name), brute_force(name)
    found = numpy_of(analysis.jacobian_products(case.cell, case.params, case.xs, case.state))
    wanted = np.stack([np.linalg.svd(every[-1, :, t], compute_uv=False) for t in range(T)])
    got = np.exp(found.log_singular_values[-T:])
    seen = wanted > 1e-6 * wanted[:, :1]  # a decomposition of the product resolves only these
    np.testing.assert_allclose(got[seen], wanted[seen], rtol=TOLERANCE)
    assert (got[~seen] <= 1e-6 * np.broadcast_to(wanted[:, :1], wanted.shape)[~seen]).all()
    np.testing.assert_array_equal(found.log_norms, found.log_singular_values[:, 0])
    assert_logs(found.log_norms, log_lengths(name, np.eye(wanted.shape[-1]), True)[::-1])
    with np.errstate(divide="ignore"):
        volumes = np.cumsum(np.linalg.slogdet(jacobians(name))[1][::-1])[::-1]
        condition = np.linalg.cond(jacobians(name))
    assert np.exp(volumes[0]) == 0
    # Of a Jacobian that is singular up to rounding, the determinant is rounding.
    exact = np.isneginf(volumes) | np.logical_and.accumulate((condition < 1e12)[::-1])[::-1]
    np.testing.assert_allclose(found.log_singular_values.sum(-1)[exact], volumes[exact], rtol=TOLERANCE)


@BY_NAME
def test_tangents_cotangents_and_exponents_equal_brute_force(name, x64):
    case, (first, last) = sequence(name), brute_force(name)
    vector = random_like(3, case.state, jnp.float64)
    unit = flat(vector) / np.linalg.norm(flat(vector))
    operands = (case.cell, case.params, case.xs, case.state)
    forward = np.asarray(analysis.tangent_norms(*operands, tangent=vector))
    assert_logs(forward[:T], log_of_norm(first[:, :, 0] @ unit, 1))
    assert_logs(forward, log_lengths(name, unit, False))
    back = np.asarray(analysis.cotangent_norms(*operands, cotangent=vector))
    assert_logs(back[-T:], log_of_norm(np.einsum("i,itj->tj", unit, last[-1, :, :T]), 1))
    assert_logs(back[::-1], log_lengths(name, unit, True))
    directions = np.random.default_rng(1).standard_normal((unit.size, unit.size))
    found, start = numpy_of(analysis.lyapunov_exponents(*operands, directions=directions)), np.linalg.qr(directions)[0]
    for t in range(T):  # volumes of one and two dimensions
        volumes = np.cumprod(np.abs(np.diag(np.linalg.qr(first[t, :, 0] @ start[:, :2])[1])))
        np.testing.assert_allclose(np.exp(np.cumsum(found.growth[: t + 1].sum(0))[:2]), volumes, rtol=TOLERANCE)
    np.testing.assert_allclose(found.exponents, found.growth.mean(0), rtol=1e-12)
    with np.errstate(divide="ignore"):
        volumes = np.linalg.slogdet(jacobians(name))[1]
    if np.isfinite(volumes).all():
        assert_logs(np.cumsum(found.growth[:, 0]), log_lengths(name, start[:, 0], False))
        np.testing.assert_allclose(found.growth.sum(-1), volumes, rtol=TOLERANCE)


@BY_NAME
def test_gradient_flow_equals_brute_force(name, x64):
    """Every step has separate params, and adds a number to the state."""
    case = sequence(name)

    def loss(params, changes, weights):
        xs = jnp.concatenate([case.xs, changes, weights], axis=-1)
        return weighed(jaxrnn.unroll(perturbed(case.cell), params, xs, case.state, implementation="scan", key=None))

    zeros = [jnp.zeros((LONG, flat(tree).size)) for tree in (case.state, case.params)]
    by_params, by_changes, by_weights = jax.jit(jax.grad(loss, (0, 1, 2)))(case.params, *zeros)
    operands = (case.cell, case.params, case.xs, lambda *out: weighed(out), case.state)
    flow = numpy_of(analysis.gradient_flow(*operands, contributions=True))
    assert_logs(flow.log_state_norms, log_of_norm(unflat(case.state, by_changes), 1))
    jax.tree.map(lambda parts, whole: close(parts.sum(0), whole), flow.contributions, by_params)
    by_steps = unflat(case.params, by_weights)
    jax.tree.map(close, flow.contributions, by_steps)
    assert_logs(flow.log_weight_norms, log_of_norm(by_steps, 1))


@BY_NAME
def test_gradient_flow_of_a_final_loss_equals_scaled_products(name, x64):
    """This gradient underflows. Contributions are asked for, as their program is compiled already."""
    case = sequence(name)
    vector = random_like(3, case.state, jnp.float64)
    dot = lambda final, ys: sum(map(jnp.vdot, jax.tree.leaves(vector), jax.tree.leaves(final)))  # noqa: E731
    flow = analysis.gradient_flow(case.cell, case.params, case.xs, dot, case.state, contributions=True)
    norms = np.logaddexp.reduce([2 * leaf for leaf in jax.tree.leaves(numpy_of(flow.log_state_norms))]) / 2
    assert_logs(norms[:-1], log_lengths(name, flat(vector), True)[-2::-1])
    assert_logs(norms[-1], log_of_norm(flat(vector), 0))
