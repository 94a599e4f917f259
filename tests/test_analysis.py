"""Jacobians, their products and gradient flow: against `jax.jacobian` of the unrolled function, and known answers."""

import functools
from itertools import combinations

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import analysis
from tests.registry import CELLS, LENGTHS, B, I, T, bits, make, random_like, weighed

# Measured at most 3e-13; the largest is a singular value far below the first, which brute force has to lose.
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
    norms = jax.tree.map(lambda leaf: jnp.linalg.norm(leaf.reshape(T, -1), axis=-1), flow.contributions)
    jax.tree.map(lambda got, norm: close(np.exp(got), norm), flow.log_weight_norms, norms)


# ---- batches, lengths, masks


def alone(case, k, length):
    """One sequence of a batch, without its padding."""
    return case.cell, case.params, case.xs[:length, k], jax.tree.map(lambda leaf: leaf[k], case.state)


def test_a_padded_batch_is_each_sequence_alone(x64):
    case = make("lstm")
    poisoned = jnp.where((np.arange(T)[:, None] < LENGTHS)[..., None], case.xs, jnp.nan)
    operands = (case.cell, case.params, poisoned, case.state)
    given = {"lengths": LENGTHS}
    vector = random_like(3, case.state, jnp.float64)
    found = {
        "jacobians": analysis.state_jacobians(*operands, **given),
        "products": analysis.jacobian_products(*operands, **given).log_singular_values,
        "forward": analysis.tangent_norms(*operands, tangent=vector, **given),
        "back": analysis.cotangent_norms(*operands, cotangent=vector, **given),
    }
    exponents = analysis.lyapunov_exponents(*operands, count=2, discard=1, **given)
    identity = np.eye(8)
    for k, length in enumerate(LENGTHS):
        single = functools.partial(jax.tree.map, lambda leaf, k=k: leaf[k], vector)
        pad = T - length
        close(found["jacobians"][length:, k], np.stack([identity] * pad) if pad else np.zeros((0, 8, 8)))
        if length < 2:
            assert np.isnan(exponents.exponents[k]).all()
            continue
        own = alone(case, k, length)
        close(found["jacobians"][:length, k], analysis.state_jacobians(*own))
        close(found["products"][:length, k], analysis.jacobian_products(*own).log_singular_values)
        close(found["forward"][:length, k], analysis.tangent_norms(*own, tangent=single()))
        close(found["forward"][length - 1 :, k], np.full(pad + 1, found["forward"][length - 1, k]))
        close(found["back"][:length, k], analysis.cotangent_norms(*own, cotangent=single()))
        close(exponents.exponents[k], analysis.lyapunov_exponents(*own, count=2, discard=1).exponents)
        close(exponents.growth[length:, k] + 1, np.ones((pad, 2)))


def log_of_norm(tree, leading):
    """By brute force: leaves `(*leading, ·)`."""
    norms = jax.tree.map(lambda a: np.linalg.norm(np.asarray(a).reshape(*a.shape[:leading], -1), axis=-1), tree)
    with np.errstate(divide="ignore"):
        return jax.tree.map(np.log, norms)


def assert_logs(got, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE), got, wanted)


@pytest.mark.parametrize("name", ["lstm-projection", "gru-reset-before"])
def test_gradient_flow_of_a_masked_batch_and_its_split(name, x64):
    """A Python loop in which every step has parameters of its own, and adds a number to the state."""
    case, mask = make(name), bits(4, (T, B), 0.6)
    initial = case.state

    def loop(params, changes):
        state, ys = initial, []
        for t in range(T):
            after, _ = case.cell.step(jax.tree.map(lambda p, t=t: p[t], params), state, case.xs[t])
            take = lambda new, old, t=t: jnp.where(mask[t][:, None], new, old)  # noqa: E731
            state = jax.tree.map(lambda s, c, t=t: s + c[t], jax.tree.map(take, after, state), changes)
            ys.append(jnp.where(mask[t][:, None], jax.tree.leaves(state)[0], 0))
        return weighed((state, jnp.stack(ys)))

    copies = jax.tree.map(lambda p: jnp.stack([p] * T), case.params)
    zeros = jax.tree.map(lambda s: jnp.zeros((T, *s.shape)), initial)
    by_params, by_states = jax.jit(jax.grad(loop, (0, 1)))(copies, zeros)
    loss = lambda *out: weighed(out)  # noqa: E731
    operands = (case.cell, case.params, case.xs, loss, initial)
    flow = analysis.gradient_flow(*operands, mask=mask, contributions=True)
    jax.tree.map(close, flow.contributions, by_params)
    assert_logs(flow.log_weight_norms, log_of_norm(by_params, 1))
    assert_logs(flow.log_state_norms, log_of_norm(by_states, 2))
    value = loss(*jaxrnn.unroll(case.cell, case.params, case.xs, initial, mask=mask))
    np.testing.assert_allclose(flow.loss, value)


def test_gradient_flow_through_a_network(x64):
    pair = jaxrnn.Bidirectional(jaxrnn.gru(3), jaxrnn.lstm(3))
    net = jaxrnn.stack([pair, jaxrnn.rnn(3)], merge="mul", residual=True, dropout=0.3)
    shapes = jax.eval_shape(lambda key: net.init(key, I), jax.random.key(0))
    params = jax.tree.map(lambda p: 0.6 * p, random_like(0, shapes, jnp.float64))
    xs = random_like(1, jax.ShapeDtypeStruct((T, B, I), jnp.float64), jnp.float64)
    states = random_like(2, jax.eval_shape(lambda: net.initial_state((B,))), jnp.float64)

    def loss(states, ys):
        return weighed((states, ys))

    def run(params, states):
        return loss(*net.unroll(params, xs, states, lengths=LENGTHS))

    value, by_params = jax.jit(jax.value_and_grad(run))(params, states)
    flow = analysis.gradient_flow(net, params, xs, loss, states, lengths=LENGTHS, contributions=True)
    np.testing.assert_allclose(flow.loss, value)
    jax.tree.map(lambda parts, whole: close(parts.sum(0), whole), flow.contributions, by_params)
    assert_logs(flow.log_weight_norms, log_of_norm(flow.contributions, 1))
    assert flow.log_state_norms[0].backward.c.shape == (T, B)
    lean = analysis.gradient_flow(net, params, xs, loss, states, lengths=LENGTHS)
    assert lean.contributions is None
    assert_logs(lean.log_weight_norms, flow.log_weight_norms)


# ---- a thousand steps


def linear(w_h):
    """h_t = h_{t-1} W_h, whose Jacobians are all W_hᵀ."""
    size = w_h.shape[0]
    cell = jaxrnn.rnn(size, activation=lambda a: a)
    return cell, jaxrnn.RNNParams(jnp.eye(1, size), jnp.asarray(w_h), jnp.zeros(size))


def log_volumes(jacobians):
    """log(σ_1 … σ_k) of the product of all but the first, for every k: the norm of the product of k-th compounds.

    By Cauchy and Binet the compound matrix, of all k by k minors, of a product is the product
    of compounds. NumPy, each product scaled as it goes.
    """
    size, found = jacobians.shape[-1], []
    for k in range(1, size + 1):
        rows = [list(c) for c in combinations(range(size), k)]
        compounds = np.linalg.det(jacobians[:, np.array(rows)[:, None, :, None], np.array(rows)[None, :, None, :]])
        product, total = np.eye(len(rows)), 0.0
        for compound in compounds:
            product = compound @ product
            scale = np.linalg.norm(product)
            product, total = product / scale, total + np.log(scale)
        found.append(total + np.log(np.linalg.norm(product, 2)))
    return np.array(found)


@pytest.mark.parametrize("gain", [0.2, 2.5])
def test_products_of_a_thousand_steps_by_compounds(gain, x64):
    """Where brute force has only zeros, or infinities: the logs run to ±1000 and spread over hundreds."""
    w_h = gain * np.random.default_rng(0).standard_normal((4, 4)) / 1.5
    cell, params = linear(w_h)
    found = analysis.jacobian_products(cell, params, jnp.zeros((1000, 1)))
    logs = np.asarray(found.log_singular_values)
    with np.errstate(over="ignore", invalid="ignore"):
        brute = np.linalg.matrix_power(w_h, 1000)
    assert not brute.any() or not np.isfinite(brute).all()
    for t in (0, 500, 998):
        close(np.cumsum(logs[t]), log_volumes(np.broadcast_to(w_h.T, (1000 - t, 4, 4))))
    spectrum = analysis.recurrent_spectrum(params, powers=1000)["h"]
    close(spectrum.log_power_singular_values, logs[::-1])
    growth = analysis.lyapunov_exponents(cell, params, jnp.zeros((1000, 1)), discard=200).exponents
    np.testing.assert_allclose(growth, np.log(np.abs(spectrum.eigenvalues)), atol=0.02)
    np.testing.assert_allclose(growth.sum(), np.linalg.slogdet(w_h)[1], rtol=TOLERANCE)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_products_of_a_thousand_gated_steps_by_compounds(name, x64):
    cell = jaxrnn.lstm(2) if name == "lstm" else jaxrnn.gru(4)
    shapes = jax.eval_shape(lambda key: cell.init(key, I), jax.random.key(0))
    params = jax.tree.map(lambda p: 1.5 * p, random_like(0, shapes, jnp.float64))
    xs = random_like(1, jax.ShapeDtypeStruct((1000, I), jnp.float64), jnp.float64)
    logs = np.asarray(analysis.jacobian_products(cell, params, xs).log_singular_values)
    jacobians = np.asarray(analysis.state_jacobians(cell, params, xs))
    for t in (0, 400):
        close(np.cumsum(logs[t]), log_volumes(jacobians[t:]))
    assert logs[0, -1] < -1000


@pytest.mark.parametrize("gain", [0.25, 2.5])
def test_flow_of_a_thousand_steps_in_closed_form(gain, x64):
    """W_h is an orthogonal matrix times a gain, so that every length changes by the gain in every step."""
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    cell, params = linear(gain * rotation)
    xs = jnp.zeros((1000, 3, 1))
    left = 999 - np.arange(1000)
    weights = np.array([1.0, -2.0, 1e-150])[:, None] * np.ones(4)  # sequences of very different gradients
    flow = analysis.gradient_flow(cell, params, xs, lambda final, ys: jnp.sum(final * weights))
    wanted = left[:, None] * np.log(gain) + np.log(np.linalg.norm(weights, axis=-1))
    close(flow.log_state_norms, wanted)
    close(flow.log_weight_norms.b, left * np.log(gain) + np.log(np.linalg.norm(weights.sum(0))))
    assert (np.asarray(flow.log_weight_norms.w_h) == -np.inf).all()
    key = jax.random.key(0)
    close(analysis.tangent_norms(cell, params, xs, key=key)[:, 0], (left[::-1] + 1) * np.log(gain))
    close(analysis.cotangent_norms(cell, params, xs, key=key)[:, 0], (left + 1) * np.log(gain))


def test_a_diagonal_recurrence_is_exact(x64):
    w_h = np.array([1e-3, 0.999, 0.0, 1.5])
    cell, params = jaxrnn.indrnn(4, activation=lambda a: a), jaxrnn.IndRNNParams(jnp.eye(1, 4), w_h, jnp.zeros(4))
    logs = np.asarray(analysis.jacobian_products(cell, params, jnp.zeros((1000, 1))).log_singular_values)
    np.testing.assert_allclose(logs[0, :3], 1000 * np.log([1.5, 0.999, 1e-3]), rtol=1e-13)
    assert (logs[:, 3] == -np.inf).all()


# ---- options


def test_single_precision_batches_jit_and_reduction():
    case = make("gru", (2, 1), dtype=jnp.float32)
    exact = analysis.state_jacobians(case.cell, case.params, case.xs, case.state)
    assert exact.shape == (T, 2, 1, 4, 4)
    assert exact.dtype == jnp.float32
    norm = functools.partial(jnp.linalg.norm, axis=(-2, -1))
    reduced = analysis.state_jacobians(case.cell, case.params, case.xs, case.state, reduce=lambda j: {"norm": norm(j)})
    np.testing.assert_allclose(reduced["norm"], norm(exact), rtol=1e-5)

    @jax.jit
    def all_of_them(params, xs, state, key):
        operands = (case.cell, params, xs, state)
        flow = analysis.gradient_flow(case.cell, params, xs, lambda final, ys: jnp.sum(ys), state)
        return (
            analysis.jacobian_products(*operands).log_norms,
            analysis.lyapunov_exponents(*operands, count=1).exponents,
            jax.vmap(lambda k: analysis.tangent_norms(*operands, key=k))(jax.random.split(key, 3)),
            flow.log_state_norms,
        )

    products, exponents, tangents, flow = all_of_them(case.params, case.xs, case.state, jax.random.key(0))
    total = functools.reduce(lambda p, t: np.asarray(exact[t]) @ p, range(T), np.eye(4))
    np.testing.assert_allclose(np.exp(products[0]), np.linalg.norm(total, 2, axis=(-2, -1)), rtol=1e-4)
    assert exponents.shape == (2, 1, 1)
    assert tangents.shape == (3, T, 2, 1)
    assert (np.asarray(tangents[:, -1]) <= np.asarray(products[0]) + 1e-4).all()
    grad = jax.grad(lambda s: jnp.sum(jaxrnn.unroll(case.cell, case.params, case.xs[-1:], s)[1]) + jnp.sum(s))
    last_but_one = jaxrnn.unroll(case.cell, case.params, case.xs[:-1], case.state)[0]
    np.testing.assert_allclose(np.exp(flow[-2]), np.linalg.norm(grad(last_but_one), axis=-1), rtol=1e-5)


def test_no_steps_and_no_sequences(x64):
    for time, batch in ((0, (2,)), (3, (0,))):
        case = make("gru", batch, time)
        operands = (case.cell, case.params, case.xs, case.state)
        assert analysis.state_jacobians(*operands).shape == (time, *batch, 4, 4)
        assert analysis.jacobian_products(*operands).log_norms.shape == (time, *batch)
        assert analysis.lyapunov_exponents(*operands, count=2).exponents.shape == (*batch, 2)
        assert analysis.cotangent_norms(*operands, cotangent=case.state).shape == (time, *batch)
        flow = analysis.gradient_flow(*operands[:3], lambda final, ys: jnp.sum(ys) + 1.0, case.state)
        assert flow.log_state_norms.shape == (time, *batch)
        assert (np.asarray(flow.log_weight_norms.w_h) == -np.inf).all()
