"""Clipping and raising gradients, in a case where clipping is needed and in one where it does not help.

The wall: one sigmoid unit whose last state is to be 0.7, after Pascanu et al. 2013 (their figure
6); where the unit has two fixed points the loss is a cliff over weight and bias. Then whole
networks, trained by plain gradient descent from a gain at which gradients explode, and from one
at which they vanish: with the gradient as it is, with a bound θ on its norm, on its entries ("value") or on the
entries of what every time step hands back to the one before ("each step"), and scaled up where its norm is
below θ.

References:
    Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063, sections 2.3 and 3.2.
"""

import functools
from collections.abc import Callable, Sequence
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
from experiments.training.gradients import raise_global_norm
from experiments.training.loop import Settings, Task, fit, make_optimiser, training
from experiments.training.seeds import population

WALL_STEPS, WALL_TARGET, WALL_START = 50, 0.7, (5.5, -2.0)
WALL_RATE, WALL_CLIP, WALL_UPDATES = 0.5, 0.1, 100
WEIGHTS, BIASES = (3.0, 7.0), (-3.5, -1.0)  # the part of the surface that is drawn
CASES = {"exploding": (1.5, False), "vanishing": (0.5, True)}  # gain of an orthogonal W_h; whether all lengths are T
WAYS = ("norm", "value", "each step")  # of clipping
MAIN = (("none", None), *((change, 1.0) for change in (*WAYS, "raised")))  # whose curves are kept, in both cases
LONGEST, RATE, EVERY, LOOKED_AT = 100, 0.5, 10, 64


class Wall(NamedTuple):
    """The error surface of one unit, and the ways of gradient descent on it."""

    weights: np.ndarray
    biases: np.ndarray
    losses: np.ndarray  # (biases, weights)
    ways: dict[str, np.ndarray]  # (updates, 4) by the change of the gradient: weight, bias, loss, gradient norm
    flung: dict[str, float]  # the share of starts from which the parameters leave the part that is drawn


class Change(NamedTuple):
    """What changes the gradient before an update, and the number it does so at."""

    name: str  # "none", "norm", "value", "each step" or "raised"
    threshold: float | None

    @property
    def step(self) -> float | None:
        """The bound on what one sequence's loss hands from a time step to the one before."""
        return self.threshold if self.name == "each step" else None

    def optimiser(self, rate: float) -> optax.GradientTransformation:
        """Gradient descent on the changed gradient."""
        before = {"value": optax.clip, "raised": raise_global_norm}.get(self.name)
        clip_norm = self.threshold if self.name in ("norm", "raised") else None
        changed = None if before is None or self.threshold is None else before(self.threshold)
        return make_optimiser(rate, name="sgd", clip_norm=clip_norm, before=changed)


class Descent(NamedTuple):
    """The training of all seeds with one change of the gradient."""

    case: str
    change: Change
    updates: np.ndarray  # when it was looked at
    losses: np.ndarray  # (looks, seeds), the mean since the look before
    norms: np.ndarray  # (looks, seeds), of the gradient before clipping, on a batch that stays the same
    errors: np.ndarray  # (seeds,), at the end


def wall_loss(cell: jaxrnn.Cell, point: jax.Array, clip_step: float | None = None) -> jax.Array:
    """(h_T - 0.7)² of h_t = σ(w h_{t-1} + b), from h_0 = σ(0.5), at the point (w, b)."""
    params = jaxrnn.RNNParams(jnp.zeros((1, 1)), point[0].reshape(1, 1), point[1].reshape(1))
    start = jax.nn.sigmoid(jnp.full(1, 0.5))
    _, ys = jaxrnn.unroll(cell, params, jnp.zeros((WALL_STEPS, 1)), start, clip_gradient=clip_step)
    return jnp.square(ys[-1, 0] - WALL_TARGET)


def descend(
    loss: Callable[[jax.Array], jax.Array], start: jax.Array, change: Change, updates: int = WALL_UPDATES
) -> jax.Array:
    """Gradient descent from a point: `(updates, 4)`, each row the point, the loss and the gradient's norm there."""
    optimiser = change.optimiser(WALL_RATE)

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
    """The surface on a grid, a descent with each way of clipping, and what becomes of many starts."""
    cell = jaxrnn.rnn(1, activation="sigmoid")
    loss = functools.partial(wall_loss, cell)
    weights, biases = np.linspace(*WEIGHTS, resolution), np.linspace(*BIASES, resolution)
    grid = np.stack(np.meshgrid(weights, biases), -1).astype(np.float32)  # (biases, weights, 2)
    every = max(1, resolution // 12)
    starts = np.concatenate([np.array([WALL_START], grid.dtype), grid[::every, ::every].reshape(-1, 2)])
    ways, flung = {}, {}
    for name in ("none", *WAYS):
        change = Change(name, None if name == "none" else WALL_CLIP)
        down = functools.partial(descend, functools.partial(wall_loss, cell, clip_step=change.step), change=change)
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


def settings_of(thresholds: Sequence[float]) -> dict[str, list[Change]]:
    """The changes of the gradient to train with, by case; thresholds but 1 only where the gradient explodes."""
    main = [Change(*one) for one in MAIN]
    others = [Change(name, threshold) for name in WAYS for threshold in thresholds]
    return {"exploding": [*main, *(one for one in others if one not in main)], "vanishing": main}


def train_clipped(
    hidden_size: int,
    length: int,
    batch_size: int,
    updates: int,
    thresholds: Sequence[float],
    seeds: range,
    devices: Devices,
    show: Show,
) -> list[Descent]:
    """Gradient descent on the task of the first symbol, in both cases, with every change of the gradient."""
    cell, length, platform = jaxrnn.rnn(hidden_size), min(length, LONGEST), platform_of(devices)
    key = jax.random.key(10**6)
    gradient = jax.grad(functools.partial(cross_entropy, cell, length))
    norms = population(lambda model, labels, lengths: optax.tree.norm(gradient(model, labels, lengths, key)), platform)
    errors = population(functools.partial(test_error, cell, length), platform)
    found, compiled = [], {}
    for case, changes in settings_of(thresholds).items():
        gain, fixed_length = CASES[case]
        looked_at = sequence_batch(length, LOOKED_AT, fixed_length, 10**6, 0)
        for change in changes:
            task = with_gain(make_task(cell, hidden_size, length, batch_size, fixed_length, change.step), gain)
            optimiser, before = change.optimiser(RATE), len(found) * updates
            compiled.setdefault(change, training(task, optimiser, platform))  # the cases have the same loss
            run = fit(
                task,
                optimiser,
                seeds,
                Settings(updates, EVERY, steps_per_call=EVERY),
                lambda models, data=looked_at: {"norm": norms(models, *data)},
                devices,
                lambda done, note, before=before: show(before + done, note),
                run=compiled[change],
            )
            losses = np.stack([look.loss for look in run.history])
            looks = np.array([look.step for look in run.history])
            wrong = np.asarray(errors(run.state.params))
            found.append(Descent(case, change, looks, losses, run.metric("norm"), wrong))
    return found
