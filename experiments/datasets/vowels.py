"""JapaneseVowels: who of nine men says "ae", from sequences of 12 numbers and different lengths."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.datasets._archives import members_of, zip_members
from experiments.datasets._files import decoded, read_files
from experiments.datasets._sources import DataSet, File, Package
from experiments.datasets.batching import pad

TRAIN, TEST = "JapaneseVowels_TRAIN.ts", "JapaneseVowels_TEST.ts"
VOWELS = DataSet(
    "japanese-vowels",
    "640 utterances by 9 speakers, 7 to 29 steps of 12 numbers",
    "BSD-3",
    "6 MB",
    (
        File(TRAIN, "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd"),
        File(TEST, "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462"),
    ),
    (
        Package(
            "pip",
            "aeon==1.6.0",
            "aeon-*.whl",
            members_of(zip_members, {name: f"aeon/datasets/data/JapaneseVowels/{name}" for name in (TRAIN, TEST)}),
        ),
    ),
)


class Utterances(NamedTuple):
    """Sequences in one array, zeros after their ends."""

    xs: np.ndarray  # (N, T, 12), float32
    lengths: np.ndarray  # (N,), int32
    labels: np.ndarray  # (N,), int32


class Vowels(NamedTuple):
    """The published parts, padded to one length."""

    train: Utterances
    test: Utterances


def load_vowels(data_dir: Path | None = None, source: DataSet = VOWELS) -> Vowels:
    """All utterances as they were published: neither centred nor scaled.

    Raises:
        MissingData: naming the command that gets the set.
        ValueError: naming the file, if it is not the published one.
    """
    contents = read_files(source, data_dir)
    (train, train_labels), (test, test_labels) = (
        parse_ts(decoded(contents[file.name], file.name), file.name) for file in source.files
    )
    longest = max(len(sequence) for sequence in (*train, *test))
    return Vowels(Utterances(*pad(train, longest), train_labels), Utterances(*pad(test, longest), test_labels))


def parse_ts(text: str, name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """The sequences `(T, channels)`, float32, and the labels of a file in the .ts format.

    A line is a sequence: its channels, each with commas between the steps, and its label, with colons between them.
    A label is numbered by its place in the `@classLabel` line.

    Raises:
        ValueError: naming the line, if it is not as the lines before say.
    """
    classes: list[str] = []
    sequences, labels, in_data = [], [], False
    for number, line in enumerate(text.splitlines(), 1):
        if in_data and line.strip():
            try:
                *channels, label = line.strip().split(":")
                sequences.append(np.array([channel.split(",") for channel in channels], np.float32).T)
                labels.append(classes.index(label))
            except ValueError as error:
                raise ValueError(f"{name}, line {number}: {error}") from error
            if sequences[-1].ndim != 2 or sequences[-1].shape[1] != sequences[0].shape[1]:
                raise ValueError(f"{name}, line {number}: {len(channels)} channels, not as many as in the lines before")
        elif line.lower().startswith("@classlabel true"):
            classes = line.split()[2:]
        in_data = in_data or line.strip().lower() == "@data"
    if not sequences:
        raise ValueError(f"{name}: no sequences in it")
    return sequences, np.array(labels, np.int32)
