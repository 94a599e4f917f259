"""What all scripts share: reading options, errors in one line, and writing the record of a run."""

import contextlib
import dataclasses
import errno
import io
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from experiments.command.devices import check_alike, check_devices, devices_of, is_first, start_devices
from experiments.command.messages import LONGEST, complain, first_line, shown
from experiments.command.options import read_options
from experiments.command.report import (
    CannotRun,
    check_files,
    check_writable,
    environment,
    writable_folder,
    write_json,
)
from experiments.command.stopping import STOP

Config = TypeVar("Config")
Result = tuple[Mapping[str, Any], Callable[[], Any]]  # a record, and what draws figures after it is written
FULL = (errno.ENOSPC, errno.EDQUOT)
RESULTS = "results.json"


def run_script(
    name: str,
    config_type: type[Config],
    run: Callable[[Config], Result],
    *,
    check: Callable[[Config], None] = lambda config: None,
    quick: Mapping[str, Any] | None = None,
    writes: Sequence[str] = (),
    arguments: Sequence[str] | None = None,
) -> int:
    """Reads and checks the options, runs, and writes the results into `results.json`.

    Args:
        name: of the script, as in `python -m experiments.<name>`.
        config_type: a frozen dataclass on top of `DeviceOptions`, with `out`, and `quick` if `quick` is given.
        run: trains and prints; returns the results for the record, and a function that draws.
        check: raises a `ValueError` or `OSError` with one line of text for invalid options, before any work.
        quick: the settings of `--quick`; options that are given as well override them.
        writes: the files that it writes into `out` beside `results.json`, and the figures as names without a suffix.
        arguments: by default those of the command line.

    Returns:
        The exit code: 2 with one line on stderr for invalid options, too little memory or a full disk, 130 if the user
        stops it; then it writes what it has, and says how to go on. If one of several processes fails, all end with a
        code that is not 0.

    Raises:
        SystemExit: with the same codes, for options that cannot be read.
    """
    config: Any = read_options(name, config_type, arguments)
    if quick is not None and config.quick:
        small: Any = dataclasses.replace(config_type(), **quick)  # pyright: ignore[reportArgumentType]
        config = read_options(name, config_type, arguments, small)
    try:
        check_devices(config)
    except ValueError as error:
        return complain(name.split()[0], error)
    STOP.begin()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(name, config, run, check, writes, words)
    except BaseException:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        code = 1
    if code and jax.process_count() > 1:  # JAX waits for the other processes at exit, and these may wait for this one
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(
    name: str,
    config: Any,
    run: Callable[[Any], Result],
    check: Callable[[Any], None],
    writes: Sequence[str],
    words: Sequence[str],
) -> int:
    try:
        start_devices(config)  # before checkpoints are read, which uses devices
        check_alike(config)
        check_writable(config.out)
        check_files(config.out / file for file in files_of(writes))
        check(config)
        writable_folder(config.out)
    except (ValueError, OSError, CannotRun) as error:
        return complain(name.split()[0], error)
    except MemoryError as error:
        return complain(name.split()[0], out_of_memory(error))
    except KeyboardInterrupt:
        complain(name.split()[0], "stopped")
        return 130
    try:
        with contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(io.StringIO()):
            found, draw = run(config)
        if is_first():
            about = {"experiment": name, "config": settings(config), **environment()}
            about["machine"]["devices"] = len(devices_of(config))
            stopped = {"stopped": True} if STOP.asked.is_set() else {}
            write_json(config.out / RESULTS, {**about, **stopped, **found})
            draw()
    except CannotRun as error:
        return complain(name.split()[0], error)
    except MemoryError as error:
        return complain(name.split()[0], out_of_memory(error))
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            if not is_out_of_memory(error):
                raise
            return complain(name.split()[0], out_of_memory(error))
        line, again = first_line(error), " with --resume" if _is_kept(config) else ""
        lost = "a collective failed, as when another process is lost; start all of them again"
        complain(name.split()[0], f"{lost}{again} ({line})")
        return 1
    except OSError as error:
        if error.errno not in FULL:
            raise
        return complain(name.split()[0], f"{config.out}: {error.strerror}; what was written before is whole")
    except KeyboardInterrupt:
        return _say_stopped(name, config, words, whole=False)
    if STOP.asked.is_set():
        return _say_stopped(name, config, words, whole=True)
    if is_first():
        print(f"written into {config.out}")
    return 0


def _say_stopped(name: str, config: Any, words: Sequence[str], *, whole: bool) -> int:
    """Says in one line what a script that the user stopped has written, and how to go on; returns its exit code."""
    line = f"stopped; what it reached is in {shown(config.out)}" if whole else "stopped"
    if hasattr(config, "resume"):
        resume = [] if config.resume else ["--resume"]
        command = shlex.join(["python", "-m", *f"experiments.{name}".split(), *words, *resume])
        if len(f"{name.split()[0]}: {line}; go on with: {command}") > LONGEST:
            command = "the same command with --resume"
        if jax.process_count() == 1 and not STOP.asked.is_set():  # between two trainings, or after the last
            STOP.keep()
        kept = STOP.kept if jax.process_count() == 1 else _is_kept(config)
        line += f"; go on with: {command}" if kept else " before the first evaluation; nothing is kept"
    complain(name.split()[0], line)
    return 130


def files_of(writes: Sequence[str]) -> list[str]:
    """The names of all files that a script writes: figures are written in two formats."""
    suffixes = {True: ("",), False: (".png", ".svg")}
    return [RESULTS, *(f"{name}{suffix}" for name in writes for suffix in suffixes["." in name])]


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def out_of_memory(error: Exception) -> str:
    return f"out of memory: {first_line(error) or 'no more is given'}; give smaller sizes"


def _is_kept(config: Any) -> bool:
    return getattr(config, "save_every", None) is not None


def settings(config: Any) -> dict[str, Any]:
    """The options as values that JSON can hold."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(config).items()}
