"""Trains all seeds of one contestant on one memory problem, until every seed has solved it or the steps are used up."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxrnn
from experiments.command.devices import Devices, platform_of
from experiments.command.progress import Show, silent
from experiments.memory_tasks.batch import Batch
from experiments.memory_tasks.problems import PROBLEMS, Problem, held_out_batch, inputs, training_batch
from experiments.models.cells import CONTESTANTS
from experiments.models.readout import Readout, Runner, init_readout, many_to_many, many_to_one
from experiments.training.gradients import raise_entries, raise_global_norm
from experiments.training.loop import Metrics, Settings, Task, fit, make_optimiser
from experiments.training.seeds import population

GUESSED = 20_000  # sequences by which a guess is measured


class Run(NamedTuple):
    """The settings of a training."""

    problem: str
    cell: str
    length: int
    clip_norm: float | None
    learning_rate: float
    hidden_size: int
    steps: int
    batch_size: int
    tests: int  # sequences of each evaluation
    evaluate_every: int
    seeds: tuple[int, ...]
    clip_value: float | None = None  # of every entry of the gradient
    clip_step: float | None = None  # of every entry of the cotangent that a step hands back, of one sequence's loss
    least_norm: float | None = None  # to which a smaller gradient is scaled up
    least_entry: float | None = None  # to which smaller entries of it are raised
    layers: int | None = None  # one if None
    cosine: bool | None = None  # whether the learning rate falls to 0 along a cosine, over all steps


class Groups(NamedTuple):
    """The share of right answers in groups of sequences; each entry is a group."""

    value: np.ndarray  # the mean of the quantity that defines the groups
    right: np.ndarray  # the share of right answers, over sequences and seeds
    count: np.ndarray  # sequences


class Beyond(NamedTuple):
    """The right answers of a trained network at several lengths, `(lengths, seeds)` each."""

    lengths: tuple[int, ...]
    right: np.ndarray  # the share of right answers: at the last step where every step answers
    throughout: np.ndarray  # the share of sequences without a wrong answer; of the answers if only some steps answer


class Outcome(NamedTuple):
    """The results of a run, `(seeds,)` each."""

    run: Run
    solved: np.ndarray  # the step of the first evaluation that met the criterion, 0 where none did
    errors: np.ndarray  # the least of all evaluations
    losses: np.ndarray  # on the test sequences, the least of all evaluations
    parameters: int
    seconds: float
    late: Mapping[str, Groups] = {}  # by "distance" and "attractors", at the end of training, where they are known
    guessed: Mapping[str, Groups] = {}  # the same of the guess without memory
    beyond: Beyond | None = None  # at the end of training, where other lengths are tested

    @property
    def sequences(self) -> np.ndarray:
        """The sequences trained on until it was solved; infinite if it was not."""
        return np.where(self.solved > 0, self.solved * self.run.batch_size, np.inf)

    @property
    def successes(self) -> int:
        return int(np.count_nonzero(self.solved))

    @property
    def median_sequences(self) -> float:
        """The median over seeds; infinite unless more than half of them solved it."""
        return float(np.median(self.sequences))


def network_of(run: Run) -> Runner:
    """The cell of a run, or a stack of it."""
    cell = CONTESTANTS[run.cell].make(run.hidden_size, PROBLEMS[run.problem].steps(run.length))
    return cell if run.layers is None else jaxrnn.stack([cell] * run.layers)


def answers(
    problem: Problem,
    cell: Runner,
    model: Readout,
    batch: Batch,
    clip_gradient: float | None = None,
) -> jax.Array:
    reading = many_to_many if problem.every_step else many_to_one
    return reading(cell, model, inputs(problem, batch), batch.lengths, clip_gradient)


def make_task(
    problem: Problem,
    cell: Runner,
    hidden_size: int,
    length: int,
    batch_size: int,
    clip_step: float | None = None,
) -> Task:
    """The task of learning the problem with a cell."""
    clip = None if clip_step is None else clip_step / batch_size  # the loss is the mean over a batch

    def loss(model: Readout, carry: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        return problem.loss(answers(problem, cell, model, batch, clip), batch), carry

    return Task(
        functools.partial(init_readout, cell, hidden_size, problem.inputs, problem.outputs),
        loss,
        functools.partial(training_batch, problem, length, batch_size),
        examples=batch_size,
    )


def before_clipping(run: Run) -> optax.GradientTransformation | None:
    """What changes the gradient before its norm is clipped."""
    makers = {"clip_value": optax.clip, "least_norm": raise_global_norm, "least_entry": raise_entries}
    made = [make(getattr(run, name)) for name, make in makers.items() if getattr(run, name) is not None]
    return optax.chain(*made) if made else None


def train(problem: Problem, run: Run, devices: Devices = (), show: Show = silent) -> Outcome:
    cell = network_of(run)

    def score(model: Readout, batch: Batch) -> dict[str, jax.Array]:
        found = answers(problem, cell, model, batch)
        late = {} if problem.late is None else {"late": problem.late(found, batch)}
        return {"loss": problem.loss(found, batch), "error": problem.errors(found, batch).mean(), **late}

    scores, tests = population(score, platform_of(devices)), held_out_batch(problem, run.length, run.tests)
    course = fit(
        make_task(problem, cell, run.hidden_size, run.length, run.batch_size, run.clip_step),
        make_optimiser(
            run.learning_rate,
            clip_norm=run.clip_norm,
            before=before_clipping(run),
            cosine_steps=run.steps if run.cosine else None,
        ),
        run.seeds,
        Settings(run.steps, run.evaluate_every, stop=None if run.cosine else until_all_solved(problem.solved_at)),
        lambda params: {name: value for name, value in scores(params, tests).items() if name != "late"},
        devices,
        show,
    )
    steps = [evaluation.step for evaluation in course.history]
    solved = first_solved(steps, course.metric("error"), problem.solved_at)
    parameters = sum(leaf[0].size for leaf in jax.tree.leaves(course.params))
    found = solved, course.best_of("error"), course.best_of("loss"), parameters, course.seconds
    if problem.beyond:
        return Outcome(run, *found, beyond=beyond(problem, run, functools.partial(scores, course.params)))
    if problem.late is None:
        return Outcome(run, *found)
    right = 1 - np.asarray(scores(course.params, tests)["late"])
    return Outcome(run, *found, late_groups(right, tests), guesses(problem, run.length))


def beyond(problem: Problem, run: Run, scores: Callable[[Batch], Mapping[str, Any]]) -> Beyond:
    """How often a trained network is right at other lengths than its own.

    Args:
        problem: with `beyond`.
        run: of the network.
        scores: of a batch, for each seed: "error", and "late" `(seeds, B)` where the problem has it.
    """
    lengths = tested_lengths(problem, run.length)
    found = [scores(held_out_batch(problem, length, run.tests)) for length in lengths]
    throughout = np.stack([1 - np.asarray(one["error"]) for one in found])
    if problem.late is None:
        return Beyond(lengths, throughout, throughout)
    return Beyond(lengths, np.stack([1 - np.asarray(one["late"]).mean(1) for one in found]), throughout)


def tested_lengths(problem: Problem, length: int) -> tuple[int, ...]:
    """The lengths at which a network that was trained at one length is tested at the end."""
    return tuple(int(factor * length) for factor in problem.beyond)


def guesses(problem: Problem, length: int) -> dict[str, Groups]:
    """How often a guess without memory is right."""
    if problem.guess is None:
        return {}
    many = held_out_batch(problem, length, GUESSED)
    return late_groups(problem.guess(many)[None], many)


def late_groups(right: np.ndarray, batch: Batch) -> dict[str, Groups]:
    """Right answers `(seeds, B)`, grouped by the distances and attractors of the batch."""
    values = {"distance": (batch.distance, 4), "attractors": (batch.attractors, 1)}
    return {name: grouped(right, *given) for name, given in values.items() if given[0] is not None}


def grouped(right: np.ndarray, values: np.ndarray, width: int, least: int = 20) -> Groups:
    """Groups sequences with values of 0, of 1 to `width`, and so on; groups of fewer than `least` are dropped.

    Args:
        right: `(seeds, B)`.
        values: `(B,)`, at least 0.
    """
    groups = -(-values // width)
    kept = [groups == group for group in np.unique(groups) if np.count_nonzero(groups == group) >= least]
    return Groups(
        np.array([values[members].mean() for members in kept]),
        np.array([right[:, members].mean() for members in kept]),
        np.array([np.count_nonzero(members) for members in kept]),
    )


def until_all_solved(solved_at: float) -> Callable[[Metrics], bool]:
    """Returns a function that says whether every seed has met the criterion at this or an earlier evaluation."""
    least: Any = np.inf

    def stop(metrics: Metrics) -> bool:
        nonlocal least
        least = np.fmin(least, metrics["error"])
        return bool(np.all(least <= solved_at))

    return stop


def first_solved(steps: Sequence[int], errors: np.ndarray, solved_at: float) -> np.ndarray:
    """The step of each seed's first evaluation at or below `solved_at`; 0 if there is none.

    Args:
        steps: of the evaluations.
        errors: `(evaluations, seeds)`.
    """
    met = errors <= solved_at
    return np.where(met.any(0), np.asarray(steps)[met.argmax(0)], 0)
