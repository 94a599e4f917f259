"""What the scripts share: options, errors in one line, and the machine's description in a record."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks._peers import PEERS, installed_version
from experiments.benchmarks._problem import ALL, FORMS, Shape
from experiments.benchmarks._turns import cores
from experiments.command.memory import check_fits
from experiments.command.messages import complain, listed, shown
from experiments.command.options import check_positive
from experiments.command.report import check_files, check_writable, environment, writable_folder
from experiments.command.script import is_out_of_memory, out_of_memory


def known(option: str, given: Sequence[str], expected: Sequence[str]) -> None:
    """A `ValueError` if anything given is not among the expected."""
    unknown = [name for name in given if name not in expected]
    if unknown:
        raise ValueError(f"{option} expected {listed(expected)}; got {shown(unknown[0])}")


def some(option: str, given: Sequence[Any], expected: str) -> None:
    """A `ValueError` if nothing is given."""
    if not given:
        raise ValueError(f"{option} expected {expected}; got nothing")


def cells_known(cells: Sequence[str], expected: Sequence[str] = tuple(FORMS)) -> None:
    some("--cells", cells, ", ".join(expected))
    known("--cells", cells, expected)


def positive(option: str, *numbers: float) -> None:
    for number in numbers:
        check_positive(option, number)


def can_be_written(files: Mapping[str, Path | None]) -> None:
    """A `ValueError` or `OSError` if a file of an option cannot be written; changes nothing."""
    for option, path in files.items():
        if path is not None:
            check_writable(path.parent)
            check_files([path], option)


def writable(files: Mapping[str, Path | None]) -> None:
    """A `ValueError` or `OSError` if a file of an option cannot be written; if all can, their folders are made."""
    can_be_written(files)
    for path in files.values():
        if path is not None:
            writable_folder(path.parent)


def fit(option: str, form: str, shapes: Sequence[Shape]) -> None:
    """A `ValueError` with the bytes that are needed if the arrays of a shape cannot fit the machine's memory.

    There are at least inputs, targets and outputs, and parameters with their gradient, in float32.
    """
    for shape in shapes:
        steps, batch, features, hidden = shape
        parameters = ALL[form].gates * hidden * (features + hidden + 1)
        entries = {"sequences": steps * batch * (features + 2 * hidden), "parameters": 2 * parameters}
        try:
            check_fits({part: 4 * count for part, count in entries.items()}, ("shape",))
        except ValueError as error:
            raise ValueError(f"{option} {shape}: {error}") from None


def refused(script: str, check: Callable[[], None]) -> bool:
    """Returns whether `check` raises; if so, prints the reason in one line on stderr."""
    try:
        check()
    except (ValueError, OSError) as error:
        complain(script, error)
        return True
    return False


def in_memory(script: str, run: Callable[[], int]) -> int:
    """The exit code of `run`; 2, with one line on stderr, if the memory does not suffice."""
    try:
        return run()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return complain(script, out_of_memory(error))


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
