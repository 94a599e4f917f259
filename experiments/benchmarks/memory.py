"""How much memory a train step needs beside its arguments and results, over the number of steps T.

    python -m experiments.benchmarks.memory

For JAX it is the compiler's allocation for temporary values, so nothing is run: jaxrnn with each setting of
`checkpoint`, under plain automatic differentiation ("scan"), and the other JAX libraries. PyTorch does not report this:
its figure is by how much the peak of a fresh process rises above the resident memory before the step (on Linux only).
"""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmarks import _options, _plots
from experiments.benchmarks._contestants import Contestant, of_final_state, unrolled
from experiments.benchmarks._peers import PEERS
from experiments.benchmarks._problem import Problem, Shape, make_problem
from experiments.benchmarks._turns import start
from experiments.command.messages import cut
from experiments.command.options import read_options
from experiments.command.report import write_json

OWN: dict[str, dict[str, Any]] = {  # the options of `unroll`
    "None": {},
    "gates": {"checkpoint": "gates"},
    "16": {"checkpoint": 16},
    "sqrt": {"checkpoint": "sqrt"},
    "scan": {"implementation": "scan"},
}
BASE = next(iter(OWN))
QUICK: dict[str, Any] = {"steps": (32, 64), "batch": 4, "features": 8, "hidden": 16}


@dataclasses.dataclass(frozen=True)
class Config:
    """Temporary memory of a train step: the settings of `checkpoint`, and other libraries."""

    cells: tuple[str, ...] = ("lstm", "gru", "rnn")
    """Which equations: any of lstm, gru, rnn, gru-before, rnn-relu."""
    steps: tuple[int, ...] = (128, 512, 2048, 8192)
    """Which T, in rising order."""
    batch: int = 32
    """B, sequences side by side."""
    features: int = 128
    """I, input features."""
    hidden: int = 128
    """H, hidden units."""
    peers: tuple[str, ...] = tuple(PEERS)
    """Which other libraries: any of flax, haiku, keras, equinox, torch; those not installed are skipped."""
    final: bool = False
    """The loss reads the final hidden state, not all outputs; of jaxrnn alone."""
    quick: bool = False
    """Small sizes, to see that it works."""
    json: Path | None = None
    """A file for the figures."""
    plot: Path | None = None
    """A PNG file for the first cell's lines."""


def measure(form: str, shape: Shape, peers: Sequence[str], final: bool = False) -> dict[str, int | None]:
    """Bytes by contestant; `None` where they cannot be measured."""
    problem = make_problem(form, shape)
    build: Callable[..., Contestant] = of_final_state if final else unrolled
    found = {name: build(problem, **options).prepare("train").temporary_bytes for name, options in OWN.items()}
    for name in (name for name in peers if form in PEERS[name].forms):
        found[name] = resident(form, shape) if name == "torch" else compiled_bytes(name, problem)
    return found


def compiled_bytes(peer: str, problem: Problem) -> int | None:
    contestant = PEERS[peer].build(problem)
    return None if contestant is None else contestant.prepare("train").temporary_bytes


def resident(form: str, shape: Shape) -> int | None:
    """The bytes by which a train step of PyTorch raises the peak of a process of its own."""
    command = [sys.executable, "-m", "experiments.benchmarks._resident", form, *map(str, shape)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def check(config: Config) -> None:
    """A `ValueError` or `OSError` with one line of text if anything is wrong, before any work."""
    _options.cells_known(config.cells)
    _options.some("--steps", config.steps, "numbers of steps in rising order")
    if list(config.steps) != sorted(set(config.steps)):
        raise ValueError(f"--steps expected rising numbers, got {cut(' '.join(map(str, config.steps)), 80)}")
    for option in ("steps", "batch", "features", "hidden"):
        value = getattr(config, option)
        _options.positive(f"--{option}", *([value] if isinstance(value, int) else value))
    for cell in config.cells:
        _options.fit("T,B,I,H", cell, [shape_of(config, max(config.steps))])
    _options.known("--peers", config.peers, tuple(PEERS))
    _options.writable({"--json": config.json, "--plot": config.plot})


def shape_of(config: Config, steps: int) -> Shape:
    return Shape(steps, config.batch, config.features, config.hidden)


def table(form: str, found: dict[int, dict[str, int | None]]) -> list[str]:
    """A line for each contestant: MiB and the ratio to `None`, for every T."""
    rows = [f"{form + ', T =':<14}" + "".join(f"{steps:>19}" for steps in found)]
    for name in next(iter(found.values())):
        cells = [_cell(at[name], at[BASE]) for at in found.values()]
        rows.append(f"{name:<14}" + "".join(f"{cell:>19}" for cell in cells))
    return rows


def _cell(value: int | None, base: int | None) -> str:
    if value is None:
        return "not measured"
    return f"{value / 2**20:.4g}" + (f" ({value / base:.2f})" if base else "")


def plot(path: Path, form: str, found: dict[int, dict[str, int | None]], config: Config) -> None:
    lines: dict[str, list[float]] = {}
    for name in next(iter(found.values())):
        values = [at[name] for at in found.values()]
        if all(values):
            lines[name] = [value / 2**20 for value in values if value]
    title = f"{form}, train step, B {config.batch}, I {config.features}, H {config.hidden}: temporary memory"
    _plots.curves(path, title, list(found), lines, "steps T", "MiB")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 2 for a command that cannot run."""
    config = read_options("benchmarks.memory", Config, arguments)
    if config.quick:
        config = dataclasses.replace(config, **QUICK)
    if _options.refused("memory", lambda: check(config)):
        return 2
    return _options.in_memory("memory", partial(run, config))


def run(config: Config) -> int:
    """Measures, prints and writes; the exit code."""
    start()
    peers = () if config.final else _options.here(config.peers)
    about = _options.about(peers)
    _options.print_about(about)
    print(f"MiB of temporary memory of a train step, and in brackets the ratio to checkpoint={BASE}\n")
    records: list[dict[str, Any]] = []
    by_form: dict[str, dict[int, dict[str, int | None]]] = {}
    for form in dict.fromkeys(config.cells):
        found = by_form[form] = {}
        for steps in config.steps:
            shape = shape_of(config, steps)
            found[steps] = measure(form, shape, peers, config.final)
            base = found[steps][BASE]
            for name, value in found[steps].items():
                ratio = value / base if value is not None and base else None
                records.append({"cell": form, "shape": str(shape), "contestant": name, "bytes": value, "ratio": ratio})
        print(*table(form, found), "", sep="\n", flush=True)
    if config.json is not None:
        settings = {"dtype": "float32", "loss_reads": "final state" if config.final else "outputs"}
        write_json(config.json, {"benchmark": "memory", **about, **settings, "measured": records})
    if config.plot is not None:
        form = config.cells[0]
        plot(config.plot, form, by_form[form], config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
