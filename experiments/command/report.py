"""What every script records: versions and machine, in files that are written completely or not at all."""

import contextlib
import datetime
import errno
import json
import math
import os
import platform
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrnn
from experiments.command.messages import shown

PATH = 200  # characters of a path in a message


class CannotRun(Exception):
    """A command cannot run with these options or data; the message is one line for the user."""


def environment() -> dict[str, Any]:
    """The versions, the machine and the date of a run."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "jaxrnn": jaxrnn.__version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jax", "jaxlib", "optax", "numpy", "scikit-learn")},
        },
        "machine": {
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "processes": jax.process_count(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.release()}",
        },
    }


def mean_and_std(values: Sequence[float], scale: float = 1, digits: int = 1) -> str:
    """Mean ± standard deviation over seeds, as estimated from a sample; one seed has no deviation."""
    scaled = scale * np.asarray(values)
    std = f" ± {scaled.std(ddof=1):.{digits}f}" if len(scaled) > 1 else ""
    return f"{scaled.mean():.{digits}f}{std}"


def check_writable(folder: Path) -> None:
    """Raises an `OSError` if the folder is not there and cannot be made, or cannot be written into; changes nothing."""
    with _refusals(folder):
        for place in (folder.absolute(), *folder.absolute().parents):
            try:
                mode = place.stat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                if place.is_symlink():  # to nothing
                    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
                continue
            if not stat.S_ISDIR(mode):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if not os.access(place, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            return


def writable_folder(folder: Path) -> Path:
    """Returns the folder, and creates it if needed; raises an `OSError` if it is not writable."""
    with _refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder


@contextlib.contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write into {shown(folder, PATH)}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # a path with a zero byte, or of a thousand folders
        raise OSError(f"cannot write into {shown(folder, PATH)}: {error}") from error


def check_files(paths: Iterable[Path], option: str = "--out") -> None:
    """Raises a `ValueError` if anything but a file is in the place of a file that is to be written; changes nothing."""
    for path in paths:
        for place in (path, partial_of(path)):
            if os.path.lexists(place) and not place.is_file():
                kind = "a folder" if place.is_dir() else "no file"
                what = f"{shown(place, PATH)} is {kind}, and a file is to be written there"
                raise ValueError(f"{what}; move it away, or give another {option}")


def partial_of(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.parent / f"{path.name}.partial"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` at the end, so that no reader sees a partial file."""
    partial = partial_of(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes a record; numbers that are not finite, such as the loss of a run that diverged, become null."""
    with whole_file(path) as partial:
        partial.write_text(written(record), encoding="utf-8")


def written(record: Any) -> str:
    """A record in JSON, with lists of numbers on one line."""
    text = json.dumps(finite(record), indent=1, allow_nan=False)
    return re.sub(r"\[\n[^\[\]{}\"]*\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text) + "\n"


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
