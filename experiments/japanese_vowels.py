"""Classifies nine speakers by their vowels, in sequences of 7 to 29 steps.

    python -m experiments.japanese_vowels

A bidirectional LSTM reads the 12 coefficients of each step; the class is read from the last state of both
directions, each at its own end of the sequence. Batches are padded, and `lengths` gives their lengths.
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
from experiments.command.options import among, check_total, positive
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.rows import Record, Row, mean_over_seeds
from experiments.command.script import Result, run_script
from experiments.datasets.batching import shuffled, steps_per_epoch
from experiments.datasets.vowels import Utterances, Vowels, load_vowels
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
    """Speakers by their vowels."""

    seeds: int = 5
    """How many runs, with --seed and the seeds after it."""
    data_dir: Path | None = None
    """Where the set is; otherwise the folder in JAXRNN_DATA, otherwise the user's cache."""
    cell: str = "lstm"
    """rnn, lstm, gru, min_gru, min_lstm or rg_lru."""
    hidden_size: int = 100
    """Hidden units of each direction."""
    bidirectional: bool = True
    """Read both ways."""
    epochs: int = 50
    """Passes over the 270 training utterances."""
    batch_size: int = 27
    """Utterances a step."""
    sort: bool = True
    """Batches of like lengths, the same in every epoch; otherwise they are shuffled."""
    learning_rate: float = 1e-3
    """Adam's, constant."""
    clip_norm: float = 1.0
    """Longest norm of the gradient of all parameters together."""
    out: Path = Path("results/japanese_vowels")
    """The folder for results.json, curves, logs and checkpoints."""


QUICK = {"epochs": 3, "seeds": 1, "hidden_size": 32}
PUBLISHED = 0.9541


class Classifier(nnx.Module):
    """A recurrent layer, and a linear layer that reads its last states."""

    def __init__(self, cell: str, features: int, hidden_size: int, bidirectional: bool, classes: int, rngs: nnx.Rngs):
        self.layer = LAYERS[cell](features, hidden_size, bidirectional=bidirectional, rngs=rngs)
        self.readout = readout_module(hidden_size * (2 if bidirectional else 1), classes, "softmax", rngs)

    def __call__(self, xs: jax.Array, lengths: jax.Array) -> jax.Array:
        """Logits `(B, classes)` of sequences `(B, T, I)`."""
        _, states = self.layer(jnp.swapaxes(xs, 0, 1), lengths=lengths)
        h = states[0] if isinstance(states, tuple) else states  # (directions, B, H)
        return self.readout.logits(jnp.concatenate(list(h), axis=-1))


def model_of(config: Config, vowels: Vowels) -> Functional[Classifier]:
    features, classes = vowels.train.xs.shape[-1], int(vowels.train.labels.max()) + 1
    options = (config.cell, features, config.hidden_size, config.bidirectional, classes)
    return functional(lambda rngs: Classifier(*options, rngs))


def task_of(config: Config, model: Functional[Classifier], train: Utterances) -> Task:
    by_length = np.argsort(train.lengths, kind="stable")

    def batch(seed: int, step: int) -> Utterances:
        if config.sort:
            first = step % steps_per_epoch(len(train.xs), config.batch_size) * config.batch_size
            chosen = by_length[first : first + config.batch_size]
        else:
            chosen = shuffled(len(train.xs), config.batch_size, seed, step)
        return Utterances(*(part[chosen] for part in train))

    def loss(params: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        logits = model.bind(params)(batch.xs, batch.lengths)
        return jaxrnn.readout_loss(logits, batch.labels).mean(), carry

    return Task(model.init, loss, batch, examples=config.batch_size)


def check(config: Config) -> None:
    positive(config, "hidden_size", "epochs", "batch_size", "learning_rate", "clip_norm")
    among(config, "cell", [name for name in LAYERS if name != "lru"])  # the read-out reads states, which must be real
    vowels = load_vowels(config.data_dir)
    check_total("--epochs", config.epochs, steps_per_epoch(len(vowels.train.xs), config.batch_size))
    check_runs(config, {"": {}})
    check_training(config, task_of(config, model_of(config, vowels), vowels.train))


def train(config: Config, vowels: Vowels, devices: Devices, show: Show) -> Course:
    model, epoch = model_of(config, vowels), steps_per_epoch(len(vowels.train.xs), config.batch_size)

    @functools.partial(population, platform=platform_of(devices))
    def right(params: Any, test: Any) -> jax.Array:
        return jnp.mean(model.bind(params)(test.xs, test.lengths).argmax(-1) == test.labels)

    test = jax.tree.map(jnp.asarray, vowels.test)
    return fit(
        task_of(config, model, vowels.train),
        make_optimiser(config.learning_rate, clip_norm=config.clip_norm),
        seeds_of(config),
        Settings(config.epochs * epoch, evaluate_every=epoch),
        lambda params: {"test accuracy": right(params, test)},
        devices,
        show,
        keeper_of(config, "", {}),
    )


def run(config: Config) -> Result:
    vowels = load_vowels(config.data_dir)
    total = config.epochs * steps_per_epoch(len(vowels.train.xs), config.batch_size)
    name = f"{'bidirectional ' if config.bidirectional else ''}{config.cell}"
    job = Job(total, functools.partial(train, config, vowels))
    course = side_by_side({name: job}, devices=devices_of(config))[name]
    print_accuracy("Japanese vowels: test accuracy after the last epoch, %", course, f"{100 * PUBLISHED:.1f}")
    title = f"Japanese vowels, {name}, {config.hidden_size} units"
    record = {**accuracy_record(course, seeds_of(config)), "published": PUBLISHED}
    return record, functools.partial(draw_accuracy, config.out / "learning_curves", title, course)


def rows(record: Record) -> Iterator[Row]:
    """The row of a record in the table of results."""
    obtained = mean_over_seeds(record["test_accuracy"], 1, 100)
    published = f"{100 * PUBLISHED:.1f} (MathWorks' example, stored re-run)"
    yield Row("test accuracy, %", record["parameters"], record["seconds"] / 60, obtained, published, "initial values")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script(
        "japanese_vowels", Config, run, check=check, quick=QUICK, writes=("learning_curves",), arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
