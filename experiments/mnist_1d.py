"""Classifies the sequences of MNIST-1D with a bidirectional GRU of 6 units, as its authors do.

    python -m experiments.mnist_1d
    python -m experiments.mnist_1d --shuffled      # the order of the 40 steps destroyed

The protocol is the published one: 4,000 sequences of 40 numbers in batches of 100 in the order of the file,
6,001 updates of Adam at 0.01, all 40 outputs of both directions into one linear layer, accuracy on 1,000 others.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
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
from experiments.command.rows import Record, Row, mean_over_seeds
from experiments.command.script import Result, run_script
from experiments.datasets.images import Images, load_mnist_1d
from experiments.models.functional import Functional, functional
from experiments.models.language import LAYERS
from experiments.models.readout import readout_module
from experiments.training.accuracy import accuracy_record, draw_accuracy, print_accuracy
from experiments.training.loop import Course, Settings, Task, fit, make_optimiser
from experiments.training.runs import RunOptions, check_runs, keeper_of, seeds_of
from experiments.training.seeds import population
from experiments.training.sizes import check_training


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """MNIST-1D by the published protocol."""

    seeds: int = 5
    """How many runs, with --seed and the seeds after it."""
    data_dir: Path | None = None
    """Not needed: the set is made by the package mnist1d."""
    shuffled: bool = False
    """Destroy the order of the steps, in the same way for every sequence."""
    cell: str = "gru"
    """rnn, lstm, gru, min_gru, min_lstm, rg_lru or lru."""
    hidden_size: int = 6
    """Hidden units of each direction."""
    steps: int = 6001
    """Updates."""
    batch_size: int = 100
    """Sequences a step."""
    learning_rate: float = 0.01
    """Adam's, constant."""
    out: Path = Path("results/mnist_1d")
    """The folder for results.json, curves, logs and checkpoints."""


QUICK = {"steps": 300, "seeds": 2}
EVALUATE_EVERY = 250
PUBLISHED = {False: (89.1, 91.0), True: (53.3, 57.0)}  # log of the notebook, and table


class Classifier(nnx.Module):
    """Both directions of a recurrent layer, and a linear layer that reads all their outputs at once."""

    def __init__(self, cell: str, length: int, hidden_size: int, classes: int, rngs: nnx.Rngs):
        self.layer = LAYERS[cell](1, hidden_size, bidirectional=True, batch_first=True, rngs=rngs)
        self.readout = readout_module(length * 2 * hidden_size, classes, "softmax", rngs)

    def __call__(self, xs: jax.Array) -> jax.Array:
        """Logits `(B, classes)` of sequences `(B, T, 1)`."""
        ys, _ = self.layer(xs)
        return self.readout.logits(ys.reshape(ys.shape[0], -1))


def load(config: Config) -> Images:
    return load_mnist_1d(config.data_dir, shuffled=config.shuffled)


def model_of(config: Config, length: int) -> Functional[Classifier]:
    return functional(lambda rngs: Classifier(config.cell, length, config.hidden_size, 10, rngs))


def sequences_of(images: np.ndarray) -> np.ndarray:
    """`(N, 1, 40)` as `(N, 40, 1)`."""
    return images.reshape(len(images), -1, 1)


def task_of(model: Functional[Classifier], images: Images, batch_size: int) -> Task:
    xs = sequences_of(images.train_images)

    def batch(seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        del seed  # every run reads the sequences in the order of the file
        first = step * batch_size % len(xs)
        return xs[first : first + batch_size], images.train_labels[first : first + batch_size]

    def loss(params: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        logits = model.bind(params)(batch[0])
        return jaxrnn.readout_loss(logits, batch[1]).mean(), carry

    return Task(model.init, loss, batch, examples=batch_size)


def check(config: Config) -> None:
    positive(config, "hidden_size", "steps", "batch_size", "learning_rate")
    among(config, "cell", list(LAYERS))
    images = load(config)
    count = len(images.train_images)
    if count % config.batch_size:
        raise ValueError(f"--batch-size {config.batch_size} does not divide the {count:,} sequences")
    check_runs(config, {"": {}})
    model = model_of(config, sequences_of(images.train_images).shape[1])
    check_training(config, task_of(model, images, config.batch_size))


def train(config: Config, images: Images, devices: Devices, show: Show) -> Course:
    test = sequences_of(images.test_images)
    model = model_of(config, test.shape[1])

    @functools.partial(population, platform=platform_of(devices))
    def right(params: Any, xs: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.mean(model.bind(params)(xs).argmax(-1) == labels)

    operands = jnp.asarray(test), jnp.asarray(images.test_labels)
    return fit(
        task_of(model, images, config.batch_size),
        make_optimiser(config.learning_rate, clip_norm=None),
        seeds_of(config),
        Settings(config.steps, EVALUATE_EVERY, steps_per_call=EVALUATE_EVERY),
        lambda params: {"test accuracy": right(params, *operands)},
        devices,
        show,
        keeper_of(config, "", {}),
    )


def run(config: Config) -> Result:
    images = load(config)
    name = f"{config.cell}, {config.hidden_size} units"
    job = Job(config.steps, functools.partial(train, config, images))
    course = side_by_side({name: job}, devices=devices_of(config))[name]
    low, high = PUBLISHED[config.shuffled]
    title = f"MNIST-1D{', shuffled' if config.shuffled else ''}: test accuracy after the last update, %"
    print_accuracy(title, course, f"{low} to {high}")
    title = f"MNIST-1D, bidirectional {config.cell.upper()}, {config.hidden_size} units"
    record = {**accuracy_record(course, seeds_of(config)), "published": [low / 100, high / 100]}
    return record, functools.partial(draw_accuracy, config.out / "learning_curves", title, course)


def rows(record: Record) -> Iterator[Row]:
    """The row of a record in the table of results."""
    obtained = mean_over_seeds(record["test_accuracy"], 1, 100)
    published = "{} to {} (Greydanus & Kobak 2024)".format(*PUBLISHED[False])
    differs = "24 parameters fewer: one bias where PyTorch has two"
    yield Row("test accuracy, %", record["parameters"], record["seconds"] / 60, obtained, published, differs)


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script(
        "mnist_1d", Config, run, check=check, quick=QUICK, writes=("learning_curves",), arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
