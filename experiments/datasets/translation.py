"""Small tasks of translation, from one sequence of symbols to another of another length."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

PAD, BEGIN, END = 0, 1, 2  # the first symbols of every alphabet
HELD_OUT = 10  # one source in so many is for testing and never trained on


class Pairs(NamedTuple):
    """Sources and targets side by side, padded."""

    sources: Any  # (B, T) int32
    lengths: Any  # (B,) of the sources
    targets: Any  # (B, U) int32, END after the last symbol, then PAD


class Language(NamedTuple):
    """A task: pairs of strings."""

    alphabet: str
    draw: Callable[[np.random.Generator, int], tuple[str, str]]  # of the largest size: a source and its target
    longest: Callable[[int], tuple[int, int]]  # of the largest size: of sources, and of targets without END
    sizes: tuple[int, int]  # the least of which some sources are held out, and the most that can be drawn


def _reversal(rng: np.random.Generator, size: int) -> tuple[str, str]:
    text = "".join(rng.choice(list("abcdefghij"), rng.integers(1, size + 1)))
    return text, text[::-1]


def _addition(rng: np.random.Generator, size: int) -> tuple[str, str]:
    a, b = (int(rng.integers(10 ** int(rng.integers(1, size + 1)))) for _ in range(2))
    return f"{a}+{b}", str(a + b)


LANGUAGES = {
    "reversal": Language("abcdefghij", _reversal, lambda size: (size, size), (2, 1000)),
    "addition": Language("0123456789+", _addition, lambda size: (2 * size + 1, size + 1), (1, 18)),
}


def symbols(language: Language) -> int:
    return len(language.alphabet) + END + 1


def held_out(source: str) -> bool:
    """Whether a source is for testing; decided by what it is, so that no test source is ever trained on."""
    return zlib.crc32(source.encode()) % HELD_OUT == 0


def encode(language: Language, text: str) -> list[int]:
    return [language.alphabet.index(symbol) + END + 1 for symbol in text]


def decode(language: Language, tokens: np.ndarray) -> str:
    """The string up to END."""
    ends = np.flatnonzero(tokens == END)
    tokens = tokens[: ends[0]] if len(ends) else tokens
    return "".join(language.alphabet[token - END - 1] if token > END else "?" for token in tokens)


def draw_pairs(language: Language, size: int, count: int, key: tuple[int, ...], *, test: bool = False) -> Pairs:
    """Random pairs, all for training or all for testing.

    Args:
        language: the task.
        size: of the largest source: its symbols, or the digits of each number.
        count: B.
        key: what the random numbers are drawn from, such as seed and step.
        test: which part to draw.
    """
    rng, pairs = np.random.default_rng(key), []
    while len(pairs) < count:
        pair = language.draw(rng, size)
        if held_out(pair[0]) == test:
            pairs.append(pair)
    longest_source, longest_target = language.longest(size)
    sources = np.full((count, longest_source), PAD, np.int32)
    targets = np.full((count, longest_target + 1), PAD, np.int32)
    for k, (source, target) in enumerate(pairs):
        sources[k, : len(source)] = encode(language, source)
        targets[k, : len(target) + 1] = [*encode(language, target), END]
    return Pairs(sources, np.asarray([len(source) for source, _ in pairs], np.int32), targets)
