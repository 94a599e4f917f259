"""The sLSTM: its gradients against forms without a constant m, extreme inputs, empty memories, initial values, errors.

The contract test has the rest: it compares the cell with its equations in NumPy, and the rule by hand with the step.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import SLSTMState
from jaxrnn.initializers import powerlaw_forget
from tests.support import in_numpy
from tests.support.programs import cotangents_of, differentiated, operands_of
from tests.support.registry import SCENARIOS, STABILISED, H, I, assert_close, cell_of, gap, make, of_cell, quick_jit

NAMES = pytest.mark.parametrize("name", [of_cell(name) for name in STABILISED])
FORGET_GATES = pytest.mark.parametrize("forget_gate", ["sigmoid", "exponential"])


def dense(name, params):
    """w_x, the dense w_h and b."""
    w_h = jaxrnn.merge_heads(params).w_h if params.w_h.ndim == 3 else params.w_h
    return params.w_x, w_h, jnp.zeros(params.w_x.shape[1]) if params.b is None else params.b


def outputs(name, form, params, xs, state):
    """h of all steps, by JAX: the form without m, or the one with m and every derivative through it."""
    w_x, w_h, b = dense(name, params)

    def body(state, x):
        h, c, n, m = state
        a_i, a_f, a_z, a_o = jnp.split(x @ w_x + h @ w_h + b[None], 4, -1)
        log_f = a_f if "exponential" in name else -jnp.log1p(jnp.exp(-a_f))
        top = jnp.zeros_like(m) if form == "without m" else jnp.maximum(a_i, log_f + m)
        i, f = jnp.exp(a_i - top), jnp.exp(log_f + m - top)
        c, n = f * c + i * jnp.tanh(a_z), f * n + i
        h = c / n / (1 + jnp.exp(-a_o))
        return SLSTMState(h, c, n, top), h

    return jax.lax.scan(body, state, xs)[1]


@functools.cache
def cost_of(name, form, twice=False):
    """A function of params, xs and initial state that reads h alone, in one call or in two."""

    def cost(params, xs, state):
        if form in ("without m", "through m"):
            ys = outputs(name, form, params, xs, state)
        elif twice:
            state, first = jaxrnn.unroll(cell_of(name), params, xs[:3], state, implementation=form)
            ys = jnp.concatenate([first, jaxrnn.unroll(cell_of(name), params, xs[3:], state, implementation=form)[1]])
        else:
            ys = jaxrnn.unroll(cell_of(name), params, xs, state, implementation=form)[1]
        weights = jnp.asarray(np.random.default_rng(4).standard_normal(ys.shape))
        return jnp.sum(weights * jnp.sin(ys))

    return cost


def gradients(name, form, twice=False):
    case = make(name)
    return quick_jit(jax.value_and_grad(cost_of(name, form, twice), (0, 1, 2)))(case.params, case.xs, case.state)


@NAMES
def test_gradients_equal_those_of_the_forms_without_a_constant_m(name, x64):
    """By hand, and by JAX through a step at a constant m, through one with every path, and through one without m."""
    by_hand = gradients(name, "bptt")
    for form in ("scan", "through m", "without m"):
        assert_close(by_hand, gradients(name, form))
    of_state = by_hand[1][2]
    assert min(float(np.abs(leaf).max()) for leaf in of_state) > 1e-3


@NAMES
def test_gradients_through_the_state_of_another_call_are_those_of_one_call(name, x64):
    assert_close(gradients(name, "bptt", twice=True), gradients(name, "bptt"))


def test_second_derivatives_equal_those_of_the_form_without_m(x64):
    name = "slstm-exponential-heads"
    case = make(name, (2,), 3)
    found, expected = (
        quick_jit(lambda args, cost=cost_of(name, form): jax.jvp(jax.grad(cost, (0, 1, 2)), args, args)[1])(
            (case.params, case.xs, case.state)
        )
        for form in ("bptt", "without m")
    )
    assert_close(found, expected)


STEPS = 10_000
SIGNS = np.asarray(list(itertools.product((-1, 1), repeat=4)), np.float32)  # of the pre-activations of i f z o


@functools.cache
def extreme(forget_gate, implementation):
    """Outputs, final state and gradients of pre-activations of ±1,000: constant signs, then random ones."""
    cell = jaxrnn.slstm(2, forget_gate=forget_gate)
    rng = np.random.default_rng(1)
    constant, random = np.broadcast_to(SIGNS, (STEPS, 16, 4)), rng.choice([-1, 1], (STEPS, 16, 4))
    xs = jnp.asarray(np.concatenate([constant, random], 1), jnp.float32)
    w_x = 1000 * np.kron(np.eye(4), np.ones((1, 2)))
    params = jaxrnn.SLSTMParams(*(jnp.asarray(a, jnp.float32) for a in (w_x, rng.standard_normal((2, 8)), np.zeros(8))))

    @jax.jit
    def run(params, xs):
        def cost(params, xs, state):
            final, ys = jaxrnn.unroll(cell, params, xs, state, implementation=implementation)
            return jnp.sum(ys), (ys, final)

        state = cell.initial_state((xs.shape[1],), jnp.float32)
        return jax.value_and_grad(cost, (0, 1, 2), has_aux=True)(params, xs, state)

    return run(params, xs)


@FORGET_GATES
@pytest.mark.parametrize("implementation", ["bptt", "scan"])
def test_values_and_gradients_are_finite_for_extreme_inputs_over_many_steps(forget_gate, implementation):
    (_, (ys, final)), found = extreme(forget_gate, implementation)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((ys, final, found)))
    assert np.abs(ys).max() <= 1 + 1e-6
    assert np.min(final.n) >= 1
    z, o = SIGNS[:, 2], SIGNS[:, 3]
    of_constant = np.where(o > 0, z, 0)[:, None]  # c / n is a mean of tanh(ã_z)
    np.testing.assert_allclose(ys[:, :16], np.broadcast_to(of_constant, (STEPS, 16, 2)), atol=1e-6)


@NAMES
def test_first_step_reads_the_input_gate_alone(name, x64):
    """m_t is the pre-activation of i, so that i is 1 and n is 1."""
    case = make(name)
    state, y = case.cell.step(case.params, case.cell.initial_state((5,)), case.xs[0])
    a_i, _, a_z, a_o = np.split(np.asarray(case.xs[0] @ case.params.w_x + dense(name, case.params)[2][None]), 4, -1)
    np.testing.assert_array_equal(state.n, 1)
    np.testing.assert_allclose(state.m, a_i, rtol=1e-12)
    np.testing.assert_allclose(state.c, np.tanh(a_z), rtol=1e-13)
    np.testing.assert_allclose(y, np.tanh(a_z) / (1 + np.exp(-a_o)), rtol=1e-13)


@NAMES
def test_memory_without_weight_is_not_read(name, x64):
    """Where n is 0, c and m change no value and have no gradient, even where exp(m - ã_i) overflows."""
    case = make(name)
    empty = case.state._replace(n=jnp.zeros_like(case.state.n), m=jnp.full_like(case.state.m, 1e5))
    plain = empty._replace(c=jnp.zeros_like(case.state.c), m=jnp.zeros_like(case.state.m))
    for implementation in ("bptt", "scan"):
        run = quick_jit(jax.value_and_grad(cost_of(name, implementation), (0, 1, 2)))
        found = run(case.params, case.xs, empty)
        assert_close(found, run(case.params, case.xs, plain))
        of_state = found[1][2]
        assert not any(np.any(leaf) for leaf in (of_state.c, of_state.n, of_state.m))
        assert np.abs(of_state.h).max() > 1e-3


def test_gradients_with_noise_equal_autodiff(x64):
    cell = jaxrnn.regularize(
        cell_of("slstm"), input_dropout=0.3, recurrent_dropout=0.4, dropconnect=0.2, zoneout=of_h(0.3)
    )
    (params, xs, state, reset_state), masks = operands_of("slstm"), SCENARIOS["mask-resets"]
    asked = ((params, xs, state, reset_state), *masks.values(), cotangents_of("slstm"))
    key = jax.random.key(3, impl="unsafe_rbg")
    noisy, by_scan = (differentiated(cell, how, truncate=4)(*asked, key) for how in ("bptt", "scan"))
    assert_close(noisy, by_scan)
    assert gap(noisy[0], in_numpy.unroll("slstm", params, xs, state, reset_state=reset_state, **masks)) > 1e-3


def of_h(rate, n=0.0):
    """Rates of zoneout."""
    rates: Any = (rate, 0.0, n, 0.0)
    return SLSTMState(*rates)


# Initial values


def test_powerlaw_biases_have_the_published_values():
    draw = lambda heads, depth, size: powerlaw_forget(heads, depth)(  # noqa: E731
        jax.random.key(0), ("i", "f", "z", "o"), size, jnp.float32
    )
    first, last = (np.split(np.asarray(draw(2, depth, 6)), 4) for depth in (0.0, 1.0))
    of_head = lambda power: np.asarray([5, 5 - 12 * 0.5**power, -7])  # noqa: E731
    np.testing.assert_allclose(first[1], np.tile(of_head(0.3), 2), rtol=1e-6)
    np.testing.assert_allclose(last[1], np.tile(of_head(1.6), 2), rtol=1e-6)
    assert not any(part.any() for gates in (first, last) for part in (gates[0], *gates[2:]))
    np.testing.assert_array_equal(draw(3, 0.5, 3)[3:6], 5)  # one unit a head


def test_cell_starts_as_published():
    params = jaxrnn.slstm(4, num_heads=2).init(jax.random.key(0), 3)
    assert not np.any(params.w_h)
    np.testing.assert_array_equal(np.split(np.asarray(params.b), 4)[1], [5, -7, 5, -7])
    assert jaxrnn.slstm(4, num_heads=2) == jaxrnn.slstm(4, num_heads=2)


# Errors


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: jaxrnn.slstm(4, forget_gate="tanh"), ValueError, "slstm: forget_gate expected one of 'sigmoid', 'exponential'; got 'tanh'"),
    (lambda: jaxrnn.slstm(4, num_heads=3), ValueError, "slstm: num_heads expected a number that divides hidden_size = 4, got 3"),
    (lambda: jaxrnn.slstm(4, use_bias=1), TypeError, "slstm: use_bias expected True or False, got int 1"),
    (lambda: powerlaw_forget(depth=1.5), ValueError, "powerlaw_forget: depth expected a number from 0 to 1, got 1.5"),
    (lambda: jaxrnn.gru(4, bias_init=powerlaw_forget()).init(jax.random.key(0), 3), ValueError, "powerlaw_forget: expected a cell with a gate f, got one with the gates r, z, n"),
    (lambda: jaxrnn.slstm(4, bias_init=powerlaw_forget(3)).init(jax.random.key(0), 3), ValueError, "powerlaw_forget: num_heads expected a number that divides hidden_size = 4, got 3"),
    (lambda: stepped("slstm", forget_gate="exp"), ValueError, "slstm_step: forget_gate expected one of"),
    (lambda: stepped("lstm"), TypeError, "slstm_step: params expected SLSTMParams, got LSTMParams"),
    (lambda: unrolled(jaxrnn.slstm(H, num_heads=2), "slstm"), ValueError, r"unroll: params.w_h expected shape \(2, 2, 8\), got \(4, 16\), the dense matrix; use slstm\(4\) for these parameters, or change them by jaxrnn.split_heads"),
    (lambda: unrolled(jaxrnn.slstm(H), "slstm-exponential-heads"), ValueError, "params.b expected an array, got None"),
    (lambda: jaxrnn.regularize(jaxrnn.slstm(4), zoneout=0.1), ValueError, r"regularize: zoneout expected SLSTMState\(h=rate, c=0, n=0, m=0\) for slstm\(4\), got float 0.1; its c, n, m have a meaning only together"),
    (lambda: jaxrnn.regularize(jaxrnn.regularize(jaxrnn.slstm(4), dropconnect=0.1), zoneout=of_h(0.0, n=0.5)), ValueError, r"zoneout expected SLSTMState"),
    (lambda: jaxrnn.interop.to_torch((cell_of("slstm").init(jax.random.key(0), I),)), TypeError, r"to_torch: params\[0\] expected RNNParams, LSTMParams or GRUParams, got SLSTMParams; PyTorch has no other cells of ours"),
    (lambda: jaxrnn.interop.to_onnx(cell_of("slstm"), cell_of("slstm").init(jax.random.key(0), I)), ValueError, r"to_onnx: params expected a cell of rnn, lstm or gru, got slstm\(4\); ONNX has no operator for it"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(call, error, message, unhooked):
    with pytest.raises(error, match=message):
        call()


def stepped(name, **options):
    case = make(name, dtype=jnp.float32)
    return jaxrnn.slstm_step(case.params, case.state, case.xs[0], **options)


def unrolled(cell, name):
    case = make(name, dtype=jnp.float32)
    return jaxrnn.unroll(cell, case.params, case.xs)
