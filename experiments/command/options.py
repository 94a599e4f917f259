"""Options: reading them by tyro, and the checks that refuse values before any work, each in one line."""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tyro

from experiments.command.messages import complain, listed, shown

Config = TypeVar("Config")
LARGEST = 2**31 - 1  # a step or a size: JAX counts in 32 bits
SEEDS = 2**32  # JAX keeps the last 32 bits of a seed, so larger ones would repeat the runs of smaller ones
LEAST, MOST = float(np.finfo(np.float32).smallest_normal), float(np.finfo(np.float32).max)
NUMBERS = {int: "a whole number", float: "a number"}


class Kind(NamedTuple):
    """What the values of an option are."""

    plain: type
    optional: bool  # whether None is one
    many: bool  # whether there may be several, or none

    def is_read(self, value: str) -> bool:
        """Whether a value can be read."""
        if self.plain not in NUMBERS or (self.optional and value == "None"):
            return True
        with contextlib.suppress(ValueError):
            self.plain(value)
            return True
        return False


def read_options(
    script: str, config_type: type[Config], arguments: Sequence[str] | None = None, default: Config | None = None
) -> Config:
    """Reads the options of a script; those that cannot be read end the process with one line and exit code 2.

    Args:
        script: its name after `experiments.`, with a command if it has several.
        config_type: a dataclass.
        arguments: by default those of the command line.
        default: what options that are not given are taken from.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    name, prog = script.split()[0].rpartition(".")[2], f"python -m experiments.{script}"
    complaint = unreadable(config_type, words)
    if complaint:
        raise SystemExit(complain(name, complaint))
    said = io.StringIO()  # a box of several lines
    try:
        with contextlib.redirect_stderr(said):
            about = description(config_type)
            if default is None:
                config = tyro.cli(config_type, args=words, prog=prog, description=about)
            else:
                config = tyro.cli(config_type, args=words, prog=prog, description=about, default=default)
        check_size(config)
    except SystemExit as stop:
        if not stop.code:
            raise
        about = " ".join(said.getvalue().split())
        raise SystemExit(complain(name, f"cannot read the options; see {prog} --help ({about})")) from None
    except ValueError as error:
        raise SystemExit(complain(name, error)) from None
    return config


def description(config_type: type) -> str:
    """The docstring for `--help`, its paragraphs no wider than the terminal, and than 80 columns.

    Lines after the first of a paragraph are indented, since tyro joins lines that begin with a letter.
    """
    wide = min(shutil.get_terminal_size().columns, 80)
    paragraphs = (inspect.getdoc(config_type) or "").split("\n\n")
    filled = functools.partial(textwrap.fill, width=wide, subsequent_indent="  ", break_on_hyphens=False)
    return "\n\n".join(filled(" ".join(part.split())) for part in paragraphs)


def unreadable(config_type: type, words: Sequence[str]) -> str | None:
    """A complaint about the first word that is no option, or no value of its option; None if there is none."""
    kinds = {option(name): kind_of(hint) for name, hint in typing.get_type_hints(config_type).items()}
    flags = {name for name, kind in kinds.items() if kind.plain is bool}
    name, wanted = "", False  # the option that values belong to, and whether it must have one
    for word in words:
        if word in ("-h", "--help"):
            return None
        if word.startswith("--"):
            if wanted:
                break
            name, equals, value = word.partition("=")
            name = name.replace("_", "-")
            if name not in kinds and name.replace("--no-", "--", 1) not in flags:
                near = difflib.get_close_matches(name, kinds, 1)
                return f"there is no option {shown(name)}{f'; did you mean {near[0]}?' if near else ''}"
            if name not in kinds or name in flags:
                if equals:
                    return f"{name} takes no value, got {shown(value)}"
                name = ""
                continue
            wanted = not (equals or kinds[name].many)
            if not equals:
                continue
        else:
            value = word
            if not name:
                return f"expected an option, got {shown(word)}"
        if not kinds[name].is_read(value):
            return f"{name} expected {NUMBERS[kinds[name].plain]}, got {shown(value)}"
        name, wanted = name if kinds[name].many else "", False
    return f"{name} expected a value, got nothing" if wanted else None


def kind_of(hint: Any) -> Kind:
    """Of the type of a field: a plain one, a tuple of any length, or either or None."""
    some = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    (plain,) = (part for part in some if part is not type(None))
    many = typing.get_origin(plain) is tuple
    return Kind(typing.get_args(plain)[0] if many else plain, type(None) in some, many)


def option(name: str) -> str:
    """A field as it is typed."""
    return f"--{name.replace('_', '-')}"


def values_of(config: Any, name: str) -> tuple[Any, ...]:
    """The value of an option, or its values if it takes several; None is none."""
    value = getattr(config, name)
    return value if isinstance(value, tuple) else () if value is None else (value,)


def check_size(config: Any) -> None:
    """Raises a `ValueError` for any number of any option that is larger than what JAX can hold."""
    for field in dataclasses.fields(config):
        for number in values_of(config, field.name):
            most = SEEDS - 1 if field.name == "seed" else LARGEST
            if isinstance(number, int) and number > most:
                raise ValueError(f"{option(field.name)} expected at most {most:,}, got {shown(number)}")


def positive(config: Any, *names: str) -> None:
    """Raises a `ValueError` for an option that is not a positive number that JAX can hold; None is valid."""
    for name in names:
        for number in values_of(config, name):
            check_positive(option(name), number)


def not_negative(config: Any, name: str) -> None:
    """Raises a `ValueError` for an option that is neither 0 nor a positive number that JAX can hold."""
    value = getattr(config, name)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{option(name)} expected a number that is not negative, got {shown(value)}")
    if value:
        check_positive(option(name), value)


def check_positive(name: str, number: float) -> None:
    """Raises a `ValueError` for a value of an option that is not a positive number that JAX can hold."""
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} expected a positive number, got {shown(number)}")
    if isinstance(number, int):
        if number > LARGEST:
            raise ValueError(f"{name} expected at most {LARGEST:,}, got {shown(number)}")
    elif not LEAST <= number <= MOST:
        raise ValueError(f"{name} expected a number that float32 holds, {LEAST:.2g} to {MOST:.2g}, got {shown(number)}")


def at_most(config: Any, name: str, most: int, why: str) -> None:
    """Raises a `ValueError` for an option above a limit; None is valid."""
    for number in values_of(config, name):
        if number > most:
            raise ValueError(f"{option(name)} expected at most {most:,}, {why}; got {shown(number)}")


def check_total(name: str, count: int, each: int) -> None:
    """Raises a `ValueError` if so many times the steps of each are more than are counted."""
    if count * each > LARGEST:
        raise ValueError(f"{name} expected at most {LARGEST // each:,}, of {each:,} steps each; got {shown(count)}")


def check_seeds(config: Any, more: int = 0) -> None:
    """Raises a `ValueError` unless `seed` and the seeds after it are seeds of JAX; `more` are drawn beyond `seeds`."""
    positive(config, "seeds")
    check_seed(config.seed)
    if config.seed + config.seeds + more > SEEDS:
        raise ValueError(f"--seed {config.seed} and {config.seeds:,} --seeds end beyond {SEEDS - 1:,}, the last seed")


def check_seed(seed: int) -> None:
    """Raises a `ValueError` for what is no seed of JAX."""
    if seed < 0:
        raise ValueError(f"--seed expected a number that is not negative, got {shown(seed)}")
    if seed >= SEEDS:
        raise ValueError(f"--seed expected at most {SEEDS - 1:,}, got {shown(seed)}")


def share(config: Any, *names: str) -> None:
    """Raises a `ValueError` for an option that is not a share below 1; None is valid."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"{option(name)} expected a share in [0, 1), got {shown(value)}")


def among(config: Any, name: str, known: Sequence[Any]) -> None:
    """Raises a `ValueError` for an option, or an entry of one, that is not among the known values."""
    given = getattr(config, name)
    given = given if isinstance(given, tuple) else (given,)
    unknown = [value for value in given if value not in known]
    if unknown or not given:
        got = shown(unknown[0]) if unknown else "nothing"
        raise ValueError(f"{option(name)} expected {listed(known)}; got {got}")
