"""Reads images as sequences, row by row and pixel by pixel, and compares tanh, LSTM and GRU networks.

    python -m experiments.sequential_images

A row at a time, an image of 8 x 8 pixels is 8 steps of 8 numbers; a pixel at a time it is 64
steps of one number, and the first pixels are to be remembered to the end. The class is read from the last
output by a linear layer. All seeds train at once, under `jax.vmap`.
"""

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from sklearn.linear_model import LogisticRegression

import jaxrnn
from experiments._data import DATASETS, Images
from experiments._devices import sharing, use_all_cores
from experiments._figures import Curve, Panel, learning_curves
from experiments._report import environment, throughput_bar, writable_folder, write_json


@dataclasses.dataclass(frozen=True)
class Config:
    """Recurrent networks that read images."""

    dataset: str = "digits"
    """Which images: digits or mnist."""
    data_dir: Path | None = None
    """Where the images are; otherwise the folder in JAXRNN_DATA, otherwise the user's cache."""
    reading: str = "both"
    """Read the images by rows, by pixels, or both."""
    cells: tuple[str, ...] = ("rnn", "lstm", "gru")
    """Which cells to compare: any of rnn, lstm, gru."""
    hidden_size: int = 64
    """Hidden units of every cell."""
    epochs: int = 40
    """Passes over the training images."""
    batch_size: int = 32
    """Images a step; what is left over in an epoch is skipped, others every time."""
    learning_rate: float | None = None
    """Adam's first learning rate, which falls to 0 along a cosine; by default 0.003 for rnn, 0.01 for lstm and gru."""
    clip_norm: float = 1.0
    """Longest norm of the gradient of all parameters together."""
    chrono: bool = False
    """Draw the biases of lstm and gru for memories of 1 to T steps, instead of the cells' own defaults."""
    seeds: int = 3
    """How many runs, with the seeds 0, 1, ..."""
    limit: int | None = None
    """Train on the first so many images only."""
    out: Path = Path("results/sequential_images")
    """The folder for results.json and learning_curves.png."""


class CellChoice(NamedTuple):
    """A cell to compare, and what it is shown with."""

    label: str
    make: Callable[..., jaxrnn.Cell]
    learning_rate: float
    gated: bool
    colour: str


CELLS = {
    "rnn": CellChoice("tanh RNN", jaxrnn.rnn, 0.003, gated=False, colour="#D55E00"),
    "lstm": CellChoice("LSTM", jaxrnn.lstm, 0.01, gated=True, colour="#0072B2"),
    "gru": CellChoice("GRU", jaxrnn.gru, 0.01, gated=True, colour="#009E73"),
}
READINGS = {"rows": "row by row", "pixels": "pixel by pixel"}
STEPS_PER_CALL = 50  # of training, inside one compiled call: long enough to cost nothing, short enough for the bar
TEST_BATCH = 256  # images; 784 steps of more would need gigabytes


class Model(NamedTuple):
    """Everything that is trained: a cell, and a linear layer on its last output."""

    cell: Any
    w: jax.Array  # (H, classes)
    b: jax.Array  # (classes,)


class TrainState(NamedTuple):
    model: Model
    optimiser: optax.OptState


class Run(NamedTuple):
    """One cell, one way of reading, all seeds."""

    reading: str
    cell: str
    learning_rate: float
    parameters: int
    seconds: float  # compilation included
    losses: np.ndarray  # (epochs, seeds), mean over the epoch
    accuracies: np.ndarray  # (epochs, seeds), on the test images


def make_cell(config: Config, name: str, length: int) -> jaxrnn.Cell:
    """The cell, for sequences of that many steps."""
    if config.chrono and CELLS[name].gated:
        return CELLS[name].make(config.hidden_size, bias_init=jaxrnn.initializers.chrono(length))
    return CELLS[name].make(config.hidden_size)


def init_model(cell: jaxrnn.Cell, hidden_size: int, features: int, classes: int, key: jax.Array) -> Model:
    key_cell, key_w = jax.random.split(key)
    w = jax.nn.initializers.glorot_uniform()(key_w, (hidden_size, classes))
    return Model(cell.init(key_cell, features), w, jnp.zeros(classes))


def logits(cell: jaxrnn.Cell, model: Model, xs: jax.Array) -> jax.Array:
    """Sequences `(T, *B, I)` to `(*B, classes)`."""
    _, ys = jaxrnn.unroll(cell, model.cell, xs)
    return jnp.dot(ys[-1], model.w) + jnp.broadcast_to(model.b, (*xs.shape[1:-1], *model.b.shape))


def training(
    cell: jaxrnn.Cell, optimiser: optax.GradientTransformation, batch_size: int
) -> Callable[..., tuple[TrainState, jax.Array]]:
    """A compiled `(states, sequences, labels, batches) -> (states, losses)`, over all seeds at once.

    `sequences` is `(N, T, I)`; `batches` is `(seeds, steps, B)` and holds places in it. The
    sequences of a batch are shared out over the devices.
    """

    def loss(model: Model, xs: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(cell, model, xs), labels).mean()

    value_and_gradient = jaxrnn.data_parallel(jax.value_and_grad(loss), (None, 1, 0), devices=sharing(batch_size))

    @functools.partial(jax.jit, donate_argnums=0)
    @functools.partial(jax.vmap, in_axes=(0, None, None, 0))
    def steps(state: TrainState, sequences: jax.Array, labels: jax.Array, batches: jax.Array):
        def step(state: TrainState, batch: jax.Array):
            xs = jnp.swapaxes(sequences[batch], 0, 1)  # (T, B, I)
            value, gradient = value_and_gradient(state.model, xs, labels[batch])
            updates, memory = optimiser.update(gradient, state.optimiser, state.model)
            model: Any = optax.apply_updates(state.model, updates)
            return TrainState(model, memory), value

        return jax.lax.scan(step, state, batches)

    return steps


def testing(cell: jaxrnn.Cell) -> Callable[..., jax.Array]:
    """A compiled `(models, sequences, labels) -> accuracies`, over all seeds at once."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def accuracy(model: Model, sequences: jax.Array, labels: jax.Array) -> jax.Array:
        found = jax.lax.map(lambda xs: logits(cell, model, xs).argmax(-1), sequences, batch_size=TEST_BATCH)
        return jnp.mean(found == labels)

    return accuracy


def train(config: Config, images: Images, reading: str, name: str, show: Callable[..., None]) -> Run:
    """Trains one cell with every seed, and tests it after every epoch; `show` is told how far it is."""
    start = time.perf_counter()
    xs, labels, test_xs, test_labels = map(jnp.asarray, as_sequences(images, reading))
    classes, (count, length, features) = int(images.train_labels.max()) + 1, xs.shape
    cell = make_cell(config, name, length)
    steps = count // config.batch_size
    rate = CELLS[name].learning_rate if config.learning_rate is None else config.learning_rate
    schedule = optax.cosine_decay_schedule(rate, config.epochs * steps)
    optimiser = optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(schedule))
    train_steps, accuracy = training(cell, optimiser, config.batch_size), testing(cell)

    keys = jax.vmap(jax.random.key)(jnp.arange(config.seeds))
    models = jax.vmap(functools.partial(init_model, cell, config.hidden_size, features, classes))(keys)
    states = TrainState(models, jax.vmap(optimiser.init)(models))
    parameters = sum(np.size(leaf[0]) for leaf in jax.tree.leaves(models))
    shuffles = [np.random.default_rng(seed) for seed in range(config.seeds)]

    losses, accuracies = [], []
    for _ in range(config.epochs):
        orders = np.stack([rng.permutation(count)[: steps * config.batch_size] for rng in shuffles])
        orders = orders.astype(np.int32).reshape(config.seeds, steps, config.batch_size)
        epoch = []
        for first in range(0, steps, STEPS_PER_CALL):
            batches = orders[:, first : first + STEPS_PER_CALL]
            states, values = train_steps(states, xs, labels, batches)
            epoch.append(np.asarray(values))  # waits for the result
            show(images=batches.size)
        losses.append(np.concatenate(epoch, axis=1).mean(axis=1))
        accuracies.append(np.asarray(accuracy(states.model, test_xs, test_labels)))
        show(accuracy=accuracies[-1].mean())
    seconds = time.perf_counter() - start
    return Run(reading, name, rate, parameters, seconds, np.stack(losses), np.stack(accuracies))


def as_sequences(images: Images, reading: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images `(N, height, width)` as `(N, T, I)`: T rows, or T pixels one row after another."""

    def sequences(batch: np.ndarray) -> np.ndarray:
        return batch if reading == "rows" else batch.reshape(len(batch), -1, 1)

    return sequences(images.train_images), images.train_labels, sequences(images.test_images), images.test_labels


def logistic_regression(images: Images) -> dict[str, Any]:
    """What a linear classifier of the raw pixels reaches, which knows of no order."""
    start = time.perf_counter()
    model = LogisticRegression(max_iter=1000)
    model.fit(images.train_images.reshape(len(images.train_images), -1), images.train_labels)
    accuracy = model.score(images.test_images.reshape(len(images.test_images), -1), images.test_labels)
    parameters = np.size(model.coef_) + np.size(model.intercept_)
    return {"accuracy": float(accuracy), "parameters": parameters, "seconds": time.perf_counter() - start}


def checked(config: Config) -> Images:
    """The images to use; a `ValueError` or `OSError` with one line of text if anything is wrong, before any work."""
    for name in ("hidden_size", "epochs", "batch_size", "seeds", "limit", "learning_rate", "clip_norm"):
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"--{name.replace('_', '-')} expected a positive number, got {value}")
    for name, given, known in (
        ("dataset", (config.dataset,), DATASETS),
        ("reading", (config.reading,), (*READINGS, "both")),
        ("cells", config.cells, CELLS),
    ):
        unknown = [value for value in given if value not in known]
        if unknown or not given:
            raise ValueError(f"--{name} expected {', '.join(known)}; got {unknown[0] if unknown else 'nothing'}")
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
    writable_folder(config.out)
    return images


def train_all(config: Config, images: Images) -> list[Run]:
    """Every way of reading with every cell, under a progress bar each."""
    runs = []
    readings = tuple(READINGS) if config.reading == "both" else (config.reading,)
    steps = len(images.train_images) // config.batch_size
    total = config.epochs * steps * config.batch_size * config.seeds
    with throughput_bar("images") as bar:
        for reading in readings:
            for name in dict.fromkeys(config.cells):
                task = bar.add_task(f"{READINGS[reading]}, {CELLS[name].label}", total=total, speed=0.0, test=0.0)
                show = functools.partial(show_progress, bar, task, time.perf_counter())
                runs.append(train(config, images, reading, name, show))
    return runs


def show_progress(bar: Progress, task: TaskID, start: float, images: int = 0, accuracy: float | None = None) -> None:
    done = bar.tasks[task].completed + images
    bar.update(task, completed=done, speed=done / (time.perf_counter() - start))
    if accuracy is not None:
        bar.update(task, test=accuracy)


def spread(values: np.ndarray) -> float | None:
    """The standard deviation over seeds, as estimated from a sample; of one seed there is none."""
    return float(values.std(ddof=1)) if len(values) > 1 else None


def as_record(config: Config, images: Images, runs: Sequence[Run], baseline: dict[str, Any]) -> dict[str, Any]:
    """What results.json holds."""
    return {
        "experiment": "sequential_images",
        "config": {key: str(v) if isinstance(v, Path) else v for key, v in dataclasses.asdict(config).items()},
        **environment(),
        "images": {"train": len(images.train_images), "test": len(images.test_images)},
        "logistic_regression": baseline,
        "runs": [
            {
                "reading": run.reading,
                "cell": run.cell,
                "learning_rate": run.learning_rate,
                "parameters": run.parameters,
                "seconds": run.seconds,
                "seeds": list(range(config.seeds)),
                "test_accuracy": run.accuracies[-1].tolist(),
                "test_accuracy_mean": float(run.accuracies[-1].mean()),
                "test_accuracy_std": spread(run.accuracies[-1]),
                "test_accuracy_by_epoch": run.accuracies.tolist(),
                "train_loss_by_epoch": run.losses.tolist(),
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
        label = CELLS[run.cell].label
        table.add_row(READINGS[run.reading], label, shown, f"{run.parameters:,}", f"{run.seconds:.1f}")
    accuracy = f"{100 * baseline['accuracy']:.1f}" + " " * 6
    table.add_row(
        "all at once", "logistic regression", accuracy, f"{baseline['parameters']:,}", f"{baseline['seconds']:.1f}"
    )
    Console().print(table)


def draw(path: Path, config: Config, runs: Sequence[Run], baseline: dict[str, Any]) -> None:
    panels = [
        Panel(
            f"Read {READINGS[reading]}",
            [
                Curve(CELLS[run.cell].label, CELLS[run.cell].colour, run.accuracies)
                for run in runs
                if run.reading == reading
            ],
        )
        for reading in dict.fromkeys(run.reading for run in runs)
    ]
    seeds = f"mean and range of {config.seeds} seeds" if config.seeds > 1 else "one seed"
    title = f"{config.dataset.capitalize()} as sequences, {config.hidden_size} hidden units, {seeds}"
    learning_curves(path, title, panels, ("logistic regression", baseline["accuracy"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 2 with one line on stderr if the command cannot be run as it stands."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.sequential_images")
    try:
        images = checked(config)
    except (ValueError, OSError) as error:
        print(f"sequential_images: {error}", file=sys.stderr)
        return 2
    use_all_cores()
    baseline = logistic_regression(images)
    runs = train_all(config, images)
    write_json(config.out / "results.json", as_record(config, images, runs, baseline))
    draw(config.out / "learning_curves.png", config, runs, baseline)
    print_table(config, runs, baseline)
    print(f"written: {config.out / 'results.json'}, {config.out / 'learning_curves.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
