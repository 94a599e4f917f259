"""Finds the sizes that most shapes of a cell's weights agree on, so that an error names the one that does not fit."""

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxrnn._describe import cut

Axis = tuple[str, int]  # a size, such as "H", and how often it is taken; the size "" is 1
MOST = 8  # values of a size that are tried, the most frequent ones; a network may have thousands of weights


class Claim(NamedTuple):
    """The shape of a weight, and what its axes stand for."""

    name: str  # in messages
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    note: str = ""  # after the expected shape in a message


class Fit(NamedTuple):
    """One of the kinds of cells, and sizes."""

    kind: str
    sizes: Mapping[str, int]


def fit(where: str, kinds: Mapping[str, Sequence[Claim]]) -> Fit:
    """The kind and the sizes that all shapes agree on; raises naming the shape that does not fit.

    Without such sizes, those that most shapes agree on are taken for right, and of several those
    of the first claim.

    Args:
        where: the function, for messages.
        kinds: the claims that the weights make if they are of a kind.
    """
    fits = [Fit(kind, sizes) for kind, claims in kinds.items() for sizes in _candidates(claims)]
    if not fits:
        raise ValueError(_without_sizes(where, next(iter(kinds.values()))))
    for found in fits:
        if all(_agrees(claim, found.sizes) for claim in kinds[found.kind]):
            return found
    best = max(fits, key=lambda found: _score(kinds[found.kind], found.sizes))
    raise ValueError(_message(where, kinds, fits, best))


def expected_shape(axes: Sequence[Axis], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(factor * (sizes[size] if size else 1) for size, factor in axes)


def shown(shape: tuple[int, ...]) -> str:
    """A shape in a message."""
    return cut(str(tuple(shape)), 60)


def _candidates(claims: Sequence[Claim]) -> Iterator[Mapping[str, int]]:
    """Sizes that some of the shapes have; none if a size is in no shape."""
    values = {size: collections.Counter[int]() for claim in claims for size, _ in claim.axes if size}
    for claim in claims:
        for (size, factor), length in zip(claim.axes, claim.shape, strict=False):
            if size and len(claim.shape) == len(claim.axes) and length % factor == 0 and (length or size == "I"):
                values[size][length // factor] += 1
    choices = [[value for value, _ in counter.most_common(MOST)] for counter in values.values()]
    return (dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*choices))


def _agrees(claim: Claim, sizes: Mapping[str, int]) -> bool:
    return claim.shape == expected_shape(claim.axes, sizes)


def _wrong(claims: Sequence[Claim], sizes: Mapping[str, int]) -> list[Claim]:
    return [claim for claim in claims if not _agrees(claim, sizes)]


def _score(claims: Sequence[Claim], sizes: Mapping[str, int]) -> tuple[int, bool, int]:
    axes = 0
    for claim in claims:
        if len(claim.shape) == len(claim.axes):
            axes += sum(map(int.__eq__, claim.shape, expected_shape(claim.axes, sizes)))
    return -len(_wrong(claims, sizes)), _agrees(claims[0], sizes), axes


def _message(where: str, kinds: Mapping[str, Sequence[Claim]], fits: Sequence[Fit], best: Fit) -> str:
    """Names the first shape that does not fit, and another one if that may be the wrong one instead."""
    wrong = _wrong(kinds[best.kind], best.sizes)
    first = wrong[0]
    text = f"{where}: {first.name} expected shape {shown(expected_shape(first.axes, best.sizes))}, got "
    text += shown(first.shape) + (f"; {first.note}" if first.note else "")
    for other in fits:
        others = _wrong(kinds[other.kind], other.sizes)
        if len(others) == len(wrong) and first.name not in [claim.name for claim in others]:
            return f"{text}; or {others[0].name} is wrong, with {shown(others[0].shape)}"
    return text


def _without_sizes(where: str, claims: Sequence[Claim]) -> str:
    wrong = next((claim for claim in claims if len(claim.shape) != len(claim.axes)), claims[0])
    expected = "a matrix" if len(wrong.axes) == 2 else f"{len(wrong.axes)} axes"
    if len(wrong.shape) == len(wrong.axes):
        expected += " with at least one row and column"
    return f"{where}: {wrong.name} expected {expected}, got shape {shown(wrong.shape)}"
