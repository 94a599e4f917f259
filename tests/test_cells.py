"""Each cell's step against its equations, written once more in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.registry import CELLS, H, I, make


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def layer_norm(a, scale):
    if scale is None:
        return a
    return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5) * scale


def fields(params):
    """Arrays as NumPy's, biases that are absent as zeros, the fields of `norm` by name."""
    p = {k: None if v is None else np.asarray(v) for k, v in params._asdict().items() if k != "norm"}
    norm = getattr(params, "norm", None)
    p.update(dict.fromkeys(("scale_x", "scale_h", "scale_c", "offset_c")))
    p.update({} if norm is None else {k: np.asarray(v) for k, v in norm._asdict().items()})
    if p["b"] is None:
        p["b"] = np.zeros(p["w_x"].shape[1])
    return p


def rnn_in_numpy(name, params, h, x):
    p = fields(params)
    phi = {"relu": lambda a: np.maximum(a, 0), "sigmoid": sigmoid, "callable": np.sin}.get(name.split("-")[-1], np.tanh)
    recurrent = h * p["w_h"] if p["w_h"].ndim == 1 else h @ p["w_h"]
    h = phi(x @ p["w_x"] + recurrent + p["b"])
    return h, h


def lstm_in_numpy(name, params, state, x):
    p, (h, c) = fields(params), map(np.asarray, state)
    a = layer_norm(x @ p["w_x"], p["scale_x"]) + layer_norm(h @ p["w_h"], p["scale_h"]) + p["b"]
    gates = a.shape[-1] // H
    a_f, a_g, a_o = (a[..., k * H : (k + 1) * H] for k in range(gates - 3, gates))
    p_i, p_f, p_o = np.zeros((3, H)) if p["peephole"] is None else [0, *p["peephole"]][-3:]
    f = sigmoid(a_f + p_f * c)
    i = 1 - f if gates == 3 else sigmoid(a[..., :H] + p_i * c)
    c = f * c + i * np.tanh(a_g)
    o = sigmoid(a_o + p_o * c)
    shown = c if p["scale_c"] is None else layer_norm(c, p["scale_c"]) + p["offset_c"]
    h = o * np.tanh(shown)
    h = h if p["w_proj"] is None else h @ p["w_proj"]
    if "regularized" in name:  # zoneout 0.3, evaluated
        h, c = (0.3 * np.asarray(old) + 0.7 * new for old, new in zip(state, (h, c), strict=True))
    return (h, c), h


def gru_in_numpy(name, params, h, x):
    p = fields(params)
    r_z, n_ = slice(0, 2 * H), slice(2 * H, 3 * H)
    x_part = layer_norm(x @ p["w_x"], p["scale_x"]) + p["b"]
    s = p["scale_h"]
    if "before" in name:
        h_rz = layer_norm(h @ p["w_h"][:, r_z], None if s is None else s[r_z])
        r, z = np.split(sigmoid(x_part[:, r_z] + h_rz), 2, -1)
        n = np.tanh(x_part[:, n_] + layer_norm((r * h) @ p["w_h"][:, n_], None if s is None else s[n_]))
    else:
        h_part = layer_norm(h @ p["w_h"], s)
        r, z = np.split(sigmoid(x_part[:, r_z] + h_part[:, r_z]), 2, -1)
        b_hn = 0 if p["b_hn"] is None else p["b_hn"]
        n = np.tanh(x_part[:, n_] + r * (h_part[:, n_] + b_hn))
    h = (1 - z) * n + z * h
    return h, h


def mgu_in_numpy(name, params, h, x):
    p = fields(params)
    f = sigmoid(x @ p["w_x"][:, :H] + h @ p["w_h"][:, :H] + p["b"][:H])
    n = np.tanh(x @ p["w_x"][:, H:] + (f * h) @ p["w_h"][:, H:] + p["b"][H:])
    return ((1 - f) * h + f * n,) * 2


IN_NUMPY = {
    "rnn": rnn_in_numpy, "indrnn": rnn_in_numpy, "lstm": lstm_in_numpy, "gru": gru_in_numpy, "mgu": mgu_in_numpy,
}  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_step_is_the_equation(name, x64):
    case = make(name)
    state, y = case.cell.step(case.params, case.state, case.xs[0])
    equations, before = IN_NUMPY[name.split("-")[0]], jax.tree.map(np.asarray, case.state)
    expected_state, expected_y = equations(name, case.params, before, np.asarray(case.xs[0]))
    for got, expected in zip(jax.tree.leaves((state, y)), jax.tree.leaves((expected_state, expected_y)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-14)


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


@pytest.mark.parametrize(("cell", "shapes"), [
    (jaxrnn.rnn(H), {"w_x": (I, H), "w_h": (H, H), "b": (H,)}),
    (jaxrnn.rnn(H, use_bias=False), {"w_x": (I, H), "w_h": (H, H), "b": None}),
    (jaxrnn.lstm(H), {"w_x": (I, 4 * H), "w_h": (H, 4 * H), "b": (4 * H,), "w_proj": None, "peephole": None, "norm": None}),
    (jaxrnn.lstm(H, projection_size=2, peephole=True), {"w_h": (2, 4 * H), "w_proj": (H, 2), "peephole": (3, H)}),
    (jaxrnn.lstm(H, coupled=True, peephole=True), {"w_x": (I, 3 * H), "b": (3 * H,), "peephole": (2, H)}),
    (jaxrnn.gru(H), {"w_x": (I, 3 * H), "w_h": (H, 3 * H), "b": (3 * H,), "b_hn": (H,), "norm": None}),
    (jaxrnn.gru(H, use_bias=False), {"b": None, "b_hn": None}),
    (jaxrnn.gru(H, reset_after=False), {"b": (3 * H,), "b_hn": None}),
    (jaxrnn.mgu(H), {"w_x": (I, 2 * H), "w_h": (H, 2 * H), "b": (2 * H,)}),
    (jaxrnn.indrnn(H), {"w_x": (I, H), "w_h": (H,), "b": (H,)}),
], ids=repr)  # fmt: skip
def test_parameters_have_the_documented_shapes(cell, shapes):
    params = cell.init(jax.random.key(0), I)
    assert {k: None if getattr(params, k) is None else getattr(params, k).shape for k in shapes} == shapes


def test_layer_normalisation_starts_as_the_identity_and_has_the_documented_shapes():
    norm = jaxrnn.lstm(H, layer_norm=True, coupled=True).init(jax.random.key(0), I).norm
    assert [leaf.shape for leaf in norm] == [(3 * H,), (3 * H,), (H,), (H,)]
    assert [set(np.asarray(leaf)) for leaf in norm] == [{1.0}, {1.0}, {1.0}, {0.0}]
    assert [leaf.shape for leaf in jaxrnn.gru(H, layer_norm=True).init(jax.random.key(0), I).norm] == [(3 * H,)] * 2


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


def test_a_callable_activation_is_differentiated_at_the_pre_activation(x64):
    """A callable's slope is taken at the pre-activation, not at the output."""
    cell = jaxrnn.rnn(1, activation=lambda a: a**3)
    params = jaxrnn.RNNParams(jnp.full((1, 1), 2.0), jnp.zeros((1, 1)), jnp.zeros(1))
    gradient = jax.grad(lambda x: jaxrnn.unroll(cell, params, x)[1].sum())(jnp.full((1, 1), 0.5))
    np.testing.assert_allclose(gradient, [[6.0]])
