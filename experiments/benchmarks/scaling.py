"""How training scales over devices: collectives counted, two CPU devices timed beside one, and the rest on paper.

    python -m experiments.benchmarks.scaling

Counted: the collectives in the optimised program of a train step over 1, 2, 4, 8 CPU devices, how often each is
executed and the bytes of their results on a device; nothing is run. Strong scaling shards the same work; weak
scaling gives n devices n times the batch, the units (model_parallel) or the layers (pipeline).

Timed: the throughput of `data_parallel` on two CPU devices against one, in processes of their own that run in turn. A
CPU device runs large products on all cores, so one device is timed twice: with threads on both cores, which is
the default, and confined to one core.

On paper: 1 to 1,024 accelerators from their data sheets, see `_scaling_paper`.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks import _options, _scaling_paper
from experiments.benchmarks._problem import Shape, parse_shape
from experiments.benchmarks._scaling_counts import WAYS, count, grown
from experiments.benchmarks._turns import start
from experiments.command.messages import complain
from experiments.command.options import read_options
from experiments.command.report import write_json

DEVICES = (1, 2, 4, 8)
ON_PAPER = (1, 8, 64, 1024)
WEAK_BATCH, STRONG_BATCH = 64, 4096  # sequences on each device, and in all
WIDE_BATCH = 64
QUICK: dict[str, Any] = {"shape": "16,8,4,8", "timed": ("rnn:16,8,4,8",), "rounds": 1, "seconds": 0.1}


class Setting(NamedTuple):
    """One contestant of the timed comparison."""

    devices: int
    cores: int


SETTINGS = {
    "1 device, threads on 2 cores": Setting(1, 2),
    "1 device, 1 core": Setting(1, 1),
    "2 devices": Setting(2, 2),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Scaling over devices: collectives counted, two devices timed, and clusters on paper."""

    cell: str = "lstm"
    """Whose collectives are counted: lstm, gru, rnn, gru-before, rnn-relu."""
    shape: str = "128,32,128,256"
    """T,B,I,H of the train step that is counted, on one device."""
    timed: tuple[str, ...] = ("lstm:128,32,128,128", "lstm:128,32,128,256", "gru:128,32,128,256", "rnn:128,64,128,256")
    """Which train steps are timed, each as CELL:T,B,I,H; none to time nothing."""
    rounds: int = 15
    """Turns of every setting at every train step."""
    seconds: float = 0.5
    """How long a turn is."""
    quick: bool = False
    """Small sizes, to see that it works."""
    json: Path | None = None
    """A file for the figures."""


def check(config: Config) -> None:
    """A `ValueError` or `OSError` with one line of text if anything is wrong, before any work."""
    _options.cells_known((config.cell,))
    shape = parse_shape("--shape", config.shape)
    for option, size in (("T", shape.steps), ("B", shape.batch), ("H", shape.hidden)):
        if size % max(DEVICES):
            raise ValueError(f"--shape expected a {option} that {max(DEVICES)} devices divide, got {size}")
    for name in config.timed:
        form, _, text = name.partition(":")
        _options.known("--timed", (form,), ("lstm", "gru", "rnn", "gru-before", "rnn-relu"))
        timed = parse_shape("--timed", text)
        if timed.batch % 2:
            raise ValueError(f"--timed expected an even batch, got {timed}")
        _options.fit("--timed", form, [timed])
    _options.positive("--rounds", config.rounds)
    _options.positive("--seconds", config.seconds)
    _options.writable({"--json": config.json})


def counts(form: str, shape: Shape) -> list[dict[str, Any]]:
    """A record for every way, kind of scaling and number of devices."""
    return [
        {"scaling": "weak" if weak else "strong", **count(form, way, grown(way, shape, devices, weak), devices)}
        for way in WAYS
        for weak in (False, True)
        for devices in DEVICES
    ]


def timed(config: Config) -> list[dict[str, Any]]:
    """Least and median milliseconds by train step and setting, and the throughput of two devices beside it.

    The ratio is that of the medians within a round, and of these the median over rounds: if the machine is slow
    for a while, all settings of a round are.
    """
    found: dict[str, dict[str, list[list[float]]]] = {name: {key: [] for key in SETTINGS} for name in config.timed}
    with contextlib.ExitStack() as running:
        workers = {key: running.enter_context(_worker(setting, config)) for key, setting in SETTINGS.items()}
        for worker in workers.values():
            _answer(worker)  # it is ready
        for turn in range(config.rounds):
            order = list(SETTINGS)[turn % len(SETTINGS) :] + list(SETTINGS)[: turn % len(SETTINGS)]
            for name in config.timed:
                for setting in order:
                    print(config.seconds, name, file=workers[setting].stdin, flush=True)
                    found[name][setting].append(json.loads(_answer(workers[setting])))
    return [_row(name, setting, turns) for name, turns in found.items() for setting in SETTINGS]


def _row(name: str, setting: str, turns: dict[str, list[list[float]]]) -> dict[str, Any]:
    every = [ms for turn in turns[setting] for ms in turn]
    pairs = zip(turns[setting], turns[list(SETTINGS)[-1]], strict=True)
    return {
        "step": name,
        "setting": setting,
        "min_ms": min(every),
        "median_ms": statistics.median(every),
        "calls": len(every),
        "two_devices": statistics.median(statistics.median(one) / statistics.median(two) for one, two in pairs),
    }


def _worker(setting: Setting, config: Config) -> subprocess.Popen[str]:
    arguments = [str(setting.devices), str(setting.cores), *config.timed]
    command = [sys.executable, "-m", "experiments.benchmarks._scaling_worker", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, text=True, cwd=root, env=environment, stdin=pipe, stdout=pipe)


def _answer(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise ChildProcessError("a process of the comparison ended; what it said is above")
    return line


def paper() -> dict[str, Any]:
    """Every table on paper, by accelerator and number of devices."""
    tables: dict[str, Any] = {}
    language, wide = _scaling_paper.LANGUAGE, _scaling_paper.WIDE
    for chip in _scaling_paper.ACCELERATORS:
        tables[chip.name] = {
            "source": chip.source,
            "weak": {n: _scaling_paper.data_parallel(chip, language, n, WEAK_BATCH) for n in ON_PAPER},
            "strong": {n: _scaling_paper.data_parallel(chip, language, n, STRONG_BATCH / n) for n in ON_PAPER},
            "units": {n: _scaling_paper.model_parallel(chip, wide, n, WIDE_BATCH) for n in ON_PAPER[:3]},
        }
    return tables


def count_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| way | scaling | devices | T, B, I, H | in loops | executed a train step | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        executed = ", ".join(f"{times} {kind}" for kind, times in r["executed"].items()) or "none"
        where = f"{r['way']} | {r['scaling']} | {r['devices']} | {r['shape'].replace(',', ', ')}"
        lines.append(f"| {where} | {r['in_loops']} | {executed} | {r['bytes'] / 1e6:.3g} |")
    return lines


def timed_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| train step | setting | min ms | median ms | throughput of two devices to this |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        figures = f"{r['min_ms']:.3g} | {r['median_ms']:.3g} | {r['two_devices']:.2f}"
        lines.append(f"| {r['step']} | {r['setting']} | {figures} |")
    return lines


def paper_lines(tables: dict[str, Any]) -> list[str]:
    lines = []
    for name, tables_of_chip in tables.items():
        for table in ("weak", "strong", "units"):
            by_devices = tables_of_chip[table]
            columns = list(next(iter(by_devices.values())))
            lines += [
                "",
                f"{name}, {table}",
                "",
                f"| devices | {' | '.join(columns)} |",
                "|---" * (len(columns) + 1) + "|",
            ]
            for devices, row in by_devices.items():
                lines.append(f"| {devices} | {' | '.join(f'{row[c]:.3g}' for c in columns)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 2 for a command that cannot run."""
    config = read_options("benchmarks.scaling", Config, arguments)
    if config.quick:
        config = dataclasses.replace(config, **QUICK)
    if _options.refused("scaling", lambda: check(config)):
        return 2
    try:
        rows = timed(config) if config.timed else []  # before this process has threads of its own
    except ChildProcessError as error:
        return complain("scaling", error)
    start(max(DEVICES))
    about = _options.about(())
    _options.print_about(about)
    records = counts(config.cell, parse_shape("--shape", config.shape))
    print("", *count_lines(records), "", *timed_lines(rows), *paper_lines(paper()), sep="\n", flush=True)
    if config.json is not None:
        record = {"counted": records, "timed": rows, "rounds": config.rounds, "seconds": config.seconds}
        write_json(config.json, {"benchmark": "scaling", **about, **record, "paper": paper()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
