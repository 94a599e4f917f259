"""Trains in one process or in several: `python -m tests.support.distributed_worker FOLDER OPTIONS [PATIENCE]`."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.command import devices
from experiments.command.devices import ProcessOptions, check_devices, devices_of, start_devices
from experiments.training.loop import Settings, Task, fit, make_optimiser

B, T, INPUTS, HIDDEN, STEPS = 8, 6, 3, 5, 20


def task_of(dtype):
    """Trains a bidirectional LSTM with lengths, noise, and a carry that every example adds to."""
    network = jaxrnn.stack([jaxrnn.lstm(HIDDEN)], bidirectional=True)

    def init(key):
        return jax.tree.map(lambda leaf: leaf.astype(dtype), network.init(key, INPUTS))

    def batch(seed, step):
        rng = np.random.default_rng((seed, step))
        return rng.standard_normal((B, T, INPUTS)).astype(dtype), rng.integers(1, T + 1, B)

    def loss(params, carry, batch, key):
        xs, lengths = batch
        xs = xs + jnp.asarray(0.1, dtype) * jax.random.normal(key, xs.shape, dtype) + carry[0, :, None, None]
        _, ys = network.unroll(params, jnp.swapaxes(xs, 0, 1), lengths=lengths)
        return jnp.sum(jnp.square(ys - 1)) / lengths.sum().astype(dtype), carry + ys[:1, :, 0]

    return Task(init, loss, batch, examples=B, carry=np.zeros((1, B), dtype), carry_axis=1)


def trained(own, dtype):
    """The state of the training after 20 steps, without its keys."""
    settings = Settings(STEPS, STEPS, steps_per_call=5)
    course = fit(task_of(dtype), make_optimiser(0.01), (3,), settings, lambda params: {}, own)
    return course.state._replace(keys=())


def main(folder, options, patience="60"):
    devices.PATIENCE = int(patience)
    own = ProcessOptions(**json.loads(options))
    check_devices(own)
    start_devices(own)
    jax.config.update("jax_enable_x64", True)
    for dtype in (np.float32, np.float64):
        leaves = jax.tree.leaves(trained(devices_of(own), dtype))
        np.savez(Path(folder) / f"{np.dtype(dtype)}-{own.process}.npz", *map(np.asarray, leaves))


if __name__ == "__main__":
    main(*sys.argv[1:])
