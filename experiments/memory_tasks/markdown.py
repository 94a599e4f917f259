"""The tables of `memory_tasks` in experiments/README.md, from a record alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.command.claims import claims_table, markdown_table
from experiments.memory_tasks.claims import by_settings, claims
from experiments.memory_tasks.plan import BIASES, CELLS, CHANGED, CHANGES, USUAL
from experiments.memory_tasks.problems import PROBLEMS
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
    """Problems and lengths, in their order."""
    lengths = {name: sorted({key[2] for key in found if key[0] == name}) for name in PROBLEMS}
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
    return markdown_table(("problem, solved at", "length", *map(label, CELLS)), rows)


def copying(found: Mapping[Any, Outcome]) -> str:
    """The losses, median of the seeds."""
    rows = []
    for problem, length in places(found):
        if problem == "copy":
            outcomes = [found.get((problem, cell, length, USUAL)) for cell in CELLS]
            losses = ["" if outcome is None else f"{np.median(outcome.losses):.3f}" for outcome in outcomes]
            rows.append((str(length), f"{PROBLEMS[problem].chance(length):.3f}", *losses))
    return markdown_table(("blanks", "chance", *map(label, CELLS)), rows)


def middles(found: Mapping[Any, Outcome], settings: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
    """The problems and lengths that have all the settings."""
    return [
        place
        for place in places(found)
        if all((place[0], cell, place[1], change) in found for cell, change in settings)
    ]


def changed(found: Mapping[Any, Outcome]) -> str:
    rows = [
        (
            f"{PROBLEMS[problem].label}, {length} {PROBLEMS[problem].length}",
            label(cell),
            *(with_loss(found[problem, cell, length, change]) for change in CHANGES),
        )
        for problem, length in middles(found, [(cell, change) for cell in CHANGED for change in CHANGES])
        for cell in CHANGED
    ]
    headings = [change if "raised" in change else f"clipped, {change}" for change in CHANGES if change != "none"]
    return markdown_table(("problem", "network", "not clipped", *headings), rows)


def biased(found: Mapping[Any, Outcome]) -> str:
    rows = [
        (
            f"{PROBLEMS[problem].label}, {length} {PROBLEMS[problem].length}",
            *(with_loss(found[problem, cell, length, USUAL]) for cell in BIASES),
        )
        for problem, length in middles(found, [(cell, USUAL) for cell in BIASES])
    ]
    return markdown_table(("problem", *BIASES.values()), rows)
