"""Times one step when each output is waited for, and a long sequence without a gradient.

    python -m experiments.benchmarks.latency

A step is compiled once, donates its state, and is called for one sequence: `cell.step` and
`step` of a network of one layer, beside the cells of other libraries with the same weights. I equals H.
The long sequences are forward passes as in `experiments.benchmarks.speed`, at B = 1.
"""

import dataclasses
import functools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.benchmarks import _options, _plots, _streams
from experiments.benchmarks._peers import PEERS
from experiments.benchmarks._problem import Problem, Shape, difference, make_problem, parse_shape
from experiments.benchmarks._streams import Stream
from experiments.benchmarks._turns import start, take_turns
from experiments.benchmarks.speed import TOLERANCE, contestants_of
from experiments.command.options import read_options
from experiments.command.report import write_json

CELLS = ("lstm", "gru", "rnn")
STEPS_COMPARED = 8
QUICK: dict[str, Any] = {"hidden": (16,), "sequences": ("64,1,8,16",), "repeats": 2}


@dataclasses.dataclass(frozen=True)
class Config:
    """Latency of a single step, and speed of long sequences forward."""

    cells: tuple[str, ...] = CELLS
    """Which equations: any of lstm, gru, rnn."""
    hidden: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Which numbers of hidden units, each also that of input features."""
    sequences: tuple[str, ...] = ("10000,1,64,64", "10000,1,256,256")
    """Which long sequences, each as T,B,I,H."""
    peers: tuple[str, ...] = tuple(PEERS)
    """Which other libraries; those not installed are skipped, haiku and keras run only the sequences."""
    repeats: int = 10
    """Turns of every contestant; one is as many calls as begin within 10 ms."""
    quick: bool = False
    """Small sizes and two turns, to see that it works."""
    json: Path | None = None
    """A file for the figures."""
    plot: Path | None = None
    """A PNG file for the first cell's latencies."""


class Outcome(NamedTuple):
    """The results of one kind of measurement, by contestant."""

    differences: dict[str, float]  # how far its outputs are from the first one's
    microseconds: dict[str, list[float]]  # a step, of those that compute the same
    temporary_bytes: dict[str, int | None]


def one_step(problem: Problem, peers: tuple[str, ...], repeats: int) -> Outcome:
    """The latency of single steps, after a few whose outputs are compared."""
    streams = _streams.streams_of(problem, peers)
    outputs = {name: [jax.block_until_ready(call()) for _ in range(STEPS_COMPARED)] for name, call in streams.items()}
    return timed(streams, outputs, repeats, 1)


def whole_sequence(problem: Problem, peers: tuple[str, ...], repeats: int) -> Outcome:
    """Forward passes alone, and the memory that they need beside their arguments and outputs."""
    contestants = contestants_of(problem, peers)
    programs = {name: contestant.prepare("forward") for name, contestant in contestants.items()}
    outputs = {name: contestants[name].as_time_first(program.call()) for name, program in programs.items()}
    calls = {name: program.call for name, program in programs.items()}
    outcome = timed(calls, outputs, repeats, problem.shape.steps)
    return outcome._replace(temporary_bytes={name: program.temporary_bytes for name, program in programs.items()})


def timed(calls: dict[str, Stream], outputs: dict[str, Any], repeats: int, steps: int) -> Outcome:
    """Times the contestants whose outputs equal those of the first."""
    expected = next(iter(outputs.values()))
    found = {name: difference(ys, expected) for name, ys in outputs.items()}
    right = {name: call for name, call in calls.items() if found[name] <= TOLERANCE}
    taken = {name: [1e3 * ms / steps for ms in each] for name, each in take_turns(right, repeats).items()}
    return Outcome(found, taken, dict.fromkeys(calls))


def rows_of(what: str, problem: Problem, outcome: Outcome) -> list[dict[str, Any]]:
    """What is printed and written of each contestant; no times of one that computes something else."""
    base = min(next(iter(outcome.microseconds.values()), [float("nan")]))
    rows = []
    for name, apart in outcome.differences.items():
        row = {"what": what, "cell": problem.form, "shape": str(problem.shape), "contestant": name, "difference": apart}
        if name in outcome.microseconds:
            taken = outcome.microseconds[name]
            row |= {"min_us": min(taken), "median_us": statistics.median(taken), "ratio": min(taken) / base}
            row |= {"temporary_bytes": outcome.temporary_bytes[name]}
        rows.append(row)
    return rows


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        if "min_us" in row:
            where = f"{row['what']:<10}{row['cell']:<6}{row['shape']:<20}{row['contestant']:<10}"
            memory = row["temporary_bytes"]
            figures = f"{row['min_us']:>9.4g}{row['median_us']:>9.4g}{row['ratio']:>7.2f}"
            print(where + figures + ("" if memory is None else f"{memory / 2**20:>11.4g}"))
        else:
            message = f"{row['contestant']} differs by {row['difference']:.1e}, more than {TOLERANCE:.0e}; not timed"
            print(f"latency: {row['cell']} {row['shape']}: {message}", file=sys.stderr)
    print(flush=True)


def check(config: Config) -> None:
    """A `ValueError` or `OSError` with one line of text if anything is wrong, before any work."""
    _options.cells_known(config.cells, CELLS)
    _options.some("--hidden", config.hidden, "numbers of hidden units")
    _options.positive("--hidden", *config.hidden)
    sequences = [parse_shape("--sequences", shape) for shape in config.sequences]
    for cell in config.cells:
        _options.fit("--hidden", cell, [step_of(size) for size in config.hidden])
        _options.fit("--sequences", cell, sequences)
    _options.positive("--repeats", config.repeats)
    _options.known("--peers", config.peers, tuple(PEERS))
    _options.writable({"--json": config.json, "--plot": config.plot})


def step_of(size: int) -> Shape:
    """The shape of the single steps, of which a few are compared."""
    return Shape(STEPS_COMPARED, 1, size, size)


def plot(path: Path, form: str, rows: Sequence[dict[str, Any]], hidden: Sequence[int]) -> None:
    """One line for each contestant that was timed at every size."""
    lines: dict[str, list[float]] = {}
    for row in rows:
        if (row["what"], row["cell"]) == ("step", form) and "min_us" in row:
            lines.setdefault(row["contestant"], []).append(row["min_us"])
    whole = {name: values for name, values in lines.items() if len(values) == len(hidden)}
    _plots.curves(
        path, f"{form}: one step of one sequence, I = H", list(hidden), whole, "hidden units H", "microseconds"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 2 for a command that cannot run, 1 if a contestant's results differ."""
    config = read_options("benchmarks.latency", Config, arguments)
    config = dataclasses.replace(config, **QUICK) if config.quick else config
    if _options.refused("latency", lambda: check(config)):
        return 2
    return _options.in_memory("latency", functools.partial(run, config))


def run(config: Config) -> int:
    """Measures, prints and writes; the exit code."""
    start()
    peers = _options.here(config.peers)
    about = _options.about(peers)
    _options.print_about(about)
    print(f"Microseconds a step, {config.repeats} turns; the ratio is that of the minimum to the first row's\n")
    print(f"{'':<10}{'cell':<6}{'T,B,I,H':<20}{'':<10}{'min us':>9}{'median':>9}{'ratio':>7}{'MiB beside':>12}")
    rows, hidden = [], sorted(set(config.hidden))
    for form in dict.fromkeys(config.cells):
        for size in hidden:
            problem = make_problem(form, step_of(size))
            rows += (new := rows_of("step", problem, one_step(problem, peers, config.repeats)))
            print_rows(new)
        for shape in config.sequences:
            problem = make_problem(form, parse_shape("--sequences", shape))
            rows += (new := rows_of("sequence", problem, whole_sequence(problem, peers, config.repeats)))
            print_rows(new)
    if config.json is not None:
        settings = {"repeats": config.repeats, "tolerance": TOLERANCE, "dtype": "float32"}
        write_json(config.json, {"benchmark": "latency", **about, **settings, "rows": rows})
    if config.plot is not None:
        plot(config.plot, config.cells[0], rows, hidden)
    return 0 if all("min_us" in row for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
