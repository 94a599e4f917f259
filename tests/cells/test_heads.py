"""Heads: a cell with heads equals the dense cell whose recurrent matrix is block-diagonal, and computes only the blocks."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.support.registry import assert_close, quick_jit, random_like

I, H, T, B = 3, 8, 5, 4  # noqa: E741

FORMS = {
    "rnn": (jaxrnn.rnn, {}),
    "lstm": (jaxrnn.lstm, {"peephole": True}),
    "lstm-coupled": (jaxrnn.lstm, {"coupled": True, "use_bias": False}),
    "gru": (jaxrnn.gru, {}),
    "gru-reset-before": (jaxrnn.gru, {"reset_after": False}),
    "mgu": (jaxrnn.mgu, {}),
}


def weigh(tree):
    """A sum over all entries with random weights."""
    weights = random_like(7, tree, jnp.float64)
    return sum(jnp.sum(w * leaf) for w, leaf in zip(jax.tree.leaves(weights), jax.tree.leaves(tree), strict=True))


def operands(cell):
    params = random_like(0, jax.eval_shape(lambda: cell.init(jax.random.key(0), I)), jnp.float64, scale=0.5)
    xs = random_like(1, jax.ShapeDtypeStruct((T, B, I), jnp.float64), jnp.float64)
    return params, xs


def values_and_gradients(cell, change=lambda params: params, **options):
    def loss(params, xs):
        found = jaxrnn.unroll(cell, change(params), xs, lengths=np.asarray([T, 0, 2, 5]), **options)
        return weigh(found), found

    return quick_jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


@pytest.mark.parametrize("heads", [2, H])
@pytest.mark.parametrize("name", FORMS)
def test_cell_with_heads_equals_the_block_matrix(name, heads, x64):
    factory, options = FORMS[name]
    cell = factory(H, num_heads=heads, **options)
    params, xs = operands(cell)
    expected = values_and_gradients(factory(H, **options), jaxrnn.merge_heads)(params, xs)
    assert_close(values_and_gradients(cell)(params, xs), expected)


@pytest.mark.parametrize("noise", [{"recurrent_dropout": 0.4, "input_dropout": 0.3}, {"zoneout": 0.3}], ids=str)
def test_noise_of_units_equals_that_of_the_block_matrix(noise, x64):
    cell = jaxrnn.regularize(jaxrnn.gru(H, num_heads=2), **noise)
    params, xs = operands(cell)
    dense = jaxrnn.regularize(jaxrnn.gru(H), **noise)
    expected = values_and_gradients(dense, jaxrnn.merge_heads, key=jax.random.key(3))(params, xs)
    assert_close(values_and_gradients(cell, key=jax.random.key(3))(params, xs), expected)


def test_dropconnect_drops_entries_of_the_blocks():
    cell = jaxrnn.regularize(jaxrnn.rnn(8, num_heads=2, activation="relu", use_bias=False), dropconnect=0.5)
    params = jaxrnn.RNNParams(jnp.zeros((1, 8)), jnp.full((2, 4, 4), 0.25))
    _, ys = jaxrnn.unroll(cell, params, jnp.zeros((1, 1)), jnp.ones(8), key=jax.random.key(0))
    kept = np.asarray(ys[0]) * 2  # each unit reads four entries of 0.25 / (1 - 0.5), or of zero
    np.testing.assert_array_equal(kept, np.round(kept))
    assert set(kept) - {0.0, 4.0}


def products(jaxpr):
    """The shapes of the operands of each matrix product, inside loops and calls too, and its number of multiplications."""
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shapes = [atom.aval.shape for atom in equation.invars]
            by_sum = np.prod([shapes[0][axis] for axis in contracted])
            yield shapes, int(by_sum * np.prod(equation.outvars[0].aval.shape))


@pytest.mark.parametrize(("factory", "gates"), [(jaxrnn.lstm, 4), (jaxrnn.gru, 3)])
def test_zero_blocks_are_not_computed(factory, gates):
    """Forward and backward, a recurrent product multiplies B H (G H / N) times, and the weight gradient T times that."""

    def counted(cell):
        params, xs = jax.eval_shape(lambda: (cell.init(jax.random.key(0), I), jnp.ones((T, B, I))))
        gradient = jax.grad(lambda params, xs: jaxrnn.unroll(cell, params, xs)[1].sum(), (0, 1))
        found = list(products(jax.make_jaxpr(gradient)(params, xs).jaxpr))
        return sorted(count for shapes, count in found if not any(I in shape for shape in shapes)), len(found)

    of_inputs, a_step = 3, B * H * gates * H
    assert counted(factory(H)) == ([a_step, a_step, T * a_step], 3 + of_inputs)
    assert counted(factory(H, num_heads=2)) == ([a_step // 2, a_step // 2, T * a_step // 2], 3 + of_inputs)


def test_each_block_of_each_head_is_drawn_on_its_own():
    w_h = np.asarray(jaxrnn.lstm(12, num_heads=3).init(jax.random.key(0), I).w_h)
    blocks = w_h.reshape(3, 4, 4, 4).transpose(0, 2, 1, 3).reshape(12, 4, 4)
    for block in blocks:
        np.testing.assert_allclose(block @ block.T, np.eye(4), atol=1e-5)
    assert len({float(block[0, 0]) for block in blocks}) == 12
    irnn = jaxrnn.rnn(8, num_heads=4, recurrent_init=jaxrnn.initializers.identity(0.5))
    np.testing.assert_array_equal(irnn.init(jax.random.key(0), I).w_h, np.tile(0.5 * np.eye(2), (4, 1, 1)))


def test_one_head_is_the_dense_cell():
    assert jaxrnn.gru(8, num_heads=1) == jaxrnn.gru(8)
    chex.assert_shape(jaxrnn.mgu(8, num_heads=1).init(jax.random.key(0), I).w_h, (8, 16))
    assert repr(jaxrnn.lstm(8, num_heads=2)) == "lstm(8, num_heads=2)"


@pytest.mark.parametrize("factory", [jaxrnn.rnn, jaxrnn.lstm, jaxrnn.gru, jaxrnn.mgu])
@pytest.mark.parametrize(("heads", "error", "message"), [
    (3, ValueError, "num_heads expected a number that divides hidden_size = 8, got 3"),
    (0, ValueError, "num_heads expected a positive integer, got 0"),
    (-2, ValueError, "num_heads expected a positive integer, got -2"),
    (True, TypeError, "num_heads expected a positive integer, got bool True"),
    (2.0, TypeError, "num_heads expected a positive integer, got float 2.0"),
    (16, ValueError, "num_heads expected a number that divides hidden_size = 8, got 16"),
], ids=str)  # fmt: skip
def test_heads_that_do_not_divide_the_units_raise(factory, heads, error, message, unhooked):
    with pytest.raises(error, match=re.escape(f"{factory.__name__}: {message}")):
        factory(8, num_heads=heads)


def test_heads_with_a_projection_raise():
    message = "num_heads expected 1 with a projection, got 2 and projection_size = 4"
    with pytest.raises(ValueError, match=f"lstm: {message}"):
        jaxrnn.lstm(8, num_heads=2, projection_size=4)
    params = jaxrnn.lstm(8, projection_size=4).init(jax.random.key(0), I)
    with pytest.raises(ValueError, match=f"lstm_step: {message}"):
        jaxrnn.lstm_step(params._replace(w_h=jnp.zeros((2, 2, 16))), jaxrnn.lstm(8).initial_state(), jnp.ones(I))


def test_weights_of_another_number_of_heads_raise():
    xs = jnp.ones((T, I))
    one, two, four = (jaxrnn.gru(8, num_heads=n) for n in (1, 2, 4))
    params = two.init(jax.random.key(0), I)
    dense = r"params.w_h expected shape \(8, 24\), got \(2, 4, 12\), the blocks of 2 heads; use gru\(8, num_heads=2\)"
    with pytest.raises(ValueError, match=dense + r".*jaxrnn\.merge_heads\(params\)"):
        jaxrnn.unroll(one, params, xs)
    blocks = r"params.w_h expected shape \(2, 4, 12\), got \(8, 24\), the dense matrix; use gru\(8\)"
    with pytest.raises(ValueError, match=blocks + r".*jaxrnn\.split_heads\(params, 2\)"):
        jaxrnn.unroll(two, jaxrnn.merge_heads(params), xs)
    with pytest.raises(ValueError, match=r"params.w_h expected shape \(4, 2, 6\), got \(2, 4, 12\)"):
        jaxrnn.unroll(four, params, xs)
