"""How long a forward pass and a train step take, the contestants side by side in one process.

    python -m experiments.benchmarks.speed

A train step is the value and the gradient, with respect to the parameters alone (the inputs are data), of the
mean square distance of all outputs from a target. Before anything is timed, every contestant must give the outputs and
gradients of the first one. Then they take turns, call by call, so that a machine that slows down does so for all.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxrnn
from experiments._report import environment, writable_folder, write_json


@dataclasses.dataclass(frozen=True)
class Config:
    """Speed of the default implementation against the others."""

    cells: tuple[str, ...] = ("lstm", "gru", "rnn")
    """Which cells: any of lstm, gru, rnn."""
    shapes: tuple[str, ...] = ("128,32,128,256", "784,64,1,128", "35,20,200,200", "100,1,64,64")
    """Which shapes, each as T,B,I,H: steps, batch, input features, hidden units."""
    repeats: int = 20
    """Timed calls of every contestant."""
    json: Path | None = None
    """A file for the figures."""


class Problem(NamedTuple):
    """What every contestant is given: float32, time first."""

    cell: str
    params: Any  # jaxrnn's, whose layout the gradients are compared in
    xs: jax.Array  # (T, B, I)
    target: jax.Array  # (T, B, H)


class Contestant(NamedTuple):
    """One way to compute; both calls may return before the device has finished."""

    forward: Callable[[], Any]  # -> outputs (T, B, H)
    train: Callable[[], Any]  # -> (loss, gradients)
    as_jaxrnn: Callable[[Any], Any] = lambda gradients: gradients  # the gradients as jaxrnn's parameters


class Timing(NamedTuple):
    """One contestant at one task."""

    cell: str
    shape: str
    task: str
    contestant: str
    first_call_s: float  # tracing and compilation included
    min_ms: float
    median_ms: float


CELLS: dict[str, Callable[[int], jaxrnn.Cell]] = {"lstm": jaxrnn.lstm, "gru": jaxrnn.gru, "rnn": jaxrnn.rnn}


class Disagreement(Exception):
    """A contestant computes something else than the first."""


def unrolled(problem: Problem, implementation: str | None) -> Contestant:
    cell = CELLS[problem.cell](problem.target.shape[-1])

    def forward(params: Any, xs: jax.Array) -> jax.Array:
        return jaxrnn.unroll(cell, params, xs, implementation=implementation)[1]

    def loss(params: Any, xs: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(forward(params, xs) - target))

    compiled, compiled_step = jax.jit(forward), jax.jit(jax.value_and_grad(loss))
    return Contestant(
        forward=lambda: compiled(problem.params, problem.xs),
        train=lambda: compiled_step(problem.params, problem.xs, problem.target),
    )


# The first is what the others are compared with. Another library joins by a row: a function of the problem that
# converts the parameters and returns its calls.
CONTESTANTS: dict[str, Callable[[Problem], Contestant]] = {
    "default": lambda problem: unrolled(problem, None),
    "scan": lambda problem: unrolled(problem, "scan"),
}
TOLERANCE = 1e-4  # float32, of the largest entry of an array; sums over T and B are taken in different orders
TASKS = ("forward", "train")


def make_problem(cell: str, shape: tuple[int, int, int, int]) -> Problem:
    steps, batch, features, hidden = shape
    key_params, key_xs, key_target = jax.random.split(jax.random.key(0), 3)
    params = CELLS[cell](hidden).init(key_params, features)
    xs = jax.random.normal(key_xs, (steps, batch, features))
    problem = Problem(cell, params, xs, jax.random.normal(key_target, (steps, batch, hidden)))
    return jax.block_until_ready(problem)  # or the first contestant would wait for it


def difference(found: Any, expected: Any) -> float:
    """The largest deviation in two equal trees, as a share of the largest entry of its array."""

    def of_leaf(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), np.finfo(np.float64).tiny))

    # NumPy's maximum, unlike Python's, does not lose a NaN
    return float(np.max(jax.tree.leaves(jax.tree.map(of_leaf, found, expected))))


def compare(contestants: dict[str, Contestant]) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Calls everybody once: the difference of each from the first, and the seconds of each first call by task."""
    outcomes, seconds = {}, {}
    for name, contestant in contestants.items():
        calls = []
        for task in TASKS:
            start = time.perf_counter()
            calls.append(jax.block_until_ready(getattr(contestant, task)()))
            seconds[name, task] = time.perf_counter() - start
        ys, (loss, gradients) = calls
        outcomes[name] = (ys, loss, contestant.as_jaxrnn(gradients))
    expected = next(iter(outcomes.values()))
    return {name: difference(outcome, expected) for name, outcome in outcomes.items()}, seconds


def take_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every call; who begins changes from round to round."""
    names = list(calls)
    milliseconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            jax.block_until_ready(calls[name]())
            milliseconds[name].append(1e3 * (time.perf_counter() - start))
    return milliseconds


def measure(cell: str, shape: str, repeats: int) -> tuple[dict[str, float], list[Timing]]:
    """Differences from the first contestant, and timings; a `Disagreement` if somebody computes something else."""
    problem = make_problem(cell, parse(shape))
    contestants = {name: build(problem) for name, build in CONTESTANTS.items()}
    differences, first_calls = compare(contestants)
    for name, value in differences.items():
        if not value <= TOLERANCE:
            raise Disagreement(f"{cell} {shape}: {name} differs by {value:.1e}, more than {TOLERANCE:.0e}; not timed")
    timings = []
    for task in TASKS:
        taken = take_turns({name: getattr(c, task) for name, c in contestants.items()}, repeats)
        for name, milliseconds in taken.items():
            quickest, median = min(milliseconds), statistics.median(milliseconds)
            timings.append(Timing(cell, shape, task, name, first_calls[name, task], quickest, median))
    return differences, timings


def ratios(timings: Sequence[Timing]) -> list[float]:
    """The minimum of each, divided by that of the first contestant at the same task: above 1 is slower."""
    base = {(t.cell, t.shape, t.task): t.min_ms for t in timings if t.contestant == next(iter(CONTESTANTS))}
    return [t.min_ms / base[t.cell, t.shape, t.task] for t in timings]


def parse(shape: str) -> tuple[int, int, int, int]:
    """T,B,I,H."""
    try:
        steps, batch, features, hidden = (int(part) for part in shape.split(","))
    except ValueError:
        raise ValueError(f"--shapes expected T,B,I,H such as 128,32,128,256; got {shape!r}") from None
    if min(steps, batch, features, hidden) < 1:
        raise ValueError(f"--shapes expected positive sizes, got {shape!r}")
    return steps, batch, features, hidden


def check(config: Config) -> None:
    """A `ValueError` or `OSError` with one line of text if anything is wrong, before any work."""
    unknown = [cell for cell in config.cells if cell not in CELLS]
    if unknown or not config.cells:
        raise ValueError(f"--cells expected {', '.join(CELLS)}; got {unknown[0] if unknown else 'nothing'}")
    if not config.shapes:
        raise ValueError("--shapes expected T,B,I,H such as 128,32,128,256; got nothing")
    for shape in config.shapes:
        parse(shape)
    if config.repeats < 1:
        raise ValueError(f"--repeats expected a positive number, got {config.repeats}")
    if config.json is not None:
        writable_folder(config.json.parent)
        if config.json.is_dir():
            raise ValueError(f"--json expected a file, {config.json} is a folder")


def print_header(about: dict[str, Any], repeats: int) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    machine = about["machine"]
    print(about["date"], versions, sep="\n")
    print(f"{machine['devices']} x {machine['device']}, {machine['processor']}, {machine['cores']} cores")
    print(
        f"float32; milliseconds of {repeats} calls; the ratio is that of the minimum to {next(iter(CONTESTANTS))}'s\n"
    )
    print(f"{'cell and T,B,I,H':<22}{'task':<9}{'contestant':<12}{'min':>8}{'median':>8}{'ratio':>7}{'first call':>12}")


def print_timings(timings: Sequence[Timing]) -> None:
    for t, ratio in zip(timings, ratios(timings), strict=True):
        problem = f"{t.cell} {t.shape}"
        figures = f"{t.min_ms:>8.4g}{t.median_ms:>8.4g}{ratio:>7.2f}{t.first_call_s:>10.2f} s"
        print(f"{problem:<22}{t.task:<9}{t.contestant:<12}{figures}", flush=True)
    print()


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 2 for a command that cannot be run as it stands, 1 if a contestant computes something else."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.benchmarks.speed")
    try:
        check(config)
    except (ValueError, OSError) as error:
        print(f"speed: {error}", file=sys.stderr)
        return 2
    about = environment()
    print_header(about, config.repeats)
    timings: list[Timing] = []
    checks = []
    for cell in dict.fromkeys(config.cells):
        for shape in dict.fromkeys(config.shapes):
            try:
                differences, new = measure(cell, shape, config.repeats)
            except Disagreement as error:
                print(f"speed: {error}", file=sys.stderr)
                return 1
            print_timings(new)
            timings += new
            checks += [{"cell": cell, "shape": shape, "contestant": n, "difference": d} for n, d in differences.items()]
    if config.json is not None:
        rows = [{**t._asdict(), "ratio": ratio} for t, ratio in zip(timings, ratios(timings), strict=True)]
        settings = {"repeats": config.repeats, "tolerance": TOLERANCE, "dtype": "float32"}
        write_json(config.json, {"benchmark": "speed", **about, **settings, "timings": rows, "differences": checks})
    return 0


if __name__ == "__main__":
    sys.exit(main())
