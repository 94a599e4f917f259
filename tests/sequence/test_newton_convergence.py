"""How Newton's method for all steps at once converges: iterations, residuals, and the windows run step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import analysis
from tests.support.registry import T, gap, make, quick_jit, random_like

PLAIN = ("rnn", "gru", "lstm")


@functools.cache
def initial(name, hidden, dtype):
    """A cell and its initial weights."""
    cell = getattr(jaxrnn, name)(hidden)
    return cell, cell.init(jax.random.key(0), 8, dtype)


def at_first(name, hidden, time, dtype, batch=2):
    """A cell at its initial weights, and inputs."""
    cell, params = initial(name, hidden, jnp.dtype(dtype))
    return cell, params, random_like(1, jax.ShapeDtypeStruct((time, batch, 8), dtype), dtype)


def convergence(cell, *operands, **options):
    """`newton_convergence` of params, inputs and perhaps a state, compiled quickly."""
    return quick_jit(functools.partial(analysis.newton_convergence, cell, **options))(*operands)


@pytest.mark.parametrize(
    ("name", "dtype"), [("rnn", "float64"), ("gru", "float32"), ("lstm", "float32"), ("lstm", "float64")]
)
def test_initial_weights_take_at_most_five_iterations(name, dtype, x64):
    cell, *operands = at_first(name, 16, 512, jnp.dtype(dtype))

    def call(params, xs):
        runs = (jaxrnn.unroll(cell, params, xs, implementation=each, return_states=True) for each in ("newton", "bptt"))
        return analysis.newton_convergence(cell, params, xs), *runs

    found, got, expected = quick_jit(call)(*operands)
    assert found.converged.all()
    assert not found.by_steps.any()
    assert found.iterations.min() >= 1
    assert found.iterations.max() <= 5
    assert gap(got, expected) <= (1e-10 if dtype == "float64" else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_ten_thousand_steps_take_at_most_five_iterations(name, x64):
    found = convergence(*at_first(name, 16, 10_000, jnp.float64, batch=1))
    assert found.converged.all()
    assert found.iterations.max() <= 5


def test_residuals_are_those_of_each_iteration(x64):
    """They fall by squares. A sequence that has converged stays where it is while others go on."""
    cell, params, xs = at_first("gru", 16, 512, jnp.float64)
    xs = xs.at[:, 1].multiply(0.01)
    found = convergence(cell, params, xs)
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
    unrolled = lambda xs, each: jaxrnn.unroll(cell, params, xs, implementation=each)[1]  # noqa: E731
    alone = xs[:, lazy : lazy + 1]
    together, alone, exact = quick_jit(lambda: (unrolled(xs, newton), unrolled(alone, newton), unrolled(xs, "bptt")))()
    np.testing.assert_allclose(together[:, lazy], alone[:, 0], rtol=0, atol=1e-12)
    assert gap(together[:, lazy], exact[:, lazy]) > 1e-5


def test_residual_of_the_guess_is_that_of_the_equations(x64):
    """With lengths and resets in both directions. In windows of up to 7 steps the guess is f of the state before."""
    case, reset_state = make("lstm"), make("lstm", seed=7).state
    mask, resets = np.tri(T, 5, 2, dtype=bool), np.arange(T)[:, None] == [1, 2, 3, 4, 9]
    lengths = mask.sum(0).astype(np.int32)[::-1].copy()
    valid = np.arange(T)[:, None] < lengths
    for reverse in (False, True):
        options = {"lengths": lengths, "resets": resets, "reset_state": reset_state, "reverse": reverse}
        found = convergence(case.cell, *case[1:4], **options)
        over_time = lambda tree: jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (T, *leaf.shape)), tree)  # noqa: E731
        order = slice(None, None, -1 if reverse else 1)
        entered = np.concatenate([resets[1:], resets[:1] & False])[order] if reverse else resets
        xs, here = case.xs[order], valid[order]
        take = lambda where, a, b: jax.tree.map(lambda x, y: jnp.where(where[..., None], x, y), a, b)  # noqa: E731

        def f(before, entered=entered, here=here, xs=xs, take=take, over_time=over_time):
            before = take(entered, over_time(reset_state), before)
            after = jax.vmap(case.cell.step, (None, 0, 0))(case.params, before, xs)[0]
            return take(here, after, before)

        def residual(f=f, over_time=over_time):
            guess = f(over_time(case.state))
            shift = lambda first, rest: jnp.concatenate([first[None], rest[:-1]])  # noqa: E731
            after = f(jax.tree.map(shift, case.state, guess))
            parts = zip(jax.tree.leaves(after), jax.tree.leaves(guess), strict=True)
            return jnp.stack([jnp.abs(a - g).max((0, 2)) / jnp.abs(a).max((0, 2)) for a, g in parts]).max(0)

        np.testing.assert_allclose(found.residuals[0, 0], quick_jit(residual)(), rtol=1e-10)
        assert found.converged.all()


@functools.cache
def expanding():
    """A network with weights times 3, whose nearby states diverge."""
    cell, params, xs = at_first("rnn", 16, 64, jnp.float64)
    return cell, jax.tree.map(lambda leaf: 3 * leaf, params), 0.1 * xs


def test_expanding_dynamics_come_out_right_step_by_step(x64):
    cell, params, xs = expanding()
    assert analysis.lyapunov_exponents(cell, params, xs, count=1).exponents.min() > 0
    weights = random_like(3, jax.ShapeDtypeStruct((64, 2, 16), jnp.float64), jnp.float64)
    newton = jaxrnn.Newton(max_iterations=8)

    def loss(implementation, params, xs):
        return jnp.sum(weights * jaxrnn.unroll(cell, params, xs, implementation=implementation)[1])

    def call(params, xs):
        both = (jax.value_and_grad(functools.partial(loss, each), (0, 1))(params, xs) for each in (newton, "bptt"))
        return analysis.newton_convergence(cell, params, xs, newton=newton), *both

    found, got, expected = quick_jit(call)(params, xs)
    assert found.by_steps.all()
    assert not found.converged.any()
    assert gap(got, expected) <= 1e-10


def test_iterations_solve_as_many_steps_at_least(x64):
    """With as many iterations as steps any dynamics are solved, and as many as steps between resets are enough."""
    found = convergence(*expanding(), newton=jaxrnn.Newton(max_iterations=40, window=32))
    assert found.converged.all()
    assert found.iterations.max() > 5
    resets = np.broadcast_to(np.arange(64)[:, None] % 4 == 0, (64, 2))
    found = convergence(*expanding(), newton=jaxrnn.Newton(max_iterations=8), resets=resets)
    assert found.converged.all()
    assert found.iterations.max() <= 4


def test_diagonal_of_a_diagonal_cell_is_its_jacobian(x64):
    def both(name):
        case = make(name, time=32)
        kinds = (jaxrnn.Newton(jacobian=kind) for kind in ("full", "diagonal"))
        call = lambda newton: analysis.newton_convergence(*case[:4], newton=newton)  # noqa: E731
        return quick_jit(lambda: [call(newton) for newton in kinds])()

    full, diagonal = both("indrnn")
    np.testing.assert_array_equal(full.iterations, diagonal.iterations)
    made = np.asarray(full.iterations).max()
    np.testing.assert_allclose(full.residuals[0, :made].max(-1), diagonal.residuals[0, :made].max(-1), rtol=1e-3)
    full, diagonal = both("gru")
    assert diagonal.iterations.min() > full.iterations.max()


def test_damping_and_tolerance_change_the_iterations(x64):
    cell, *operands = at_first("gru", 8, 64, jnp.float64)
    settings = [jaxrnn.Newton(), jaxrnn.Newton(damping=0.9), jaxrnn.Newton(tolerance=1e-3)]
    call = lambda params, xs: [analysis.newton_convergence(cell, params, xs, newton=each) for each in settings]  # noqa: E731
    found = quick_jit(call)(*operands)
    assert all(each.converged.all() for each in found)
    plain, damped, rough = (int(each.iterations.max()) for each in found)
    assert rough < plain < damped


def test_convergence_of_no_steps_and_what_is_refused():
    cell, params, xs = at_first("gru", 4, 0, jnp.float32)
    found = analysis.newton_convergence(cell, params, xs)
    assert found.iterations.shape == found.converged.shape == (0, 2)
    assert found.residuals.shape == (0, 21, 2)
    with pytest.raises(TypeError, match="newton_convergence: newton expected a jaxrnn.Newton or None, got str 'full'"):
        analysis.newton_convergence(cell, params, xs, newton="full")
    with pytest.raises(NotImplementedError, match="newton_convergence: 'newton' does not .* Jacobians are those of a"):
        analysis.newton_convergence(cell._replace(rule=None), params, xs)
    with pytest.raises(ValueError, match="newton_convergence: reset_state expected None without resets"):
        analysis.newton_convergence(cell, params, xs, reset_state=jnp.zeros((2, 4)))
