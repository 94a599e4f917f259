"""User-defined cells: small recurrences with answers that are computed by hand."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import Cell, Rule


def leaky_step(a, s, x):
    """s_t = a s_{t-1} + x_t, a running sum at a = 1 and else a polynomial in a."""
    s = a * s + x
    return s, s


LEAKY = Cell(
    init=lambda key, input_size, dtype=None: jnp.ones((), dtype or jnp.float32),
    initial_state=lambda batch_shape=(), dtype=None: jnp.zeros((*batch_shape, 2), dtype or jnp.float32),
    step=leaky_step,
)
RULE = Rule(
    project=lambda a, xs: xs,
    forward=lambda a, s, z: (*leaky_step(a, s, z), None),
    backward=lambda a, tape, ds, dy: (a * (ds + dy), ds + dy),
    accumulate=lambda a, xs, tape, deltas: (jnp.sum(deltas * tape.before), deltas),
)
XS = jnp.asarray([[1.0, 10], [2, 20], [3, 30]])


def test_cell_of_three_functions_runs():
    final, ys = jaxrnn.unroll(LEAKY, jnp.ones(()), XS)
    np.testing.assert_array_equal(ys, [[1, 10], [3, 30], [6, 60]])
    np.testing.assert_array_equal(final, [6, 60])
    _, ys = jaxrnn.unroll(LEAKY, jnp.ones(()), XS, reverse=True)
    np.testing.assert_array_equal(ys, [[6, 60], [5, 50], [3, 30]])


def test_gradients_have_the_dtypes_of_what_they_are_of():
    """A rule may accumulate in float32."""
    wide = RULE._replace(accumulate=lambda *given: jax.tree.map(jnp.float32, RULE.accumulate(*given)))
    cell = LEAKY._replace(rule=wide)
    loss = lambda a, xs: jnp.sum(jaxrnn.unroll(cell, a, xs)[1])  # noqa: E731
    da, dxs = jax.grad(loss, (0, 1))(jnp.ones((), jnp.bfloat16), jnp.bfloat16(XS))
    assert da.dtype == dxs.dtype == jnp.bfloat16
    # y_t = Σ_s a^(t-s) x_s, so that x_s counts 3 - s times at a = 1, and dy_1/da = x_0, dy_2/da = 2 x_0 + x_1.
    np.testing.assert_array_equal(np.asarray(dxs, float), [[3, 3], [2, 2], [1, 1]])
    assert float(da) == 3 * 11 + 22


def test_masks_and_resets_equal_sums_by_hand():
    xs = jnp.stack([XS, XS], axis=1)
    mask = np.asarray([[1, 1], [0, 1], [1, 0]], bool)
    final, ys, states = jaxrnn.unroll(LEAKY, jnp.ones(()), xs, mask=mask, return_states=True)
    np.testing.assert_array_equal(ys[..., 0], [[1, 1], [0, 3], [4, 0]])
    np.testing.assert_array_equal(states[..., 0], [[1, 1], [1, 3], [4, 3]])
    np.testing.assert_array_equal(final[..., 0], [4, 3])
    resets = np.asarray([[0, 1], [0, 1], [1, 0]], bool)
    start, fresh = jnp.full((2, 2), 100.0), jnp.full((2, 2), 1000.0)
    options = {"resets": resets, "reset_state": fresh}
    _, ys = jaxrnn.unroll(LEAKY, jnp.ones(()), xs, start, **options)
    np.testing.assert_array_equal(ys[..., 0], [[101, 1001], [103, 1002], [1003, 1005]])
    # In reverse, a reset at t replaces the state between t and t-1.
    final, ys = jaxrnn.unroll(LEAKY, jnp.ones(()), xs, start, reverse=True, **options)
    np.testing.assert_array_equal(ys[..., 0], [[1003, 1001], [1002, 105], [103, 103]])
    np.testing.assert_array_equal(final[..., 0], [1003, 1001])
    # A reset at a masked step replaces the state too.
    _, _, states = jaxrnn.unroll(LEAKY, jnp.ones(()), xs, start, mask=mask, return_states=True, **options)
    np.testing.assert_array_equal(states[..., 0], [[101, 1001], [101, 1002], [1003, 1002]])


def test_grad_runs_a_user_defined_rule():
    """L = a² x_0 + a x_1 + x_2 summed over units, so dL/da = 2a x_0 + x_1."""
    cell = LEAKY._replace(rule=RULE)
    loss = lambda a, xs, implementation: jaxrnn.unroll(cell, a, xs, implementation=implementation)[0].sum()  # noqa: E731
    for implementation in (None, "scan"):
        da, dxs = jax.grad(loss, (0, 1))(jnp.asarray(0.5), XS, implementation)
        np.testing.assert_allclose(da, 2 * 0.5 * 11 + 22)
        np.testing.assert_allclose(dxs, [[0.25, 0.25], [0.5, 0.5], [1, 1]])
    broken = cell._replace(rule=RULE._replace(backward=lambda a, tape, ds, dy: (2 * a * (ds + dy), ds + dy)))
    da = jax.grad(lambda a: jaxrnn.unroll(broken, a, XS)[0].sum())(jnp.asarray(0.5))
    np.testing.assert_allclose(da, 27.5 + (2 * 0.5) * 11)  # δs_2 s_1 + δs_1 s_0, with δs_1 = 2a


class Clock(NamedTuple):
    """A state with an integer leaf, which has no gradient."""

    value: jax.Array
    ticks: jax.Array


def test_state_with_integers_runs_through_the_scan():
    def step(params, state, x):
        state = Clock(params * state.value + x, state.ticks + 1)
        return state, state.value * state.ticks.astype(jnp.float32)

    def initial_state(batch_shape=(), dtype=None):
        return Clock(jnp.zeros(batch_shape, dtype), jnp.zeros(batch_shape, jnp.int32))

    cell = Cell(lambda key, input_size: jnp.ones(()), initial_state, lambda p, s, x: step(p, s, x[..., 0]))
    xs = jnp.arange(4.0)[:, None]
    final, ys = jaxrnn.unroll(cell, jnp.ones(()), xs, lengths=np.int32(3))
    np.testing.assert_array_equal(ys, [0, 2, 9, 0])
    assert final.ticks == 3
    gradient = jax.grad(lambda p: jaxrnn.unroll(cell, p, xs)[0].value)(jnp.ones(()))
    np.testing.assert_allclose(gradient, 0 * 3 + 1 * 2 + 2 * 1)


def test_output_may_differ_from_the_state():
    """The output of the cell is twice its state."""
    doubled = Cell(LEAKY.init, LEAKY.initial_state, lambda a, s, x: (a * s + x, 2 * (a * s + x)))
    rule = RULE._replace(
        forward=lambda a, s, z: (a * s + z, 2 * (a * s + z), None),
        backward=lambda a, tape, ds, dy: (a * (ds + 2 * dy), ds + 2 * dy),
    )
    gradients = []
    for cell in (doubled, doubled._replace(rule=rule)):
        _, ys, states = jaxrnn.unroll(cell, jnp.ones(()), XS, return_states=True)
        np.testing.assert_array_equal(ys, 2 * states)
        gradients.append(
            jax.grad(lambda a, xs, cell=cell: (jaxrnn.unroll(cell, a, xs)[1] ** 2).sum(), (0, 1))(jnp.ones(()), XS)
        )
    chex.assert_trees_all_close(*gradients, rtol=1e-7)


class Weight(NamedTuple):
    """The parameters of a cell whose rule names its matrix."""

    w: jax.Array


def product_cell(dot, back):
    """s_t = s_{t-1} + x_t w, with products of the user's, forward and backward."""
    rule = Rule(
        project=lambda p, xs: dot(xs, p.w),
        forward=lambda p, s, z: (s + z, s + z, None),
        backward=lambda p, tape, ds, dy: (ds + dy, ds + dy),
        accumulate=lambda p, xs, tape, d: (Weight(jnp.einsum("ti,tj->ij", xs, d)), back(d, p.w.T)),
        matrices=("w",),
    )
    return Cell(
        lambda key, input_size, dtype=None: Weight(jnp.ones((input_size, 2))),
        lambda batch_shape=(), dtype=None: jnp.zeros((*batch_shape, 2)),
        lambda p, s, x: (s + dot(x, p.w),) * 2,
        rule,
    )


def promoted(x, w):
    return jnp.dot(x, w.astype(x.dtype))


def in_the_dtype_of_the_weight(x, w):
    return jnp.matmul(x.astype(w.dtype), w, preferred_element_type=x.dtype)


def test_compute_dtype_is_refused_where_a_rule_multiplies_in_another():
    w, xs = Weight(jnp.asarray([[1.01, 0.0], [0.0, 1.0]])), jnp.asarray([[1.003, 2.0]])
    options = {"compute_dtype": jnp.bfloat16}
    _, ys = jaxrnn.unroll(product_cell(in_the_dtype_of_the_weight, in_the_dtype_of_the_weight), w, xs, **options)
    rounded = jnp.asarray([1.003, 1.01], jnp.bfloat16).astype(float)
    np.testing.assert_allclose(ys[0, 0], rounded[0] * rounded[1], rtol=1e-7)
    right = in_the_dtype_of_the_weight
    for dots in (
        (promoted, right),
        (right, promoted),
        (jax.jit(promoted), right),
        (lambda x, w: x @ w, right),
        (lambda x, w: x @ w[:, ::1].T.T, right),
    ):
        message = (
            "unroll: compute_dtype expected a rule that multiplies params.w in its own dtype.* preferred_element_type"
        )
        with jax.numpy_dtype_promotion("standard"), pytest.raises(NotImplementedError, match=message):
            jaxrnn.unroll(product_cell(*dots), w, xs, **options)
        with jax.numpy_dtype_promotion("standard"):
            np.testing.assert_allclose(jaxrnn.unroll(product_cell(*dots), w, xs)[1][0, 0], 1.003 * 1.01, rtol=1e-6)
