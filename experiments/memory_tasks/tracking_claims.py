"""Claims about what networks can track whose state changes linearly, and about selective copying."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.command.claims import Claim
from experiments.memory_tasks.plan import TRACKERS, USUAL
from experiments.memory_tasks.problems import PROBLEMS
from experiments.memory_tasks.runs import Outcome
from experiments.models.cells import AFFINE, CONTESTANTS

RIGHT = 0.999  # of the answers at the greatest length: what counts as tracking
NEAR_CHANCE = 0.1  # above chance: what counts as not tracking
POSITIVE = ("min_gru", "min_lstm", "rg_lru")  # the coefficients of the state are in (0, 1)
FINITE = ("parity", "s3", "s5")

Found = Mapping[Any, Outcome]


def tracking_claims(found: Found, seeds: int) -> list[Claim]:
    """All that the outcomes can decide."""
    made = [_cannot(found, problem, seeds) for problem in FINITE]
    made += [_can(found, problem, seeds) for problem in FINITE]
    return [claim for claim in (*made, _selective(found, seeds)) if claim is not None]


def tracks(outcome: Outcome) -> np.ndarray:
    """Which seeds are right at the greatest length."""
    assert outcome.beyond is not None
    return outcome.beyond.right[-1] >= RIGHT


def at_chance(outcome: Outcome) -> np.ndarray:
    """Which seeds are near chance at the greatest length."""
    assert outcome.beyond is not None
    return outcome.beyond.right[-1] <= 1 / PROBLEMS[outcome.run.problem].outputs + NEAR_CHANCE


def _cannot(found: Found, problem: str, seeds: int) -> Claim | None:
    of_cells = _of_cells(found, problem, POSITIVE)
    if not of_cells:
        return None
    near = [bool(at_chance(outcome).all()) for outcome in of_cells]
    return Claim(
        f"a diagonal linear recurrence with coefficients in (0, 1) does not track {_name(problem)}",
        "Grazzi 2024 (arXiv:2411.12537)",
        True if all(near) else None if any(near) else False,
        _measured(of_cells),
        seeds,
    )


def _can(found: Found, problem: str, seeds: int) -> Claim | None:
    of_cells = _of_cells(found, problem, [cell for cell in TRACKERS if cell not in AFFINE])
    if not of_cells:
        return None
    right = [bool(tracks(outcome).all()) for outcome in of_cells]
    counts = ", ".join(f"{_label(o)} {np.count_nonzero(tracks(o))} of {len(o.run.seeds)} seeds" for o in of_cells)
    return Claim(
        f"a nonlinear recurrence that learned {_name(problem)} at one length is right at ten times it",
        "Merrill 2024 (arXiv:2404.08819)",
        True if all(right) else None if any(right) else False,
        f"right in 99.9 % at the greatest length: {counts}; {_measured(of_cells)}",
        seeds,
    )


def _selective(found: Found, seeds: int) -> Claim | None:
    gated, fixed = _of_cells(found, "selective_copying", POSITIVE), _of_cells(found, "selective_copying", ["lru"])
    if not gated or not fixed:
        return None
    better = [float(o.errors.max()) < float(fixed[0].errors.min()) for o in gated]
    solved = [o.successes == len(o.run.seeds) for o in gated]
    others = _of_cells(found, "selective_copying", [cell for cell in TRACKERS if cell not in AFFINE])
    shown = "; ".join(
        f"{_label(o)} {o.successes}/{len(o.run.seeds)}, {100 * np.median(o.errors):.1f} % of symbols wrong"
        for o in (*gated, *fixed, *others)
    )
    return Claim(
        "a linear recurrence copies selectively if its gates read the input, and not if its coefficients are fixed",
        "Gu & Dao 2023; Feng 2024",
        True if all(better) and all(solved) else None if any(better) else False,
        f"seeds that solved it, and the median of the least errors: {shown}",
        seeds,
    )


def _of_cells(found: Found, problem: str, cells: Sequence[str]) -> list[Outcome]:
    """The outcomes of the cells, those that are there, with answers at other lengths."""
    named = (problem, USUAL)
    return [
        outcome
        for cell in cells
        for (name, of, _, change), outcome in found.items()
        if (name, change) == named and of == cell and outcome.beyond is not None
    ]


def _measured(outcomes: Sequence[Outcome]) -> str:
    return "% right: " + "; ".join(f"{_label(outcome)} {_by_length(outcome)}" for outcome in outcomes)


def _by_length(outcome: Outcome) -> str:
    assert outcome.beyond is not None
    ends = (0, -1)
    return ", ".join(f"{100 * outcome.beyond.right[k].mean():.1f} at {outcome.beyond.lengths[k]} steps" for k in ends)


def _name(problem: str) -> str:
    return "parity" if problem == "parity" else f"words of {problem.upper()}"


def _label(outcome: Outcome) -> str:
    return CONTESTANTS[outcome.run.cell].label
