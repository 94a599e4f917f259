"""The ways of computing a problem: jaxrnn's own here, those of other libraries in `_peers`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

import jaxrnn
from experiments.benchmarks._problem import AFFINE, Problem, difference, mean_square
from experiments.benchmarks._turns import TASKS, Program, compiled


class Contestant(NamedTuple):
    """One way to compute."""

    prepare: Callable[[str], Program]  # task -> its call, which returns outputs, or (loss, gradients)
    as_time_first: Callable[[Any], Any] = lambda ys: ys  # outputs as (T, B, H)
    as_jaxrnn: Callable[[Any], Any] = lambda gradients: gradients  # gradients as jaxrnn's parameters
    without: tuple[str, ...] = ()  # the parameters of jaxrnn's that it does not have


class Model(NamedTuple):
    """One way to compute with JAX: a function of parameters and inputs."""

    outputs: Callable[[Any, jax.Array], jax.Array]
    params: Any
    as_jaxrnn: Callable[[Any], Any] = lambda gradients: gradients
    without: tuple[str, ...] = ()
    batch_first: bool = False


class Disagreement(NamedTuple):
    """Raised if a contestant's results differ from those of the first."""

    cell: str
    shape: str
    contestant: str
    difference: float


def swap(array: jax.Array) -> jax.Array:
    """Time first as batch first, and back."""
    return array.swapaxes(0, 1)


def of_model(problem: Problem, model: Model) -> Contestant:
    """A contestant on one device. Inputs and target lie in the order of axes that the model reads."""
    xs, target = (swap(a) if model.batch_first else a for a in (problem.xs, problem.target))

    def loss(params: Any, xs: jax.Array, target: jax.Array) -> jax.Array:
        return mean_square(model.outputs(params, xs), target)

    def prepare(task: str) -> Program:
        if task == "forward":
            return compiled(model.outputs, model.params, xs)
        return compiled(jax.value_and_grad(loss), model.params, xs, target)

    as_time_first = swap if model.batch_first else Contestant._field_defaults["as_time_first"]
    return Contestant(prepare, as_time_first, model.as_jaxrnn, model.without)


def unrolled(problem: Problem, **options: Any) -> Contestant:
    """`jaxrnn.unroll`, with options of its own."""
    cell = problem.cell

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        return jaxrnn.unroll(cell, params, xs, **options)[1]

    return of_model(problem, Model(outputs, problem.params))


def of_final_state(problem: Problem, **options: Any) -> Contestant:
    """`jaxrnn.unroll`, of whose results the loss reads the final hidden state alone."""
    cell = problem.cell

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        final, _ = jaxrnn.unroll(cell, params, xs, **options)
        return getattr(final, "h", final)

    return of_model(problem._replace(target=problem.target[-1]), Model(outputs, problem.params))


def sharded(problem: Problem) -> Contestant | None:
    """`jaxrnn.data_parallel` over all devices; `None` where the batch does not divide."""
    devices = jax.device_count()
    if devices == 1 or problem.shape.batch % devices:
        return None
    cell, mesh = problem.cell, jax.make_mesh((devices,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere, by_batch = PartitionSpec(), PartitionSpec(None, "batch")
    params = jax.device_put(problem.params, NamedSharding(mesh, everywhere))
    xs, target = jax.device_put((problem.xs, problem.target), NamedSharding(mesh, by_batch))

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        return jaxrnn.unroll(cell, params, xs)[1]

    def loss(params: Any, xs: jax.Array, target: jax.Array) -> jax.Array:
        return mean_square(outputs(params, xs), target)

    def prepare(task: str) -> Program:
        if task == "forward":  # outputs are not averaged
            split = jax.shard_map(outputs, mesh=mesh, in_specs=(everywhere, by_batch), out_specs=by_batch)
            return compiled(split, params, xs)
        return compiled(jaxrnn.data_parallel(jax.value_and_grad(loss), (None, 1, 1)), params, xs, target)

    return Contestant(prepare)


LARGEST_OF_NEWTON = 64  # hidden units: an iteration multiplies H by H matrices of all steps


def associative(problem: Problem) -> Contestant | None:
    """All steps by associative scans; `None` for a cell that is not affine."""
    return unrolled(problem, implementation="associative") if problem.form in AFFINE else None


def newton(problem: Problem) -> Contestant | None:
    """All steps by Newton's method; `None` where a call would take minutes."""
    if problem.form in AFFINE or problem.shape.hidden > LARGEST_OF_NEWTON:
        return None
    return unrolled(problem, implementation="newton")


# The first is what the others are compared with. `None` is one that does not support the problem.
OWN: dict[str, Callable[[Problem], Contestant | None]] = {
    "default": unrolled,
    "scan": partial(unrolled, implementation="scan"),
    "sharded": sharded,
}
PARALLEL: dict[str, Callable[[Problem], Contestant | None]] = {"associative": associative, "newton": newton}


def prepare(contestants: dict[str, Contestant]) -> dict[str, dict[str, Program]]:
    """The programs by contestant and task."""
    return {name: {task: contestant.prepare(task) for task in TASKS} for name, contestant in contestants.items()}


def outcome(contestant: Contestant, programs: dict[str, Program]) -> tuple[Any, float, Any]:
    """The results of one call of each task, in the layout of all contestants: outputs, loss, gradients."""
    ys, (loss, gradients) = (jax.block_until_ready(programs[task].call()) for task in TASKS)
    return contestant.as_time_first(ys), float(loss), contestant.as_jaxrnn(gradients)


def apart(contestant: Contestant, found: tuple[Any, float, Any], expected: tuple[Any, float, Any]) -> float:
    """How far an outcome is from another one, without the parameters that the contestant does not have."""
    own = dict.fromkeys(contestant.without)
    return difference(*((ys, loss, gradients._replace(**own)) for ys, loss, gradients in (found, expected)))


def differences(
    contestants: dict[str, Contestant], programs: dict[str, dict[str, Program]], reference: str
) -> dict[str, float]:
    """Calls every contestant once; returns how far outputs, loss and gradients are from those of `reference`."""
    outcomes = {name: outcome(contestant, programs[name]) for name, contestant in contestants.items()}
    return {name: apart(contestants[name], found, outcomes[reference]) for name, found in outcomes.items()}
