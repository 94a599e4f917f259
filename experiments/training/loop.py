"""The training loop: it makes many steps in one compiled call, and trains several seeds in it.

A task consists of pure functions. Its batches depend on a seed and a step alone. So the run of a seed does
not depend on the other seeds, except for rounding on an accelerator, and an interrupted run continues exactly.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.command.devices import Devices, as_the_first_says, platform_of
from experiments.command.progress import Show, silent
from experiments.command.stopping import Stopped
from experiments.training.placing import Placing, placing
from experiments.training.seeds import over_seeds

Params = Any
Batch = Any
Metrics = dict[str, np.ndarray]  # each (seeds,)


class Task(NamedTuple):
    """What is learned, for one seed; the loop adds the axis of seeds."""

    init: Callable[[jax.Array], Params]  # of a random key
    loss: Callable[
        [Params, Any, Batch, jax.Array], tuple[jax.Array, Any]
    ]  # (params, carry, batch, key) -> (loss, carry)
    batch: Callable[[int, int], Batch]  # of seed and step: NumPy arrays, of the same shapes at every step
    examples: int  # in a batch, along the first axis of every array; the devices of a run share them
    carry: Any = ()  # what the first batch begins with, such as a recurrent state handed from batch to batch
    carry_axis: int = 0  # of the carry's examples


class TrainState(NamedTuple):
    """All that changes in training; every leaf but `step` has a first axis of seeds."""

    step: jax.Array  # updates made
    keys: jax.Array
    params: Params
    optimiser: Any
    carry: Any


class Evaluation(NamedTuple):
    """Loss and metrics at one step of training."""

    step: int
    seconds: float  # since the start, compilation included
    loss: np.ndarray  # (seeds,), the mean over the steps since the evaluation before
    metrics: Metrics


class Best(NamedTuple):
    """Each seed's parameters at the evaluation with its least value so far."""

    values: np.ndarray  # (seeds,)
    params: Params
    waited: int  # evaluations since the last one at which any seed improved

    def after(self, values: np.ndarray, params: Params) -> "Best":
        better = values < self.values

        def choose(old: np.ndarray, new: Any) -> np.ndarray:
            return np.where(better.reshape(-1, *[1] * (old.ndim - 1)), np.asarray(new), old)

        if not better.any():
            return self._replace(waited=self.waited + 1)
        return Best(np.where(better, values, self.values), jax.tree.map(choose, self.params, params), 0)


class Course(NamedTuple):
    """The state of a training and its history: all that is needed to continue it."""

    state: TrainState
    best: Best | None  # None if no metric selects the best parameters
    history: list[Evaluation]

    @property
    def params(self) -> Params:
        """The best ones, if a metric selects them; otherwise the last."""
        return self.state.params if self.best is None else self.best.params

    @property
    def seconds(self) -> float:
        """Seconds of training and evaluation, compilation included."""
        return self.history[-1].seconds if self.history else 0.0

    def metric(self, name: str) -> np.ndarray:
        """The values of a metric at all evaluations, `(evaluations, seeds)`."""
        return np.stack([evaluation.metrics[name] for evaluation in self.history])

    def best_of(self, name: str) -> np.ndarray:
        """The least value of each seed, `(seeds,)`; NaN if all its values are NaN."""
        return np.fmin.reduce(self.metric(name), axis=0)

    @property
    def parameters(self) -> int:
        """How many numbers one seed's model has."""
        return sum(leaf[0].size for leaf in jax.tree.leaves(self.params))


class Keeper(Protocol):
    """Saves or logs a training at its evaluations, and may restore it."""

    def restored(self, start: Course) -> Course:
        """Returns the course to continue; `start` itself if nothing was saved."""
        ...

    def evaluated(self, course: Course, last: bool) -> None:
        """Called after every evaluation; `last` marks the last one."""
        ...


class Settings(NamedTuple):
    """How long to train, and when to evaluate."""

    steps: int
    evaluate_every: int
    minimise: str | None = None  # the metric that selects the best parameters by its least value
    patience: int | None = None  # evaluations without a better value in any seed, after which to stop
    stop: Callable[[Metrics], bool] | None = None  # returns whether to end the training
    steps_per_call: int = 25


def make_optimiser(
    learning_rate: float,
    *,
    name: str = "adam",
    clip_norm: float | None = 1.0,
    before: optax.GradientTransformation | None = None,
    cosine_steps: int | None = None,
    warmup_steps: int = 0,
) -> optax.GradientTransformation:
    """Adam, AdamW, RMSProp or SGD on a gradient clipped to a norm; updates that are not finite are skipped.

    Args:
        learning_rate: constant, or the highest of the schedule.
        name: "adam", "adamw", "rmsprop" or "sgd".
        clip_norm: the longest norm of the gradient of all parameters together.
        before: changes the gradient before it is clipped.
        cosine_steps: the step at which a cosine reaches 0.
        warmup_steps: over which the rate rises from 0.
    """
    rate: Any = learning_rate
    if cosine_steps is not None:
        rate = optax.warmup_cosine_decay_schedule(
            0.0 if warmup_steps else learning_rate, learning_rate, warmup_steps, cosine_steps
        )
    elif warmup_steps:
        rate = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    rule = {"adam": optax.adam, "adamw": optax.adamw, "rmsprop": optax.rmsprop, "sgd": optax.sgd}[name](rate)
    clipped = rule if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), rule)
    changed = clipped if before is None else optax.chain(before, clipped)
    return optax.apply_if_finite(changed, max_consecutive_errors=1_000_000)


def begin(task: Task, optimiser: optax.GradientTransformation, seeds: Sequence[int]) -> TrainState:
    """Returns the state of all seeds before the first step."""

    def one(seed: int) -> tuple[Any, ...]:
        key_params, key = jax.random.split(jax.random.key(seed))
        params = task.init(key_params)
        return key, params, optimiser.init(params), jax.tree.map(jnp.asarray, task.carry)

    # Not jitted: compilation would take two seconds for each task, and single operations are compiled only once.
    return TrainState(jnp.zeros((), jnp.int32), *jax.tree.map(lambda *own: jnp.stack(own), *map(one, seeds)))


def training(
    task: Task, optimiser: optax.GradientTransformation, platform: str, placed: Placing | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]:
    """Compiles `(state, batches) -> (state, losses)`, which makes a step for each entry of `(steps, seeds, ·)`.

    Args:
        task: what is learned.
        optimiser: of Optax.
        platform: of the devices that run it, see `over_seeds`.
        placed: where the arrays lie if several devices share a batch.
    """

    def one(step: jax.Array, key: jax.Array, params: Params, memory: Any, carry: Any, batch: Batch) -> tuple[Any, ...]:
        noise = jax.random.fold_in(key, step)
        (loss, carry), gradient = jax.value_and_grad(task.loss, has_aux=True)(params, carry, batch, noise)
        updates, memory = optimiser.update(gradient, memory, params)
        return optax.apply_updates(params, updates), memory, carry, loss

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        of_a_seed = functools.partial(one, state.step)
        params, memory, carry, losses = over_seeds(of_a_seed, platform)(state.keys, *state[2:], batch)
        return TrainState(state.step + 1, state.keys, params, memory, carry), losses

    out: Any = None if placed is None else (_shardings(task, placed), placed.whole)
    return jax.jit(lambda state, batches: jax.lax.scan(update, state, batches), donate_argnums=0, out_shardings=out)


def _shardings(task: Task, placed: Placing) -> Any:
    whole: Any = placed.whole
    return TrainState(step=whole, keys=whole, params=whole, optimiser=whole, carry=placed.shared(1 + task.carry_axis))


def _put(task: Task, placed: Placing, state: TrainState) -> TrainState:
    carry = placed.put_shared(state.carry, 1 + task.carry_axis)
    return placed.put_whole(state._replace(carry=()))._replace(carry=carry)


def _batches(task: Task, seeds: Sequence[int], steps: range) -> Batch:
    """The batches of several steps, with leaves `(steps, seeds, ·)`."""
    made = [[task.batch(seed, step) for seed in seeds] for step in steps]
    rows = [jax.tree.map(lambda *leaves: np.stack(leaves), *row) for row in made]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def _calls(first: int, settings: Settings) -> Iterator[range]:
    """Yields the steps of each compiled call; a call ends at an evaluation."""
    while first < settings.steps:
        until = min(settings.steps, (first // settings.evaluate_every + 1) * settings.evaluate_every)
        yield range(first, min(until, first + settings.steps_per_call))
        first = min(until, first + settings.steps_per_call)


def fit(
    task: Task,
    optimiser: optax.GradientTransformation,
    seeds: Sequence[int],
    settings: Settings,
    evaluate: Callable[[Params], Any],
    devices: Devices = (),
    show: Show = silent,
    keeper: Keeper | None = None,
    run: Callable[[TrainState, Batch], tuple[TrainState, jax.Array]] | None = None,
) -> Course:
    """Trains all seeds. If the user stops the script, the course ends at its last evaluation.

    Args:
        task: what is learned.
        optimiser: of Optax.
        seeds: of parameters, batches and noise.
        settings: how long to train, how often to evaluate, and when to stop early.
        evaluate: `params -> {metric: (seeds,)}`, where parameters have a first axis of seeds, see `population`.
        devices: share every batch, as many of them as divide it; evaluations run on the first of each process. With
            none, all runs on JAX's default device.
        show: reports progress: it is called with the number of steps done, and a note with the loss and the metrics.
        keeper: writes checkpoints and logs, and restores from them.
        run: a `training(task, optimiser, platform)` that is used elsewhere too, so that it is compiled once. It is not
            used if devices share batches.

    Raises:
        Stopped: if the user stops the script before the first evaluation.
    """
    seeds = list(seeds)
    placed = placing(devices, task.examples)
    run = training(task, optimiser, platform_of(devices), placed) if run is None or placed is not None else run
    state = begin(task, optimiser, seeds)
    worst = Best(np.full(len(seeds), math.inf), jax.tree.map(np.array, state.params), 0)
    course = Course(state, None if settings.minimise is None else worst, [])
    if keeper is not None:
        course = keeper.restored(course)
    start, losses = time.perf_counter() - course.seconds, []
    state = course.state if placed is None else _put(task, placed, course.state)
    for steps in () if _ended(course, settings) else _calls(int(course.state.step), settings):
        batches = _batches(task, seeds, steps)
        state, values = run(state, batches if placed is None else placed.put_shared(batches, 2))
        losses.append(np.asarray(values))  # waits
        if _stopped(show, steps.stop, _note(losses[-1][-1], course.history), course):
            return course
        if steps.stop % settings.evaluate_every == 0 or steps.stop == settings.steps:
            # A copy, because the next call takes the memory of its state.
            course = course._replace(state=jax.tree.map(jnp.copy, state) if placed is None else placed.fetched(state))
            metrics = _agreed(evaluate(course.state.params))
            loss, losses = np.concatenate(losses).mean(0, dtype=np.float64), []
            found = Evaluation(steps.stop, time.perf_counter() - start, loss, metrics)
            course = _after(course, found, settings)
            last = steps.stop == settings.steps or _ended(course, settings)
            if keeper is not None:
                keeper.evaluated(course, last)
            if last:
                break
    if course.history:
        _stopped(show, settings.steps, _note(course.history[-1].loss, course.history), course)
    return course


def _stopped(show: Show, done: int, note: str, course: Course) -> bool:
    """Reports progress, and returns whether the user has stopped the script; raises if there is nothing to return."""
    try:
        show(done, note)
    except Stopped:
        if not course.history:
            raise
        return True
    return False


def _agreed(metrics: Any) -> Metrics:
    """The metrics of the first process, which all processes use."""
    return {name: as_the_first_says(np.asarray(value, np.float64)) for name, value in metrics.items()}


def _after(course: Course, found: Evaluation, settings: Settings) -> Course:
    best = course.best
    if best is not None and settings.minimise is not None:
        best = best.after(found.metrics[settings.minimise], course.state.params)
    return Course(course.state, best, [*course.history, found])


def _ended(course: Course, settings: Settings) -> bool:
    """Returns whether the last evaluation ends the training."""
    if not course.history:
        return False
    patient = settings.patience is None or course.best is None or course.best.waited < settings.patience
    return not patient or (settings.stop is not None and settings.stop(course.history[-1].metrics))


def _note(loss: np.ndarray, history: list[Evaluation]) -> str:
    found = {"loss": loss, **(history[-1].metrics if history else {})}
    return "  ".join(f"{name} {np.mean(value):.4g}" for name, value in found.items())
