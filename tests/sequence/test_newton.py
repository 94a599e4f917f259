"""Newton's method for all steps at once: iterations, the fallback, windows, options, depth and memory.

The contract test compares values and gradients of every cell with the oracles, in float64.
"""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import analysis
from jaxrnn.sequence.implementations import newton_back, newton_solve
from tests.support.programs import cotangents_of, operands_of
from tests.support.registry import (
    FAMILIES,
    SCENARIOS,
    TOLERANCE,
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
)

PLAIN = ("rnn", "gru", "lstm")
families = pytest.mark.parametrize("name", [of_cell(name) for name in FAMILIES])
reverses = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])

# Relative. Measured at most 2e-6 for all cells but lstm-all: 1.03e-5, with both 5e-6 from float64.
TOLERANCE_32 = 1e-5


def at_first(name, hidden, time, dtype, batch=2):
    """A cell at its initial weights, and inputs."""
    cell = getattr(jaxrnn, name)(hidden)
    params = cell.init(jax.random.key(0), 8, dtype)
    return cell, params, random_like(1, jax.ShapeDtypeStruct((time, batch, 8), dtype), dtype)


def values_and_gradients(call, *operands):
    """Of a scalar function."""
    return quick_jit(jax.value_and_grad(call, tuple(range(len(operands)))))(*operands)


# Convergence


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_weights_take_at_most_five_iterations(name, dtype, x64):
    call = at_first(name, 16, 512, jnp.dtype(dtype))
    found = analysis.newton_convergence(*call)
    assert found.converged.all()
    assert not found.by_steps.any()
    assert found.iterations.min() >= 1
    assert found.iterations.max() <= 5
    got = jaxrnn.unroll(*call, implementation="newton", return_states=True)
    limit = 1e-10 if dtype == "float64" else TOLERANCE_32
    assert gap(got, jaxrnn.unroll(*call, return_states=True)) <= limit


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_ten_thousand_steps_take_at_most_five_iterations(name, x64):
    found = analysis.newton_convergence(*at_first(name, 16, 10_000, jnp.float64, batch=1))
    assert found.converged.all()
    assert found.iterations.max() <= 5


def test_residuals_are_those_of_each_iteration(x64):
    """They fall by squares. A sequence that has converged stays where it is while others go on."""
    cell, params, xs = at_first("gru", 16, 512, jnp.float64)
    xs = xs.at[:, 1].multiply(0.01)
    found = analysis.newton_convergence(cell, params, xs)
    iterations, residuals = np.asarray(found.iterations)[0], np.asarray(found.residuals)[0]
    assert iterations[1] < iterations[0]
    for k, made in enumerate(iterations):
        assert np.isfinite(residuals[: made + 1, k]).all()
        assert np.isnan(residuals[made + 1 :, k]).all()
        assert residuals[made, k] <= 16 * np.finfo(float).eps < residuals[made - 1, k]
    assert residuals[3, 0] < 10 * residuals[2, 0] ** 2
    assert found.window == 512
    lazy = int(np.argmin(residuals[0]))
    newton = jaxrnn.Newton(tolerance=float(np.sqrt(np.prod(residuals[0]))))
    together, alone, exact = (
        jaxrnn.unroll(cell, params, given, implementation=each)[1]
        for given, each in ((xs, newton), (xs[:, lazy : lazy + 1], newton), (xs, "bptt"))
    )
    np.testing.assert_allclose(together[:, lazy], alone[:, 0], rtol=0, atol=1e-12)
    assert gap(together[:, lazy], exact[:, lazy]) > 1e-5


@functools.cache
def expanding():
    """A network with weights times 3, whose nearby states diverge, and a loss by the name of an implementation."""
    cell, params, xs = at_first("rnn", 16, 96, jnp.float64)
    params = jax.tree.map(lambda leaf: 3 * leaf, params)
    weights = random_like(3, jax.ShapeDtypeStruct((96, 2, 16), jnp.float64), jnp.float64)

    def loss(implementation, params, xs):
        return jnp.sum(weights * jaxrnn.unroll(cell, params, 0.1 * xs, implementation=implementation)[1])

    return (cell, params, 0.1 * xs), loss


def test_expanding_dynamics_come_out_right_step_by_step(x64):
    call, loss = expanding()
    assert analysis.lyapunov_exponents(*call, count=1).exponents.min() > 0
    newton = jaxrnn.Newton(max_iterations=8)
    found = analysis.newton_convergence(*call, newton=newton)
    assert found.by_steps.all()
    assert not found.converged.any()
    got, expected = (
        values_and_gradients(functools.partial(loss, each), call[1], call[2] * 10) for each in (newton, "bptt")
    )
    assert gap(got, expected) <= 1e-10


def test_iterations_solve_as_many_steps_at_least(x64):
    """With as many iterations as steps any dynamics are solved."""
    call, _ = expanding()
    found = analysis.newton_convergence(*call, newton=jaxrnn.Newton(max_iterations=40, window=32))
    assert found.converged.all()
    assert found.iterations.max() > 5


@pytest.mark.parametrize("resets", [None, np.arange(T)[:, None] == [5, 5, 5, 5, 5]], ids=["plain", "resets"])
def test_nan_is_where_the_loop_has_it(resets, x64):
    """In values and gradients: from its step on, or until a reset, in its own sequence."""
    case = make("gru")
    xs = case.xs.at[3, 1, 0].set(jnp.nan)
    reset_state = None if resets is None else make("gru", seed=7).state
    weights = random_like(4, jax.ShapeDtypeStruct(xs.shape[:2], xs.dtype), xs.dtype)

    def outcome(implementation, xs):
        def each(xs):
            _, ys = run(case._replace(xs=xs), resets=resets, reset_state=reset_state, implementation=implementation)
            return weights * ys.sum(-1)

        return each(xs), jax.grad(lambda xs: jnp.sum(each(xs)))(xs)

    got, expected = (quick_jit(functools.partial(outcome, each))(xs) for each in ("newton", "bptt"))
    chex.assert_trees_all_close(got, expected, rtol=1e-10)
    assert np.isnan(expected[0]).sum() == (3 if resets is None else 2)
    assert np.isnan(expected[1]).any()
    assert not np.isnan(np.asarray(expected[1])[:, 0]).any()


def test_convergence_of_no_steps_and_what_is_refused():
    cell, params, xs = at_first("gru", 4, 0, jnp.float32)
    found = analysis.newton_convergence(cell, params, xs)
    assert found.iterations.shape == found.converged.shape == (0, 2)
    assert found.residuals.shape == (0, 21, 2)
    with pytest.raises(TypeError, match="newton_convergence: newton expected a jaxrnn.Newton or None, got str 'full'"):
        analysis.newton_convergence(cell, params, xs, newton="full")
    with pytest.raises(NotImplementedError, match="newton_convergence: 'newton' does not .* Jacobians are those of a"):
        analysis.newton_convergence(cell._replace(rule=None), params, xs)


# Values and gradients


def everything(name, time, newton, dtype, **options):
    """Values and gradients by all operands, by Newton's method and by "bptt"."""
    case = make(name, time=time, dtype=dtype)
    # Half the size of the registry's weights: at its own, half of these cells expand.
    case = case._replace(params=jax.tree.map(lambda leaf: leaf / 2, case.params))
    operands = (case.params, case.xs, case.state)
    if "resets" in options:
        operands += (make(name, dtype=dtype, seed=7).state,)
    found = analysis.newton_convergence(*case[:4], newton=newton, mask=options.get("mask"))
    assert found.iterations.max() > 0
    return [values_and_gradients(loss_of(case, each, **options), *operands) for each in (newton, "bptt")]


@families
def test_float32_equals_bptt(name):
    got, expected = everything(name, 32, jaxrnn.Newton(), jnp.float32, **masked(32))
    assert gap(got, expected) <= TOLERANCE_32


def masked(time):
    """Masks with holes and resets at any step."""
    return {"mask": bits(4, (time, 5), 0.7), "resets": bits(5, (time, 5), 0.1)}


@pytest.mark.parametrize(
    "options",
    [{}, {"truncate": 5}, {"clip_gradient": 0.3}, {"checkpoint": 7}, {"checkpoint": "gates"}],
    ids=["plain", "truncate", "clip_gradient", "checkpoint", "gates"],
)
@reverses
def test_windows_equal_bptt(options, reverse, x64):
    """Windows of 6 of 16 steps, the last of them shorter, under masks and resets."""
    newton = jaxrnn.Newton(window=6)
    got, expected = everything("lstm", 16, newton, jnp.float64, **masked(16), **options, reverse=reverse)
    assert_close(got, expected)


@pytest.mark.parametrize(("window", "sizes"), [(6, [6, 6, 4]), (8, [8, 8]), (20, [16]), (1, [1] * 16)])
def test_windows_are_of_nearly_equal_length(window, sizes):
    found = analysis.newton_convergence(*at_first("rnn", 4, 16, jnp.float32), newton=jaxrnn.Newton(window=window))
    assert found.iterations.shape[0] == len(sizes)
    assert found.window == sizes[0]


def test_large_states_have_the_gradient_of_the_loop(monkeypatch, x64):
    """Where the Jacobians of the backward pass would be too many."""
    monkeypatch.setattr(newton_back, "LARGEST_STATE", 3)
    monkeypatch.setattr(newton_back, "jacobians", None)
    got, expected = everything("gru", 17, jaxrnn.Newton(window=17), jnp.float64)
    assert_close(got, expected)


def test_window_of_a_gradient_that_overflows_is_run_step_by_step(x64):
    """A product of Jacobians beyond a reset overflows, and no gradient crosses it."""
    cell = jaxrnn.rnn(1, activation=lambda a: a)
    params = jaxrnn.RNNParams(jnp.ones((1, 1)), jnp.full((1, 1), 1e200), jnp.zeros(1))
    resets = jnp.arange(8) == 4

    def loss(implementation, xs):
        _, ys = jaxrnn.unroll(cell, params, xs, resets=resets, implementation=implementation)
        return jnp.sum(ys[4:5]) + jnp.sum(ys[:1])

    xs = jnp.zeros((8, 1))
    for each in ("newton", "bptt"):
        assert jax.grad(functools.partial(loss, each))(xs).ravel().tolist() == [1, 0, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("name", ["indrnn", "gru", "lstm"])
def test_diagonal_jacobian_equals_bptt(name, x64):
    got, expected = everything(name, 24, jaxrnn.Newton(jacobian="diagonal"), jnp.float64, **masked(24))
    assert gap(got, expected) <= 1e-10


def test_diagonal_of_a_diagonal_cell_is_its_jacobian(x64):
    case = make("indrnn", time=64)
    full, diagonal = (
        analysis.newton_convergence(*case[:4], newton=jaxrnn.Newton(jacobian=kind)) for kind in ("full", "diagonal")
    )
    chex.assert_trees_all_equal(full.iterations, diagonal.iterations)
    made = np.asarray(full.iterations).max()
    np.testing.assert_allclose(full.residuals[0, :made].max(-1), diagonal.residuals[0, :made].max(-1), rtol=1e-3)
    dense = make("gru", time=64)
    full, diagonal = (
        analysis.newton_convergence(*dense[:4], newton=jaxrnn.Newton(jacobian=kind)) for kind in ("full", "diagonal")
    )
    assert diagonal.iterations.min() > full.iterations.max()


def test_diagonal_is_that_of_the_full_jacobian(x64):
    """Of an LSTM with all its variants, at steps that are masked and reset too."""
    case = make("lstm-all")
    exact = analysis.state_jacobians(*case[:4])
    rule, params = case.cell.rule, case.params
    _, _, states = run(case, return_states=True)
    before = jax.tree.map(lambda first, after: jnp.concatenate([first[None], after[:-1]]), case.state, states)
    after, ys, residual = rule.forward(params, before, rule.project(params, case.xs))
    tape, zeros = jaxrnn.Tape(before, after, residual), jnp.zeros_like(ys)
    options = newton_solve.Options(case.cell.equations)
    for full, expected in ((True, exact), (False, jnp.diagonal(exact, axis1=-2, axis2=-1))):
        made = newton_solve.jacobians(options, rule.prepare(params), tape, zeros, 1, full)
        np.testing.assert_allclose(made, expected, atol=1e-12)


def test_damping_and_tolerance_change_the_iterations(x64):
    call = at_first("gru", 8, 64, jnp.float64)
    iterations = {}
    for options in ({}, {"damping": 0.9}, {"tolerance": 1e-3}):
        found = analysis.newton_convergence(*call, newton=jaxrnn.Newton(**options))
        assert found.converged.all()
        iterations[tuple(options)] = int(found.iterations.max())
    assert iterations[("tolerance",)] < iterations[()] < iterations[("damping",)]


def test_compute_dtype_is_near_bptt():
    """Products in bfloat16 round both; measured: values 0.002, gradients 0.006."""
    case = make("gru", time=24)
    case = case._replace(params=jax.tree.map(lambda leaf: leaf / 2, case.params))
    operands = (case.params, case.xs, case.state)
    losses = [loss_of(case, each, compute_dtype=jnp.bfloat16) for each in ("newton", "bptt")]
    got, expected = (values_and_gradients(loss, *operands) for loss in losses)
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


# What it costs


def computations(text):
    """The lines of each computation of a compiled program by its name, and the name of the entry."""
    found, entry = {}, ""
    for head, body in re.findall(r"^((?:ENTRY )?%?[\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S):
        name = head.removeprefix("ENTRY ").lstrip("%")
        found[name] = body.splitlines()
        entry = name if head.startswith("ENTRY") else entry
    return found, entry


def depth(text, iterations):
    """How many steps a compiled program makes one after another in loops: trips times what they hold.

    A loop whose trips are not known is an iteration of Newton's method. The branch of a condition that holds the
    longer loop is that of a window which did not converge.
    """
    found, entry = computations(text)

    def of(name):
        total = 0
        for line in found.get(name, ()):
            if " while(" in line:
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                inner = of(re.search(r"body=%?([\w.\-]+)", line)[1])
                total += (int(trips[1]) if trips else iterations) * max(1, inner)
            elif " conditional(" in line:
                branches = re.search(r"branch_computations=\{(.*?)\}", line)
                names = (
                    branches[1].split(", ") if branches else re.findall(r"(?:true|false)_computation=(\S+?)[,\s]", line)
                )
                total += min(of(each.lstrip("%")) for each in names)
            elif called := re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", line):
                total += of(called[1])
        return total

    return of(entry)


def compiled(call, implementation):
    cell, params, xs = call
    loss = lambda params, xs: jnp.sum(jaxrnn.unroll(cell, params, xs, implementation=implementation)[1] ** 2)  # noqa: E731
    return quick_jit(jax.grad(loss)).lower(params, xs).compile()


def test_sequential_depth_is_a_fiftieth_of_the_loop():
    """Forward and backward, of 10,000 steps, with the iterations that it takes, and twice the levels of each scan."""
    time = 10_000
    call = at_first("gru", 4, time, jnp.float32, batch=1)
    loop = depth(compiled(call, "bptt").as_text(), 0)
    assert 2 * time <= loop <= 2.2 * time
    iterations = int(analysis.newton_convergence(*call).iterations.max())
    assert iterations <= 5
    found = depth(compiled(call, "newton").as_text(), iterations)
    levels = 2 * math.ceil(math.log2(time))
    assert 50 * (found + (iterations + 1) * levels) <= loop


def temporary_bytes(call, newton):
    """What a compiled forward pass takes beside arguments and results."""
    cell, params, xs = call
    run_forward = jax.jit(lambda params, xs: jaxrnn.unroll(cell, params, xs, implementation=newton)[1])
    return run_forward.lower(params, xs).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
def test_memory_is_as_stated(name, jacobian):
    """Of one window, within 1.3 times: D (Z + 2D) numbers a step and sequence, and 7 Z for the diagonal."""
    hidden, time, batch = 32, 64, 8
    call = at_first(name, hidden, time, jnp.float32, batch=batch)
    gates, size = {"rnn": (1, hidden), "gru": (3, hidden), "lstm": (4, 2 * hidden)}[name]
    projected = gates * hidden
    stated = size * (projected + 2 * size) if jacobian == "full" else 7 * projected
    measured = temporary_bytes(call, jaxrnn.Newton(jacobian=jacobian, window=time)) / (4 * time * batch)
    assert stated / 1.3 <= measured <= 1.3 * stated


def test_windows_keep_the_jacobians_within_the_stated_memory():
    cell, params, xs = at_first("gru", 16, 10_000, jnp.float32, batch=4)
    stated = 4 * 4 * 16 * (48 + 32)  # bytes of a step
    found = analysis.newton_convergence(cell, params, xs[:9_000], newton=jaxrnn.Newton(tolerance=1.0))
    assert found.iterations.shape[0] == math.ceil(9_000 / (newton_solve.MEMORY // stated))
    assert newton_solve.MEMORY == 64 * 2**20
    assert found.window * stated <= newton_solve.MEMORY
