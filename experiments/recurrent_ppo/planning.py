"""The best that can be done at the bandit, and the worth of a policy, both exactly.

With uniform priors an arm that gave s rewards in n pulls gives the next one with probability (s + 1) / (n + 2).
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np

Counts = tuple[tuple[int, int], ...]  # (rewards, failures) of every arm, in order: arms differ by nothing else


class Values(NamedTuple):
    """Expected returns of an episode."""

    optimal: float  # of the plan that is best on average
    greedy: float  # of pulling an arm whose next reward is likeliest, any of them where several are


def values(arms: int, pulls: int) -> Values:
    """Both, by dynamic programming over the counts."""
    return Values(_value(((0, 0),) * arms, pulls, False), _value(((0, 0),) * arms, pulls, True))


@functools.cache
def _value(counts: Counts, left: int, greedy: bool) -> float:
    if not left:
        return 0.0
    if not greedy:
        return max(_after(counts, arm, left, greedy) for arm in set(counts))
    best = max(map(_chance, counts))
    return float(np.mean([_after(counts, arm, left, greedy) for arm in counts if _chance(arm) == best]))


def _after(counts: Counts, arm: tuple[int, int], left: int, greedy: bool) -> float:
    chance, (rewards, failures) = _chance(arm), arm
    others = list(counts)
    others.remove(arm)
    won = tuple(sorted((*others, (rewards + 1, failures))))
    lost = tuple(sorted((*others, (rewards, failures + 1))))
    rest = chance * _value(won, left - 1, greedy) + (1 - chance) * _value(lost, left - 1, greedy)
    return chance + rest


def _chance(arm: tuple[int, int]) -> float:
    return (arm[0] + 1) / (sum(arm) + 2)


def every_outcome(pulls: int) -> np.ndarray:
    """All sequences of rewards, `(2**pulls, pulls)`."""
    return np.array(list(itertools.product((0, 1), repeat=pulls)), np.int64)


def expected_return(arms: int, rewards: np.ndarray, actions: np.ndarray) -> float:
    """The expected return of a policy without chance, from its actions in every sequence of rewards.

    Args:
        arms: of the bandit.
        rewards: all sequences, `(2**pulls, pulls)`.
        actions: of the policy in each of them, of the same shape.
    """
    rows = np.arange(len(rewards))
    counts = np.zeros((2, len(rewards), arms))  # rewards and pulls
    weights = np.ones(len(rewards))
    for won, arm in zip(rewards.T, actions.T, strict=True):
        chances = (counts[0, rows, arm] + 1) / (counts[1, rows, arm] + 2)
        weights *= np.where(won == 1, chances, 1 - chances)
        counts[0, rows, arm] += won
        counts[1, rows, arm] += 1
    return float(weights @ rewards.sum(1))
