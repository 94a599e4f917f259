"""Iterations of Newton's method against the largest Lyapunov exponent, as the gain of W_h grows.

The weights are those of `gradient_flow`'s task, which symbol came before a stretch of noise, before and after a
brief training. The gain multiplies W_h of both.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.command.devices import Devices
from experiments.command.progress import Show
from experiments.gradient_flow.task import LEARNING_RATE, balanced_labels, by_seed, make_task, sequences, train
from experiments.gradient_flow.task import test_error as error_of
from experiments.models.cells import CONTESTANTS
from experiments.training.seeds import population
from jaxrnn import analysis

CELLS = ("rnn", "gru", "lstm")
SEQUENCES = 4  # one of each symbol
TRAINED_ON = 50  # steps of the longest training sequences


def measured(cell: jaxrnn.Cell, window: int, xs: jax.Array) -> Any:
    """A compiled function of parameters: the largest exponent of each sequence, and the convergence."""
    newton = jaxrnn.Newton(window=window)

    def call(params: Any) -> tuple[jax.Array, analysis.NewtonConvergence]:
        exponents = analysis.lyapunov_exponents(cell, params, xs, count=1).exponents
        return exponents, analysis.newton_convergence(cell, params, xs, newton=newton)

    return jax.jit(call)


def scanned(config: Any, name: str, devices: Devices, show: Show) -> dict[str, Any]:
    """Trains one cell and scans the gain, before and after."""
    cell = CONTESTANTS[name].make(config.hidden_size, config.steps)
    task = make_task(cell, config.hidden_size, TRAINED_ON, config.batch_size)
    errors = population(functools.partial(error_of, cell, TRAINED_ON), devices[0].platform)
    seeds = range(config.seed, config.seed + config.seeds)
    models, wrong = train(task, errors, LEARNING_RATE, seeds, config.updates, devices, show)
    with jax.enable_x64(True):
        xs = jnp.swapaxes(sequences(jax.random.key(config.seed), balanced_labels(SEQUENCES), config.steps), 0, 1)
        call = measured(cell, config.window, jnp.asarray(xs, jnp.float64))
        points = []
        for is_trained, population_of in enumerate(models):
            for gain in config.gains:
                params = [model.cell for model in by_seed(population_of)]
                found = [call(own._replace(w_h=gain * own.w_h)) for own in params]
                points.append({"trained": bool(is_trained), "gain": gain, **summary(found)})
    return {"cell": name, "errors": [float(np.mean(each)) for each in wrong], "points": points}


def summary(found: Sequence[tuple[jax.Array, analysis.NewtonConvergence]]) -> dict[str, Any]:
    """Means over seeds and sequences; of the iterations the mean and the largest over windows that converged."""
    counts = np.concatenate([np.asarray(each.iterations)[~np.asarray(each.by_steps)].ravel() for _, each in found])
    return {
        "exponent": round(float(np.mean([np.asarray(exponents) for exponents, _ in found])), 4),
        "windows": int(sum(len(each.by_steps) for _, each in found)),
        "by_steps": int(sum(int(np.sum(each.by_steps)) for _, each in found)),
        "iterations": round(float(counts.mean()), 2) if len(counts) else None,
        "most": int(counts.max()) if len(counts) else None,
    }
