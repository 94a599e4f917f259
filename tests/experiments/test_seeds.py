"""Seeds run in turn on a CPU and side by side on an accelerator, with the same results."""

import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments.command.devices import platform_of
from experiments.models import language
from experiments.models.readout import init_readout, many_to_one
from experiments.training import loop
from experiments.training.loop import Settings, Task, begin, fit, make_optimiser, training
from experiments.training.seeds import over_seeds, population
from tests.support.training import optax_promotes

SEEDS, STEPS, B, T = (3, 5, 8), 6, 4, 7
CELL = jaxrnn.gru(5)


def one_layer():
    """A GRU that reads noise and predicts the mean of its inputs."""

    def batch(seed, step):
        return np.random.default_rng((seed, step)).standard_normal((B, T, 2), np.float32)

    def loss(model, carry, xs, key):
        noisy = xs + 0.1 * jax.random.normal(key, xs.shape)
        read = many_to_one(CELL, model, noisy)
        return jnp.mean(jnp.square(read - xs.mean(1))), carry

    return Task(lambda key: init_readout(CELL, 5, 2, 2, key), loss, batch, examples=B)


def stream():
    """A language model with dropout, which passes its states from batch to batch."""
    text = np.random.default_rng(0).integers(0, 5, 200)
    model = language.language_model(5, cell="lstm", embedding=3, hidden_size=4, layers=1, dropout=0.2)
    return language.text_task(model, text, B, T)


def trained(task, platform):
    """State and losses `(STEPS, seeds)` of a short training."""
    optimiser = make_optimiser(0.01)
    run = training(task, optimiser, platform)
    with optax_promotes():
        return run(begin(task, optimiser, SEEDS), loop._batches(task, SEEDS, range(STEPS)))


@pytest.mark.parametrize("make", [one_layer, stream])
def test_seeds_train_the_same_side_by_side_and_in_turn(make):
    (state, losses), (other, others) = (trained(make(), platform) for platform in ("cpu", "gpu"))
    assert losses.shape == (STEPS, len(SEEDS))
    np.testing.assert_allclose(others, losses, rtol=1e-5)
    chex.assert_trees_all_close((other.params, other.carry), (state.params, state.carry), rtol=1e-5, atol=1e-6)


def test_population_evaluates_the_same_on_every_platform():
    models = jax.vmap(lambda key: init_readout(CELL, 5, 2, 2, key))(jax.random.split(jax.random.key(0), 3))
    xs = jnp.asarray(np.random.default_rng(1).standard_normal((B, T, 2), np.float32))
    found = {
        name: population(lambda model, xs: many_to_one(CELL, model, xs), name)(models, xs) for name in ("cpu", "tpu")
    }
    assert found["cpu"].shape == (3, B, 2)
    np.testing.assert_allclose(found["tpu"], found["cpu"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("platform", "loops"), [("cpu", 1), ("gpu", 0), ("tpu", 0)])
def test_only_a_cpu_loops_over_seeds(platform, loops):
    program = jax.make_jaxpr(over_seeds(lambda a, b: {"sum": a + b["x"]}, platform))(
        jnp.ones(3), {"x": jnp.ones((3, 2))}
    )
    assert sum(equation.primitive.name == "scan" for equation in program.eqns) == loops


def test_run_maps_its_seeds_by_the_platform_of_its_devices(monkeypatch):
    used = []
    monkeypatch.setattr(loop, "over_seeds", lambda f, platform: used.append(platform) or over_seeds(f, platform))
    accelerator = types.SimpleNamespace(platform="gpu")  # a single device holds no shard, so no array is placed on it
    for devices in ((), (jax.devices()[0],), (accelerator,)):
        with optax_promotes():
            fit(one_layer(), make_optimiser(0.01), SEEDS, Settings(1, 1), lambda params: {}, devices)
    assert used == ["cpu", "cpu", "gpu"]
    assert [platform_of(devices) for devices in ((), (accelerator,))] == ["cpu", "gpu"]
