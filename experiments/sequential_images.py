"""Reads images as sequences, by rows, by pixels, or by pixels in a random order, and compares recurrent networks.

    python -m experiments.sequential_images

Read by rows, an image of 8 x 8 pixels is 8 steps of 8 numbers. Read by pixels it is 64
steps of one number, and the network must remember the first pixels to the end. The class is read from the last
output by a linear layer.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression

import jaxrnn
from experiments.command.devices import Devices, devices_of, platform_of
from experiments.command.figures import Curve, Panel, learning_curves
from experiments.command.options import among, check_total, positive
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.rows import Record, Row, mean_over_seeds
from experiments.command.script import Result, run_script
from experiments.datasets.batching import shuffled
from experiments.datasets.images import DATASETS, Images
from experiments.models.cells import AFFINE, CONTESTANTS
from experiments.models.readout import Readout, init_readout, many_to_one
from experiments.training.loop import Course, Settings, Task, fit, make_optimiser
from experiments.training.runs import RunOptions, check_runs, keeper_of, seeds_of
from experiments.training.seeds import population
from experiments.training.sizes import check_training


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """Recurrent networks that read images."""

    seeds: int = 3
    """How many runs, with --seed and the seeds after it."""
    dataset: str = "digits"
    """Which images: digits, mnist, fashion-mnist, or mnist-1d, which has one pixel a row."""
    data_dir: Path | None = None
    """Where the images are; otherwise the folder in JAXRNN_DATA, otherwise the user's cache."""
    readings: tuple[str, ...] = ("rows", "pixels")
    """How the images are read: any of rows, pixels, permuted."""
    cells: tuple[str, ...] = ("rnn", "lstm", "gru")
    """Which cells to compare."""
    hidden_size: int = 64
    """Hidden units of every cell."""
    epochs: int = 40
    """Passes over the training images."""
    batch_size: int = 32
    """Images a step; what is left over in an epoch is skipped, others every time."""
    learning_rate: float | None = None
    """Adam's first learning rate, which falls to 0 along a cosine; by default 0.003 without gates, 0.01 with them."""
    clip_norm: float = 1.0
    """Longest norm of the gradient of all parameters together."""
    limit: int | None = None
    """Train on the first so many images only."""
    out: Path = Path("results/sequential_images")
    """The folder for results.json, the learning curves, logs and checkpoints."""


QUICK = {"epochs": 2, "seeds": 1, "hidden_size": 32, "limit": 640}
READINGS = {"rows": "row by row", "pixels": "pixel by pixel", "permuted": "pixels, permuted"}
PUBLISHED = {  # by set, reading and cell; with 256 units and 20 epochs
    ("mnist", "rows", "lstm"): "98.9 (Atienza, 256 units, 20 epochs)",
    ("mnist", "rows", "rnn"): "98.0 (Atienza, 256 units, 20 epochs)",
}
TEST_BATCH = 256  # images; 784 steps of more would need gigabytes


class Run(NamedTuple):
    """One cell, one way of reading, all seeds."""

    reading: str
    cell: str
    learning_rate: float
    parameters: int
    course: Course

    @property
    def accuracies(self) -> np.ndarray:
        """`(epochs, seeds)`, on the test images."""
        return self.course.metric("test accuracy")


def as_sequences(images: np.ndarray, reading: str) -> np.ndarray:
    """Images `(N, height, width)` as `(N, T, I)`: T rows, or T pixels one row after another or in another order."""
    if reading == "rows":
        return images
    pixels = images.reshape(len(images), -1, 1)
    return pixels if reading == "pixels" else pixels[:, np.random.default_rng(0).permutation(pixels.shape[1])]


def task_of(cell: jaxrnn.Cell, config: Config, images: Images, reading: str) -> Task:
    """Sequences `(B, T, I)` and their classes."""
    sequences, classes = as_sequences(images.train_images, reading), int(images.train_labels.max()) + 1

    def batch(seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = shuffled(len(sequences), config.batch_size, seed, step)
        return sequences[chosen], images.train_labels[chosen]

    def loss(model: Readout, carry: Any, batch: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[jax.Array, Any]:
        xs, labels = batch
        logits = many_to_one(cell, model, xs)
        return jaxrnn.readout_loss(logits, labels).mean(), carry

    return Task(
        functools.partial(init_readout, cell, config.hidden_size, sequences.shape[-1], classes),
        loss,
        batch,
        examples=config.batch_size,
    )


def accuracy_of(
    cell: jaxrnn.Cell, sequences: np.ndarray, labels: np.ndarray, platform: str
) -> Callable[[Readout], dict[str, Any]]:
    """A function of models, one for each seed, to their accuracies."""

    @functools.partial(population, platform=platform)
    def accuracy(model: Readout, sequences: jax.Array, labels: jax.Array) -> jax.Array:
        def classes(x: jax.Array) -> jax.Array:
            return many_to_one(cell, model, x).argmax(-1)

        return jnp.mean(jax.lax.map(classes, sequences, batch_size=TEST_BATCH) == labels)

    operands = jnp.asarray(sequences), jnp.asarray(labels)
    return lambda models: {"test accuracy": accuracy(models, *operands)}


def learning_rate_of(config: Config, name: str) -> float:
    if config.learning_rate is not None:
        return config.learning_rate
    return 0.01 if name.startswith(("lstm", "gru", *AFFINE)) else 0.003


def train(config: Config, images: Images, reading: str, name: str, devices: Devices, show: Show) -> Run:
    """Trains one cell with every seed, and tests it after every epoch."""
    test = as_sequences(images.test_images, reading)
    cell = CONTESTANTS[name].make(config.hidden_size, test.shape[1])
    epoch = len(images.train_images) // config.batch_size
    rate, steps = learning_rate_of(config, name), config.epochs * epoch
    course = fit(
        task_of(cell, config, images, reading),
        make_optimiser(rate, clip_norm=config.clip_norm, cosine_steps=steps),
        seeds_of(config),
        Settings(steps, evaluate_every=epoch),
        accuracy_of(cell, test, images.test_labels, platform_of(devices)),
        devices,
        show,
        keeper_of(config, f"{reading}-{name}", {}),
    )
    return Run(reading, name, rate, course.parameters, course)


def load(config: Config) -> Images:
    """The images to use; a `ValueError` or `OSError` with one line of text if they are not there or too few."""
    images = DATASETS[config.dataset].load(config.data_dir)
    classes = len(np.unique(images.test_labels))
    images = images._replace(
        train_images=images.train_images[: config.limit], train_labels=images.train_labels[: config.limit]
    )
    if len(np.unique(images.train_labels)) < classes:
        raise ValueError(f"--limit {config.limit} leaves a class without an image; give a larger one")
    if config.batch_size > len(images.train_images):
        raise ValueError(
            f"--batch-size {config.batch_size} is more than the {len(images.train_images)} training images"
        )
    return images


def check(config: Config) -> None:
    positive(config, "hidden_size", "epochs", "batch_size", "limit", "learning_rate", "clip_norm")
    among(config, "dataset", list(DATASETS))
    among(config, "readings", list(READINGS))
    among(config, "cells", list(CONTESTANTS))
    images = load(config)
    check_total("--epochs", config.epochs, len(images.train_images) // config.batch_size)
    runs = [f"{reading}-{name}" for reading in config.readings for name in config.cells]
    check_runs(config, {name: {} for name in runs})
    reading = config.readings[0] if set(config.readings) == {"rows"} else "pixels"
    for name in dict.fromkeys(config.cells):
        cell = CONTESTANTS[name].make(config.hidden_size, 1)
        check_training(config, task_of(cell, config, images, reading), jobs=len(runs))


def logistic_regression(images: Images) -> dict[str, Any]:
    """The accuracy of a linear classifier of the raw pixels, which does not use their order."""
    start = time.perf_counter()
    model = LogisticRegression(max_iter=1000)
    model.fit(images.train_images.reshape(len(images.train_images), -1), images.train_labels)
    accuracy = model.score(images.test_images.reshape(len(images.test_images), -1), images.test_labels)
    parameters = np.size(model.coef_) + np.size(model.intercept_)
    return {"accuracy": float(accuracy), "parameters": parameters, "seconds": time.perf_counter() - start}


def spread(values: np.ndarray) -> float | None:
    """The standard deviation over seeds, as estimated from a sample; of one seed there is none."""
    return float(values.std(ddof=1)) if len(values) > 1 else None


def as_record(config: Config, images: Images, runs: Sequence[Run], baseline: dict[str, Any]) -> dict[str, Any]:
    """What results.json holds."""
    return {
        "images": {"train": len(images.train_images), "test": len(images.test_images)},
        "logistic_regression": baseline,
        "runs": [
            {
                "reading": run.reading,
                "cell": run.cell,
                "learning_rate": run.learning_rate,
                "parameters": run.parameters,
                "seconds": run.course.seconds,
                "seeds": list(seeds_of(config)),
                "test_accuracy": run.accuracies[-1].tolist(),
                "test_accuracy_mean": float(run.accuracies[-1].mean()),
                "test_accuracy_std": spread(run.accuracies[-1]),
                "test_accuracy_by_epoch": run.accuracies.round(5).tolist(),
                "train_loss_by_epoch": np.stack([found.loss for found in run.course.history]).round(5).tolist(),
            }
            for run in runs
        ],
    }


def print_table(config: Config, runs: Sequence[Run], baseline: dict[str, Any]) -> None:
    over = f"mean ± std of {config.seeds} seeds" if config.seeds > 1 else "one seed"
    table = Table(title=f"{config.dataset}: test accuracy after the last epoch, {over}")
    table.add_column("read")
    table.add_column("cell")
    for heading in ("accuracy, %", "parameters", "seconds"):
        table.add_column(heading, justify="right")
    for run in runs:
        last = run.accuracies[-1]
        std = spread(last)
        shown = f"{100 * last.mean():.1f}" + ("" if std is None else f" ± {100 * std:.1f}")
        label = CONTESTANTS[run.cell].label
        table.add_row(READINGS[run.reading], label, shown, f"{run.parameters:,}", f"{run.course.seconds:.1f}")
    accuracy = f"{100 * baseline['accuracy']:.1f}" + " " * 6
    table.add_row(
        "all at once", "logistic regression", accuracy, f"{baseline['parameters']:,}", f"{baseline['seconds']:.1f}"
    )
    Console().print(table)


def draw(config: Config, runs: Sequence[Run], baseline: dict[str, Any]) -> None:
    def curves(reading: str) -> list[Curve]:
        looks = [(CONTESTANTS[run.cell], run.accuracies) for run in runs if run.reading == reading]
        return [Curve(look.label, look.colour, accuracies) for look, accuracies in looks]

    panels = [Panel(f"Read {READINGS[reading]}", curves(reading)) for reading in config.readings]
    seeds = f"mean and range of {config.seeds} seeds" if config.seeds > 1 else "one seed"
    title = f"{config.dataset.capitalize()} as sequences, {config.hidden_size} hidden units, {seeds}"
    learning_curves(config.out / "learning_curves", title, panels, ("logistic regression", baseline["accuracy"]))


def run(config: Config) -> Result:
    images = load(config)
    baseline = logistic_regression(images)
    total = config.epochs * (len(images.train_images) // config.batch_size)
    jobs = {
        f"{READINGS[reading]}, {CONTESTANTS[name].label}": Job(
            total, functools.partial(train, config, images, reading, name)
        )
        for reading in config.readings
        for name in config.cells
    }
    runs = list(side_by_side(jobs, devices=devices_of(config)).values())
    print_table(config, runs, baseline)
    return as_record(config, images, runs, baseline), functools.partial(draw, config, runs, baseline)


def rows(record: Record) -> Iterator[Row]:
    """The rows of a record in the table of results."""
    name = record["config"]["dataset"]
    for run in record["runs"]:
        what = f"{name}, {READINGS[run['reading']]}, {CONTESTANTS[run['cell']].label}: test accuracy, %"
        obtained = mean_over_seeds(run["test_accuracy"], 1, 100)
        published = PUBLISHED.get((name, run["reading"], run["cell"]), "-")
        differs = f"{record['config']['hidden_size']} units, {record['config']['epochs']} epochs"
        yield Row(what, run["parameters"], run["seconds"] / 60, obtained, published, differs)
    baseline = record["logistic_regression"]
    obtained = f"{100 * baseline['accuracy']:.1f}"
    what, minutes = f"{name}, logistic regression of all pixels, %", baseline["seconds"] / 60
    yield Row(what, baseline["parameters"], minutes, obtained, "-", "-")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script(
        "sequential_images", Config, run, check=check, quick=QUICK, writes=("learning_curves",), arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
