"""A memory that is sharded with the batch: equal to one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxrnn
from tests.support.registry import assert_close, numpy_of

pytestmark = pytest.mark.devices

DEVICES, T, B, F, S, M = 4, 5, 8, 3, 6, 4
LENGTHS = np.asarray([6, 2, 0, 1, 3, 4, 5, 6], np.int32)
CELLS = {"additive": jaxrnn.attend(jaxrnn.gru(4), M), "general": jaxrnn.attend(jaxrnn.lstm(4), M, score="general")}


def loss_of(cell):
    def loss(params, memory, xs, lengths):
        bound = jaxrnn.with_memory(cell, params, memory, lengths=lengths)
        ys = jaxrnn.unroll(cell, bound, xs)[1]
        return jnp.mean(jnp.sin(ys)), ys

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


@pytest.mark.parametrize("name", CELLS)
def test_a_memory_follows_the_batch(name):
    cell = CELLS[name]
    keys = jax.random.split(jax.random.key(1), 3)
    params = cell.init(keys[0], F)
    memory, xs = jax.random.normal(keys[1], (B, S, M)), jax.random.normal(keys[2], (T, B, F))
    run = loss_of(cell)
    (value, ys), gradients = wanted = numpy_of(run(params, memory, xs, LENGTHS))
    with jax.set_mesh(
        jax.make_mesh((DEVICES,), ("batch",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:DEVICES])
    ):
        mesh = jax.sharding.get_mesh()

        def put(array, *spec):
            return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

        sharded = put(xs, None, "batch")
        for own, lengths in ((put(memory, "batch"), put(LENGTHS, "batch")), (put(memory), put(LENGTHS))):
            assert_close(numpy_of(run(params, own, sharded, lengths)), wanted, "float32")
    parallel = jaxrnn.data_parallel(run, (None, 0, 1, 0), ((None, 1), (None, 0, 1)), devices=jax.devices()[:DEVICES])
    (mean, joined), (dparams, dmemory, dxs) = numpy_of(jax.jit(parallel)(params, memory, xs, LENGTHS))
    assert_close((mean, joined, dparams), (value, ys, gradients[0]), "float32")
    assert_close((dmemory / DEVICES, dxs / DEVICES), gradients[1:], "float32")  # each of the mean over its share


@pytest.mark.parametrize("name", CELLS)
def test_a_scan_of_steps_from_a_fresh_state_equals_that_of_the_whole_batch(name):
    cell = CELLS[name]
    keys = jax.random.split(jax.random.key(1), 3)
    params = cell.init(keys[0], F)
    memory, xs = jax.random.normal(keys[1], (B, S, M)), jax.random.normal(keys[2], (T, B, F))

    def loss(params, memory, xs):
        step = functools.partial(cell.step, jaxrnn.with_memory(cell, params, memory))
        _, ys = jax.lax.scan(step, cell.initial_state(xs.shape[1:-1]), xs)
        return jnp.mean(ys**2)

    parallel = jaxrnn.data_parallel(loss, (None, 0, 1), devices=jax.devices()[:DEVICES])
    assert_close(*(numpy_of(jax.jit(jax.grad(each))(params, memory, xs)) for each in (parallel, loss)), "float32")
