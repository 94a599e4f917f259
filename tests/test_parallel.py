"""A batch shared out over devices: the same answers, and no exchange inside a loop."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.registry import assert_close, random_like

NET = jaxrnn.stack([jaxrnn.lstm(3), jaxrnn.gru(3)], bidirectional=True)
BATCH = 8  # two sequences for each of the four devices


def loss(params, xs, lengths, target):
    _, ys = NET.unroll(params, xs, lengths=lengths)
    return jnp.mean((ys - target) ** 2)


def operands(time=5, dtype=jnp.float64, batch=BATCH):
    params = jax.eval_shape(lambda key: NET.init(key, 2, dtype), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((time, batch, 2), dtype)
    target = jax.ShapeDtypeStruct((time, batch, 6), dtype)
    lengths = np.arange(batch, dtype=np.int32) % (time + 1)
    return random_like(0, params, dtype), random_like(1, xs, dtype), lengths, random_like(2, target, dtype)


def parallel(f=loss, in_axes=(None, 1, 0, 1), **options):
    return jaxrnn.data_parallel(f, in_axes, **options)


def test_value_and_gradient_are_those_of_the_whole_batch(x64):
    args = operands()
    alone = jax.jit(jax.value_and_grad(loss, (0, 1)))(*args)
    shared = jax.jit(parallel(jax.value_and_grad(loss)))(*args)
    assert_close(shared, (alone[0], alone[1][0]))
    assert_close(jax.jit(jax.grad(parallel()))(*args), alone[1][0])


@pytest.mark.parametrize("devices", [1, 2])
def test_on_some_of_the_devices(devices, x64):
    args = operands()
    shared = jax.jit(parallel(jax.value_and_grad(loss), devices=jax.devices()[:devices]))(*args)
    assert_close(shared, jax.jit(jax.value_and_grad(loss))(*args))


def test_noise_of_its_own_on_every_device():
    draw = parallel(lambda key: jax.random.normal(key[0], (4,)), in_axes=(0,))
    keys = jax.random.split(jax.random.key(0), 4)
    expected = np.mean([jax.random.normal(key, (4,)) for key in keys], axis=0)
    np.testing.assert_allclose(jax.jit(draw)(keys), expected, rtol=1e-6)


def test_no_collective_stands_in_a_loop():
    def reductions(time):
        """All-reduces in the entry computation, and in all others."""
        text = jax.jit(parallel(jax.value_and_grad(loss))).lower(*operands(time, jnp.float32, 128)).compile().as_text()
        computations = re.split(r"\n(?=\S)", text)
        entry = [c for c in computations if c.startswith("ENTRY")]
        count = lambda some: sum(len(re.findall(r" all-reduce(?:-start)?\(", c)) for c in some)  # noqa: E731
        return count(entry), count(computations) - count(entry)

    short, long = reductions(16), reductions(128)
    assert short == long
    assert long[0] > 0
    assert long[1] == 0


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: parallel(in_axes=1), TypeError, "data_parallel: in_axes expected a sequence, one entry an argument, got int"),
    (lambda: parallel(in_axes=(None, -1)), ValueError, "data_parallel: in_axes expected None or the number of an axis for each argument, got -1"),
    (lambda: parallel(in_axes=(None, True)), ValueError, "data_parallel: in_axes expected .*, got True"),
    (lambda: parallel(devices=[]), ValueError, "data_parallel: devices expected at least one, got none"),
    (lambda: parallel()(1, 2), TypeError, "data_parallel: expected 4 arguments, one for each of in_axes, got 2"),
    (lambda: parallel(in_axes=(1,))(jnp.ones(4)), ValueError, r"argument 0 expected arrays with an axis 1, got shape \(4,\)"),
    (lambda: parallel(in_axes=(1,))(jnp.ones((4, 6))), ValueError, r"argument 0 expected a batch axis 1 that 4 devices divide, got shape \(4, 6\)"),
])  # fmt: skip
def test_bad_input(call, error, message, unhooked):
    with pytest.raises(error, match=message):
        call()
