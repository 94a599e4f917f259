"""Checks jaxrnn on a GPU and times it: its implementations beside PyTorch's cuDNN and Flax NNX, in one command.

    python -m experiments.benchmarks.gpu --json gpu.json --plot gpu.png

First every contestant must agree with float64 on the CPU within a tolerance for its dtype. jaxrnn's own must also
return the same bits every time, with lengths and in reverse too. A contestant that fails is not timed. Then those that
support a shape run in turn. Lower bounds accompany each time: operations and bytes at speeds measured on the device,
and 2 us for every step that ends with a barrier over the chip.

Files are written anew after every shape, so that an interrupted run keeps its results. `--cells`, `--dtypes`,
`--shapes` and `--minutes` split a long run. `--device cpu` runs small shapes on a machine without a GPU, as a test
of the script.

`--unrolls 1 2 4 8` adds plain scans with so many steps in one iteration of XLA's loop. `--xla-flags` is passed to XLA
before it starts, and written into the record: `--xla-flags=--xla_gpu_enable_command_buffer=` runs without CUDA graphs,
`--xla-flags=--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL` puts whole loops into them where XLA can. Run it once
with each, and compare the files.
"""

import dataclasses
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks import _options, _plots
from experiments.benchmarks._contestants import apart, outcome
from experiments.benchmarks._floors import STEP_US, Speeds, floor_of, measure_speeds
from experiments.benchmarks._gpu_checks import TOLERANCE, Check, check_all
from experiments.benchmarks._gpu_contestants import PEERS, PRECISIONS, field_of, precision
from experiments.benchmarks._problem import Problem, make_problem, parse_shape
from experiments.benchmarks._turns import TASKS, Program, Timing, start, take_turns
from experiments.command.messages import complain, shown
from experiments.command.options import read_options
from experiments.command.report import write_json

BASE = "bptt"
SHAPES = (
    *(f"512,{batch},256,256" for batch in (1, 16, 64, 256)),
    *(f"{steps},64,256,256" for steps in (128, 2048)),
    *(f"512,64,{hidden},{hidden}" for hidden in (64, 128, 512, 1024)),
    "2048,1,64,64",
    "2048,16,128,128",
    "2048,256,128,128",
    "128,256,1024,1024",
)
CHECKED = ("50,6,24,64", "64,16,128,256")
# The sizes of the measurements of the device: rows of a square product, MiB of a copy
SIZES = {"gpu": (8192, 1024), "cpu": (512, 16)}
QUICK: dict[str, Any] = {"shapes": ("12,4,8,8",), "checked": ("7,3,5,8",), "repeats": 2}


@dataclasses.dataclass(frozen=True)
class Config:
    """Correctness and speed on a GPU: forward pass and train step in float32, TF32 and bf16."""

    cells: tuple[str, ...] = ("lstm", "gru", "rnn")
    """Which equations: any of lstm, gru, rnn."""
    dtypes: tuple[str, ...] = tuple(PRECISIONS)
    """Which dtypes: any of float32, tf32 (products may be TF32), bf16."""
    shapes: tuple[str, ...] = SHAPES
    """Which shapes to time, each as T,B,I,H."""
    checked: tuple[str, ...] = CHECKED
    """Which shapes to compare with float64 on the CPU."""
    peers: tuple[str, ...] = PEERS
    """Which other libraries; those not installed are left out."""
    unrolls: tuple[int, ...] = ()
    """Plain scans of so many steps in one iteration of the loop."""
    repeats: int = 10
    """Turns of every contestant; one is as many calls as begin within 10 ms."""
    minutes: float = float("inf")
    """After so many no further shape is begun."""
    xla_flags: str = ""
    """Put behind what XLA_FLAGS holds."""
    device: str = "gpu"
    """gpu, or cpu: then with the settings of --quick."""
    quick: bool = False
    """One small shape and two turns, to see that it works."""
    json: Path | None = None
    """A file for the figures."""
    plot: Path | None = None
    """A PNG file for the comparison."""


def check(config: Config) -> None:
    """A `ValueError` or `OSError` with one line of text if anything is wrong, before any work."""
    _options.cells_known(config.cells, ("lstm", "gru", "rnn"))
    _options.some("--dtypes", config.dtypes, ", ".join(PRECISIONS))
    _options.known("--dtypes", config.dtypes, tuple(PRECISIONS))
    for option, shapes in (("--shapes", config.shapes), ("--checked", config.checked)):
        sizes = [parse_shape(option, shape) for shape in shapes]
        for cell in config.cells:
            _options.fit(option, cell, sizes)
    _options.known("--peers", config.peers, PEERS)
    for steps in config.unrolls:
        _options.known("--unrolls", [str(steps)], ("1", "2", "4", "8", "16"))
    _options.positive("--repeats", config.repeats)
    _options.known("--device", [config.device], ("gpu", "cpu"))
    if not config.minutes >= 0:
        raise ValueError(f"--minutes expected a number that is not negative, got {config.minutes}")
    if not config.xla_flags.isprintable():
        raise ValueError(f"--xla-flags expected flags of XLA, got {shown(config.xla_flags)}")
    _options.can_be_written(files_of(config))


def files_of(config: Config) -> dict[str, Path | None]:
    return {"--json": config.json, "--plot": config.plot}


def device_of(name: str) -> Any:
    """The device to run on; a `ValueError` where there is none."""
    try:
        return jax.devices(name)[0]
    except RuntimeError:
        message = f"JAX sees no GPU, its devices are {jax.default_backend()}; --device cpu tries the script here"
        raise ValueError(message) from None


def ready(problem: Problem, dtype: str, config: Config, peers: Sequence[str], wrong: set[str]) -> dict[str, Any]:
    """The programs of the contestants that can be timed, by name and task; the others are reported."""
    field = field_of(problem, dtype, config.device, config.unrolls, peers)
    absent = field.absent | dict.fromkeys(wrong & set(field.contestants), "it was wrong where it was checked")
    programs: dict[str, dict[str, Program]] = {}
    reference = None
    for name, contestant in field.contestants.items():
        if name in absent:
            continue
        try:
            made = {task: contestant.prepare(task) for task in TASKS}
            found = outcome(contestant, made)
        except RuntimeError as error:  # mostly memory
            absent[name] = (str(error) or type(error).__name__).splitlines()[0]
            continue
        reference = found if reference is None else reference
        difference = apart(contestant, found, reference)
        if difference <= 2 * TOLERANCE[dtype]:
            programs[name] = made
        else:
            absent[name] = f"it differs by {difference:.1e} from the first"
    for name, reason in absent.items():
        print(f"  {problem.form} {problem.shape} {dtype}: {name} is left out, {reason}", flush=True)
    return programs


def rows_of(problem: Problem, dtype: str, programs: dict[str, Any], repeats: int, speeds: Speeds) -> Iterator[dict]:
    """What is printed and written of every contestant."""
    for task in TASKS:
        floor = floor_of(problem.form, problem.shape, task, dtype, speeds)
        taken = take_turns({name: each[task].call for name, each in programs.items()}, repeats)
        base = min(taken.get(BASE, [float("nan")]))
        for name, ms in taken.items():
            timing = Timing(
                problem.form,
                str(problem.shape),
                task,
                name,
                programs[name][task].compile_s,
                min(ms),
                statistics.median(ms),
            )
            yield {"dtype": dtype, **timing._asdict(), "ratio": min(ms) / base, **floor._asdict()}


def header() -> str:
    figures = f"{'min ms':>9}{'median':>9}{'ratio':>7}  floors:{'products':>9}{'bytes':>9}{'steps':>9}"
    return f"{'cell and T,B,I,H':<24}{'dtype':<9}{'task':<9}{'contestant':<12}{figures}"


def line(row: dict[str, Any]) -> str:
    where = f"{row['cell'] + ' ' + row['shape']:<24}{row['dtype']:<9}{row['task']:<9}{row['contestant']:<12}"
    floors = "".join(f"{row[name]:>9.3g}" for name in ("operations_ms", "bytes_ms", "steps_ms"))
    return f"{where}{row['min_ms']:>9.4g}{row['median_ms']:>9.4g}{row['ratio']:>7.2f}         {floors}"


def write(config: Config, about: dict, checks: list[Check], rows: list[dict], speeds: dict[str, Speeds]) -> None:
    """The files that were asked for, whole each time."""
    if config.json is not None:
        record = {
            "benchmark": "gpu",
            **about,
            "repeats": config.repeats,
            "xla_flags": config.xla_flags,
            "tolerance": TOLERANCE,
            "step_us": STEP_US,
            "speeds": {dtype: each._asdict() for dtype, each in speeds.items()},
            "checks": [each._asdict() for each in checks],
            "timings": rows,
        }
        write_json(config.json, record)
    if config.plot is not None and rows:
        fields = Timing._fields
        timings = [
            Timing(**{f: row[f] for f in fields})._replace(cell=f"{row['cell']}, {row['dtype']}") for row in rows
        ]
        based = {(t.cell, t.shape, t.task) for t in timings if t.contestant == BASE}
        machine = about["machine"]
        shown = [t for t in timings if (t.cell, t.shape, t.task) in based]
        _plots.compare_times(config.plot, shown, f"{machine['device']}, {about['date'][:10]}", BASE)


def run(config: Config, peers: Sequence[str], save: Callable[..., None]) -> list[Check]:
    """Checks, then times; `save` is called after every shape. Returns the checks that failed."""
    end = time.monotonic() + 60 * config.minutes
    checks: list[Check] = []
    rows: list[dict] = []
    speeds: dict[str, Speeds] = {}
    for dtype in dict.fromkeys(config.dtypes):
        with precision(dtype, peers):
            for k, shape in enumerate(dict.fromkeys(config.checked)):
                for form in dict.fromkeys(config.cells):
                    sizes = parse_shape("--checked", shape)
                    found = check_all(form, sizes, dtype, config.device, config.unrolls, peers, vary=not k)
                    for each in found:
                        print(f"  {'right' if each.right else 'WRONG'}: {each.complaint()}", flush=True)
                    checks += found
            save(checks, rows, speeds)
    print(f"\nMilliseconds of {config.repeats} turns; the ratio is that of the minimum to {BASE}'s\n\n{header()}")
    for dtype in dict.fromkeys(config.dtypes):
        with precision(dtype, peers):
            speeds[dtype] = measure_speeds(dtype, *SIZES[config.device])
            for form in dict.fromkeys(config.cells):
                wrong = {
                    each.contestant for each in checks if (each.cell, each.dtype) == (form, dtype) and not each.right
                }
                for sizes in dict.fromkeys(parse_shape("--shapes", text) for text in config.shapes):
                    if time.monotonic() > end:
                        print(f"  {form} {sizes} {dtype} is left out: no time", flush=True)
                        continue
                    new = timed(make_problem(form, sizes), dtype, config, peers, wrong, speeds[dtype])
                    print(*map(line, new), sep="\n", flush=True)
                    rows += new
                    save(checks, rows, speeds)
    return [each for each in checks if not each.right]


def timed(
    problem: Problem, dtype: str, config: Config, peers: Sequence[str], wrong: set[str], speeds: Speeds
) -> list[dict]:
    """Times one shape, and frees its memory on the device."""
    programs = ready(problem, dtype, config, peers, wrong)
    return list(rows_of(problem, dtype, programs, config.repeats, speeds))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 2 for a command that cannot run, 1 if a contestant is wrong."""
    config = read_options("benchmarks.gpu", Config, arguments)
    if config.quick or config.device == "cpu":
        config = dataclasses.replace(config, **QUICK)
    if _options.refused("gpu", lambda: check(config)):
        return 2
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory of the same card
    if config.xla_flags:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {config.xla_flags}".strip()
    start()
    if _options.refused("gpu", lambda: device_of(config.device) and _options.writable(files_of(config))):
        return 2
    return _options.in_memory("gpu", functools.partial(compared, config))


def compared(config: Config) -> int:
    """Checks and times on the device; the exit code."""
    device = device_of(config.device)
    peers = _options.here(config.peers)
    about = _options.about(peers)
    about["machine"]["device"] = device.device_kind
    _options.print_about(about)
    with jax.default_device(device):
        wrong = run(config, peers, lambda *found: write(config, about, *found))
    for each in wrong:
        complain("gpu", each.complaint())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
