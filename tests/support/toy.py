"""A training script that needs no data and little time: the first symbol of a sequence, asked for at its end.

    python -m tests.support.toy --steps 20

For tests of what all scripts share: checkpoints, devices, processes and refusals.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxrnn
from experiments.command.devices import Devices, devices_of, platform_of
from experiments.command.options import among, positive
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.script import Result, run_script
from experiments.models.functional import Functional, functional
from experiments.models.language import LAYERS
from experiments.models.readout import readout_module
from experiments.training.loop import Course, Settings, Task, fit, make_optimiser
from experiments.training.runs import RunOptions, check_runs, keeper_of, seeds_of
from experiments.training.seeds import population
from experiments.training.sizes import CALLED, check_training, shapes_of

SYMBOLS, TIME = 3, 4


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """A recurrent layer and a read-out."""

    cell: str = "gru"
    """Of experiments.models.language."""
    hidden_size: int = 8
    """Hidden units."""
    embedding: int = 4
    """Entries of a symbol's vector."""
    steps: int = 100
    """Updates."""
    batch_size: int = 16
    """Sequences a step, drawn anew in each."""
    learning_rate: float = 3e-3
    """Adam's first."""
    evaluate_every: int = 50
    """Updates from one evaluation to the next."""
    out: Path = Path("results/toy")
    """The folder for results.json, logs and checkpoints."""


class Reader(nnx.Module):
    """An embedding, a recurrent layer, and a read-out of its last output."""

    def __init__(self, cell: str, embedding: int, hidden_size: int, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(SYMBOLS, embedding, rngs=rngs)
        self.layer = LAYERS[cell](embedding, hidden_size, rngs=rngs)
        self.readout = readout_module(hidden_size, SYMBOLS, "softmax", rngs)

    def __call__(self, symbols: jax.Array) -> jax.Array:
        """Logits `(B, SYMBOLS)` of sequences `(B, T)`."""
        return self.readout.logits(self.layer(self.embedding(symbols.T))[0][-1])


def model_of(config: Config) -> Functional[Reader]:
    return functional(lambda rngs: Reader(config.cell, config.embedding, config.hidden_size, rngs))


def task_of(config: Config, model: Functional[Reader]) -> Task:
    def batch(seed: int, step: int) -> np.ndarray:
        return np.random.default_rng((seed, step)).integers(0, SYMBOLS, (config.batch_size, TIME)).astype(np.int32)

    def loss(params: Any, carry: Any, batch: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        return jaxrnn.readout_loss(model.bind(params)(batch), batch[:, 0]).mean(), carry

    return Task(model.init, loss, batch, examples=config.batch_size)


def check(config: Config) -> None:
    positive(config, "hidden_size", "embedding", "steps", "batch_size", "learning_rate", "evaluate_every")
    among(config, "cell", list(LAYERS))
    check_runs(config, {"": {}})
    task = task_of(dataclasses.replace(config, batch_size=1), model_of(config))
    called = min(CALLED, config.steps, config.evaluate_every)
    check_training(config, task, shapes_of(task.batch(0, 0), config.batch_size), steps_per_call=called)


def train(config: Config, devices: Devices, show: Show) -> Course:
    model = model_of(config)
    test = np.random.default_rng(99).integers(0, SYMBOLS, (20, TIME)).astype(np.int32)

    @functools.partial(population, platform=platform_of(devices))
    def right(params: Any, symbols: jax.Array) -> jax.Array:
        return jnp.mean(model.bind(params)(symbols).argmax(-1) == symbols[:, 0])

    return fit(
        task_of(config, model),
        make_optimiser(config.learning_rate, cosine_steps=config.steps),
        seeds_of(config),
        Settings(config.steps, config.evaluate_every),
        lambda params: {"right": right(params, jnp.asarray(test))},
        devices,
        show,
        keeper_of(config, "", {}),
    )


def run(config: Config) -> Result:
    job = Job(config.steps, functools.partial(train, config))
    course = side_by_side({"toy": job}, devices=devices_of(config))["toy"]
    return {"right": course.metric("right")[-1].tolist()}, lambda: None


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script("toy", Config, run, check=check, quick={"steps": 20}, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
