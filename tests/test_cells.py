"""Each cell's step against its equations, written once more in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.registry import CELLS, H, I, make


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def in_numpy(name, params, state, x):
    """One step as EQUATIONS in the papers, gate by gate, no stacking."""
    p = {k: None if v is None else np.asarray(v) for k, v in params._asdict().items()}
    bias = np.zeros(p["w_x"].shape[1]) if p["b"] is None else p["b"]

    def gate(k, h):
        block = slice(k * H, (k + 1) * H)
        return x @ p["w_x"][:, block] + h @ p["w_h"][:, block] + bias[block]

    if name.startswith("rnn"):
        phi = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0), "sigmoid": sigmoid, "callable": np.sin}
        h = phi[name.split("-")[1]](gate(0, np.asarray(state)))
        return h, h
    if name.startswith("lstm"):
        h, c = np.asarray(state.h), np.asarray(state.c)
        i, f, g, o = sigmoid(gate(0, h)), sigmoid(gate(1, h)), np.tanh(gate(2, h)), sigmoid(gate(3, h))
        c = f * c + i * g
        return (o * np.tanh(c), c), o * np.tanh(c)
    h = np.asarray(state)
    r, z = sigmoid(gate(0, h)), sigmoid(gate(1, h))
    n_block = slice(2 * H, 3 * H)
    b_hn = np.zeros(H) if p["b_hn"] is None else p["b_hn"]
    if "before" in name:
        n = np.tanh(x @ p["w_x"][:, n_block] + bias[n_block] + (r * h) @ p["w_h"][:, n_block])
    else:
        n = np.tanh(x @ p["w_x"][:, n_block] + bias[n_block] + r * (h @ p["w_h"][:, n_block] + b_hn))
    h = (1 - z) * n + z * h
    return h, h


@pytest.mark.parametrize("name", CELLS)
def test_step_is_the_equation(name, x64):
    case = make(name)
    state, y = case.cell.step(case.params, case.state, case.xs[0])
    expected_state, expected_y = in_numpy(name, case.params, case.state, np.asarray(case.xs[0]))
    for got, expected in zip(jax.tree.leaves((state, y)), jax.tree.leaves((expected_state, expected_y)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-14)


def test_concatenated_form_equals_split_form(x64):
    """[h, x] times one stacked matrix is h W_h + x W_x."""
    case = make("lstm")
    x, (h, c) = case.xs[0], case.state
    stacked = jnp.concatenate([case.params.w_h, case.params.w_x])
    i, f, g, o = jnp.split(jnp.concatenate([h, x], -1) @ stacked + case.params.b[None], 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    state, _ = jaxrnn.lstm_step(case.params, case.state, x)
    np.testing.assert_allclose(state.c, c, atol=1e-15)
    np.testing.assert_allclose(state.h, jax.nn.sigmoid(o) * jnp.tanh(c), atol=1e-15)


@pytest.mark.parametrize("name", CELLS)
def test_parameters_have_the_documented_shapes(name):
    params = CELLS[name]().init(jax.random.key(0), I)
    gates = {"rnn": 1, "lstm": 4, "gru": 3}[name.split("-")[0]]
    assert params.w_x.shape == (I, gates * H)
    assert params.w_h.shape == (H, gates * H)
    biased = "no-bias" not in name and "sigmoid" not in name
    assert (params.b.shape == (gates * H,)) if biased else (params.b is None)
    if name.startswith("gru"):
        assert (params.b_hn.shape == (H,)) if name == "gru" else (params.b_hn is None)


def test_states_have_the_documented_types():
    state = jaxrnn.lstm(H).initial_state((2, 3), jnp.bfloat16)
    assert isinstance(state, jaxrnn.LSTMState)
    assert state.c.shape == (2, 3, H)
    assert state.h.dtype == jnp.bfloat16
    assert jaxrnn.gru(H).initial_state().shape == (H,)


def test_steps_by_hand():
    """Numbers small enough to check on paper: one unit, all weights 1, x = 1, h = c = 1."""
    one = jnp.ones
    half = 1 / (1 + np.exp(-2.0))  # σ(1 + 1)
    _, y = jaxrnn.rnn_step(jaxrnn.RNNParams(one((1, 1)), one((1, 1))), one(1), one(1))
    np.testing.assert_allclose(y, np.tanh(2.0), rtol=1e-6)
    state = jaxrnn.LSTMState(one(1), one(1))
    (_, c), y = jaxrnn.lstm_step(jaxrnn.LSTMParams(one((1, 4)), one((1, 4))), state, one(1))
    np.testing.assert_allclose(c, half + half * np.tanh(2.0), rtol=1e-6)
    np.testing.assert_allclose(y, half * np.tanh(half + half * np.tanh(2.0)), rtol=1e-6)
    params = jaxrnn.GRUParams(one((1, 3)), one((1, 3)))
    _, y = jaxrnn.gru_step(params, one(1), one(1))
    np.testing.assert_allclose(y, (1 - half) * np.tanh(1 + half) + half, rtol=1e-6)
    biased = params._replace(b_hn=one(1))
    _, y = jaxrnn.gru_step(biased, one(1), one(1))
    np.testing.assert_allclose(y, (1 - half) * np.tanh(1 + half * 2) + half, rtol=1e-6)


def test_a_mutable_activation_is_differentiated_where_it_is(x64):
    """A callable's slope is taken at the pre-activation, not at the output."""
    cell = jaxrnn.rnn(1, activation=lambda a: a**3)
    params = jaxrnn.RNNParams(jnp.full((1, 1), 2.0), jnp.zeros((1, 1)), jnp.zeros(1))
    gradient = jax.grad(lambda x: jaxrnn.unroll(cell, params, x)[1].sum())(jnp.full((1, 1), 0.5))
    np.testing.assert_allclose(gradient, [[6.0]])
