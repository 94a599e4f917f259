"""Activations as functions: which of them mix units, and their gradients against finite differences of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
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
