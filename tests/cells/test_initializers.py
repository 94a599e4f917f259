"""Initial parameters: ranges, orthogonality, biases, and the papers that they come from."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import initializers
from tests.support.odd_values import faults
from tests.support.registry import quick_jit

KEY = jax.random.key(0)
FACTORIES = {"rnn": (jaxrnn.rnn, 1), "lstm": (jaxrnn.lstm, 4), "gru": (jaxrnn.gru, 3)}


def drawn(cell, input_size, key=KEY, dtype=None):
    return quick_jit(lambda key: cell.init(key, input_size, dtype))(key)


@pytest.mark.parametrize("name", FACTORIES)
def test_default_kernels_are_glorot_and_every_recurrent_gate_is_orthogonal(name):
    factory, gates = FACTORIES[name]
    params = drawn(factory(32), 96)
    limit = np.sqrt(6 / (96 + 32))
    assert 0.98 * limit < np.abs(params.w_x).max() <= limit
    for block in np.split(np.asarray(params.w_h), gates, axis=1):
        np.testing.assert_allclose(block @ block.T, np.eye(32), atol=1e-5)
    blocks = np.split(np.asarray(params.w_h), gates, axis=1)
    assert all(np.abs(a - b).max() > 0.1 for k, a in enumerate(blocks) for b in blocks[:k])


def test_forget_bias_is_one_and_other_biases_are_zero():
    b = np.split(np.asarray(drawn(jaxrnn.lstm(8), 3).b), 4)
    assert [set(block) for block in b] == [{0.0}, {1.0}, {0.0}, {0.0}]
    opened = drawn(jaxrnn.lstm(8, bias_init=initializers.gate_bias(0.5, f=3.0, o=-1.0)), 3).b
    assert [set(block) for block in np.split(np.asarray(opened), 4)] == [{0.5}, {3.0}, {0.5}, {-1.0}]


def test_gru_draws_b_hn_as_the_bias_of_its_last_gate():
    params = drawn(jaxrnn.gru(4, bias_init=initializers.gate_bias(r=1.0, z=2.0, n=3.0)), 3)
    assert set(np.asarray(params.b_hn).tolist()) == {3.0}
    assert [set(block) for block in np.split(np.asarray(params.b), 3)] == [{1.0}, {2.0}, {3.0}]


def test_torch_uniform_draws_from_the_range_of_pytorch():
    init = initializers.torch_uniform()
    bias = initializers.torch_uniform_bias()
    params = drawn(jaxrnn.lstm(64, kernel_init=init, recurrent_init=init, bias_init=bias), 10)
    for leaf in jax.tree.leaves(params):
        values = np.asarray(leaf)
        assert 0.97 / 8 < np.abs(values).max() <= 1 / 8
        assert values.std() == pytest.approx(1 / 8 / np.sqrt(3), rel=0.1)


def test_identity_initialiser_makes_an_irnn():
    cell = jaxrnn.rnn(5, activation="relu", recurrent_init=initializers.identity(0.5))
    params = drawn(cell, 2)
    np.testing.assert_array_equal(params.w_h, 0.5 * np.eye(5))
    final, _ = jaxrnn.unroll(cell, params, jnp.zeros((3, 2)), jnp.ones(5))
    np.testing.assert_allclose(final, np.full(5, 0.125))


def test_chrono_spreads_time_scales_up_to_max_time():
    lstm = jaxrnn.lstm(4000, bias_init=initializers.chrono(100), recurrent_init=jax.nn.initializers.zeros)
    b = np.split(np.asarray(drawn(lstm, 1).b), 4)
    np.testing.assert_array_equal(b[0], -b[1])
    assert not b[2].any()
    assert not b[3].any()
    spread = np.exp(b[1])
    assert spread.min() >= 1
    assert spread.max() <= 99
    assert spread.mean() == pytest.approx(50, rel=0.05)
    z, n = np.split(np.asarray(drawn(jaxrnn.min_gru(4000, bias_init=initializers.chrono(100)), 1).b), 2)
    assert -np.log(99) <= z.min() < -np.log(95)  # its gate writes: 1 - z is what is kept
    assert -np.log(1.1) < z.max() <= 0
    assert not n.any()
    r, z, n = np.split(np.asarray(drawn(jaxrnn.gru(16, bias_init=initializers.chrono(100)), 1).b), 3)
    assert not r.any()
    assert not n.any()
    assert z.min() >= 0
    assert z.std() > 0.3


def test_chrono_draws_times_that_its_dtype_cannot_hold():
    b = drawn(
        jaxrnn.gru(4000, bias_init=initializers.chrono(10**6), recurrent_init=jax.nn.initializers.zeros),
        1,
        dtype=jnp.float16,
    ).b
    z = np.exp(np.split(np.asarray(b, np.float64), 3)[1])
    assert z.mean() == pytest.approx(5e5, rel=0.05)
    assert z.max() <= 1.01e6


# An odd value is right where it is a number that the option can have.
NUMBER = {"0", "-1", "2.5", "10**12", "numbers"}
AXES = {"0", "-1", "an empty list", "an empty tuple", "in a list"}
OPTIONS = {
    "identity": ({"scale": 0.5}, {"scale": NUMBER}),
    "gate_bias": ({"default": 0.5, "f": 1.0}, {"default": NUMBER | {"inf"}, "f": NUMBER | {"inf"}}),
    "chrono": ({"max_time": 100}, {}),
    "glorot_uniform": (
        {"in_axis": -2, "out_axis": (1,), "batch_axis": (), "dtype": None},
        {"in_axis": AXES, "out_axis": AXES - {"in a list"}, "batch_axis": AXES - {"in a list"}, "dtype": {"None"}},
    ),
    "orthogonal": (
        {"scale": 0.5, "column_axis": -1, "dtype": None},
        {"scale": NUMBER, "column_axis": {"0", "-1"}, "dtype": {"None"}},
    ),
    "uniform": ({"scale": 0.5, "dtype": jnp.float32}, {"scale": NUMBER, "dtype": {"None"}}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_odd_options_are_refused_when_the_initialiser_is_made(name, unhooked):
    good, right = OPTIONS[name]
    found = faults(name, getattr(initializers, name), good, accepted=right)
    assert not found, "\n".join(found)


def test_init_follows_dtype_and_key():
    cell = jaxrnn.gru(4)
    params = drawn(cell, 3, dtype=jnp.bfloat16)
    chex.assert_type(jax.tree.leaves(params), jnp.bfloat16)
    a, b = drawn(cell, 3), drawn(cell, 3, key=jax.random.key(1))
    assert np.abs(np.asarray(a.w_x) - np.asarray(b.w_x)).max() > 0.1
    np.testing.assert_array_equal(a.w_x, drawn(cell, 3).w_x)
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda key: cell.init(key, 3), KEY).w_h.dtype == jnp.float64


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: jaxrnn.rnn(4, bias_init=initializers.gate_bias(f=1.0)).init(KEY, 2), ValueError, "gate 'f' is not one of"),
    (lambda: jaxrnn.rnn(4, bias_init=initializers.chrono(9)).init(KEY, 2), ValueError, "chrono: expected an LSTM or a GRU"),
    (lambda: jaxrnn.slstm(4, bias_init=initializers.chrono(9)).init(KEY, 2), ValueError, "the gates i, f, z, o"),
    (lambda: jaxrnn.rnn(4, kernel_init=initializers.identity()).init(KEY, 2), ValueError, "identity: shape expected a square"),
    (lambda: jaxrnn.rnn(4, kernel_init=initializers.orthogonal(column_axis=2)).init(KEY, 2), ValueError, r"orthogonal: expected axes that the shape \(2, 4\) has, got \(1.0, 2, None\)"),
    (lambda: initializers.glorot_uniform(in_axis=(0, 0)), ValueError, "glorot_uniform: in_axis expected each axis once"),
    (lambda: initializers.identity(np.inf), ValueError, "identity: scale expected a finite number, got inf"),
    (lambda: initializers.gate_bias(f=np.nan), ValueError, "gate_bias: f expected a number, got nan"),
    (lambda: initializers.chrono(10**12), ValueError, "chrono: max_time expected at most 2147483647, got 1000000000000"),
    (lambda: initializers.chrono(2), ValueError, "chrono: max_time expected at least 3"),
    (lambda: initializers.chrono(2.5), TypeError, "chrono: max_time expected a number of steps"),
    (lambda: initializers.gate_bias(f="1"), TypeError, "gate_bias: f expected a number"),
    (lambda: initializers.identity("1"), TypeError, "identity: scale expected a number"),
])  # fmt: skip
def test_bad_arguments_are_refused(make, error, message, unhooked):
    with pytest.raises(error, match=message):
        make()


JAX_BIASES = {
    "zeros_init": (jax.nn.initializers.zeros, 0.0, 0.0),
    "ones_init": (jax.nn.initializers.ones, 1.0, 0.0),
    "constant": (jax.nn.initializers.constant(0.3), 0.3, 0.0),
    "normal": (jax.nn.initializers.normal(0.5), 0.0, 0.5),
    "uniform": (jax.nn.initializers.uniform(1.0), 0.5, 1 / np.sqrt(12)),
    "without a default": (lambda key, shape, dtype: jnp.full(shape, 2, dtype), 2.0, 0.0),
}


@pytest.mark.parametrize("name", JAX_BIASES)
@pytest.mark.parametrize("factory", [jaxrnn.lstm, jaxrnn.gru])
def test_initialisers_of_jax_draw_the_bias_of_each_gate(factory, name):
    init, mean, spread = JAX_BIASES[name]
    size = 2000 if spread else 3
    biases = list(drawn(factory(size, kernel_init=ZEROS, recurrent_init=ZEROS, bias_init=init), 1)[2:])
    for block in np.split(np.concatenate([np.asarray(b) for b in biases if b is not None]), 4):
        assert block.mean() == pytest.approx(mean, abs=0.05 if spread else 1e-6)
        assert block.std() == pytest.approx(spread, abs=0.03 if spread else 1e-6)
    if spread:
        blocks = np.split(np.asarray(biases[0]), 3 if factory is jaxrnn.gru else 4)
        assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.1 for k, a in enumerate(blocks) for b in blocks[:k])


ZEROS = jax.nn.initializers.zeros


@pytest.mark.parametrize(("options", "message"), [
    ({"bias_init": lambda key, gates, size, dtype: jnp.zeros(3, dtype)}, r"lstm.init: bias_init expected an array of shape \(16,\), got float32\[3\]"),
    ({"bias_init": jax.nn.initializers.orthogonal()}, r"lstm.init: bias_init cannot draw shape \(4,\): "),
    ({"kernel_init": lambda key, shape, dtype: jnp.zeros(3, dtype)}, r"lstm.init: kernel_init expected an array of shape \(2, 4\), got float32\[3\]"),
    ({"recurrent_init": lambda key, shape, dtype: None}, r"lstm.init: recurrent_init expected an array of shape \(4, 4\), got None"),
])  # fmt: skip
def test_initialisers_that_return_another_shape_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jaxrnn.lstm(4, **options).init(KEY, 2)
