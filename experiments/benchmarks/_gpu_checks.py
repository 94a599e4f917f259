"""Checks that results on the device equal those in float64 on the CPU, and are the same every time."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.benchmarks._contestants import Contestant, apart, outcome, unrolled
from experiments.benchmarks._gpu_contestants import OWN, field_of, own_options, why_not
from experiments.benchmarks._problem import Problem, Shape, make_problem, mean_square
from experiments.benchmarks._turns import TASKS, Program

# Of the largest entry of an array of outputs or gradients. float32 was seen at 1e-7 to 8e-6 on a CPU, bf16 at 7e-3. An
# operand is rounded by 5e-4 in TF32 and by 4e-3 in bfloat16, and the steps of a recurrence make some times as much of
# it. On a GPU nothing was seen yet.
TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "bf16": 1e-1}
AGAIN = 3  # calls that must give the bits of the first


class Check(NamedTuple):
    """One contestant at one problem."""

    cell: str
    shape: str
    dtype: str
    options: str  # of the call
    contestant: str
    difference: float
    identical: bool

    @property
    def right(self) -> bool:
        """Whether it may be timed. Contestants of other libraries may differ between calls."""
        return self.difference <= TOLERANCE[self.dtype] and (self.identical or self.contestant not in OWN)

    def complaint(self) -> str:
        said = f"differs by {self.difference:.1e}, {TOLERANCE[self.dtype]:.0e} is allowed"
        return f"{self.cell} {self.shape} {self.dtype}{self.options and ', ' + self.options}: {self.contestant} " + (
            said if self.identical else f"{said}; its calls differ from each other"
        )


def variants(shape: Shape) -> dict[str, dict[str, Any]]:
    """Options that every implementation of jaxrnn must get right. Lengths from 0 to T."""
    lengths = np.linspace(0, shape.steps, shape.batch).astype(np.int32)
    return {"": {}, "lengths": {"lengths": lengths}, "lengths, reverse": {"lengths": lengths, "reverse": True}}


def in_float64(problem: Problem, options: dict[str, Any]) -> tuple[Any, float, Any]:
    """Outputs, loss and gradients on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = lambda array: jnp.asarray(np.asarray(array, np.float64))  # noqa: E731
        params, xs, target = jax.tree.map(wide, (problem.params, problem.xs, problem.target))

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            ys = jaxrnn.unroll(problem.cell, params, xs, implementation="bptt", **options)[1]
            return mean_square(ys, target), ys

        (value, ys), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return jax.tree.map(np.asarray, ys), float(value), jax.tree.map(np.asarray, gradients)


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal bit for bit."""
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def examine(contestant: Contestant, expected: tuple[Any, float, Any]) -> tuple[float, bool]:
    """How far its results are from those expected, and whether they are the same every time."""
    programs: dict[str, Program] = {task: contestant.prepare(task) for task in TASKS}
    first = jax.tree.map(np.asarray, outcome(contestant, programs))
    again = [same(first, outcome(contestant, programs)) for _ in range(AGAIN)]
    return apart(contestant, first, expected), all(again)


def check_all(
    form: str, shape: Shape, dtype: str, device: str, unrolls: Sequence[int], peers: Sequence[str], vary: bool
) -> list[Check]:
    """Checks all contestants as they are timed; if `vary`, also jaxrnn's own with lengths and in reverse."""
    problem, checks = make_problem(form, shape), []
    for said, options in (variants(shape) if vary else {"": {}}).items():
        expected = in_float64(problem, options)
        contestants = field_of(problem, dtype, device, unrolls, peers).contestants
        if options:
            given = {name: own_options(name, dtype) | options for name in OWN}
            supported = {name: o for name, o in given.items() if why_not(problem, o) is None}
            contestants = {name: unrolled(problem, **o) for name, o in supported.items()}
        for name, contestant in contestants.items():
            difference, identical = examine(contestant, expected)
            checks.append(Check(form, str(shape), dtype, said, name, difference, identical))
    return checks
