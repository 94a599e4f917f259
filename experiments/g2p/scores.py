"""Phoneme and word errors, as papers count them."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.datasets.cmudict import Pronunciation


class Errors(NamedTuple):
    """Shares of a test."""

    phonemes: float  # edits divided by the phonemes of the pronunciations compared with
    words: float  # words with an edit


def edits(own: Sequence[str], wanted: Sequence[str]) -> int:
    """The fewest insertions, deletions and substitutions that turn one sequence into another (Levenshtein).

    Example:
        >>> edits("kitten", "sitting")
        3
    """
    row = list(range(len(wanted) + 1))
    for i, symbol in enumerate(own, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(wanted, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (symbol != other))
    return row[-1]


def errors_of(written: Sequence[Pronunciation], references: Sequence[Sequence[Pronunciation]]) -> Errors:
    """The errors of one pronunciation for each word; of several references the nearest one counts.

    Example:
        >>> errors_of([("K", "AE", "T"), ("D",)], [[("K", "AH", "T", "S"), ("K", "AA", "T")], [("D",)]])
        Errors(phonemes=0.25, words=0.5)
    """
    wrong = total = words = 0
    for own, wanted in zip(written, references, strict=True):
        least, size = min((edits(own, one), len(one)) for one in wanted)
        wrong, total, words = wrong + least, total + size, words + (least > 0)
    return Errors(wrong / total, words / len(references))
