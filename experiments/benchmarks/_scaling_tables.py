"""The tables of SCALING.md, from the record of `scaling`."""

import math
from collections.abc import Mapping
from typing import Any

from experiments.command.rows import Record, markdown

DEVICES = (2, 4, 8)
WAYS = {
    "data_parallel": "`data_parallel`",
    "jit": "`jit`",
    "jit of a plain scan": '`jit` of `implementation="scan"`',
    "model_parallel": "`model_parallel`",
    "pipeline": "`pipeline`, in 16 chunks",
}
CHIPS = {"H100 SXM": "H100", "TPU v5p": "TPU v5p"}
SEQUENCES = "sequences_per_s"


def of_scaling(record: Record) -> dict[str, str]:
    """Every table by its name: collectives counted, train steps timed, and three on paper."""
    paper = record["paper"]
    return {
        "counted": _counted(record),
        "timed": _timed(record),
        "more_sequences": _more_sequences(paper),
        "equal_sequences": _equal_sequences(paper),
        "units": _units(paper),
    }


def short(value: float) -> str:
    """Three significant digits from 100 on, else two."""
    if value < 100:
        return f"{value:.2g}"
    digits = 2 - math.floor(math.log10(value))
    return f"{round(value, digits):,.0f}"


def _counted(record: Record) -> str:
    counted = {(r["way"], r["scaling"], r["devices"]): r for r in record["counted"]}
    lines: list[list[str]] = []
    for way, name in WAYS.items():
        rows = {}
        for scaling in ("strong", "weak"):
            own = [counted[way, scaling, devices] for devices in DEVICES]
            kinds = [_kinds(r["executed"]) for r in own]
            cells = [kinds[0], *("same" if kind == kinds[0] else kind for kind in kinds[1:])]
            rows[scaling] = [*cells, " / ".join(f"{r['bytes'] / 1e6:.3g}" for r in own)]
        if rows["strong"] == rows["weak"] and way != "pipeline":
            lines.append([name, "strong and weak", *rows["strong"]])
            continue
        for scaling, cells in rows.items():
            sizes = [counted[way, scaling, devices]["shape"].split(",") for devices in DEVICES]
            lines.append([name, _label(way, scaling, sizes), *cells])
    return markdown(["way", "scaling", *(f"{n} devices" for n in DEVICES), "MB, 2 / 4 / 8"], lines)


def _kinds(executed: Mapping[str, int]) -> str:
    by_number = sorted(executed.items(), key=lambda item: -item[1])
    return ", ".join(f"{number} {kind}{'' if number == 1 else 's'}" for kind, number in by_number)


def _label(way: str, scaling: str, sizes: list[list[str]]) -> str:
    """With what grows: the hidden units of `model_parallel`, and the layers of a pipeline, which are its features."""
    place, what = (3, "H =") if way == "model_parallel" else (2, "layers:")
    values = list(dict.fromkeys(f"{int(size[place]):,}" for size in sizes))
    return f"{scaling}, {what} {', '.join(values)}"


def _timed(record: Record) -> str:
    lines = [
        [r["step"], r["setting"], f"{r['min_ms']:.1f}", f"{r['median_ms']:.1f}", f"{r['two_devices']:.2f}"]
        for r in record["timed"]
    ]
    headings = ["train step (T, B, I, H)", "setting", "min ms", "median ms", "throughput of two devices to this"]
    return markdown(headings, lines)


def _headings(first: str, by_devices: Mapping[str, Any]) -> list[str]:
    return [first, *(f"{int(n):,}" for n in by_devices)]


def _more_sequences(paper: Record) -> str:
    lines = []
    for chip, name in CHIPS.items():
        rows = paper[chip]["weak"].values()
        pairs = [f"{short(r['compute_ms'])}, {short(r['all_reduce_ms'])}" for r in rows]
        lines.append([f"{name}: compute, all-reduce (ms)", *pairs])
        pairs = [f"{r['efficiency']:.2f}, {short(r[SEQUENCES])}" for r in rows]
        lines.append(["efficiency, sequences a second", *pairs])
    h100 = paper["H100 SXM"]["weak"]
    in_loop = [short(r["in_the_loop_ms"]) for r in h100.values()]
    lines.append(["H100, gradients reduced in the loop instead (ms)", *in_loop])
    return markdown(_headings("64 sequences a device", h100), lines)


def _equal_sequences(paper: Record) -> str:
    h100 = paper["H100 SXM"]["strong"]
    pairs = [f"{short(r['compute_ms'])}, {short(r['all_reduce_ms'])}" for r in h100.values()]
    lines = [["H100: compute, all-reduce (ms)", *pairs]]
    for chip, name in (("H100 SXM", ""), ("H200 SXM", "H200: "), ("TPU v5p", "TPU v5p: ")):
        rates = [short(r[SEQUENCES]) for r in paper[chip]["strong"].values()]
        lines.append([f"{name}sequences a second", *rates])
    return markdown(_headings("4,096 sequences in all", h100), lines)


def _units(paper: Record) -> str:
    h100, tpu = (paper[chip]["units"] for chip in CHIPS)
    pairs = [f"{short(r['compute_ms'])}, {short(r['exchange_ms'])}" for r in h100.values()]
    lines = [["H100: compute, exchange (ms)", *pairs]]
    pairs = [f"{r['speedup']:.1f}, {short(r['weights_gb'])}" for r in h100.values()]
    lines.append(["speedup, GB of weights a device", *pairs])
    lines.append(["TPU v5p: speedup", *(f"{r['speedup']:.1f}" for r in tpu.values())])
    return markdown(_headings("", h100), lines)
