"""The tables of README.md, from the records of `speed`, `memory` and `latency`."""

from collections.abc import Sequence

from experiments.benchmarks._heads import BUILDERS
from experiments.command.rows import Record, markdown

LIBRARIES = {"flax": "Flax", "haiku": "Haiku", "keras": "Keras", "equinox": "Equinox", "torch": "PyTorch"}
SETTINGS = {"None": "default", "gates": '"gates"', "16": "16", "sqrt": '"sqrt"', "scan": "plain autodiff"}
STEP = {"cell": "`cell.step`", "network": "`net.step`", "flax": "Flax", "equinox": "Equinox", "torch": "PyTorch"}
SEQUENCE = {"default": "default", "scan": "scan"} | LIBRARIES
ONE_DEVICE = ("default", "scan", "flax", "haiku", "keras", "equinox")
ALL_CORES = ("sharded", "default", "torch")
HEADS = tuple(BUILDERS)
AFFINE = (("gru", "default"), ("min_gru", "default"), ("min_gru", "associative"), ("gru", "newton"))


def of_one_device(record: Record) -> dict[str, str]:
    """Of `speed` on one device."""
    tables = {task: _times(record, task, ONE_DEVICE) for task in ("train", "forward")}
    return {**tables, "means": _means(record), "compilation": _compilation(record)}


def of_all_cores(record: Record) -> dict[str, str]:
    """Of `speed` on several devices."""
    return {"train": _times(record, "train", ALL_CORES), "means": _means(record)}


def of_affine(record: Record) -> dict[str, str]:
    """Of `speed --together` of an affine cell beside the GRU: the least milliseconds of each."""
    return {task: _beside_gru(record, task) for task in ("train", "forward")}


def _beside_gru(record: Record, task: str) -> str:
    """A row for each shape; in brackets the ratio to the GRU's default."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for timing in record["timings"]:
        if timing["task"] == task:
            found.setdefault(timing["shape"], {})[timing["cell"], timing["contestant"]] = timing["min_ms"]
    lines = []
    for shape, ms in found.items():
        base = ms["gru", "default"]
        rest = [f"{_short(ms[key])} ({ms[key] / base:.2f})" if key in ms else "-" for key in AFFINE[1:]]
        lines.append([_spaced(shape), _short(base), *rest])
    return markdown(["T, B, I, H", *(f"{cell}, {name}" for cell, name in AFFINE)], lines)


def of_heads(record: Record) -> dict[str, str]:
    """Of `speed --heads`: least milliseconds of cells with heads, with the ratio to the dense cell."""
    return {task: _times(record, task, HEADS) for task in ("train", "forward")}


def _short(value: float) -> str:
    """Three digits, more where there are more before the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _mib(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _spaced(shape: str) -> str:
    return shape.replace(",", ", ")


def _times(record: Record, task: str, contestants: Sequence[str]) -> str:
    """Least milliseconds, with the ratio to the first contestant's; no rows of shapes that it does not support."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for timing in record["timings"]:
        if timing["task"] == task:
            found.setdefault((timing["cell"], timing["shape"]), {})[timing["contestant"]] = timing["min_ms"]
    first, *others = contestants
    lines = []
    for (cell, shape), ms in found.items():
        if first in ms:
            rest = [f"{_short(ms[name])} ({ms[name] / ms[first]:.2f})" if name in ms else "-" for name in others]
            lines.append([cell, _spaced(shape), _short(ms[first]), *rest])
    return markdown(["cell", "T, B, I, H", *contestants], lines)


def _means(record: Record) -> str:
    lines = [
        [mean["cell"], mean["task"], mean["what"], f"{mean['mean']:.2f}", f"{mean['least']:.2f}, {mean['least_at']}"]
        for mean in record["summary"]
    ]
    return markdown(["cell", "task", "figure", "geometric mean", "least, at"], lines)


def _compilation(record: Record) -> str:
    """Seconds of tracing and compiling, least to most over cells and shapes."""
    lines = []
    for task in ("forward", "train"):
        row = [task]
        for name in ONE_DEVICE:
            taken = [t["compile_s"] for t in record["timings"] if (t["task"], t["contestant"]) == (task, name)]
            row.append(f"{min(taken):.2f} to {max(taken):.2f}")
        lines.append(row)
    return markdown(["s to compile", *ONE_DEVICE], lines)


def of_memory(record: Record) -> dict[str, str]:
    """Of `memory`, at the most steps of the record: MiB."""
    found: dict[str, dict[str, float]] = {}
    most = max(int(row["shape"].partition(",")[0]) for row in record["measured"])
    for row in record["measured"]:
        if row["shape"].startswith(f"{most},") and row["bytes"] is not None:
            found.setdefault(row["cell"], {})[row["contestant"]] = row["bytes"] / 2**20
    used = {name for own in found.values() for name in own}
    names = {name: label for name, label in (SETTINGS | LIBRARIES).items() if name in used}
    lines = [[cell, *(_mib(own[name]) if name in own else "-" for name in names)] for cell, own in found.items()]
    return {"train": markdown(["cell", *names.values()], lines)}


def of_latency(record: Record) -> dict[str, str]:
    """Of `latency`: least microseconds of a step, with the ratio to the first contestant's."""
    return {
        "step": _microseconds(record, "step", STEP, "cell, H"),
        "sequence": _microseconds(record, "sequence", SEQUENCE, "cell, T, B, I, H"),
    }


def of_one_step(record: Record) -> dict[str, str]:
    """Of `latency`: least and median microseconds of a step of a cell, by hidden units."""
    found: dict[str, dict[str, str]] = {}
    for row in record["rows"]:
        if (row["what"], row["contestant"]) == ("step", "cell"):
            size = row["shape"].rpartition(",")[2]
            found.setdefault(size, {})[row["cell"]] = f"{_short(row['min_us'])}, {_short(row['median_us'])}"
    cells = list(dict.fromkeys(row["cell"] for row in record["rows"] if row["what"] == "step"))
    lines = [[size, *(times.get(cell, "-") for cell in cells)] for size, times in found.items()]
    return {"one_step": markdown(["H", *cells], lines)}


def _microseconds(record: Record, what: str, names: dict[str, str], heading: str) -> str:
    found: dict[str, dict[str, float]] = {}
    for row in record["rows"]:
        if row["what"] == what and "min_us" in row:
            size = row["shape"].rpartition(",")[2] if what == "step" else _spaced(row["shape"])
            found.setdefault(f"{row['cell']}, {size}", {})[row["contestant"]] = row["min_us"]
    first, *others = names
    lines = []
    for label, us in found.items():
        rest = [f"{_short(us[name])} ({us[name] / us[first]:.2f})" if name in us else "-" for name in others]
        lines.append([label, _short(us[first]), *rest])
    return markdown([heading, *names.values()], lines)
