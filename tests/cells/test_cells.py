"""The step of every cell against its equations in NumPy, and the shapes of parameters and states."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from tests.support import in_numpy
from tests.support.programs import step_of
from tests.support.registry import CELLS, H, I, cell_of, make, numpy_of, of_cell, quick_jit


@pytest.mark.parametrize("name", [of_cell(name) for name in CELLS])
def test_step_equals_its_equations_in_numpy(name, x64):
    case = make(name)
    x = np.asarray(case.xs)[0]
    got = step_of(name)(case.params, case.state, x)
    chex.assert_trees_all_close(got, in_numpy.step(name, case.params, case.state, x), rtol=0, atol=2e-14)


def test_concatenated_form_equals_split_form(x64):
    """[h, x] times one concatenated matrix equals h W_h + x W_x."""
    case = make("lstm")
    params, x, (h, c) = numpy_of((case.params, np.asarray(case.xs)[0], case.state))
    concatenated = np.concatenate([params.w_h, params.w_x])
    i, f, g, o = np.split(np.concatenate([h, x], -1) @ concatenated + params.b, 4, -1)
    c = in_numpy.sigmoid(f) * c + in_numpy.sigmoid(i) * np.tanh(g)
    state, _ = step_of("lstm")(case.params, case.state, x)
    np.testing.assert_allclose(state.c, c, atol=2e-15)
    np.testing.assert_allclose(state.h, in_numpy.sigmoid(o) * np.tanh(c), atol=2e-15)


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
    params = jax.eval_shape(lambda key: cell.init(key, I), jax.random.key(0))
    assert {k: None if getattr(params, k) is None else getattr(params, k).shape for k in shapes} == shapes


def test_layer_norm_starts_as_the_identity_in_the_documented_shapes():
    cells = jaxrnn.lstm(H, layer_norm=True, coupled=True), jaxrnn.gru(H, layer_norm=True)
    lstm, gru = (quick_jit(lambda key, cell=cell: cell.init(key, I))(jax.random.key(0)).norm for cell in cells)
    chex.assert_shape(lstm, [(3 * H,), (3 * H,), (H,), (H,)])
    assert [set(np.asarray(leaf)) for leaf in lstm] == [{1.0}, {1.0}, {1.0}, {0.0}]
    chex.assert_shape(gru, [(3 * H,), (3 * H,)])


def test_states_have_the_documented_types():
    state = jaxrnn.lstm(H).initial_state((2, 3), jnp.bfloat16)
    assert isinstance(state, jaxrnn.LSTMState)
    chex.assert_shape(state.c, (2, 3, H))
    assert state.h.dtype == jnp.bfloat16
    chex.assert_shape(jaxrnn.gru(H).initial_state(), (H,))


class StepsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_steps_equal_values_computed_on_paper(self):
        """The cells have one unit, all weights are 1, x = 1, h = c = 1."""
        rnn_step, lstm_step, gru_step = map(self.variant, (jaxrnn.rnn_step, jaxrnn.lstm_step, jaxrnn.gru_step))
        one = jnp.ones
        half = 1 / (1 + np.exp(-2.0))  # σ(1 + 1)
        _, y = rnn_step(jaxrnn.RNNParams(one((1, 1)), one((1, 1))), one(1), one(1))
        np.testing.assert_allclose(y, np.tanh(2.0), rtol=1e-6)
        state = jaxrnn.LSTMState(one(1), one(1))
        (_, c), y = lstm_step(jaxrnn.LSTMParams(one((1, 4)), one((1, 4))), state, one(1))
        np.testing.assert_allclose(c, half + half * np.tanh(2.0), rtol=1e-6)
        np.testing.assert_allclose(y, half * np.tanh(half + half * np.tanh(2.0)), rtol=1e-6)
        params = jaxrnn.GRUParams(one((1, 3)), one((1, 3)))
        _, y = gru_step(params, one(1), one(1))
        np.testing.assert_allclose(y, (1 - half) * np.tanh(1 + half) + half, rtol=1e-6)
        biased = params._replace(b_hn=one(1))
        _, y = gru_step(biased, one(1), one(1))
        np.testing.assert_allclose(y, (1 - half) * np.tanh(1 + half * 2) + half, rtol=1e-6)


def test_step_refuses_a_parameter_that_its_equations_do_not_read():
    params = jaxrnn.GRUParams(jnp.ones((2, 12)), jnp.ones((4, 12)), jnp.ones(12), jnp.ones(4))
    with pytest.raises(ValueError, match="gru_step: params.b_hn expected None, got float32"):
        jaxrnn.gru_step(params, jnp.zeros(4), jnp.ones(2), reset_after=False)


def test_callable_activation_is_differentiated_at_its_preactivation(x64):
    """The preactivation is 2 and the output 8, so the slope is 3 · 2², and not 3 · 8²."""
    cell = jaxrnn.rnn(1, activation=lambda a: a**3)
    params = jaxrnn.RNNParams(jnp.full((1, 1), 2.0), jnp.zeros((1, 1)), jnp.zeros(1))
    gradient = jax.grad(lambda x: jaxrnn.unroll(cell, params, x)[1].sum())(jnp.ones((1, 1)))
    np.testing.assert_allclose(gradient, [[2 * 3 * 2.0**2]])


@pytest.mark.parametrize("name", CELLS)
def test_no_two_arrays_of_parameters_and_states_share_a_buffer(name):
    """Two that did could not be donated together."""
    cell = cell_of(name)
    leaves = jax.tree.leaves((cell.init(jax.random.key(0), H), cell.initial_state((2,))))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    add = jax.jit(lambda leaves: [leaf + 1 for leaf in leaves], donate_argnums=0)
    before = [np.asarray(leaf).copy() for leaf in leaves]
    chex.assert_trees_all_close(add(leaves), [leaf + 1 for leaf in before])
    assert all(leaf.is_deleted() for leaf in leaves)


@pytest.mark.parametrize("cls", ["LSTM", "GRU", "LSTMCell", "GRUCell"])
def test_no_two_parameters_of_a_module_share_a_buffer(cls):
    module = getattr(jaxrnn.modules, cls)(3, 4, layer_norm=True, rngs=nnx.Rngs(0))
    leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
