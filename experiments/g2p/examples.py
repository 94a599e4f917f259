"""Words and pronunciations as arrays, and batches of words of like lengths."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.datasets.cmudict import GRAPHEMES, PHONEMES, Pronunciation

END, BEGIN = 0, len(PHONEMES) + 1  # the phonemes are 1 to 39; BEGIN is read, never written
LONGEST = 20  # letters, and phonemes with the end, of what is trained on: 99.9 % of the dictionary
MOST_LETTERS, MOST_PHONEMES = 40, 32  # of what is written
TOPS = (5, 6, 7, 8, 9, 10, 12, LONGEST)  # the longest of each bucket
BLOCK = 5  # batches of one bucket that follow each other, in one compiled call

PLACES = {grapheme: place for place, grapheme in enumerate(GRAPHEMES)}
NUMBERS = {phoneme: place for place, phoneme in enumerate(PHONEMES, 1)}


class Examples(NamedTuple):
    """Words and pronunciations side by side, padded."""

    sources: Any  # (B, T) int32
    lengths: Any  # (B,) of the sources
    targets: Any  # (B, U) int32, END after the last phoneme
    target_lengths: Any  # (B,), END counted


def encoded_words(words: Sequence[str], longest: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """`(B, T)` numbers of letters, and the lengths `(B,)`."""
    lengths = np.array([len(word) for word in words], np.int32)
    sources = np.zeros((len(words), longest or int(lengths.max())), np.int32)
    for row, word in zip(sources, words, strict=True):
        row[: len(word)] = [PLACES[letter] for letter in word]
    return sources, lengths


def encoded(pairs: Sequence[tuple[str, Pronunciation]], longest: int | None = None) -> Examples:
    """Pairs of a word and a pronunciation, padded to `longest` or to the longest of them."""
    lengths = np.array([len(pronunciation) + 1 for _, pronunciation in pairs], np.int32)
    targets = np.full((len(pairs), longest or int(lengths.max())), END, np.int32)
    for row, (_, pronunciation) in zip(targets, pairs, strict=True):
        row[: len(pronunciation)] = [NUMBERS[phoneme] for phoneme in pronunciation]
    return Examples(*encoded_words([word for word, _ in pairs], longest), targets, lengths)


def decoded(numbers: Sequence[int]) -> Pronunciation:
    """The phonemes before the first END."""
    numbers = list(numbers)
    return tuple(PHONEMES[k - 1] for k in (numbers[: numbers.index(END)] if END in numbers else numbers))


def pairs_of(words: Mapping[str, Sequence[Pronunciation]]) -> list[tuple[str, Pronunciation]]:
    """Each word with each of its pronunciations."""
    return [(word, pronunciation) for word, found in words.items() for pronunciation in found]


def in_buckets(pairs: Sequence[tuple[str, Pronunciation]], most: int = len(TOPS)) -> list[Examples]:
    """The pairs that are not longer than LONGEST, by their lengths, in at most so many buckets that are not empty."""
    tops = TOPS[::-1][:: -(-len(TOPS) // most)][::-1]
    sizes = np.array([max(len(word), len(pronunciation) + 1) for word, pronunciation in pairs])
    found = []
    for below, top in zip((0, *tops), tops, strict=False):
        chosen = np.flatnonzero((sizes > below) & (sizes <= top))
        if len(chosen):
            found.append(encoded([pairs[k] for k in chosen.tolist()], top))
    return found


def blocks_of(buckets: Sequence[Examples], batch_size: int) -> list[int]:
    """How many blocks of BLOCK full batches each bucket has."""
    return [len(bucket.lengths) // (BLOCK * batch_size) for bucket in buckets]


def steps_per_epoch(buckets: Sequence[Examples], batch_size: int) -> int:
    """The batches of an epoch.

    Raises:
        ValueError: if no bucket has enough examples for a block of batches.
    """
    steps = BLOCK * sum(blocks_of(buckets, batch_size))
    if not steps:
        most = max(len(bucket.lengths) for bucket in buckets) // BLOCK
        raise ValueError(f"--batch-size expected at most {most}, a {BLOCK}th of the largest bucket, got {batch_size}")
    return steps


@functools.lru_cache(maxsize=64)
def _order(count: int, *key: int) -> np.ndarray:
    return np.random.default_rng(key).permutation(count)


def batch_of(buckets: Sequence[Examples], batch_size: int, seed: int, step: int) -> Examples:
    """The batch of a step. BLOCK steps after each other are from one bucket, which all seeds share.

    What is left over in a bucket at the end of an epoch is skipped, other examples each time.
    """
    counts = blocks_of(buckets, batch_size)
    epoch, place = divmod(step, BLOCK * sum(counts))
    block, within = divmod(place, BLOCK)
    which = int(_order(sum(counts), epoch)[block])
    ends = np.cumsum(counts)
    bucket = int(np.searchsorted(ends, which, side="right"))
    first = (which - int(ends[bucket]) + counts[bucket]) * BLOCK + within
    order = _order(len(buckets[bucket].lengths), seed, epoch, bucket)
    chosen = order[first * batch_size : (first + 1) * batch_size]
    return Examples(*(part[chosen] for part in buckets[bucket]))
