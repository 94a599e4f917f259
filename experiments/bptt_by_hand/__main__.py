"""Back-propagation through time by hand, beside `jax.grad`: every step, every gate, and their difference.

    python -m experiments.bptt_by_hand

For an RNN, an LSTM and a GRU it prints the vectors of the forward pass, δ of every quantity from the last step
to the first, and the gradients of the weights: by the hand-written rule that `jaxrnn.unroll` differentiates
with, and by JAX from the equations written down once more. The exit code is 1 if any of them differ.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.bptt_by_hand import compare
from experiments.bptt_by_hand.compare import BOUND_OF_SLOPES, BOUNDS, CELLS, LABELS, Pair, Sizes, difference, differing
from experiments.bptt_by_hand.figure import BIASES, draw, paths
from experiments.bptt_by_hand.tables import LOSS, print_cell, print_layers, print_readouts, print_summary
from experiments.command.devices import DeviceOptions
from experiments.command.options import among, at_most, check_seed, positive
from experiments.command.script import Result, run_script


@dataclasses.dataclass(frozen=True)
class Config(DeviceOptions):
    """The hand-written gradient beside `jax.grad`, step by step; exits with 1 if they differ."""

    cells: tuple[str, ...] = ("rnn", "lstm", "gru")
    """Which cells to compare: any of those."""
    steps: int = 3
    """T, steps that are printed."""
    input_size: int = 2
    """I, entries of the input."""
    hidden_size: int = 2
    """H, hidden units."""
    outputs: int = 2
    """Classes of the read-out."""
    figure_steps: int = 60
    """Steps of the figure."""
    seed: int = 0
    """Of all that is drawn."""
    out: Path = Path("results/bptt_by_hand")
    """The folder for results.json and the figure."""
    quick: bool = False
    """A figure of fewer steps."""


QUICK = {"figure_steps": 20}
WIDTH = 150


def checked(config: Config) -> None:
    positive(config, "steps", "input_size", "hidden_size", "outputs", "figure_steps")
    check_seed(config.seed)
    among(config, "cells", tuple(CELLS))
    for name in ("steps", "input_size", "hidden_size", "outputs"):
        at_most(config, name, 32, "of which every entry is compared")
    at_most(config, "figure_steps", 2000, "which the figure can show")
    if config.outputs < 2:
        raise ValueError(f"--outputs expected at least 2 classes, got {config.outputs}")


def part(compared: str, dtype: str, pair: Pair, bound: float) -> dict[str, Any]:
    """A row of the summary."""
    return {
        "compared": compared,
        "dtype": dtype,
        "difference": float(np.max([difference(pair, key) for key in pair.hand])),
        "bound": bound,
        "differ": differing(pair, bound),
    }


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
    """XLA compiles without most optimisations: programs run only once here."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values.get(name, False)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


@quick_compilation()
def run(config: Config) -> Result:
    """Compares, prints, and returns the record."""
    sizes = Sizes(config.steps, config.input_size, config.hidden_size, config.outputs)
    names, console, parts = list(dict.fromkeys(config.cells)), Console(width=WIDTH), []
    cells: dict[str, dict[str, compare.Comparison]] = {name: {} for name in names}
    slopes: dict[str, Mapping[str, np.ndarray]] = {}
    readouts, layers = {}, {}
    for dtype in BOUNDS:
        with jax.enable_x64(dtype == "float64"):
            for name in names:
                cell = CELLS[name](config.hidden_size)
                given = compare.problem(cell, sizes, config.seed, jnp.dtype(dtype))
                cells[name][dtype] = compare.compare(name, cell, given)
                if dtype == "float64":
                    slopes[name] = compare.slopes(cell, name, given)
            readouts[dtype] = compare.readouts(sizes, config.seed, jnp.dtype(dtype))
            layers[dtype] = {
                name: compare.layers(name, CELLS[name], sizes, config.seed, jnp.dtype(dtype)) for name in names
            }
    for dtype, bound in BOUNDS.items():
        for name in names:
            for field, pair in cells[name][dtype]._asdict().items():
                parts.append(part(f"{LABELS[name]}, {field}", dtype, pair, bound))
            parts.append(part(f"{LABELS[name]}, two layers", dtype, layers[dtype][name], bound))
        parts += [part(f"read-out, {kind}", dtype, pair, bound) for kind, pair in readouts[dtype].items()]
    for name in names:
        pair = Pair(cells[name]["float64"].weights.hand, dict(slopes[name]))
        parts.append(part(f"{LABELS[name]}, finite differences", "float64", pair, BOUND_OF_SLOPES))

    console.print(LOSS, highlight=False)
    for name in names:
        print_cell(console, name, cells[name], slopes[name])
    print_readouts(console, readouts["float64"], readouts["float32"])
    print_layers(console, layers["float64"], layers["float32"])
    print_summary(console, parts)
    figures = {bias: paths(bias, config.figure_steps, config.seed) for bias in BIASES}
    record = {"parts": parts, "differ": [one for one in parts if one["differ"]]}
    return record, functools.partial(draw, config.out / "bptt_by_hand", figures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if the derivative by hand and that of JAX differ."""
    differ: list[Any] = []

    def noted(config: Config) -> Result:
        record, drawn = run(config)
        differ.extend(record["differ"])
        return record, drawn

    writes = ("bptt_by_hand",)
    code = run_script("bptt_by_hand", Config, noted, check=checked, quick=QUICK, writes=writes, arguments=arguments)
    return code or (1 if differ else 0)


if __name__ == "__main__":
    sys.exit(main())
