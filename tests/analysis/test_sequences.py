"""Jacobians and gradient flow of padded and masked batches, of networks, and over a thousand steps."""

import functools
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import analysis
from jaxrnn.analysis._logscale import Scaled, normalised, plus, unscaled
from tests.support.analysis import TOLERANCE, assert_logs, close, log_of_norm
from tests.support.registry import LENGTHS, B, I, T, bits, make, random_like, weighed

# ---- batches, lengths, masks


def everything(cell, params, xs, state, vector, **options):
    operands = (cell, params, xs, state)
    exponents = analysis.lyapunov_exponents(*operands, count=2, discard=1, **options)
    return {
        "jacobians": analysis.state_jacobians(*operands, **options),
        "products": analysis.jacobian_products(*operands, **options).log_singular_values,
        "forward": analysis.tangent_norms(*operands, tangent=vector, **options),
        "back": analysis.cotangent_norms(*operands, cotangent=vector, **options),
        "growth": exponents.growth,
        "exponents": exponents.exponents,
    }


def test_padded_and_masked_sequences_equal_sequences_alone(x64):
    case, k = make("lstm"), 3  # a sequence of 4 steps
    length = LENGTHS[k]
    poisoned = jnp.where((np.arange(T)[:, None] < LENGTHS)[..., None], case.xs, jnp.nan)
    vector = random_like(3, case.state, jnp.float64)
    found = everything(case.cell, case.params, poisoned, case.state, vector, lengths=LENGTHS)
    one = functools.partial(jax.tree.map, lambda leaf: leaf[k])
    own = everything(case.cell, case.params, case.xs[:length, k], one(case.state), one(vector))
    for name in ("jacobians", "products", "forward", "back", "growth"):
        close(found[name][:length, k], own[name])
    close(found["exponents"][k], own["exponents"])
    holes = np.ones((T, B), bool)
    holes[[1, 4], k] = False
    with_holes = jnp.zeros_like(case.xs).at[holes[:, k], k].set(case.xs[:length, k])
    holey = everything(case.cell, case.params, with_holes, case.state, vector, mask=holes)
    for name in ("jacobians", "products", "forward", "back", "growth"):
        close(holey[name][holes[:, k], k], own[name])
    padding = np.arange(T)[:, None] >= LENGTHS
    assert (np.asarray(found["jacobians"])[padding] == np.eye(8)).all()
    assert not np.asarray(found["growth"])[padding].any()
    assert np.abs(np.asarray(found["products"])[padding]).max() < 1e-14
    assert (np.asarray(found["forward"])[length - 1 :, k] == found["forward"][length - 1, k]).all()
    assert np.isnan(found["exponents"][1:3]).all()  # sequences of length 0 and 1 have no step after the first


@pytest.mark.parametrize("name", ["lstm-projection", "gru-reset-before"])
def test_gradient_flow_of_a_masked_batch_equals_a_python_loop(name, x64):
    """In the loop every step has separate params, and adds a number to the state."""
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
    poisoned = jnp.where(mask[..., None], case.xs, jnp.nan)
    operands = (case.cell, case.params, poisoned, loss, initial)
    flow = analysis.gradient_flow(*operands, mask=mask, contributions=True)
    jax.tree.map(close, flow.contributions, by_params)
    assert_logs(flow.log_weight_norms, log_of_norm(by_params, 1))
    assert_logs(flow.log_state_norms, log_of_norm(by_states, 2))
    value = loss(*jaxrnn.unroll(case.cell, case.params, case.xs, initial, mask=mask))
    np.testing.assert_allclose(flow.loss, value)


def test_gradient_flow_of_a_network_equals_jax_grad(x64):
    pair = jaxrnn.Bidirectional(jaxrnn.gru(4), jaxrnn.lstm(4))
    net = jaxrnn.stack([pair, jaxrnn.rnn(4)], merge="mul", residual=True, dropout=0.3)
    shapes = jax.eval_shape(lambda key: net.init(key, I), jax.random.key(0))
    params = jax.tree.map(lambda p: 0.6 * p, random_like(0, shapes, jnp.float64))
    xs = random_like(1, jax.ShapeDtypeStruct((T, B, I), jnp.float64), jnp.float64)
    states = random_like(2, jax.eval_shape(lambda: net.initial_state((B,))), jnp.float64)

    def loss(states, ys):
        return weighed((states, ys))

    def run(params, states):
        return loss(*net.unroll(params, xs, states, lengths=LENGTHS, key=None))

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


def log_volumes(jacobians, most=None):
    """Sums log σ_1 + … + log σ_k of the product of all Jacobians, for k up to `most` or to the size.

    The k-th compound of a matrix holds its k by k minors, and its norm is σ_1 … σ_k. By Cauchy and
    Binet the compound of a product is the product of compounds. Each partial product is rescaled.
    """
    size, found = jacobians.shape[-1], []
    for k in range(1, (most or size) + 1):
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
def test_products_of_a_thousand_linear_steps_equal_compounds(gain, x64):
    """Brute force underflows or overflows here: the logs reach ±1000."""
    w_h = gain * np.random.default_rng(0).standard_normal((4, 4)) / 1.5
    cell, params = linear(w_h)
    found = analysis.jacobian_products(cell, params, jnp.zeros((1000, 1)))
    logs = np.asarray(found.log_singular_values)
    with np.errstate(over="ignore", invalid="ignore"):
        brute = np.linalg.matrix_power(w_h, 1000)
    assert not brute.any() or not np.isfinite(brute).all()
    for t in (0, 500, 998):
        assert_logs(np.cumsum(logs[t]), log_volumes(np.broadcast_to(w_h.T, (1000 - t, 4, 4))))
    spectrum = analysis.recurrent_spectrum(params, powers=1000)["h"]
    assert_logs(spectrum.log_power_singular_values, logs[::-1])
    growth = analysis.lyapunov_exponents(cell, params, jnp.zeros((1000, 1)), discard=200).exponents
    np.testing.assert_allclose(growth, np.log(np.abs(spectrum.eigenvalues)), atol=0.02)
    np.testing.assert_allclose(growth.sum(), np.linalg.slogdet(w_h)[1], rtol=TOLERANCE)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_products_of_a_thousand_gated_steps_equal_compounds(name, x64):
    cell = jaxrnn.lstm(2) if name == "lstm" else jaxrnn.gru(4)
    shapes = jax.eval_shape(lambda key: cell.init(key, I), jax.random.key(0))
    params = jax.tree.map(lambda p: 1.5 * p, random_like(0, shapes, jnp.float64))
    xs = random_like(1, jax.ShapeDtypeStruct((1000, I), jnp.float64), jnp.float64)
    logs = np.asarray(analysis.jacobian_products(cell, params, xs).log_singular_values)
    jacobians = np.asarray(analysis.state_jacobians(cell, params, xs))
    for t in (0, 400):
        assert_logs(np.cumsum(logs[t]), log_volumes(jacobians[t:]))
    assert logs[0, -1] < -1000


@pytest.mark.parametrize("gain", [0.25, 2.5])
def test_gradient_flow_of_a_thousand_steps_equals_the_closed_form(gain, x64):
    """W_h is an orthogonal matrix times a gain, so that each step multiplies every norm by the gain."""
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    cell, params = linear(gain * rotation)
    xs = jnp.zeros((1000, 3, 1))
    left = 999 - np.arange(1000)
    weights = np.array([1.0, -2.0, 1e-200])[:, None] * np.ones(
        4
    )  # the gradients of the sequences differ by 200 orders of magnitude
    flow = analysis.gradient_flow(cell, params, xs, lambda final, ys: jnp.sum(final * weights))
    wanted = left[:, None] * np.log(gain) + np.log(2 * np.abs(weights[:, 0]))
    assert_logs(flow.log_state_norms, wanted)
    assert_logs(flow.log_weight_norms.b, left * np.log(gain) + np.log(np.linalg.norm(weights.sum(0))))
    assert (np.asarray(flow.log_weight_norms.w_h) == -np.inf).all()
    key = jax.random.key(0)
    assert_logs(analysis.tangent_norms(cell, params, xs, key=key)[:, 0], (left[::-1] + 1) * np.log(gain))
    assert_logs(analysis.cotangent_norms(cell, params, xs, key=key)[:, 0], (left + 1) * np.log(gain))


def test_scaled_sums_and_products_neither_overflow_nor_vanish(x64):
    """A zero hides no other summand, and a finite result is computed as finite."""
    nothing, little = Scaled(jnp.zeros(4), jnp.zeros(())), Scaled(jnp.ones(4), jnp.asarray(-2000.0))
    close(normalised(plus(nothing, little)).log_scale, -2000 + np.log(2))
    close(unscaled(jnp.asarray([1e-300, 0.0]), jnp.asarray(1000.0)), [np.exp(1000 - 300 * np.log(10)), 0.0])
    close(unscaled(jnp.asarray([1e300, 0.0]), jnp.asarray(-1000.0)), [np.exp(300 * np.log(10) - 1000), 0.0])


def test_diagonal_recurrence_gives_exact_singular_values(x64):
    w_h = np.array([1e-3, 0.999, 0.0, 1.5])
    cell, params = jaxrnn.indrnn(4, activation=lambda a: a), jaxrnn.IndRNNParams(jnp.eye(1, 4), w_h, jnp.zeros(4))
    logs = np.asarray(analysis.jacobian_products(cell, params, jnp.zeros((1000, 1))).log_singular_values)
    np.testing.assert_allclose(logs[0, :3], 1000 * np.log([1.5, 0.999, 1e-3]), rtol=1e-13)
    assert (logs[:, 3] == -np.inf).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_logs_of_lengths_in_half_precision_equal_the_closed_form(dtype):
    """Every step multiplies a length by a factor that both dtypes hold: its log after t steps is t times one log."""
    time, factor = 400, 0.90625
    cell = jaxrnn.indrnn(2, activation=lambda a: a)
    params = jaxrnn.IndRNNParams(jnp.ones((1, 2), dtype), jnp.full(2, factor, dtype), jnp.zeros(2, dtype))
    operands = (cell, params, jnp.zeros((time, 1), dtype), jnp.zeros(2, dtype))
    vector = jnp.ones(2, dtype)
    wanted = np.arange(1, time + 1) * np.log(factor)
    exact = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    exact(analysis.tangent_norms(*operands, tangent=vector), wanted)
    exact(analysis.cotangent_norms(*operands, cotangent=vector), wanted[::-1])
    exact(analysis.jacobian_products(*operands).log_norms, wanted[::-1])
    flow = analysis.gradient_flow(*operands[:3], lambda final, ys: jnp.sum(final), operands[3], contributions=True)
    exact(flow.log_state_norms, wanted[::-1] - np.log(factor) + np.log(2) / 2)
    exact(flow.contributions.b.astype(jnp.float32), np.exp(wanted[::-1, None] - np.log(factor)) * np.ones(2), rtol=0.01)
    net = jaxrnn.stack([cell], bidirectional=True, merge="sum")
    params = (jaxrnn.Bidirectional(params, params),)
    flow = analysis.gradient_flow(net, params, operands[2], lambda finals, ys: jnp.sum(ys[-1])).log_state_norms[0]
    exact(flow.forward, wanted[::-1] - np.log(factor) + np.log(2) / 2)


def test_singular_recurrence_gives_logs_of_minus_infinity(x64):
    rng = np.random.default_rng(0)
    w_h = rng.standard_normal((4, 2)) @ rng.standard_normal((2, 4))
    cell, params = linear(w_h)
    logs = np.asarray(analysis.jacobian_products(cell, params, jnp.zeros((1000, 1))).log_singular_values)
    assert (logs[:, 2:] == -np.inf).all()
    assert_logs(np.cumsum(logs[0, :2]), log_volumes(np.broadcast_to(w_h.T, (1000, 4, 4)), most=2))


# ---- options


def test_float32_batches_run_under_jit_and_with_reduce():
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


def test_empty_sequences_and_empty_batches_give_empty_results(x64):
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
