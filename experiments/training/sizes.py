"""The memory that a training takes at least, from shapes alone: what cannot fit is refused before any work.

Nothing is computed or allocated. The batch of a task is drawn at its smallest size, and its shapes are set to the
sizes asked for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from experiments.command.devices import devices_of
from experiments.command.memory import check_fits
from experiments.command.options import option
from experiments.training.loop import Settings, Task, make_optimiser

STATE, BATCHES, KEPT = "parameters and optimiser", "batches", "what is kept for the gradient"
CALLED = Settings(1, 1).steps_per_call
WEIGHTS = ("hidden_size", "layers", "embedding", "budgets", "seeds")
SEQUENCES = (
    *("batch_size", "size", "window", "length", "lengths", "adding_steps", "tests"),
    *("hidden_size", "embedding", "layers", "seeds"),
)


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
        return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(leaf.dtype))

    return jax.tree.map(shaped, batch)


def bytes_of(tree: Any) -> int:
    """The bytes of all arrays of a tree, or of what only has their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def stored_bytes(task: Task, batch: Any, seeds: int, steps_per_call: int, devices: Sequence[Any]) -> dict[str, int]:
    """The bytes that are there in all of a training, by what they are for, on the first of the devices that run it.

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
    share, copies = (1, 2) if on_cpu else (len(devices), 1)
    return {
        STATE: seeds * (bytes_of(params) + bytes_of(memory) + bytes_of(task.carry) // share) + bytes_of(params),
        BATCHES: copies * seeds * steps_per_call * bytes_of(batch) // share,
    }


def kept_bytes(task: Task, batch: Any, seeds: int, devices: Sequence[Any]) -> int:
    """What the losses keep for their gradients, beside parameters and batch; arguments as of `stored_bytes`."""

    def kept(params: Any, carry: Any, batch: Any, key: jax.Array) -> list[jax.Array]:
        _, back = jax.vjp(lambda own: task.loss(own, carry, batch, key)[0], params)
        given = {id(leaf) for leaf in jax.tree.leaves((params, carry, batch, key))}
        return list({id(leaf): leaf for leaf in jax.tree.leaves(back) if id(leaf) not in given}.values())

    key = jax.random.key(0)
    found = bytes_of(jax.eval_shape(kept, jax.eval_shape(task.init, key), shapes_of(task.carry), batch, key))
    return found if devices[0].platform == "cpu" else seeds * found // len(devices)  # see `over_seeds`


def check_training(
    config: Any,
    task: Task,
    batch: Any = None,
    *,
    jobs: int = 1,
    steps_per_call: int = CALLED,
    more: Mapping[str, int] | None = None,
    deeper: Task | None = None,
) -> None:
    """Raises a `ValueError` in one line, with the bytes that are needed, if the training cannot fit the memory.

    Args:
        config: the script's, with `seeds`, and `DeviceOptions`.
        task: the largest that is trained.
        batch: the shapes of its batch; by default those of the first.
        jobs: how many runs there are.
        steps_per_call: at most so many updates are made in one compiled call.
        more: other bytes, by what they are for, that are there all the time.
        deeper: the same task with a second layer, if `task` has one, and that which is trained has `layers` of config.
    """
    every = devices_of(config)
    devices = every[: max(1, len(every) // jobs)]
    shapes = shapes_of(task.batch(0, 0)) if batch is None else batch

    def of_all_layers(count: Callable[[Task], int]) -> int:
        one = count(task)
        return one if deeper is None else one + (config.layers - 1) * (count(deeper) - one)

    def stored(part: str) -> int:
        return of_all_layers(lambda own: stored_bytes(own, shapes, config.seeds, steps_per_call, devices)[part])

    parts = {STATE: stored(STATE), BATCHES: stored(BATCHES), **(more or {})}
    _refuse(config, parts, devices[0])  # before the loss is traced
    kept = of_all_layers(lambda own: kept_bytes(own, shapes, config.seeds, devices))
    _refuse(config, parts | {KEPT: kept}, devices[0])


def _refuse(config: Any, parts: Mapping[str, int], device: Any) -> None:
    names = WEIGHTS if max(parts, key=lambda part: parts[part]) == STATE else SEQUENCES
    check_fits(parts, [option(name) for name in names if getattr(config, name, None) is not None], device)
