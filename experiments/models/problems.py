"""Problems on which single cells with a linear read-out are compared, such as digits pixel by pixel, or a text."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.datasets.images import Images, split_of_digits
from experiments.datasets.text import Text, side_by_side_windows, windows
from experiments.models.readout import Readout, init_readout, many_to_many, many_to_one
from experiments.training.loop import Params, Task
from experiments.training.seeds import population


class Examples(NamedTuple):
    """Sequences and their targets, with examples on the first axis."""

    xs: np.ndarray  # (N, T, I) numbers, or (N, T) places in an alphabet
    targets: np.ndarray  # (N, ·) where the last output is read, (N, T, ·) where all are


class Problem(NamedTuple):
    """What is learned, whatever the cell."""

    label: str
    unit: str  # of the loss
    steps: int  # T
    input_size: int
    output_size: int
    predict: Callable[..., jax.Array]  # `many_to_one` or `many_to_many`
    encode: Callable[[jax.Array], jax.Array]  # of xs, to (N, T, I)
    scores: Callable[[jax.Array, jax.Array], dict[str, jax.Array]]  # (predictions, targets) -> "loss" and others
    batch: Callable[[int, int], Examples]  # of seed and step
    batch_size: int
    validation: Examples  # on which learning rates are chosen
    test: Examples  # on which results are reported


def classified(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """The cross-entropy in nats and the share of wrong answers: means over all labels."""
    loss = jaxrnn.readout_loss(logits, labels)
    return {"loss": jnp.mean(loss), "error": jnp.mean((jnp.argmax(logits, -1) != labels).astype(loss.dtype))}


def digits(batch_size: int, images: Images | None = None) -> Problem:
    """The class of an image of 8 x 8 pixels, read one pixel a step; every fifth training image is for validation."""
    given = split_of_digits() if images is None else images
    own = np.arange(len(given.train_labels)) % 5 == 4

    def examples(images: np.ndarray, labels: np.ndarray) -> Examples:
        return Examples(images.reshape(len(images), -1, 1), labels)

    training = examples(given.train_images[~own], given.train_labels[~own])
    if batch_size > len(training.targets):
        raise ValueError(f"--batch-size {batch_size} is more than the {len(training.targets)} training images")
    return Problem(
        label="digits, pixel by pixel",
        unit="nats per image",
        steps=training.xs.shape[1],
        input_size=1,
        output_size=int(given.train_labels.max()) + 1,
        predict=many_to_one,
        encode=lambda xs: xs,
        scores=classified,
        batch=functools.partial(_images, training, batch_size),
        batch_size=batch_size,
        validation=examples(given.train_images[own], given.train_labels[own]),
        test=examples(given.test_images, given.test_labels),
    )


def _images(training: Examples, batch_size: int, seed: int, step: int) -> Examples:
    """A batch of an epoch that reads every image once; images that do not fill a batch are skipped."""
    count = len(training.targets)
    epoch, place = divmod(step, count // batch_size)
    order = np.random.default_rng((seed, epoch, 0)).permutation(count)[place * batch_size : (place + 1) * batch_size]
    return Examples(training.xs[order], training.targets[order])


def next_character(text: Text, window: int, batch_size: int) -> Problem:
    """The next character at every step of windows that begin anywhere in the text, from zero states.

    The last tenth of the text is used both to choose learning rates and to report results.
    """

    def batch(seed: int, step: int) -> Examples:
        starts = np.random.default_rng((seed, step, 1)).integers(0, len(text.training) - window, batch_size)
        return Examples(*windows(text.training, starts, window))

    held_out = Examples(*side_by_side_windows(text.validation, window))
    return Problem(
        label=f"next character, {text.name}",
        unit="nats per character",
        steps=window,
        input_size=len(text.alphabet),
        output_size=len(text.alphabet),
        predict=many_to_many,
        encode=functools.partial(jax.nn.one_hot, num_classes=len(text.alphabet), dtype=jnp.float32),
        scores=classified,
        batch=batch,
        batch_size=batch_size,
        validation=held_out,
        test=held_out,
    )


def initial(problem: Problem, cell: jaxrnn.Cell, hidden_size: int, key: jax.Array) -> Readout:
    """The initial parameters."""
    return init_readout(cell, hidden_size, problem.input_size, problem.output_size, key)


def scored(problem: Problem, cell: jaxrnn.Cell, model: Readout, examples: Any) -> dict[str, jax.Array]:
    """The scores of one model on some examples."""
    xs, targets = examples
    return problem.scores(problem.predict(cell, model, problem.encode(xs)), targets)


def as_task(problem: Problem, cell: jaxrnn.Cell, hidden_size: int) -> Task:
    """The task of learning the problem with a cell."""

    def loss(model: Params, carry: Any, batch: Examples, key: jax.Array) -> tuple[jax.Array, Any]:
        del key  # no noise
        return scored(problem, cell, model, batch)["loss"], carry

    return Task(functools.partial(initial, problem, cell, hidden_size), loss, problem.batch, problem.batch_size)


def testing(problem: Problem, cell: jaxrnn.Cell, platform: str) -> Callable[[Params, Examples], dict[str, jax.Array]]:
    """Compiles `(params, examples) -> {metric: (seeds,)}` for parameters with a first axis of seeds."""
    return population(functools.partial(scored, problem, cell), platform)
