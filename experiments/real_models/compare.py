"""A model run by its own engine and by jaxrnn: the same answers first, then the time of both."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks._turns import take_turns


class Answer(NamedTuple):
    """What a model says of its input."""

    decisions: Sequence[Any]  # words or truth values, which must be equal
    values: np.ndarray  # the numbers that they are decided from


class Model(NamedTuple):
    """One model in its two forms, each with its input; a call returns when the answer is there."""

    name: str  # of its set of data
    engine: str  # that runs the published file
    cells: str
    decides: str  # what a decision is, in the plural
    values: str  # what is compared beside
    timed: str  # what a time is of, in the singular
    units: int  # how many of these a call computes
    by_engine: Callable[[], Answer]
    by_jaxrnn: Callable[[], Answer]


class Comparison(NamedTuple):
    """What was found."""

    engine: Answer
    ours: Answer
    difference: float  # the largest between values; infinite between shapes
    milliseconds: dict[str, list[float]]  # of one unit, by who computed it; empty if the answers differ


TOLERANCE = 1e-5


def equal_decisions(found: Comparison) -> int:
    """How many decisions are equal."""
    return sum(bool(a == b) for a, b in zip(found.engine.decisions, found.ours.decisions, strict=False))


def agrees(found: Comparison) -> bool:
    """Whether all decisions are equal, and all values within the tolerance."""
    same = equal_decisions(found) == len(found.engine.decisions) == len(found.ours.decisions)
    return same and found.difference <= TOLERANCE


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest absolute difference; infinite between arrays of different shapes, and where one is not a number.

    Example:
        >>> difference(np.array([1.0, 2.0]), np.array([1.5, 2.0])), difference(np.zeros(2), np.zeros(3))
        (0.5, inf)
    """
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a - b).max(initial=0.0))


def compared(model: Model, repeats: int) -> Comparison:
    """Runs both once, compares them, and times them in turns if they agree.

    Args:
        model: with its input.
        repeats: turns of each.
    """
    engine, ours = model.by_engine(), model.by_jaxrnn()
    found = Comparison(engine, ours, difference(engine.values, ours.values), {})
    if not agrees(found):
        return found
    calls = {"engine": lambda: model.by_engine().values, "ours": lambda: model.by_jaxrnn().values}
    taken = take_turns(calls, repeats, turn_ms=0.0)
    return found._replace(milliseconds={who: [ms / model.units for ms in each] for who, each in taken.items()})


def record_of(model: Model, found: Comparison) -> dict[str, Any]:
    """What is written of one model: the answers themselves are printed alone."""
    times = {
        who: {"min_us": round(1e3 * min(each), 2), "median_us": round(1e3 * statistics.median(each), 2)}
        for who, each in found.milliseconds.items()
    }
    return {
        "model": model.name,
        "engine": model.engine,
        "cells": model.cells,
        "decides": model.decides,
        "decisions": len(found.engine.decisions),
        "equal": equal_decisions(found),
        "values": model.values,
        "compared": int(found.engine.values.size),
        "difference": found.difference,
        "timed": model.timed,
        "times": times,
    }
