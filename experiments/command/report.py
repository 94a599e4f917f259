"""What every script records: versions and machine, in files that are written completely or not at all."""

import contextlib
import datetime
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrnn


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


def writable_folder(folder: Path) -> Path:
    """Returns the folder, and creates it if needed; raises an `OSError` if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(f"cannot write into {folder}: {error.strerror}") from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` at the end, so that no reader sees a partial file."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes a record; numbers that are not finite, such as the loss of a run that diverged, become null."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(finite(record), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
