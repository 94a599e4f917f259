"""A small task whose training the tests repeat by hand, and its runs with checkpoints."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training import checkpoints
from experiments.training.checkpoints import Checkpoints
from experiments.training.logs import Keepers, Log
from experiments.training.loop import Settings, Task, fit, make_optimiser, training
from experiments.training.seeds import population


def pull(params, carry, batch, key):
    """Half the squared distance from a target that moves, is noisy, and depends on the carry."""
    target = batch["to"] + 0.1 * jax.random.normal(key, batch["to"].shape) + 0.01 * carry
    return jnp.sum(jnp.square(params["w"] - target)) / 2, carry + 1


def batch(seed, step):
    return {"to": np.float32([seed, step, seed * step])}


TASK = Task(lambda key: {"w": jax.random.normal(key, (3,))}, pull, batch, examples=3, carry=np.float32(0))
DISTANCE = population(lambda params, to: jnp.linalg.norm(params["w"] - to), "cpu")


def distance(params):
    return {"distance": DISTANCE(params, jnp.float32([2.0, 10.0, 20.0]))}


ABOUT = {"cell": "gru", "sizes": (3, 4)}
ADAM = make_optimiser(0.1)
LONG = Settings(steps=20, evaluate_every=5, minimise="distance", steps_per_call=2)
TRAIN_ADAM = training(TASK, ADAM, "cpu")


def kept(folder, *, resume, every=1):
    return Keepers(Checkpoints(folder, ABOUT, resume=resume, every=every), Log(folder))


def run(settings=LONG, keeper=None, evaluate=distance):
    with jax.numpy_dtype_promotion("standard"):
        return fit(TASK, ADAM, (3, 5), settings, evaluate, keeper=keeper, run=TRAIN_ADAM)


def assert_same(a, b):
    parts = [
        (checkpoints._arrays(course), course.best.waited, [f._replace(seconds=0) for f in course.history])
        for course in (a, b)
    ]
    chex.assert_trees_all_equal(*parts)


class Killed(Exception):
    pass


def stopped_at(step, folder, settings=LONG, evaluate=distance):
    """Ends a run by an error after the checkpoint of a step."""

    def until(params):
        evaluations.append(None)
        if settings.evaluate_every * len(evaluations) > step:
            raise Killed
        return evaluate(params)

    evaluations = []
    with pytest.raises(Killed):
        run(settings, kept(folder, resume=False), until)
