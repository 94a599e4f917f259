"""Newton's method for all steps at once: values, gradients, windows, transformations and options.

The contract test compares values and gradients of every cell with the oracles, in float64.
"""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import analysis
from jaxrnn.sequence.implementations import newton_back, newton_solve
from tests.support.programs import by_hand, cotangents_of, operands_of
from tests.support.registry import (
    FAMILIES,
    SCENARIOS,
    TOLERANCE,
    B,
    T,
    assert_close,
    bits,
    gap,
    loss_of,
    make,
    of_cell,
    quick_jit,
    random_like,
    run,
    weighed,
)

# Relative. Measured: at most 2.2e-6 for "lstm-all", of three seeds, and 1e-6 for the others. The scalar that is
# differentiated is not compared: it is a sum of terms that nearly cancel, so that its own error is up to 1e-5.
TOLERANCE_32 = 1e-5


def differentiated(name, time, dtype, implementation, **options):
    """Values and gradients by all operands, of weights half the size of the registry's: half of those cells expand.

    In windows of at most 20 steps 20 iterations solve any dynamics, so nothing is run step by step.
    """
    case = make(name, time=time, dtype=dtype)
    operands = (jax.tree.map(lambda leaf: leaf / 2, case.params), case.xs, case.state)
    if "resets" in options:
        operands += (make(name, dtype=dtype, seed=7).state,)

    def loss(params, xs, state, reset_state=None):
        here = case._replace(params=params, xs=xs, state=state)
        given = {"return_states": True, "reset_state": reset_state, **options}
        outcome = run(here, implementation=implementation, **given)
        return weighed(outcome), outcome

    gradients, outcome = quick_jit(jax.grad(loss, tuple(range(len(operands))), has_aux=True))(*operands)
    return outcome, gradients


def masked(time):
    """Masks with holes and resets at any step."""
    return {"mask": bits(4, (time, B), 0.7), "resets": bits(5, (time, B), 0.1)}


@pytest.mark.parametrize("name", [of_cell(name) for name in (*FAMILIES, "lstm-all")])
def test_float32_equals_bptt(name):
    got, expected = (differentiated(name, 12, jnp.float32, each, **masked(12)) for each in ("newton", "bptt"))
    assert gap(got, expected) <= TOLERANCE_32


@pytest.mark.parametrize(
    ("name", "reverse", "options"),
    [
        ("lstm", False, {"truncate": 5}),
        ("lstm", True, {"truncate": 5}),
        ("gru", True, {"clip_gradient": 0.3}),
        ("gru", False, {"checkpoint": 7}),
        ("rnn-tanh", False, {"checkpoint": "gates"}),
    ],
    ids=["truncate", "truncate-reverse", "clip_gradient", "checkpoint", "gates"],
)
def test_windows_equal_bptt(name, reverse, options, x64):
    """Windows of 6 of 16 steps, the last of them shorter, under masks and resets."""
    options = {**masked(16), **options, "reverse": reverse}
    newton = jaxrnn.Newton(window=6)
    got, expected = (differentiated(name, 16, jnp.float64, each, **options) for each in (newton, "bptt"))
    assert_close(got, expected)


@pytest.mark.parametrize(("window", "sizes"), [(6, [6, 6, 4]), (8, [8, 8]), (20, [16]), (1, [1] * 16)])
def test_windows_are_of_nearly_equal_length(window, sizes):
    cell = jaxrnn.rnn(4)
    shapes = jax.eval_shape(lambda key: cell.init(key, 3, jnp.float32), jax.random.key(0))
    lengths = []

    def call(params, xs):
        found = analysis.newton_convergence(cell, params, xs, newton=jaxrnn.Newton(window=window))
        lengths.append(found.window)
        return found.iterations

    found = jax.eval_shape(call, shapes, jax.ShapeDtypeStruct((16, 2, 3), jnp.float32))
    assert found.shape[0] == len(sizes)
    assert lengths == [sizes[0]]


def test_large_states_have_the_gradient_of_the_loop(monkeypatch, x64):
    """Where the Jacobians of the backward pass would be too many."""
    monkeypatch.setattr(newton_back, "LARGEST_STATE", 3)
    monkeypatch.setattr(newton_back, "jacobians", None)
    got, expected = (differentiated("gru", 9, jnp.float64, each) for each in (jaxrnn.Newton(window=9), "bptt"))
    assert_close(got, expected)


def test_window_of_a_gradient_that_overflows_is_run_step_by_step(x64):
    """A product of Jacobians beyond a reset overflows, and no gradient crosses it."""
    cell = jaxrnn.rnn(1, activation=lambda a: a)
    params = jaxrnn.RNNParams(jnp.ones((1, 1)), jnp.full((1, 1), 1e200), jnp.zeros(1))
    resets = jnp.arange(8) == 4

    def loss(implementation, xs):
        _, ys = jaxrnn.unroll(cell, params, xs, resets=resets, implementation=implementation)
        return jnp.sum(ys[4:5]) + jnp.sum(ys[:1])

    for each in ("newton", "bptt"):
        gradient = quick_jit(jax.grad(functools.partial(loss, each)))(jnp.zeros((8, 1)))
        assert gradient.ravel().tolist() == [1, 0, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("name", ["indrnn", "lstm"])
def test_diagonal_jacobian_equals_bptt(name, x64):
    newton = jaxrnn.Newton(jacobian="diagonal", max_iterations=40)
    case = make(name, time=12)
    params = jax.tree.map(lambda leaf: leaf / 2, case.params)
    solved = quick_jit(
        lambda: analysis.newton_convergence(case.cell, params, case.xs, case.state, newton=newton, **masked(12))
    )()
    assert solved.converged.all()
    assert solved.iterations.max() > 2
    got, expected = (differentiated(name, 12, jnp.float64, each, **masked(12)) for each in (newton, "bptt"))
    assert gap(got, expected) <= 1e-10


def test_diagonal_is_that_of_the_full_jacobian(x64):
    """Of an LSTM with all its variants, at steps that are masked and reset too."""
    case = make("lstm-all")
    rule, params = case.cell.rule, case.params

    def both():
        _, _, states = run(case, return_states=True)
        before = jax.tree.map(lambda first, after: jnp.concatenate([first[None], after[:-1]]), case.state, states)
        after, ys, residual = rule.forward(params, before, rule.project(params, case.xs))
        tape, zeros = jaxrnn.Tape(before, after, residual), jnp.zeros_like(ys)
        of = functools.partial(newton_solve.jacobians, newton_solve.Options(case.cell.equations), rule.prepare(params))
        return analysis.state_jacobians(*case[:4]), of(tape, zeros, 1, True), of(tape, zeros, 1, False)

    exact, full, diagonal = quick_jit(both)()
    np.testing.assert_allclose(full, exact, atol=1e-12)
    np.testing.assert_allclose(diagonal, jnp.diagonal(exact, axis1=-2, axis2=-1), atol=1e-12)


@pytest.mark.parametrize("with_resets", [False, True], ids=["plain", "resets"])
def test_nan_is_where_the_loop_has_it(with_resets, x64):
    """In values and gradients: from its step on, or until a reset, in its own sequence."""
    params, xs, *states = operands_of("gru")
    operands = (params, xs.at[3, 1, 0].set(jnp.nan), *states)
    resets = np.broadcast_to(with_resets & (np.arange(T) == 5)[:, None], (T, B))
    got, expected = (
        by_hand("gru", operands, cotangents_of("gru"), resets=resets, implementation=each)
        for each in ("newton", "bptt")
    )
    chex.assert_trees_all_close(got, expected, rtol=1e-9, atol=1e-12)
    (_, ys, _), (_, dxs, *_) = expected
    assert np.isnan(ys[:, 1, 0]).sum() == (2 if with_resets else 3)
    assert np.isnan(dxs).any()
    assert not np.isnan(np.delete(np.asarray(ys), 1, 1)).any()
    assert not np.isnan(np.asarray(dxs)[:, 0]).any()


def test_compute_dtype_is_near_bptt():
    """Products in bfloat16 round both; measured: values 0.002, gradients 0.006."""
    got, expected = (
        differentiated("gru", 12, jnp.float32, each, compute_dtype=jnp.bfloat16) for each in ("newton", "bptt")
    )
    assert gap(got, expected) <= TOLERANCE["bfloat16"]


# Transformations


def test_second_derivatives_equal_those_of_bptt(x64):
    params, xs, state, reset_state = operands_of("gru")
    case, options = make("gru"), SCENARIOS["mask-resets"]
    direction = random_like(5, (params, state), jnp.float64)

    def products(implementation):
        f = lambda at: loss_of(case, implementation, **options)(at[0], xs, at[1], reset_state)  # noqa: E731
        forward_over_reverse = jax.jvp(jax.grad(f), ((params, state),), (direction,))[1]
        slope = lambda at: sum(map(jnp.vdot, jax.tree.leaves(jax.grad(f)(at)), jax.tree.leaves(direction)))  # noqa: E731
        return forward_over_reverse, jax.grad(slope)((params, state))

    got, expected = (quick_jit(functools.partial(products, each))() for each in ("newton", "bptt"))
    assert_close(got, expected)
    assert_close(got[0], got[1])


def test_vmap_equals_one_call_for_each_member(x64):
    """Members differ in the iterations that they need."""
    case, dys = make("gru", time=16), cotangents_of("gru")[0]

    def outcome(implementation, scale):
        loss = lambda xs: jnp.sum(dys * run(case._replace(xs=scale * xs), implementation=implementation)[0])  # noqa: E731
        return jax.value_and_grad(loss)(case.xs)

    scales = jnp.asarray([0.01, 1.0, 3.0])
    assert_close(*(quick_jit(jax.vmap(functools.partial(outcome, each)))(scales) for each in ("newton", "bptt")))


def test_forward_mode_is_refused_in_words():
    case = make("gru")
    with pytest.raises(TypeError, match="implementation expected 'scan' for forward-mode .*, got 'newton'"):
        jax.jvp(lambda xs: run(case._replace(xs=xs), implementation="newton"), (case.xs,), (case.xs,))


# Options


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"jacobian": "block"}, ValueError, "Newton: jacobian expected one of 'full', 'diagonal'; got 'block'"),
        ({"tolerance": 0.0}, ValueError, "Newton: tolerance expected a positive number, got 0.0"),
        ({"max_iterations": 0}, ValueError, "Newton: max_iterations expected a positive integer, got 0"),
        ({"max_iterations": 2.5}, TypeError, "Newton: max_iterations expected a positive integer, got float 2.5"),
        ({"window": -1}, ValueError, "Newton: window expected a positive integer, got -1"),
        ({"damping": 1.5}, ValueError, "Newton: damping expected a number above 0 and at most 1, got 1.5"),
        ({"damping": -1.0}, ValueError, "Newton: damping expected a positive number, got -1.0"),
        ({"damping": "half"}, TypeError, "Newton: damping expected a positive number, got str 'half'"),
    ],
)
def test_options_out_of_range_are_named(options, error, message, unhooked):
    with pytest.raises(error, match=re.escape(message)):
        jaxrnn.Newton(**options)


def test_newton_compares_by_value(unhooked):
    assert jaxrnn.Newton(window=np.int64(8), damping=1) == jaxrnn.Newton(window=8)
    assert hash(jaxrnn.Newton()) != hash(jaxrnn.Newton(jacobian="diagonal"))


def test_what_it_does_not_support_is_refused_by_name():
    case = make("gru", dtype=jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="'newton' does not .* bfloat16, float16: its tolerance is for"):
        run(case, implementation="newton")
    own = case.cell._replace(rule=None)
    with pytest.raises(NotImplementedError, match="Jacobians are those of a rule"):
        run(make("gru", dtype=jnp.float32)._replace(cell=own), implementation="newton")
