"""The tables of `memory_tasks` in experiments/README.md, from a record alone."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.command.claims import claims_table
from experiments.command.rows import markdown
from experiments.memory_tasks.claims import by_settings, claims
from experiments.memory_tasks.plan import BIASES, CELLS, CHANGED, CHANGES, USUAL
from experiments.memory_tasks.problems import BEYOND, PROBLEMS
from experiments.memory_tasks.runs import Outcome
from experiments.models.cells import CONTESTANTS

Record = Mapping[str, Any]
CRITERIA = {
    "adding": "adding, MSE ≤ 0.00167",
    "copy": "copy memory, ≤ 1 % of symbols wrong",
    "order": "temporal order, ≤ 1 % wrong",
    "reber": "embedded Reber, no string wrong",
    "agreement": "agreement, ≤ 1 % wrong",
}
WORDS = (-1, 0, 20, 40, 60)  # between subject and verb; a group counts where its mean lies
LABELS = {
    "rnn-sigmoid": "sigmoid",
    "rnn-uniform": "tanh, uniform",
    "rnn": "tanh, orthogonal",
    "lstm": "LSTM, forget bias 1",
}


def tables(record: Record) -> dict[str, str]:
    """By the names of their marks."""
    found = by_settings(record)
    return {
        "solved": solved(found),
        "copy": copying(found),
        "changed": changed(found),
        "biased": biased(found),
        "distance": distance(found),
        "tracking": tracking(found),
        "claims": claims_table(claims(record)),
    }


def label(cell: str) -> str:
    return LABELS.get(cell, CONTESTANTS[cell].label)


def short(outcome: Outcome | None) -> str:
    """The seeds that solved it, and the median of sequences until then if most did."""
    if outcome is None:
        return ""
    text = f"{outcome.successes}/{len(outcome.run.seeds)}"
    return f"{text}, {outcome.median_sequences:,.0f}" if np.isfinite(outcome.median_sequences) else text


def with_loss(outcome: Outcome | None) -> str:
    """Likewise, with the median of the losses if most did not."""
    if outcome is None or np.isfinite(outcome.median_sequences):
        return short(outcome)
    return f"{short(outcome)}, loss {np.median(outcome.losses):.3f}"


def places(found: Mapping[Any, Outcome]) -> list[tuple[str, int]]:
    """Problems and lengths, in their order, but for those that are tested at other lengths."""
    names = [name for name, problem in PROBLEMS.items() if not problem.beyond]
    lengths = {name: sorted({key[2] for key in found if key[0] == name}) for name in names}
    return [(name, length) for name, of_problem in lengths.items() for length in of_problem]


def solved(found: Mapping[Any, Outcome]) -> str:
    rows = [
        (
            CRITERIA[problem],
            f"{length} {PROBLEMS[problem].length}",
            *(short(found.get((problem, cell, length, USUAL))) for cell in CELLS),
        )
        for problem, length in places(found)
    ]
    return markdown(("problem, solved at", "length", *map(label, CELLS)), rows)


def copying(found: Mapping[Any, Outcome]) -> str:
    """The losses, median of the seeds."""
    rows = []
    for problem, length in places(found):
        if problem == "copy":
            outcomes = [found.get((problem, cell, length, USUAL)) for cell in CELLS]
            losses = ["" if outcome is None else f"{np.median(outcome.losses):.3f}" for outcome in outcomes]
            rows.append((str(length), f"{PROBLEMS[problem].chance(length):.3f}", *losses))
    return markdown(("blanks", "chance", *map(label, CELLS)), rows)


def changed(found: Mapping[Any, Outcome]) -> str:
    """Where a network was trained with every change of the gradient."""
    rows = [
        (_where(*place), label(cell), *map(with_loss, outcomes))
        for place in places(found)
        for cell in CHANGED
        if all(outcomes := [found.get((place[0], cell, place[1], change)) for change in CHANGES])
    ]
    headings = [change if "raised" in change else f"clipped, {change}" for change in CHANGES if change != "none"]
    return markdown(("problem", "network", "not clipped", *headings), rows)


def biased(found: Mapping[Any, Outcome]) -> str:
    """Where the LSTM was trained with all biases."""
    rows = [
        (_where(*place), *map(with_loss, outcomes))
        for place in places(found)
        if all(outcomes := [found.get((place[0], cell, place[1], USUAL)) for cell in BIASES])
    ]
    return markdown(("problem", *BIASES.values()), rows)


def distance(found: Mapping[Any, Outcome]) -> str:
    """The share of right answers at the longest length of agreement, by words after the subject, mean of the seeds."""
    longest = max((length for name, length in places(found) if name == "agreement"), default=0)
    rows = []
    for cell in CELLS:
        late = getattr(found.get(("agreement", cell, longest, USUAL)), "late", {}).get("distance")
        if late is not None:
            values = (
                np.average(late.right[inside], weights=late.count[inside])
                for low, high in itertools.pairwise(WORDS)
                if (inside := (late.value > low) & (late.value <= high)).any()
            )
            rows.append((label(cell), *(f"{100 * value:.0f}" for value in values)))
    headings = (f"{low + 1} to {high} words" if high else "no word" for low, high in itertools.pairwise(WORDS))
    return markdown(("right, %", *headings), rows)


def tracking(found: Mapping[Any, Outcome]) -> str:
    """The right answers of the networks that are tested at other lengths, mean of the seeds and the worst of them."""
    rows = []
    for name, problem in PROBLEMS.items():
        for (task, cell, length, change), outcome in found.items():
            if (task, change) == (name, USUAL) and (beyond := outcome.beyond) is not None:
                right = (f"{100 * own.mean():.1f} ({100 * own.min():.1f})" for own in beyond.right)
                where = f"{problem.label}, {length} {problem.length}"
                rows.append((where, CONTESTANTS[cell].label, f"{outcome.parameters:,}", short(outcome), *right))
    headings = ("at this length" if factor == 1 else f"at {factor:g} times" for factor in BEYOND)
    return markdown(("problem, learned at", "two layers of", "parameters", "solved", *headings), rows)


def _where(problem: str, length: int) -> str:
    return f"{PROBLEMS[problem].label}, {length} {PROBLEMS[problem].length}"
