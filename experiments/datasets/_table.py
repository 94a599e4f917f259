"""All sets by name."""

from pathlib import Path

from experiments.datasets import airline, cmudict, images, music, poems, pretrained, text, vowels, weather
from experiments.datasets._files import MissingData, read_files
from experiments.datasets._sources import DataSet

SETS: dict[str, DataSet] = {
    source.name: source
    for source in (
        images.DIGITS,
        images.MNIST,
        images.FASHION_MNIST,
        images.MNIST_1D,
        vowels.VOWELS,
        music.JSB,
        music.NOTTINGHAM,
        text.SHAKESPEARE,
        poems.QUATRAINS,
        airline.AIRLINE,
        weather.WEATHER,
        cmudict.CMUDICT,
        pretrained.G2P,
        pretrained.SILERO,
        pretrained.NSNET2,
    )
}


def check(source: DataSet, data_dir: Path | None) -> None:
    """Reads all files of a set.

    Raises:
        MissingData: if it is not there.
        ValueError: if a file of it is damaged.
    """
    if source is images.MNIST_1D:
        images.check_mnist_1d()
    read_files(source, data_dir)


def state(source: DataSet, data_dir: Path | None) -> str:
    """Whether a set is "here", "missing" or "damaged"."""
    try:
        check(source, data_dir)
    except MissingData:
        return "missing"
    except (ValueError, OSError):
        return "damaged"
    return "here"
