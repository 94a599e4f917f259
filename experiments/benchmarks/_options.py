"""What the scripts share: options, errors in one line, and the machine's description in a record."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks._peers import PEERS, installed_version
from experiments.benchmarks._problem import FORMS
from experiments.benchmarks._turns import cores
from experiments.command.report import environment, writable_folder


def known(option: str, given: Sequence[str], expected: Sequence[str]) -> None:
    """A `ValueError` if anything given is not among the expected."""
    unknown = [name for name in given if name not in expected]
    if unknown:
        raise ValueError(f"{option} expected {', '.join(expected)}; got {unknown[0]}")


def some(option: str, given: Sequence[Any], expected: str) -> None:
    """A `ValueError` if nothing is given."""
    if not given:
        raise ValueError(f"{option} expected {expected}; got nothing")


def cells_known(cells: Sequence[str], expected: Sequence[str] = tuple(FORMS)) -> None:
    some("--cells", cells, ", ".join(expected))
    known("--cells", cells, expected)


def positive(option: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{option} expected a positive number, got {number}")


def writable(option: str, path: Path | None) -> None:
    """A `ValueError` or `OSError` if no file can be written there."""
    if path is not None:
        writable_folder(path.parent)
        if path.is_dir():
            raise ValueError(f"{option} expected a file, {path} is a folder")


def refused(script: str, check: Callable[[], None]) -> bool:
    """Returns whether `check` raises; if so, prints the reason in one line on stderr."""
    try:
        check()
    except (ValueError, OSError) as error:
        print(f"{script}: {error}", file=sys.stderr)
        return True
    return False


def here(peers: Sequence[str]) -> tuple[str, ...]:
    """Those of the peers that are installed; the others are reported as skipped."""
    missing = [name for name in peers if installed_version(name) is None]
    if missing:
        print(f"skipped, not installed: {', '.join(f'{name} ({PEERS[name].package})' for name in missing)}")
    return tuple(name for name in dict.fromkeys(peers) if name not in missing)


def about(peers: Sequence[str]) -> dict[str, Any]:
    """Date, versions and machine."""
    record = environment()
    record["versions"] |= {PEERS[name].package: installed_version(name) for name in peers}
    record["machine"] |= {"processor": processor(), "cores": cores()}
    return record


def processor() -> str:
    """The processor's name, if the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else environment()["machine"]["processor"]


def print_about(record: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    machine = record["machine"]
    print(record["date"], versions, sep="\n")
    print(f"{machine['devices']} x {machine['device']}, {machine['processor']}, {machine['cores']} cores, float32")
