"""Summaries of the timings: ratios, fractions of the machine's peak, and their geometric means over shapes."""

from collections.abc import Sequence
from statistics import geometric_mean
from typing import Any, NamedTuple

from experiments.benchmarks._contestants import OWN
from experiments.benchmarks._peers import PEERS
from experiments.benchmarks._problem import operations, parse_shape
from experiments.benchmarks._turns import TASKS, Timing

BASE = next(iter(OWN))
LEAST_BATCH = 16  # smaller batches are not worth splitting
LEAST_HIDDEN = 256  # below that, the products are too small to reach the peak
WITHOUT_JAX = ("torch",)


class Mean(NamedTuple):
    """One figure at several shapes."""

    cell: str
    task: str
    what: str
    mean: float  # geometric
    least: float
    least_at: str
    shapes: int


def ratios(timings: Sequence[Timing], contestant: str = BASE) -> list[float]:
    """The minimum of each, divided by that of one contestant at the same task: above 1 is slower."""
    base = {(t.cell, t.shape, t.task): t.min_ms for t in timings if t.contestant == contestant}
    return [t.min_ms / base[t.cell, t.shape, t.task] for t in timings]


def of_peak(timing: Timing, peak: float) -> float:
    """The operations a second of a task, as a fraction of the peak."""
    rate = operations(timing.cell, parse_shape("", timing.shape), timing.task) / (1e-3 * timing.min_ms)
    return rate / peak


def summarise(timings: Sequence[Timing], peak: float) -> list[Mean]:
    """For each cell and task: how much longer the best JAX peer takes than jaxrnn on one device, and PyTorch than
    jaxrnn on all; and the fraction of the peak that a train step on all devices reaches."""
    jax_peers = [name for name in PEERS if name not in WITHOUT_JAX]
    means = []
    for cell in dict.fromkeys(t.cell for t in timings):
        for task in TASKS:
            table: dict[str, dict[str, Timing]] = {}
            for t in timings:
                if (t.cell, t.task) == (cell, task):
                    table.setdefault(t.shape, {})[t.contestant] = t
            found: dict[str, dict[str, float]] = {}
            for shape, row in table.items():
                for what, value in _figures_of(shape, row, jax_peers, peak).items():
                    found.setdefault(what, {})[shape] = value
            means += [_mean(cell, task, what, values) for what, values in found.items()]
    return means


def _figures_of(shape: str, row: dict[str, Timing], jax_peers: Sequence[str], peak: float) -> dict[str, float]:
    """The values that one row of contestants adds to the means, by name."""
    sizes, figures = parse_shape("", shape), {}
    peers = [row[name].min_ms for name in jax_peers if name in row]
    if peers and BASE in row:
        figures[f"best JAX peer / {BASE}"] = min(peers) / row[BASE].min_ms
    if "sharded" in row:
        if "torch" in row and sizes.batch >= LEAST_BATCH:
            figures[f"torch / sharded, B >= {LEAST_BATCH}"] = row["torch"].min_ms / row["sharded"].min_ms
        if row["sharded"].task == "train" and sizes.hidden >= LEAST_HIDDEN:
            figures[f"sharded, of the peak, H >= {LEAST_HIDDEN}"] = of_peak(row["sharded"], peak)
    return figures


def _mean(cell: str, task: str, what: str, values: dict[str, float]) -> Mean:
    least_at = min(values, key=lambda shape: values[shape])
    return Mean(cell, task, what, geometric_mean(values.values()), values[least_at], least_at, len(values))


def header() -> str:
    figures = f"{'min ms':>9}{'median':>9}{'ratio':>7}{'of peak':>9}{'compile':>10}"
    return f"{'cell and T,B,I,H':<28}{'task':<9}{'contestant':<12}{figures}"


def lines(timings: Sequence[Timing], peak: float, base: str = BASE) -> list[str]:
    """The rows under `header`, with ratios to one contestant."""
    rows = []
    for t, ratio in zip(timings, ratios(timings, base), strict=True):
        compiling = "-" if t.compile_s is None else f"{t.compile_s:.2f} s"
        figures = f"{t.min_ms:>9.4g}{t.median_ms:>9.4g}{ratio:>7.2f}{of_peak(t, peak):>9.2f}{compiling:>10}"
        rows.append(f"{f'{t.cell} {t.shape}':<28}{t.task:<9}{t.contestant:<12}{figures}")
    return rows


def summary_lines(means: Sequence[Mean]) -> list[str]:
    """Geometric means over the shapes, and where each figure is least."""
    return [
        f"{m.cell:<12}{m.task:<9}{m.what:<32}{m.mean:>6.2f}   least {m.least:.2f} at {m.least_at:<16} n = {m.shapes}"
        for m in means
    ]


def as_records(timings: Sequence[Timing], peak: float, base: str = BASE) -> list[dict[str, Any]]:
    """The timings with ratios to one contestant."""
    return [
        {**t._asdict(), "ratio": ratio, "of_peak": of_peak(t, peak)}
        for t, ratio in zip(timings, ratios(timings, base), strict=True)
    ]


def rounded(records: Sequence[dict[str, Any]], digits: int = 4) -> list[dict[str, Any]]:
    """The records with so many digits of every number, so that the file is small."""
    return [
        {name: float(f"{value:.{digits}g}") if isinstance(value, float) else value for name, value in record.items()}
        for record in records
    ]
