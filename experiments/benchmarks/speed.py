"""Times a forward pass and a train step of jaxrnn and other libraries in one process.

    python -m experiments.benchmarks.speed

A train step is the value and the gradient, with respect to the parameters alone (the inputs are data), of the
mean square distance of all outputs from a target. Before anything is timed, every contestant must return the outputs
and gradients of the first one, with the same weights. Then they run in turn, so that a machine that slows down does so
for all. "default" and "scan" are `jaxrnn.unroll` on one device, "sharded" splits the batch over all cores. Libraries
without that cell are left out, and "sharded" if the devices do not divide the batch.

    python -m experiments.benchmarks.speed --heads --json speed_heads.json

times LSTM and GRU with heads beside the dense cells instead: `_heads` has the contestants.
"""

import dataclasses
import functools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import _heads, _options, _plots, _summary
from experiments.benchmarks._contestants import OWN, PARALLEL, Contestant, Disagreement, differences, prepare
from experiments.benchmarks._peers import PEERS
from experiments.benchmarks._problem import AFFINE, FORMS, HEADED, Problem, Shape, make_problem, parse_shape
from experiments.benchmarks._turns import TASKS, Timing, matrix_product_peak, start, take_turns
from experiments.command.devices import DeviceOptions, check_devices
from experiments.command.options import read_options
from experiments.command.report import write_json

TOLERANCE = 3e-5  # float32, of the largest entry of an array; seen: 8e-6, sums are taken in different orders
SHAPES = (
    "128,32,128,256",
    "784,64,1,128",
    "35,20,200,200",
    "100,1,64,64",
    "64,20,650,650",
    "256,128,64,128",
    "20,16,512,1024",
    "1000,8,32,64",
)
QUICK: dict[str, Any] = {"shapes": ("20,16,8,32", "50,1,16,32"), "repeats": 3}


@dataclasses.dataclass(frozen=True)
class Config:
    """Speed of jaxrnn and of other libraries: forward pass, train step, compilation."""

    cells: tuple[str, ...] = tuple(FORMS)
    """Which equations: any of lstm, gru, rnn, gru-before (reset before the product, as in Haiku), rnn-relu, min_gru,
    min_lstm, rg_lru."""
    parallel: tuple[str, ...] = ()
    """Which implementations that are parallel in time, beside: associative (affine cells), newton (others, H <= 64)."""
    together: bool = False
    """All cells of a shape take their turns in the same rounds, so that cells can be compared."""
    heads: bool = False
    """LSTM and GRU with heads beside dense ones, and other ways to compute them, at their own shapes; the options of
    cells, shapes and libraries are not used."""
    shapes: tuple[str, ...] = SHAPES
    """Which shapes, each as T,B,I,H: steps, batch, input features, hidden units."""
    peers: tuple[str, ...] = tuple(PEERS)
    """Which other libraries; those not installed are skipped."""
    devices: int = 1
    """CPU devices of the process; with several, "sharded" runs too."""
    repeats: int = 20
    """Turns of every contestant; one is as many calls as begin within 10 ms."""
    quick: bool = False
    """Two small shapes and three turns, to see that it works."""
    json: Path | None = None
    """A file for the figures."""
    plot: Path | None = None
    """A PNG file for the comparison."""


def contestants_of(problem: Problem, peers: Sequence[str], parallel: Sequence[str] = ()) -> dict[str, Contestant]:
    """The contestants that support the problem, by name."""
    if problem.form in HEADED:
        return {name: build(problem) for name, build in _heads.BUILDERS.items()}
    own = {**OWN, **{name: PARALLEL[name] for name in parallel}}
    builders = {**own, **{name: PEERS[name].build for name in peers if problem.form in PEERS[name].forms}}
    built = {name: build(problem) for name, build in builders.items()}
    return {name: contestant for name, contestant in built.items() if contestant is not None}


def measure(
    problems: Sequence[Problem], peers: Sequence[str], repeats: int, parallel: Sequence[str] = ()
) -> tuple[dict[str, dict[str, float]], list[Disagreement], list[Timing]]:
    """By cell how far each contestant is from the first, those too far to be timed, and the timings of the others.

    The problems are of one shape. All their contestants run in turn.
    """
    shape, found, wrong, ready = str(problems[0].shape), {}, [], {}
    for problem in problems:
        cell, contestants = problem.form, contestants_of(problem, peers, parallel)
        programs = prepare(contestants)
        found[cell] = differences(contestants, programs, next(iter(contestants)))
        off = {name: value for name, value in found[cell].items() if not value <= TOLERANCE}
        wrong += [Disagreement(cell, shape, name, value) for name, value in off.items()]
        ready |= {(cell, name): programs[name] for name in contestants if name not in off}
    timings = []
    for task in TASKS:
        for (cell, name), taken in take_turns({key: each[task].call for key, each in ready.items()}, repeats).items():
            compile_s = ready[cell, name][task].compile_s
            timings.append(Timing(cell, shape, task, name, compile_s, min(taken), statistics.median(taken)))
    return found, wrong, timings


def check(config: Config) -> None:
    """A `ValueError` or `OSError` with one line of text if anything is wrong, before any work."""
    _options.cells_known(config.cells, (*FORMS, *AFFINE))
    _options.known("--parallel", config.parallel, tuple(PARALLEL))
    _options.some("--shapes", config.shapes, "T,B,I,H such as 128,32,128,256")
    for cell in config.cells:
        _options.fit("--shapes", cell, [parse_shape("--shapes", shape) for shape in config.shapes])
    _options.known("--peers", config.peers, tuple(PEERS))
    if config.heads and config.plot is not None:
        raise ValueError("--plot expected no file with --heads, whose figures are a table alone")
    check_devices(DeviceOptions(config.devices))
    _options.positive("--repeats", config.repeats)
    _options.writable({"--json": config.json, "--plot": config.plot})


def report(config: Config, timings: list[Timing], checks: list[dict], peers: Sequence[str], peak: float) -> None:
    """The summary, and the files that were asked for."""
    means, records = _summary.summarise(timings, peak), _summary.as_records(timings, peak, base_of(config))
    if config.heads:
        records, checks = _summary.rounded(records), _summary.rounded(checks)
    print(f"The machine's peak, a large float32 product: {1e-9 * peak:.0f} GFLOP/s.")
    if means:
        print("Geometric means over shapes:\n", *_summary.summary_lines(means), sep="\n")
    about = _options.about(peers)
    if config.json is not None:
        record = {
            "benchmark": "speed",
            **about,
            "repeats": config.repeats,
            "tolerance": TOLERANCE,
            "dtype": "float32",
            "peak_flops": peak,
            "summary": [mean._asdict() for mean in means],
            "timings": records,
            "differences": checks,
        }
        write_json(config.json, record)
    if config.plot is not None:
        machine = about["machine"]
        _plots.compare_times(config.plot, timings, f"{machine['processor']}, {machine['cores']} cores, float32")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 2 for a command that cannot run, 1 if a contestant's results differ."""
    config = read_options("benchmarks.speed", Config, arguments)
    if config.quick:
        config = dataclasses.replace(config, **QUICK)
    if _options.refused("speed", lambda: check(config)):
        return 2
    return _options.in_memory("speed", functools.partial(run, config))


def base_of(config: Config) -> str:
    """The contestant to which the ratios are."""
    return next(iter(_heads.BUILDERS)) if config.heads else _summary.BASE


def groups_of(config: Config) -> list[tuple[list[str], Shape]]:
    """The cells that take their turns in the same rounds, and their shape."""
    if config.heads:
        shapes = _heads.QUICK if config.quick else _heads.SHAPES
        return [(list(cells), parse_shape("--heads", shape)) for shape, cells in shapes.items()]
    cells = list(dict.fromkeys(config.cells))
    shapes = list(dict.fromkeys(parse_shape("--shapes", text) for text in config.shapes))
    groups = [cells] if config.together else [[cell] for cell in cells]
    return [(group, shape) for group in groups for shape in shapes]


def run(config: Config) -> int:
    """Measures, prints and writes; the exit code."""
    start(config.devices)
    peers = () if config.heads else _options.here(config.peers)
    _options.print_about(_options.about(peers))
    print(f"Milliseconds of {config.repeats} turns; the ratio is that of the minimum to {base_of(config)}'s\n")
    print(_summary.header())
    peak, timings, checks, wrong = 0.0, [], [], []
    for group, shape in groups_of(config):
        peak = max(peak, matrix_product_peak())
        problems = [make_problem(cell, shape) for cell in group]
        found, disagreements, new = measure(problems, peers, config.repeats, config.parallel)
        print(*_summary.lines(new, peak, base_of(config)), sep="\n")
        expected = tuple(_heads.BUILDERS) if config.heads else (*OWN, *config.parallel, *peers)
        for cell, of_cell in found.items():
            absent = [name for name in expected if name not in of_cell]
            print(f"{cell} {shape}: not taking part: {', '.join(absent)}\n" if absent else "", flush=True)
        for d in disagreements:
            message = f"{d.contestant} differs by {d.difference:.1e}, more than {TOLERANCE:.0e}; not timed"
            print(f"speed: {d.cell} {d.shape}: {message}", file=sys.stderr)
        timings, wrong = timings + new, wrong + disagreements
        for cell, of_cell in found.items():
            checks += [
                {"cell": cell, "shape": str(shape), "contestant": n, "difference": d} for n, d in of_cell.items()
            ]
    report(config, timings, checks, peers, peak)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
