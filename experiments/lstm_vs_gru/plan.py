"""The models of equal size that are compared, and their tasks."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.memory_tasks.problems import draw_adding
from experiments.models.cells import CONTESTANTS
from experiments.models.problems import Examples, Problem, initial
from experiments.models.readout import many_to_one

TOLERATED = 0.04  # how far an answer of the adding problem may be off (Hochreiter & Schmidhuber 1997)


class Model(NamedTuple):
    """A cell of such a size that the whole model has about so many parameters."""

    task: str
    cell: str
    budget: int
    hidden_size: int
    parameters: int


def adding(steps: int, batch_size: int, tests: int = 1000) -> Problem:
    """The sum of the two marked numbers of a sequence."""

    def examples(key: tuple[int, ...], count: int) -> Examples:
        drawn = draw_adding(np.random.default_rng(key), steps, count)
        return Examples(drawn.xs, drawn.targets)

    def scores(answers: jax.Array, sums: jax.Array) -> dict[str, jax.Array]:
        apart = answers[:, 0] - sums
        return {"loss": jnp.mean(apart**2), "error": jnp.mean((jnp.abs(apart) > TOLERATED).astype(apart.dtype))}

    return Problem(
        label=f"adding, {steps} steps",
        unit="mean squared error",
        steps=steps,
        input_size=2,
        output_size=1,
        predict=many_to_one,
        encode=lambda xs: xs,
        scores=scores,
        batch=lambda seed, step: examples((seed, step, 1), batch_size),
        batch_size=batch_size,
        validation=examples((steps, 2), tests),
        test=examples((steps, 3), tests),
    )


def parameters_of(problem: Problem, cell: str, hidden_size: int) -> int:
    """Of the whole model, the read-out included."""
    made = CONTESTANTS[cell].make(hidden_size, problem.steps)
    return jaxrnn.count_params(jax.eval_shape(lambda: initial(problem, made, hidden_size, jax.random.key(0))))


def sized(problem: Problem, task: str, cell: str, budget: int) -> Model:
    """The model whose number of parameters is nearest to the budget."""
    too_large = 2
    while parameters_of(problem, cell, too_large) <= budget:
        too_large *= 2
    low = too_large // 2  # no larger than the budget, or 1
    while too_large - low > 1:
        middle = (low + too_large) // 2
        low, too_large = (middle, too_large) if parameters_of(problem, cell, middle) <= budget else (low, middle)
    counts = {hidden: parameters_of(problem, cell, hidden) for hidden in (low, too_large)}
    hidden = min(counts, key=lambda hidden: abs(counts[hidden] - budget))
    return Model(task, cell, budget, hidden, counts[hidden])


def planned(
    problems: Mapping[str, Problem], cells: tuple[str, ...], budgets: tuple[int, ...], tolerance: float
) -> list[Model]:
    """All models, the largest first.

    Raises:
        ValueError: if there is no model within the tolerance of a budget.
    """
    models = []
    for budget in sorted(budgets, reverse=True):
        for task, problem in problems.items():
            for cell in cells:
                model = sized(problem, task, cell, budget)
                if abs(model.parameters - budget) > tolerance * budget:
                    raise ValueError(
                        f"--budgets {budget} is not met within {100 * tolerance:g} % by {cell} on {task}: "
                        f"{model.parameters} parameters with {model.hidden_size} units; give a larger one"
                    )
                models.append(model)
    return models
