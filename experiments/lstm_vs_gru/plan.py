"""The models of equal size that are compared, and their tasks."""

import itertools
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
    num_heads: int = 1


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


def cell_of(model: Model, steps: int) -> jaxrnn.Cell:
    """The cell of a model that reads so many steps."""
    return CONTESTANTS[model.cell].make(model.hidden_size, steps, num_heads=model.num_heads)


def parameters_of(problem: Problem, cell: str, hidden_size: int, num_heads: int = 1) -> int:
    """Of the whole model, the read-out included."""
    made = CONTESTANTS[cell].make(hidden_size, problem.steps, num_heads=num_heads)
    return jaxrnn.count_params(jax.eval_shape(lambda: initial(problem, made, hidden_size, jax.random.key(0))))


def sized(problem: Problem, task: str, cell: str, budget: int, num_heads: int = 1) -> Model:
    """The model whose number of parameters is nearest to the budget, of those with heads of equal size."""

    def parameters(units: int) -> int:  # of each head
        return parameters_of(problem, cell, units * num_heads, num_heads)

    too_large = 2
    while parameters(too_large) <= budget:
        too_large *= 2
    low = too_large // 2  # no larger than the budget, or 1
    while too_large - low > 1:
        middle = (low + too_large) // 2
        low, too_large = (middle, too_large) if parameters(middle) <= budget else (low, middle)
    counts = {units: parameters(units) for units in (low, too_large)}
    units = min(counts, key=lambda units: abs(counts[units] - budget))
    return Model(task, cell, budget, units * num_heads, counts[units], num_heads)


def planned(
    problems: Mapping[str, Problem],
    cells: tuple[str, ...],
    budgets: tuple[int, ...],
    tolerance: float,
    num_heads: tuple[int, ...] = (1,),
) -> list[Model]:
    """All models, the largest first; every cell with every number of heads.

    Raises:
        ValueError: if there is no model within the tolerance of a budget.
    """
    models = []
    for budget in sorted(budgets, reverse=True):
        for task, problem in problems.items():
            for cell, heads in itertools.product(cells, dict.fromkeys(num_heads)):
                model = sized(problem, task, cell, budget, heads)
                if abs(model.parameters - budget) > tolerance * budget:
                    units = f"{model.hidden_size} units" + (f" in {heads} heads" if heads > 1 else "")
                    raise ValueError(
                        f"--budgets {budget} is not met within {100 * tolerance:g} % by {cell} on {task}: "
                        f"{model.parameters} parameters with {units}; give a larger one"
                    )
                models.append(model)
    return models
