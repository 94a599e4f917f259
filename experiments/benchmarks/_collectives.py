"""The collectives of a compiled program, read from its optimised HLO: how many, of how many bytes, in loops or not."""

import math
import re
from typing import Any, NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}

_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:body|condition|to_apply|calls|\w+_computation)=%?([\w.\-]+)"
    r"|\b(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_ALONE = re.compile(r"replica_groups=(\{\{\d+\}(,\{\d+\})*\}|\[\d+,1\]<=)")  # groups of one device exchange nothing
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Collective(NamedTuple):
    """One collective operation of the program's text."""

    kind: str
    bytes: int  # of its result, on each device
    depth: int  # how many loops it is in
    times: int | None  # it is executed; None where the compiler does not tell the steps of a loop around it


class Counts(NamedTuple):
    """The totals over all collectives."""

    outside: int  # operations outside of loops
    inside: int  # operations inside of loops
    executed: int | None  # how often one is executed, loops counted
    bytes: int | None  # of all results on each device, loops counted


def collectives(text: str) -> list[Collective]:
    """Every collective that the entry computation of `compiled.as_text()` reaches."""
    computations = _computations(text)
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)
    return _reached({name: lines for name, (_, lines) in computations.items()}, entry, 0, 1)


def counted(text: str) -> Counts:
    """The sums over `collectives(text)`."""
    found = collectives(text)
    known = all(c.times is not None for c in found)
    return Counts(
        outside=sum(not c.depth for c in found),
        inside=sum(c.depth > 0 for c in found),
        executed=sum(c.times or 0 for c in found) if known else None,
        bytes=sum((c.times or 0) * c.bytes for c in found) if known else None,
    )


def compiled_text(function: Any, *arguments: Any) -> str:
    """The optimised HLO of a function that `jax.jit` made."""
    return function.lower(*arguments).compile().as_text()


def _computations(text: str) -> dict[str, tuple[bool, list[str]]]:
    """Name to whether it is the entry, and its lines."""
    found: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith((" ", "HloModule")):
            lines = []
            found[head[2]] = (bool(head[1]), lines)
        else:
            lines.append(line)
    return found


def _reached(computations: dict[str, list[str]], name: str, depth: int, times: int | None) -> list[Collective]:
    found = []
    for line in computations[name]:
        operation = _OPERATION.search(line)
        if operation:
            if _ALONE.search(line):
                continue
            found.append(Collective(operation[2], _bytes(operation[1], "-start(" in line), depth, times))
            continue  # what it applies is a sum
        is_loop = re.search(r" while\(", line) is not None
        trips = _TRIPS.search(line)
        inner = times if not is_loop else None if trips is None or times is None else times * int(trips[1])
        for one, many in _CALLED.findall(line):
            for called in [one] if one else re.findall(r"%?([\w.\-]+)", many):
                found += _reached(computations, called, depth + is_loop, inner)
    return found


def _bytes(shape: str, is_start: bool) -> int:
    """Of all arrays of a result; of the last alone where an asynchronous start carries operands too."""
    sizes = [
        BYTES[dtype] * math.prod(int(n) for n in dimensions.split(",") if n)
        for dtype, dimensions in _ARRAY.findall(shape)
    ]
    return sizes[-1] if is_start and sizes else sum(sizes)
