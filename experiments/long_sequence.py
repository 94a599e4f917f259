"""Trains through 100,000 time steps at once, with the memory limited by `checkpoint`.

    python -m experiments.long_sequence

An LSTM reads slow and fast oscillations with noise and predicts the next input, at every step of
one sequence of T steps; the gradient flows through all of them. `checkpoint="sqrt"` keeps the
state about every √T steps, and the backward pass runs the segment between two of them again.
"""

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import jaxrnn
from experiments.command.memory import check_fits
from experiments.command.messages import complain, shown
from experiments.command.options import check_seed, positive, read_options
from experiments.command.report import check_files, check_writable, environment, writable_folder, write_json
from experiments.command.script import RESULTS, is_out_of_memory, out_of_memory
from experiments.training.loop import Task
from experiments.training.sizes import KEPT, kept_bytes, stored_bytes


@dataclasses.dataclass(frozen=True)
class Config:
    """One very long sequence in little memory."""

    steps: int = 100_000
    """T, the length of the sequence."""
    batch_size: int = 8
    """B, sequences side by side."""
    features: int = 16
    """I, oscillations in each."""
    hidden_size: int = 128
    """H, hidden units."""
    checkpoint: str = "sqrt"
    """What is kept for the backward pass: none, gates, sqrt, or a number of steps."""
    updates: int = 2
    """Steps of Adam, each over the whole sequence."""
    seed: int = 0
    """Of parameters and data."""
    out: Path = Path("results/long_sequence")
    """The folder for results.json."""


class Model(NamedTuple):
    """A cell, and a linear layer that predicts the next input."""

    cell: Any
    v: jax.Array  # (H, I)


def oscillations(config: Config) -> jax.Array:
    """`(T + 1, B, I)`: sines with periods from 10 steps to T, phases of their own, and noise of 0.1."""
    rng = np.random.default_rng(config.seed)
    periods = np.geomspace(10, max(config.steps, 11), config.features)
    phases = rng.uniform(0, 2 * np.pi, (config.batch_size, config.features))
    steps = np.arange(config.steps + 1)[:, None, None]
    noise = 0.1 * rng.standard_normal((config.steps + 1, config.batch_size, config.features), np.float32)
    return jnp.asarray(np.sin(2 * np.pi * steps / periods + phases).astype(np.float32) + noise)


def parse_checkpoint(text: str) -> str | int | None:
    if text == "none":
        return None
    if text.isdecimal() and len(text) < 10 and int(text) > 0:
        return int(text)
    if text not in ("gates", "sqrt"):
        raise ValueError(f"--checkpoint expected none, gates, sqrt or a positive number of steps, got {shown(text)}")
    return text


def checked(config: Config) -> str | int | None:
    """What to keep; a `ValueError` or `OSError` with one line of text if anything is wrong, before any work."""
    positive(config, "steps", "batch_size", "features", "hidden_size", "updates")
    check_seed(config.seed)
    checkpoint = parse_checkpoint(config.checkpoint)
    check_writable(config.out)
    check_files([config.out / RESULTS])
    check_memory(config, checkpoint)
    writable_folder(config.out)
    return checkpoint


def check_memory(config: Config, checkpoint: str | int | None) -> None:
    """Raises a `ValueError` in one line if the training cannot fit the machine's memory."""
    init, loss = functions_of(config, checkpoint)
    task = Task(init, lambda model, carry, batch, key: (loss(model, batch), carry), lambda seed, step: None, 1)
    sequence = jax.ShapeDtypeStruct((config.steps + 1, config.batch_size, config.features), jnp.float32)
    devices, options = jax.devices()[:1], ("--steps", "--batch-size", "--hidden-size", "--features")
    parts = stored_bytes(task, sequence, 1, 1, devices)
    check_fits(parts, options, devices[0])
    check_fits({**parts, KEPT: kept_bytes(task, sequence, 1, devices)}, options, devices[0])


def functions_of(
    config: Config, checkpoint: str | int | None
) -> tuple[Callable[[jax.Array], Model], Callable[[Model, jax.Array], jax.Array]]:
    """What makes a model from a random key, and the loss of a model on a sequence."""
    cell = jaxrnn.lstm(config.hidden_size)

    def init(key: jax.Array) -> Model:
        key_cell, key_v = jax.random.split(key)
        v = jax.nn.initializers.glorot_uniform()(key_v, (config.hidden_size, config.features))
        return Model(cell.init(key_cell, config.features), v)

    def loss(model: Model, sequence: jax.Array) -> jax.Array:
        _, ys = jaxrnn.unroll(cell, model.cell, sequence[:-1], checkpoint=checkpoint)
        return jnp.mean(jnp.square(ys @ model.v - sequence[1:]))

    return init, loss


def training(config: Config, checkpoint: str | int | None) -> tuple[Model, Any, Callable[..., Any]]:
    """The model, the optimiser's memory, and a function `(model, memory, sequence) -> (model, memory, loss)`."""
    init, loss = functions_of(config, checkpoint)
    model = init(jax.random.key(config.seed))
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))

    def update(model: Model, memory: Any, sequence: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(model, sequence)
        updates, memory = optimiser.update(gradient, memory, model)
        return optax.apply_updates(model, updates), memory, value

    return model, optimiser.init(model), update


def peak_memory() -> int:
    """The most bytes this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run(config: Config, checkpoint: str | int | None) -> dict[str, Any]:
    model, memory, update = training(config, checkpoint)
    sequence = oscillations(config)
    program = jax.jit(update, donate_argnums=(0, 1)).lower(model, memory, sequence).compile()
    losses, seconds = [], []
    for k in range(config.updates):
        start = time.perf_counter()
        model, memory, loss = program(model, memory, sequence)
        losses.append(float(loss))
        seconds.append(time.perf_counter() - start)
        print(f"update {k + 1} of {config.updates}: loss {losses[-1]:.4f}, {seconds[-1]:.1f} s", file=sys.stderr)
    analysis = program.memory_analysis()
    temporary = None if analysis is None else analysis.temp_size_in_bytes
    return {"losses": losses, "seconds": seconds, "temporary_bytes": temporary, "peak_resident_bytes": peak_memory()}


def print_table(config: Config, outcome: dict[str, Any]) -> None:
    table = Table(title=f"LSTM, T = {config.steps:,}, B = {config.batch_size}, H = {config.hidden_size}")
    for column in (
        "checkpoint",
        "temporary memory, MiB",
        "peak of the process, MiB",
        "s an update",
        "first loss",
        "last",
    ):
        table.add_column(column, justify="right")
    temporary = outcome["temporary_bytes"]
    table.add_row(
        config.checkpoint,
        "unknown" if temporary is None else f"{temporary / 2**20:,.0f}",
        f"{outcome['peak_resident_bytes'] / 2**20:,.0f}",
        f"{min(outcome['seconds']):.1f}",
        f"{outcome['losses'][0]:.4f}",
        f"{outcome['losses'][-1]:.4f}",
    )
    Console(width=120).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 2 with one line on stderr if the command cannot run."""
    config = read_options("long_sequence", Config, arguments)
    try:
        checkpoint = checked(config)
    except (ValueError, OSError) as error:
        return complain("long_sequence", error)
    try:
        outcome = run(config, checkpoint)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return complain("long_sequence", out_of_memory(error))
    print_table(config, outcome)
    settings = {
        key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(config).items()
    }
    write_json(config.out / RESULTS, {"experiment": "long_sequence", **environment(), "settings": settings, **outcome})
    return 0


if __name__ == "__main__":
    sys.exit(main())
