"""Activations of the user's in the analysis: those that mix units, and those that close over traced numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import analysis
from tests.support.registry import quick_jit, random_like

T, I, H = 5, 2, 3  # noqa: E741
KEY = jax.random.key(2)


def operands(cell, dtype=jnp.float64):
    shapes = jax.eval_shape(lambda key: cell.init(key, I, dtype), KEY)
    params, xs, state = (
        random_like(k, tree, dtype)
        for k, tree in enumerate((shapes, jax.ShapeDtypeStruct((T, I), dtype), jax.ShapeDtypeStruct((H,), dtype)))
    )
    return params, xs, state


def softmax(a):
    return np.exp(a) / np.exp(a).sum()


def standardised(a):
    return (a - a.mean()) / a.std()


# The activation in JAX and in NumPy, and its Jacobian in NumPy
MIXING = {
    "softmax": (jax.nn.softmax, softmax, lambda a: np.diag(softmax(a)) - np.outer(softmax(a), softmax(a))),
    "unit norm": (
        lambda a: a / jnp.sqrt(jnp.sum(a * a, -1, keepdims=True)),
        lambda a: a / np.linalg.norm(a),
        lambda a: (np.eye(H) - np.outer(a, a) / (a @ a)) / np.linalg.norm(a),
    ),
    "standardised": (
        lambda a: (a - jnp.mean(a, -1, keepdims=True)) / jnp.std(a, -1, keepdims=True),
        standardised,
        lambda a: (np.eye(H) - 1 / H - np.outer(standardised(a), standardised(a)) / H) / a.std(),
    ),
}
SCALE = 1.3
SCALED = lambda a: np.tanh(SCALE * a), lambda a: np.diag(SCALE * (1 - np.tanh(SCALE * a) ** 2))


def in_numpy(kind, params, xs, h, activation, slope):
    """The Jacobians of all steps, and the states after them."""
    params, xs, h = jax.tree.map(np.asarray, (params, xs, h))
    w_h = np.diag(params.w_h) if kind == "indrnn" else params.w_h
    jacobians, states = [], []
    for x in xs:
        a = x @ params.w_x + h @ w_h + params.b
        h = activation(a)
        jacobians.append(slope(a) @ w_h.T)
        states.append(h)
    return np.stack(jacobians), np.stack(states)


def wanted_of(kind, params, xs, state, activation, slope):
    """What each function of the analysis returns, by products of Jacobians in NumPy."""
    jacobians, states = in_numpy(kind, params, xs, state, activation, slope)
    after, before, weights = [np.eye(H)], [np.eye(H)], np.arange(1.0, H + 1)
    for j in jacobians:
        after.append(j @ after[-1])
    for j in jacobians[::-1]:
        before.append(before[-1] @ j)
    before = before[::-1]  # entry t is ∂s_T/∂s_t
    v = weights / np.linalg.norm(weights)
    lengths = lambda vectors: np.log([np.linalg.norm(each) for each in vectors])  # noqa: E731
    return {
        "jacobians": jacobians,
        "products": np.log([np.linalg.svd(p, compute_uv=False)[0] for p in before[:-1]]),
        "tangent": lengths([p @ v for p in after[1:]]),
        "cotangent": lengths([p.T @ v for p in before[:-1]]),
        "volume": np.linalg.slogdet(jacobians)[1],
        "flow": lengths([p.T @ weights for p in before[1:]]),
    }, states


def found_of(cell, params, xs, state):
    weights = jnp.arange(1.0, H + 1)
    run = (cell, params, xs, state)
    return {
        "jacobians": analysis.state_jacobians(*run),
        "products": analysis.jacobian_products(*run).log_norms,
        "tangent": analysis.tangent_norms(*run, tangent=weights),
        "cotangent": analysis.cotangent_norms(*run, cotangent=weights),
        "volume": analysis.lyapunov_exponents(*run).growth.sum(-1),
        "flow": analysis.gradient_flow(cell, params, xs, lambda h, ys: h @ weights, state).log_state_norms,
    }


def agree(found, wanted, atol=1e-8):
    for name, value in wanted.items():
        skipped = name == "volume" and (value < -25).any()  # singular Jacobians: softmax and its kind lose a direction
        if not skipped:
            np.testing.assert_allclose(found[name], value, atol=atol, err_msg=name)


@pytest.mark.parametrize("kind", ["rnn", "indrnn"])
@pytest.mark.parametrize("name", MIXING)
def test_an_activation_that_mixes_units_has_its_whole_jacobian(kind, name, x64):
    activation, *own = MIXING[name]
    cell = getattr(jaxrnn, kind)(H, activation=activation)
    given = operands(cell)
    wanted, states = wanted_of(kind, *given, *own)
    np.testing.assert_allclose(jaxrnn.unroll(cell, *given)[1], states, atol=1e-12)
    agree(found_of(cell, *given), wanted)


@pytest.mark.parametrize("name", ["softmax", "standardised"])
def test_contributions_of_an_activation_that_mixes_units_sum_to_finite_differences(name, x64):
    activation, in_numpy_, slope = MIXING[name]
    cell, weights = jaxrnn.rnn(H, activation=activation), np.arange(1.0, H + 1)
    params, xs, state = operands(cell)
    flow = analysis.gradient_flow(cell, params, xs, lambda h, ys: jnp.sum(ys @ weights), state, contributions=True)
    for field in params._fields:

        def loss(leaf, field=field):
            states = in_numpy("rnn", params._replace(**{field: leaf}), xs, state, in_numpy_, slope)[1]
            return (states @ weights).sum()

        leaf = np.asarray(getattr(params, field))
        wanted = np.zeros_like(leaf)
        for k in np.ndindex(leaf.shape):
            change = np.zeros_like(leaf)
            change[k] = 1e-6
            wanted[k] = (loss(leaf + change) - loss(leaf - change)) / 2e-6
        np.testing.assert_allclose(getattr(flow.contributions, field).sum(0), wanted, atol=1e-7)


TRANSFORMED = {
    "jit": lambda f: jax.jit(f)(SCALE),
    "vmap": lambda f: jax.tree.map(lambda leaf: leaf[1], jax.vmap(f)(jnp.asarray([0.5, SCALE]))),
    "lax.map": lambda f: jax.tree.map(lambda leaf: leaf[1], jax.lax.map(f, jnp.asarray([0.5, SCALE]))),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_an_activation_that_closes_over_a_traced_number_equals_numpy(name, x64):
    given = operands(jaxrnn.rnn(H))
    f = lambda scale: found_of(jaxrnn.rnn(H, activation=lambda a: jnp.tanh(scale * a)), *given)  # noqa: E731
    agree(TRANSFORMED[name](f), wanted_of("rnn", *given, *SCALED)[0])


def test_the_analysis_is_differentiated_by_what_an_activation_closes_over(x64):
    given = operands(jaxrnn.rnn(H))

    def total(scale):
        cell = jaxrnn.rnn(H, activation=lambda a: jnp.tanh(scale * a))
        return jnp.sum(analysis.tangent_norms(cell, *given, tangent=jnp.arange(1.0, H + 1)))

    def in_numpy_(scale):
        slope = lambda a: np.diag(scale * (1 - np.tanh(scale * a) ** 2))  # noqa: E731
        return wanted_of("rnn", *given, lambda a: np.tanh(scale * a), slope)[0]["tangent"].sum()

    wanted = (in_numpy_(SCALE + 1e-6) - in_numpy_(SCALE - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(total)(SCALE), wanted, rtol=1e-7)
    np.testing.assert_allclose(quick_jit(jax.grad(total))(SCALE), wanted, rtol=1e-7)


def test_the_analysis_has_forward_derivatives(x64):
    """Of a cell whose derivative is written by hand for reverse mode."""
    cell = jaxrnn.rnn(H)
    params, xs, state = operands(cell)
    direction = random_like(7, params, jnp.float64)

    def norms(params):
        return analysis.tangent_norms(cell, params, xs, state, tangent=jnp.arange(1.0, H + 1))

    def in_numpy_(step):
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        tanh = lambda a: np.diag(1 - np.tanh(a) ** 2)  # noqa: E731
        return wanted_of("rnn", moved, xs, state, np.tanh, tanh)[0]["tangent"]

    wanted = (in_numpy_(1e-6) - in_numpy_(-1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jvp(norms, (params,), (direction,))[1], wanted, rtol=1e-6, atol=1e-8)
