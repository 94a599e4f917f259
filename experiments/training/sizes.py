"""The memory that a training takes at least, from shapes alone: what cannot fit is refused before any work.

Nothing is computed or allocated. The batch of a task is drawn at its smallest size, and its shapes are set to the
sizes asked for.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.command.devices import devices_of
from experiments.command.memory import check_fits
from experiments.command.options import option
from experiments.training.loop import Settings, Task, make_optimiser

STATE, BATCHES, KEPT = "parameters and optimiser", "batches", "what is kept for the gradient"
CALLED = Settings(1, 1).steps_per_call
WEIGHTS = ("hidden_size", "layers", "embedding", "budgets", "seeds")
SEQUENCES = ("batch_size", "size", "window", "length", "lengths", "adding_steps", "tests", "seeds")


def shapes_of(batch: Any, examples: int | None = None, steps: int | None = None) -> Any:
    """The shapes of a batch, with other sizes.

    Args:
        batch: arrays with examples on their first axis, and time steps on the second if there is one.
        examples: B, by default that of the batch.
        steps: T, by default that of the batch.
    """

    def shaped(leaf: Any) -> jax.ShapeDtypeStruct:
        shape = leaf.shape if examples is None else (examples, *leaf.shape[1:])
        shape = shape if steps is None or len(shape) < 2 else (shape[0], steps, *shape[2:])
        return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf.dtype))

    return jax.tree.map(shaped, batch)


def bytes_of(tree: Any) -> int:
    """The bytes of all arrays of a tree, or of what only has their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def kept_bytes(task: Task, params: Any, batch: Any) -> int:
    """What the loss of one seed keeps for its gradient, beside parameters and batch."""

    def kept(params: Any, carry: Any, batch: Any, key: jax.Array) -> list[jax.Array]:
        _, back = jax.vjp(lambda own: task.loss(own, carry, batch, key)[0], params)
        given = {id(leaf) for leaf in jax.tree.leaves((params, carry, batch, key))}
        return list({id(leaf): leaf for leaf in jax.tree.leaves(back) if id(leaf) not in given}.values())

    carry = shapes_of(task.carry)
    return bytes_of(jax.eval_shape(kept, params, carry, batch, jax.random.key(0)))


def parts_of(task: Task, batch: Any, seeds: int, steps_per_call: int, devices: Sequence[Any]) -> dict[str, int]:
    """The bytes that a training takes at least, by what they are for, on the first of the devices that it runs on.

    Args:
        task: what is learned.
        batch: the shapes of a batch of one seed.
        seeds: how many train together.
        steps_per_call: whose batches are there at one time.
        devices: of one run; those of a CPU have one memory.
    """
    params = jax.eval_shape(task.init, jax.random.key(0))
    memory = jax.eval_shape(make_optimiser(1.0).init, params)
    on_cpu = devices[0].platform == "cpu"
    share, together = (1, 1) if on_cpu else (len(devices), seeds)  # see `over_seeds`
    return {
        STATE: seeds * (bytes_of(params) + bytes_of(memory) + bytes_of(task.carry) // share) + bytes_of(params),
        BATCHES: (2 if on_cpu else 1) * seeds * steps_per_call * bytes_of(batch) // share,  # two copies are made
        KEPT: together * kept_bytes(task, params, batch) // share,
    }


def check_training(
    config: Any,
    task: Task,
    batch: Any = None,
    *,
    jobs: int = 1,
    steps_per_call: int = CALLED,
    more: Mapping[str, int] | None = None,
) -> None:
    """Raises a `ValueError` in one line, with the bytes that are needed, if the training cannot fit the memory.

    Args:
        config: the script's, with `seeds`, and `DeviceOptions`.
        task: the largest that is trained.
        batch: the shapes of its batch; by default those of the first.
        jobs: how many runs there are.
        steps_per_call: at most so many updates are made in one compiled call.
        more: other bytes, by what they are for, that are there all the time.
    """
    every = devices_of(config)
    devices = every[: max(1, len(every) // jobs)]
    shapes = shapes_of(task.batch(0, 0)) if batch is None else batch
    parts = {**parts_of(task, shapes, config.seeds, steps_per_call, devices), **(more or {})}
    names = WEIGHTS if max(parts, key=lambda part: parts[part]) == STATE else SEQUENCES
    own = [option(name) for name in names if getattr(config, name, None) is not None]
    check_fits(parts, own, devices[0])
