"""An activation that closes over a traced number, on several devices: values and its gradient equal NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import jaxrnn
from tests.support.registry import quick_jit, random_like

T, B, H, SCALE = 4, 2, 4, 1.3


def operands():
    cell = jaxrnn.rnn(H)
    params = random_like(0, jax.eval_shape(lambda key: cell.init(key, H), jax.random.key(0)), jnp.float64)
    return params, random_like(1, jax.ShapeDtypeStruct((T, B, H), jnp.float64), jnp.float64)


def mesh():
    return jax.make_mesh((2,), ("units",), (AxisType.Auto,), devices=jax.devices()[:2])


def model(cell, params, xs):
    return jaxrnn.unroll(jaxrnn.model_parallel(cell, mesh(), "units"), params, xs)[1]


def layers(cell, params, xs):
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    return jaxrnn.pipeline(cell, mesh(), "units", chunk=2)(both, xs)[1]


def batch(cell, params, xs):
    run = jaxrnn.data_parallel(
        lambda params, xs: jaxrnn.unroll(cell, params, xs)[1], (None, 1), 1, devices=jax.devices()[:2]
    )
    return run(params, xs)


def in_numpy(scale, params, xs, depth):
    params, ys = jax.tree.map(np.asarray, (params, xs))
    for _ in range(depth):
        h, outputs = np.zeros((B, H)), []
        for x in ys:
            h = np.tanh(scale * (x @ params.w_x + h @ params.w_h + params.b))
            outputs.append(h)
        ys = np.stack(outputs)
    return ys


@pytest.mark.parametrize(("run", "depth"), [(model, 1), (layers, 2), (batch, 1)])
def test_values_and_gradient_equal_numpy(run, depth, x64):
    params, xs = operands()

    def outputs(scale):
        return run(jaxrnn.rnn(H, activation=lambda a: jnp.tanh(scale * a)), params, xs)

    def total(scale):
        ys = outputs(scale)
        return jnp.sum(ys), ys

    (_, ys), gradient = quick_jit(jax.value_and_grad(total, has_aux=True))(SCALE)
    np.testing.assert_allclose(ys, in_numpy(SCALE, params, xs, depth), atol=1e-12)
    step = 1e-6
    higher, lower = (in_numpy(SCALE + sign * step, params, xs, depth).sum() for sign in (1, -1))
    np.testing.assert_allclose(gradient, (higher - lower) / (2 * step), rtol=1e-6)
    np.testing.assert_allclose(quick_jit(jax.vmap(outputs))(jnp.asarray([0.5, SCALE]))[1], ys, atol=1e-12)
