"""Activations as functions: which of them mix units, and their gradients against finite differences of NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.cells._activation import NAMED, Phi
from jaxrnn.cells._elementwise import is_elementwise
from tests.support.registry import assert_close, quick_jit

ELEMENTWISE = {
    "sin": jnp.sin, "gelu": jax.nn.gelu, "silu": jax.nn.silu, "softplus": jax.nn.softplus, "elu": jax.nn.elu,
    "leaky_relu": jax.nn.leaky_relu, "hard_tanh": jax.nn.hard_tanh, "log_sigmoid": jax.nn.log_sigmoid,
    "identity": lambda a: a, "constant": jnp.ones_like, "clipped": lambda a: jnp.clip(a, -0.5, 0.5),
    "of each unit": lambda a: a * jnp.arange(5.0, dtype=a.dtype), "compiled": jax.jit(jnp.sin), "remat": jax.checkpoint(jnp.sin),
}  # fmt: skip
MIXED = {
    "softmax": jax.nn.softmax, "log_softmax": jax.nn.log_softmax, "standardize": jax.nn.standardize,
    "unit norm": lambda a: a / jnp.linalg.norm(a), "reversed": lambda a: a[::-1], "rolled": lambda a: jnp.roll(a, 1),
    "cumsum": jnp.cumsum, "sorted": jnp.sort, "mean": lambda a: jnp.full_like(a, a.mean()),
    "masked by the maximum": lambda a: jnp.where(a.max() > 0, a, 0 * a), "matrix": lambda a: a @ jnp.eye(5, k=1, dtype=a.dtype),
}  # fmt: skip


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_functions_are_recognised(name):
    assert is_elementwise(ELEMENTWISE[name], jnp.zeros(5))


@pytest.mark.parametrize("name", MIXED)
def test_functions_that_mix_units_are_recognised(name):
    assert not is_elementwise(MIXED[name], jnp.zeros(5))


def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def unit_norm(a):
    return a / np.sqrt((a * a).sum(-1, keepdims=True))


def standardize(a):
    return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5)


IN_NUMPY = {"softmax": softmax, "unit norm": unit_norm, "standardize": standardize}
T, B, I, H = 5, 2, 3, 4  # noqa: E741
LENGTHS = np.asarray([T, 3])


def loss_in_numpy(phi, params, xs, reverse):
    """Σ sin(3 y_t) over valid steps of a network of one layer."""
    total = 0.0
    for b, length in enumerate(LENGTHS):
        h = np.full(H, 0.3)
        for t in range(length - 1, -1, -1) if reverse else range(length):
            recurrent = h @ params.w_h if params.w_h.ndim == 2 else h * params.w_h
            h = phi(xs[t, b] @ params.w_x + recurrent + params.b)
            total += np.sin(3 * h).sum()
    return total


@pytest.mark.parametrize("checkpoint", [None, "gates", 2])
@pytest.mark.parametrize("name", IN_NUMPY)
@pytest.mark.parametrize("factory", [jaxrnn.rnn, jaxrnn.indrnn])
def test_gradients_of_mixed_units_equal_finite_differences(factory, name, checkpoint, x64):
    cell, rng, reverse = factory(H, activation=MIXED[name]), np.random.default_rng(0), checkpoint == "gates"
    shapes = jax.eval_shape(lambda key: cell.init(key, I), jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes)
    xs = rng.standard_normal((T, B, I))

    def loss(params):
        start, options = jnp.full((B, H), 0.3), {"reverse": reverse, "checkpoint": checkpoint}
        _, ys = jaxrnn.unroll(cell, params, xs, start, lengths=LENGTHS, **options)
        return jnp.sum(jnp.sin(3 * ys))

    value, gradient = quick_jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, loss_in_numpy(IN_NUMPY[name], params, xs, reverse), rtol=1e-12)
    for field in params._fields:
        expected, array = np.zeros_like(getattr(params, field)), getattr(params, field)
        for index in np.ndindex(array.shape):
            for sign in (1, -1):
                moved = array.copy()
                moved[index] += sign * 1e-6
                moved = loss_in_numpy(IN_NUMPY[name], params._replace(**{field: moved}), xs, reverse)
                expected[index] += sign * moved / 2e-6
        np.testing.assert_allclose(getattr(gradient, field), expected, rtol=2e-6, atol=2e-7)


def test_units_are_mixed_within_each_sequence_alone(x64):
    """A function that standardises its first axis gets the vector of one sequence, whatever the batch."""
    cell = jaxrnn.rnn(H, activation=lambda a: a - a.mean(0))
    params = cell.init(jax.random.key(0), I)
    xs = jax.random.normal(jax.random.key(1), (T, B, I))
    _, together = jaxrnn.unroll(cell, params, xs)
    for b in range(B):
        assert_close(together[:, b], jaxrnn.unroll(cell, params, xs[:, b])[1])


@pytest.mark.parametrize(("activation", "error", "message"), [
    (lambda a: a.sum(), ValueError, r"rnn: activation expected a function to an array of the same shape, got one from shape"),
    (lambda a: None, ValueError, "rnn: activation expected a function to an array of the same shape"),
    (lambda a: a + 1j, TypeError, "rnn: activation expected a function to real numbers, got one to complex"),
    (lambda a: a > 0, TypeError, "rnn: activation expected a function to real numbers, got one to bool"),
])  # fmt: skip
def test_functions_to_other_arrays_are_refused(activation, error, message):
    cell = jaxrnn.rnn(H, activation=activation)
    with pytest.raises(error, match=message), jax.numpy_dtype_promotion("standard"):
        jaxrnn.unroll(cell, cell.init(jax.random.key(0), I), jnp.ones((T, I)))


# Activations with names


POINTS = np.asarray([-30.0, -2.9, -2.4, -1.0, -0.3, -1e-3, 0.0, 1e-3, 0.2, 0.7, 1.5, 2.4, 3.1, 30.0])
WITH_PARAMETERS = {
    "hard_sigmoid": (0.2, 0.5), "elu": (0.7,), "leaky_relu": (0.3,), "thresholded_relu": (0.5,),
    "scaled_tanh": (1.7, 0.6), "affine": (-0.4, 0.1),
}  # fmt: skip


def in_numpy(name, a, alpha, beta):
    e = np.exp(np.minimum(a, 0))
    return {
        "tanh": lambda: np.tanh(a),
        "relu": lambda: np.maximum(a, 0),
        "sigmoid": lambda: 1 / (1 + np.exp(-a)),
        "hard_sigmoid": lambda: np.clip(alpha * a + beta, 0, 1),
        "softsign": lambda: a / (1 + np.abs(a)),
        "softplus": lambda: np.log1p(np.exp(-np.abs(a))) + np.maximum(a, 0),
        "elu": lambda: np.where(a > 0, a, alpha * (e - 1)),
        "leaky_relu": lambda: np.where(a > 0, a, alpha * a),
        "thresholded_relu": lambda: np.where(a > alpha, a, 0),
        "scaled_tanh": lambda: alpha * np.tanh(beta * a),
        "affine": lambda: alpha * a + beta,
        "identity": lambda: a,
    }[name]()


CASES = [(name, (), None) for name in NAMED]
CASES += [(name, parameters, clip) for name, parameters in WITH_PARAMETERS.items() for clip in (None, 1.2)]


@pytest.mark.parametrize(("name", "parameters", "clip"), CASES)
def test_named_activations_and_their_slopes(name, parameters, clip, x64):
    activation = jaxrnn.Activation(name, *parameters, clip=clip)
    defaults = {"alpha": NAMED[name].alpha, "beta": NAMED[name].beta}
    alpha, beta = (*parameters, *list(defaults.values())[len(parameters) :])
    bound = np.inf if clip is None else clip
    phi = functools.partial(in_numpy, name, alpha=alpha, beta=beta)
    h, kept = Phi("test", activation)(jnp.asarray(POINTS))
    np.testing.assert_allclose(h, phi(np.clip(POINTS, -bound, bound)), rtol=1e-12, atol=1e-15)
    by_hand = Phi("test", activation).pull_back(h, kept, jnp.full_like(h, 3.0))
    np.testing.assert_allclose(by_hand, 3 * jax.vmap(jax.grad(activation))(POINTS), rtol=1e-10, atol=1e-15)
    smooth = (np.abs(np.abs(POINTS) - bound) > 1e-3) & (POINTS != 0)
    change = phi(np.clip(POINTS + 1e-6, -bound, bound)) - phi(np.clip(POINTS - 1e-6, -bound, bound))
    np.testing.assert_allclose(by_hand[smooth], 3 * change[smooth] / 2e-6, rtol=1e-6, atol=1e-8)


def test_activations_compare_by_what_they_compute(unhooked):
    assert jaxrnn.Activation("hard_sigmoid", 0.2, 0.5) == jaxrnn.Activation("hard_sigmoid", alpha=np.float64(0.2))
    cell = jaxrnn.lstm(H, recurrent_activation=jaxrnn.Activation("hard_sigmoid", 1 / 6))
    assert cell == jaxrnn.lstm(H, recurrent_activation="hard_sigmoid")
    assert cell != jaxrnn.lstm(H, recurrent_activation=jaxrnn.Activation("hard_sigmoid", 0.2))
    assert jaxrnn.gru(H) != jaxrnn.gru(H, activation="relu")
    assert repr(jaxrnn.gru(H, activation=jaxrnn.Activation("tanh", clip=3))) == (
        "gru(4, activation=Activation('tanh', clip=3.0))"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("swish",), "Activation: name expected one of 'tanh', .*; got 'swish'"),
        (("tanh", 0.5), "Activation: alpha expected None, got float 0.5; tanh has none"),
        (("elu", 1.0, 2.0), "Activation: beta expected None, got float 2.0; elu has none"),
        (("elu", 0.0), "Activation: alpha expected a positive number, got 0.0"),
        (("affine", np.inf), "Activation: alpha expected a finite number, got inf"),
        (("relu", None, None, -1), "Activation: clip expected a positive number, got -1"),
        (("hard_sigmoid", "0.2"), "Activation: alpha expected a positive number, got str '0.2'"),
    ],
)
def test_parameters_that_an_activation_lacks_are_refused(given, message, unhooked):
    with pytest.raises((TypeError, ValueError), match=message):
        jaxrnn.Activation(*given)


@pytest.mark.parametrize("option", ["activation", "recurrent_activation"])
@pytest.mark.parametrize("factory", [jaxrnn.lstm, jaxrnn.gru, jaxrnn.modules.LSTM, jaxrnn.modules.GRUCell])
def test_cells_with_gates_name_the_activation_that_they_refuse(factory, option):
    is_module = factory not in (jaxrnn.lstm, jaxrnn.gru)
    sizes, more = ((I, H), {"rngs": nnx.Rngs(0)}) if is_module else ((H,), {})
    with pytest.raises(ValueError, match=rf"{factory.__name__}: {option} expected one of 'tanh', .* got 'swish'"):
        factory(*sizes, **{option: "swish"}, **more)


def test_a_function_that_changes_the_shape_is_named_by_its_option():
    cell = jaxrnn.lstm(H, recurrent_activation=lambda a: a[:2])
    with pytest.raises(ValueError, match="lstm: recurrent_activation expected a function to an array of the same"):
        jaxrnn.unroll(cell, cell.init(jax.random.key(0), I), jnp.ones((T, B, I)))


@pytest.mark.parametrize("factory", [jaxrnn.lstm, jaxrnn.gru])
def test_saved_cells_keep_their_activations(factory, tmp_path):
    cell = factory(H, activation="softsign", recurrent_activation=jaxrnn.Activation("hard_sigmoid", 0.2, 0.5, clip=3.0))
    jaxrnn.save(tmp_path / "cell", cell, cell.init(jax.random.key(0), I))
    assert jaxrnn.load(tmp_path / "cell")[0] == cell
    with pytest.raises(ValueError, match="network expected the equations of"):
        jaxrnn.load(tmp_path / "cell", factory(H))


def test_modules_run_the_cells_with_their_activations():
    phis = {"activation": "relu", "recurrent_activation": "hard_sigmoid"}
    module = jaxrnn.modules.GRU(I, H, **phis, rngs=nnx.Rngs(0))
    assert module.network.layers == (jaxrnn.gru(H, **phis),)
    with pytest.raises(ValueError, match="to_torch: activation expected 'tanh', got 'relu'; PyTorch has no other"):
        module.to_torch()


def test_gates_of_other_activations_are_not_ablated():
    with pytest.raises(NotImplementedError, match="which have gates that read the state and are σ"):
        jaxrnn.analysis.ablate_gates(jaxrnn.lstm(H, recurrent_activation="hard_sigmoid"), "f", 1.0)


NO_FLOATS = {"int32": jnp.array([1, 2]), "complex64": jnp.array([1j]), "float 1.0": 1.0, "list": [1.0]}


@pytest.mark.parametrize("got", NO_FLOATS)
def test_activations_of_what_is_no_floating_point_array_are_refused(got, unhooked):
    with pytest.raises(TypeError, match=f"^Activation: a expected an? .*array, got {got}"):
        jaxrnn.Activation("relu", clip=0.5)(NO_FLOATS[got])


def test_the_name_of_an_activation_is_a_plain_string():
    assert repr(jaxrnn.Activation(np.str_("elu"))) == "Activation('elu')"
