"""Clipping, in a case where it is needed and in one where it does not help.

The wall: one sigmoid unit whose last state is to be 0.7, after Pascanu et al. 2013 (their figure
6); where the unit has two fixed points the loss is a cliff over weight and bias. Then whole
networks, trained by plain gradient descent from a gain at which gradients explode, and from one
at which they vanish.

References:
    Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063, sections 2.3 and 3.2.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn
from experiments.command.devices import Devices, platform_of
from experiments.command.progress import Show
from experiments.gradient_flow.task import cross_entropy, make_task, sequence_batch, test_error
from experiments.models.readout import Readout
from experiments.training.loop import Settings, Task, fit, make_optimiser
from experiments.training.seeds import population

WALL_STEPS, WALL_TARGET, WALL_START = 50, 0.7, (5.5, -2.0)
WALL_RATE, WALL_CLIP, WALL_UPDATES = 0.5, 0.1, 100
WEIGHTS, BIASES = (3.0, 7.0), (-3.5, -1.0)  # the part of the surface that is drawn
CASES = {"exploding": (1.5, False), "vanishing": (0.5, True)}  # gain of an orthogonal W_h; whether all lengths are T
CLIPS: dict[str, float | None] = {"clipped": 1.0, "not clipped": None}
LONGEST, RATE, EVERY, LOOKED_AT = 100, 0.5, 10, 64


class Wall(NamedTuple):
    """The error surface of one unit, and the ways of gradient descent on it."""

    weights: np.ndarray
    biases: np.ndarray
    losses: np.ndarray  # (biases, weights)
    ways: dict[str, np.ndarray]  # (updates, 4) by whether it was clipped: weight, bias, loss, gradient norm
    flung: dict[str, float]  # the share of starts from which the parameters leave the part that is drawn


class Descent(NamedTuple):
    """The training of all seeds with one setting of clipping."""

    case: str
    clip: str
    updates: np.ndarray  # when it was looked at
    losses: np.ndarray  # (looks, seeds), the mean since the look before
    norms: np.ndarray  # (looks, seeds), of the gradient before clipping, on a batch that stays the same
    errors: np.ndarray  # (seeds,), at the end


def wall_loss(cell: jaxrnn.Cell, point: jax.Array) -> jax.Array:
    """(h_T - 0.7)² of h_t = σ(w h_{t-1} + b), from h_0 = σ(0.5), at the point (w, b)."""
    params = jaxrnn.RNNParams(jnp.zeros((1, 1)), point[0].reshape(1, 1), point[1].reshape(1))
    start = jax.nn.sigmoid(jnp.full(1, 0.5))
    _, ys = jaxrnn.unroll(cell, params, jnp.zeros((WALL_STEPS, 1)), start)
    return jnp.square(ys[-1, 0] - WALL_TARGET)


def descend(
    loss: Callable[[jax.Array], jax.Array], start: jax.Array, clip: float | None, updates: int = WALL_UPDATES
) -> jax.Array:
    """Gradient descent from a point: `(updates, 4)`, each row the point, the loss and the gradient's norm there."""
    optimiser = make_optimiser(WALL_RATE, name="sgd", clip_norm=clip)

    def update(now: tuple, _: None) -> tuple:
        point, memory = now
        value, gradient = jax.value_and_grad(loss)(point)
        row = jnp.concatenate([point, jnp.stack([value, jnp.linalg.norm(gradient)])])
        step, memory = optimiser.update(gradient, memory, point)
        return (optax.apply_updates(point, step), memory), row

    return jax.lax.scan(update, (start, optimiser.init(start)), None, length=updates)[1]


def outside(points: np.ndarray) -> np.ndarray:
    """Whether `(·, 2)` points lie outside of what is drawn, by more than its own size."""
    (left, right), (low, high) = WEIGHTS, BIASES
    wide, tall = right - left, high - low
    w, b = points[..., 0], points[..., 1]
    return (w < left - wide) | (w > right + wide) | (b < low - tall) | (b > high + tall)


def climb_wall(resolution: int) -> Wall:
    """The surface on a grid, one descent with and one without clipping, and what becomes of many starts."""
    loss = functools.partial(wall_loss, jaxrnn.rnn(1, activation="sigmoid"))
    weights, biases = np.linspace(*WEIGHTS, resolution), np.linspace(*BIASES, resolution)
    grid = np.stack(np.meshgrid(weights, biases), -1).astype(np.float32)  # (biases, weights, 2)
    every = max(1, resolution // 12)
    starts = np.concatenate([np.array([WALL_START], grid.dtype), grid[::every, ::every].reshape(-1, 2)])
    ways, flung = {}, {}
    for name, clip in CLIPS.items():
        down = functools.partial(descend, loss, clip=None if clip is None else WALL_CLIP)
        rows = np.asarray(jax.jit(jax.vmap(down))(jnp.asarray(starts)))
        ways[name] = rows[0]
        flung[name] = float(np.mean(outside(rows[1:, :, :2]).any(1)))
    return Wall(weights, biases, np.asarray(jax.jit(jax.vmap(jax.vmap(loss)))(grid)), ways, flung)


def with_gain(task: Task, gain: float) -> Task:
    """The task from an orthogonal W_h times the gain."""

    def init(key: jax.Array) -> Readout:
        model = task.init(key)
        return model._replace(cell=model.cell._replace(w_h=gain * model.cell.w_h))

    return task._replace(init=init)


def train_clipped(
    hidden_size: int, length: int, batch_size: int, updates: int, seeds: range, devices: Devices, show: Show
) -> list[Descent]:
    """Gradient descent on the task of the first symbol, in both cases, with and without clipping."""
    cell, length, platform = jaxrnn.rnn(hidden_size), min(length, LONGEST), platform_of(devices)
    key = jax.random.key(10**6)
    gradient = jax.grad(functools.partial(cross_entropy, cell, length))
    norms = population(lambda model, labels, lengths: optax.tree.norm(gradient(model, labels, lengths, key)), platform)
    errors = population(functools.partial(test_error, cell, length), platform)
    found = []
    for case, (gain, fixed_length) in CASES.items():
        task = with_gain(make_task(cell, hidden_size, length, batch_size, fixed_length), gain)
        looked_at = sequence_batch(length, LOOKED_AT, fixed_length, 10**6, 0)
        for clip, clip_norm in CLIPS.items():
            optimiser = make_optimiser(RATE, name="sgd", clip_norm=clip_norm)
            before = len(found) * updates
            run = fit(
                task,
                optimiser,
                seeds,
                Settings(updates, EVERY, steps_per_call=EVERY),
                lambda models, data=looked_at: {"norm": norms(models, *data)},
                devices,
                lambda done, note, before=before: show(before + done, note),
            )
            losses = np.stack([look.loss for look in run.history])
            looks = np.array([look.step for look in run.history])
            wrong = np.asarray(errors(run.state.params))
            found.append(Descent(case, clip, looks, losses, run.metric("norm"), wrong))
    return found
