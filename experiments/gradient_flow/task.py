"""The task of `gradient_flow`: to say after many steps of noise which of four symbols came first.

Training sequences have lengths from 2 to T, spread evenly on a logarithmic scale. What a network
learns from the short ones carries over to the long ones, so networks learn the task although their
gradient over T steps is practically zero.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.command.devices import Devices
from experiments.command.progress import Show
from experiments.models.readout import Readout, init_readout, many_to_one
from experiments.training.loop import Settings, Task, begin, fit, make_optimiser

SYMBOLS = 4
INPUTS = SYMBOLS + 1  # and one channel of noise
TEST_SEQUENCES = 128
LEARNING_RATES = {"rnn-sigmoid": 1e-2, "relu": 3e-4, "irnn": 1e-5}  # larger ones end in states that overflow
LEARNING_RATE = 3e-3  # of all others


def sequences(key: jax.Array, labels: jax.Array, length: int) -> jax.Array:
    """`(B, T, 5)`: the symbol as one-hot at the first step, and standard normal noise at every step."""
    noise = jnp.swapaxes(jax.random.normal(key, (length, len(labels), 1)), 0, 1)
    symbols = jnp.zeros((len(labels), length, SYMBOLS), noise.dtype)
    first = jax.nn.one_hot(labels, SYMBOLS, dtype=noise.dtype)
    return jnp.concatenate([symbols.at[:, 0].set(first), noise], -1)


def balanced_labels(count: int) -> jax.Array:
    """Every symbol as often as the others."""
    return jnp.arange(count) % SYMBOLS


def sequence_batch(
    length: int, batch_size: int, fixed_length: bool, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and lengths whose logarithms are spread evenly from that of 2 to that of T, or all T."""
    rng = np.random.default_rng((seed, step))
    labels = rng.integers(0, SYMBOLS, batch_size, dtype=np.int32)
    drawn = np.exp(rng.uniform(np.log(2), np.log(length + 1), batch_size)).astype(np.int32)
    return labels, np.full_like(drawn, length) if fixed_length else np.clip(drawn, 2, length)


def cross_entropy(
    cell: jaxrnn.Cell,
    length: int,
    model: Readout,
    labels: jax.Array,
    lengths: jax.Array,
    key: jax.Array,
    clip_step: float | None = None,
) -> jax.Array:
    """The mean over a batch; the noise is drawn from the key.

    The cotangent of one sequence's loss that a step hands back is clipped by value to `clip_step`.
    """
    clip = None if clip_step is None else clip_step / len(labels)
    logits = many_to_one(cell, model, sequences(key, labels, length), lengths, clip)
    return jaxrnn.readout_loss(logits, labels).mean()


def make_task(
    cell: jaxrnn.Cell,
    hidden_size: int,
    length: int,
    batch_size: int,
    fixed_length: bool = False,
    clip_step: float | None = None,
) -> Task:
    def loss(model: Readout, carry: Any, drawn: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        labels, lengths = drawn
        return cross_entropy(cell, length, model, labels, lengths, key, clip_step), carry

    return Task(
        init=functools.partial(init_readout, cell, hidden_size, INPUTS, SYMBOLS),
        loss=loss,
        batch=functools.partial(sequence_batch, length, batch_size, fixed_length),
        examples=batch_size,
    )


def test_error(cell: jaxrnn.Cell, length: int, model: Readout) -> jax.Array:
    """The share of wrong answers on sequences of T steps, the same at every call."""
    labels = balanced_labels(TEST_SEQUENCES)
    said = many_to_one(cell, model, sequences(jax.random.key(10**6), labels, length)).argmax(-1)
    return jnp.mean((said != labels).astype(jnp.float32))


def by_seed(models: Any) -> list[Readout]:
    """The models of all seeds as a list, in float64."""
    arrays = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), models)
    return [jax.tree.map(lambda leaf, k=k: leaf[k], arrays) for k in range(len(jax.tree.leaves(arrays)[0]))]


def train(
    task: Task,
    errors: Callable[[Any], jax.Array],
    learning_rate: float,
    seeds: Sequence[int],
    updates: int,
    devices: Devices,
    show: Show,
) -> tuple[list[Any], list[np.ndarray]]:
    """Trains all seeds with Adam and clipped gradients; returns models and errors before and after training."""
    optimiser = make_optimiser(learning_rate)
    before = jax.tree.map(np.asarray, begin(task, optimiser, seeds).params)
    settings = Settings(updates, evaluate_every=100)
    found = fit(task, optimiser, seeds, settings, lambda models: {"error": errors(models)}, devices, show)
    return [before, found.state.params], [np.asarray(errors(before)), found.history[-1].metrics["error"]]
