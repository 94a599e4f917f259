"""What all scripts share: reading options, errors in one line, and writing the record of a run."""

import contextlib
import dataclasses
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro

from experiments.command.devices import check_alike, check_devices, devices_of, is_first, start_devices
from experiments.command.report import CannotRun, environment, writable_folder, write_json

Config = TypeVar("Config")
Result = tuple[Mapping[str, Any], Callable[[], Any]]  # a record, and what draws figures after it is written
FULL = (errno.ENOSPC, errno.EDQUOT)


def run_script(
    name: str,
    config_type: type[Config],
    run: Callable[[Config], Result],
    *,
    check: Callable[[Config], None] = lambda config: None,
    quick: Mapping[str, Any] | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Reads and checks the options, runs, and writes the results into `results.json`.

    Args:
        name: of the script, as in `python -m experiments.<name>`.
        config_type: a frozen dataclass on top of `DeviceOptions`, with `out`, and `quick` if `quick` is given.
        run: trains and prints; returns the results for the record, and a function that draws.
        check: raises a `ValueError` or `OSError` with one line of text for invalid options, before any work.
        quick: the settings of `--quick`; options that are given as well override them.
        arguments: by default those of the command line.

    Returns:
        The exit code: 2 with one line on stderr for invalid options or a full disk, 130 if the user stops it. If one
        of several processes fails, all end with a code that is not 0.
    """
    config: Any = tyro.cli(config_type, args=arguments, prog=f"python -m experiments.{name}")
    if quick is not None and config.quick:
        small: Any = dataclasses.replace(config_type(), **quick)  # pyright: ignore[reportArgumentType]
        config = tyro.cli(config_type, args=arguments, default=small)
    try:
        check_devices(config)
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    try:
        code = _run(name, config, run, check)
    except BaseException:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        code = 1
    if code and jax.process_count() > 1:  # JAX waits for the other processes at exit, and these may wait for this one
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(name: str, config: Any, run: Callable[[Any], Result], check: Callable[[Any], None]) -> int:
    try:
        start_devices(config)  # before checkpoints are read, which uses devices
        check_alike(config)
        check(config)
        writable_folder(config.out)
    except (ValueError, OSError, CannotRun) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    try:
        with contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(io.StringIO()):
            found, draw = run(config)
        if is_first():
            about = {"experiment": name, "config": settings(config), **environment()}
            about["machine"]["devices"] = len(devices_of(config))
            write_json(config.out / "results.json", {**about, **found})
            draw()
    except CannotRun as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        line, again = (str(error).splitlines() or [""])[0], " with --resume" if _is_kept(config) else ""
        lost = "a collective failed, as when another process is lost; start all of them again"
        print(f"{name}: {lost}{again} ({line})", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"{name}: {config.out}: {error.strerror}; what was written before is whole", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        resume = "; go on from the last checkpoint by --resume" if _is_kept(config) else ""
        print(f"{name}: stopped{resume}", file=sys.stderr)
        return 130
    if is_first():
        print(f"written into {config.out}")
    return 0


def _is_kept(config: Any) -> bool:
    return getattr(config, "save_every", None) is not None


def settings(config: Any) -> dict[str, Any]:
    """The options as values that JSON can hold."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(config).items()}


def positive(config: Any, *names: str) -> None:
    """Raises a `ValueError` for an option that is not a positive, finite number; None is valid."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not 0 < number < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} expected a positive number, got {number}")


def share(config: Any, *names: str) -> None:
    """Raises a `ValueError` for an option that is not a share below 1; None is valid."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"--{name.replace('_', '-')} expected a share in [0, 1), got {value}")


def among(config: Any, name: str, known: Sequence[Any]) -> None:
    """Raises a `ValueError` for an option, or an entry of one, that is not among the known values."""
    given = getattr(config, name)
    given = given if isinstance(given, tuple) else (given,)
    unknown = [value for value in given if value not in known]
    if unknown or not given:
        got = unknown[0] if unknown else "nothing"
        raise ValueError(f"--{name.replace('_', '-')} expected {', '.join(map(str, known))}; got {got}")
