"""Cells whose functions close over traced values, and errors of the functions themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.cells.test_own_cell import LEAKY

T, B, I, H = 4, 2, 3, 4  # noqa: E741
RNG = np.random.default_rng(0)
PARAMS = jaxrnn.RNNParams(*(0.5 * RNG.standard_normal(shape) for shape in ((I, H), (H, H), (H,))))
XS = RNG.standard_normal((T, B, I))
ALPHAS = np.asarray([0.5, 2.0])

TRANSFORMS = {
    "eager": lambda f: np.stack([f(alpha) for alpha in ALPHAS]),
    "jit": lambda f: np.stack([jax.jit(f)(alpha) for alpha in ALPHAS]),
    "vmap": lambda f: jax.vmap(f)(ALPHAS),
    "map": lambda f: jax.lax.map(f, ALPHAS),
    "scan": lambda f: jax.lax.scan(lambda _, alpha: (None, f(alpha)), None, ALPHAS)[1],
    "jit of vmap": lambda f: jax.jit(jax.vmap(f))(ALPHAS),
}


def cell_of(alpha):
    return jaxrnn.rnn(H, activation=lambda a: jnp.tanh(alpha * a))


def loss(alpha, params=PARAMS, **options):
    return jnp.sum(jnp.sin(jaxrnn.unroll(cell_of(alpha), params, XS, **options)[1]))


def loss_in_numpy(alpha, params=PARAMS):
    h, total = np.zeros((B, H)), 0.0
    for x in XS:
        h = np.tanh(alpha * (x @ params.w_x + h @ params.w_h + params.b))
        total += np.sin(h).sum()
    return total


def slope(f, at, step=1e-6):
    return (f(at + step) - f(at - step)) / (2 * step)


def by_bias(alpha):
    """The derivative by one bias, by finite differences of NumPy."""
    unit = np.eye(H)[1]
    return slope(lambda b: loss_in_numpy(alpha, PARAMS._replace(b=PARAMS.b + b * unit)), 0.0)


@pytest.mark.parametrize(
    "options", [{}, {"implementation": "scan"}, {"implementation": "reference"}, {"checkpoint": 2}], ids=str
)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_values_and_gradients_equal_numpy(transform, options, x64):
    values = TRANSFORMS[transform](lambda alpha: loss(alpha, **options))
    np.testing.assert_allclose(values, [loss_in_numpy(alpha) for alpha in ALPHAS], rtol=1e-12)
    gradient = lambda alpha: jax.grad(lambda params: loss(alpha, params, **options))(PARAMS).b[1]  # noqa: E731
    np.testing.assert_allclose(TRANSFORMS[transform](gradient), list(map(by_bias, ALPHAS)), rtol=1e-6)


@pytest.mark.parametrize("implementation", [None, "scan", "reference"])
@pytest.mark.parametrize("jit", [lambda f: f, jax.jit])
def test_gradients_by_what_is_closed_over_equal_finite_differences(implementation, jit, x64):
    first = jit(jax.grad(lambda alpha: loss(alpha, implementation=implementation)))
    np.testing.assert_allclose(first(2.0), slope(loss_in_numpy, 2.0), rtol=1e-6)

    def mixed(alpha):  # what a custom derivative would miss without an error
        return jax.grad(lambda params: loss(alpha, params, implementation=implementation))(PARAMS).b[1]

    np.testing.assert_allclose(jit(jax.grad(mixed))(2.0), slope(by_bias, 2.0, 1e-3), rtol=1e-4)


@pytest.mark.parametrize("name", ["bptt", "pallas_interpret"])
def test_derivatives_by_hand_refuse_them_in_favour_of_scan(name, x64):
    with pytest.raises(
        NotImplementedError, match=f"implementation '{name}' does not support .* closes over traced values: .*"
    ):
        jax.jit(lambda alpha: loss(alpha, implementation=name))(2.0)
    with pytest.raises(NotImplementedError, match="'scan' supports it"):
        jax.grad(lambda alpha: loss(alpha, implementation="bptt"))(2.0)
    if name == "bptt":  # concrete values are constants
        np.testing.assert_allclose(loss(2.0, implementation=name), loss_in_numpy(2.0), rtol=1e-12)


def test_rules_that_close_over_traced_values_run_with_scan():
    def run(alpha, implementation=None):
        rule = jaxrnn.Rule(
            project=lambda a, xs: xs,
            forward=lambda a, s, z: (alpha * s + z, alpha * s + z, None),
            backward=lambda a, tape, ds, dy: (alpha * (ds + dy), ds + dy),
            accumulate=lambda a, xs, tape, deltas: (jnp.zeros_like(a), deltas),
        )
        cell = LEAKY._replace(step=lambda a, s, x: (alpha * s + x,) * 2, rule=rule)
        return jaxrnn.unroll(cell, jnp.ones(()), jnp.ones((3, 2)), implementation=implementation)[0].sum()

    np.testing.assert_allclose(jax.vmap(run)(jnp.asarray([0.5, 2.0])), [2 * 1.75, 2 * 7.0])
    np.testing.assert_allclose(jax.grad(run)(2.0), 2 * (1 + 2 * 2.0))  # of 1 + a + a², twice
    with pytest.raises(NotImplementedError, match="closes over traced values"):
        jax.grad(lambda alpha: run(alpha, "bptt"))(2.0)


def failing(a):
    raise TypeError("my custom_vjp rule is wrong")


def test_errors_of_an_activation_are_not_taken_for_forward_mode():
    cell = jaxrnn.rnn(H, activation=failing)
    for implementation in ("bptt", "scan", "reference"):
        with pytest.raises(TypeError, match="^my custom_vjp rule is wrong"):
            jaxrnn.unroll(cell, PARAMS, XS, implementation=implementation)


def test_forward_mode_of_a_clipped_gradient_names_the_option():
    cell = jaxrnn.rnn(H)
    run = lambda xs: jaxrnn.unroll(cell, PARAMS, xs, implementation="scan", clip_gradient=1.0)[1]  # noqa: E731
    with pytest.raises(
        TypeError, match="unroll: clip_gradient expected None for forward-mode differentiation, got 1.0"
    ):
        jax.jvp(run, (XS,), (XS,))
