"""Claims about the gates of trained networks, from the record of `gates` alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.command.claims import Claim, claims_table, share
from experiments.gates.measures import orders

HALF = 0.5  # of a gate's values
WAYS = {"open": "open", "closed": "closed", "mean": "at its mean", "retrained": "trained without"}
LABELS = {"text": "next character", "digits": "digits"}

Record = Mapping[str, Any]
Intact = Mapping[tuple[str, str], Record]  # by task and cell: the runs in which no gate is fixed
Losses = dict[tuple[str, str], dict[str, list[float]]]  # by task and way: by gate, of every seed


def tables(record: Record) -> dict[str, str]:
    """By the names of their marks."""
    return {"claims": claims_table(claims(record))}


def claims(record: Record) -> list[Claim]:
    """All that the record can decide."""
    intact = {(run["task"], run["cell"]): run for run in record["runs"] if run["fixed"] is None}
    losses = losses_of(record, intact)
    return [_saturated(intact), *_ordered(losses), _kept(intact)]


def losses_of(record: Record, intact: Intact) -> Losses:
    """Of LSTMs, the test losses without each gate."""
    found: Losses = {}
    for (task, cell), run in intact.items():
        if cell != "lstm":
            continue
        for way in WAYS:
            if way != "retrained":
                found[task, way] = {gate: fixed[way]["loss"] for gate, fixed in run["ablated"].items()}
        again = {
            other["fixed"][0]: other["test"]["loss"]
            for other in record["runs"]
            if other["fixed"] and (other["task"], other["cell"]) == (task, cell)
        }
        if again:
            found[task, "retrained"] = again
    return found


def seeds_of(intact: Intact) -> int:
    return len(next(iter(intact.values()))["test"]["loss"])


def _saturated(intact: Intact) -> Claim:
    lines, true, total = [], 0, 0
    for task in dict.fromkeys(task for task, _ in intact):
        shares = {
            f"{cell.upper()} {name}": np.array(gate["saturated"])
            for (of, cell), run in intact.items()
            if of == task
            for name, gate in run["gates"]["after"].items()
        }
        true += sum(int((values > HALF).sum()) for values in shares.values())
        total += sum(map(len, shares.values()))
        means = ", ".join(f"{name} {100 * values.mean():.0f}" for name, values in shares.items())
        lines.append(f"{LABELS[task]}: {means}")
    text = f"% of values below 0.1 or above 0.9: {'; '.join(lines)}. More than half in {true} of {total} gates of seeds"
    return Claim("trained gates are near 0 or 1", "documents, S2", share(true, total), text, seeds_of(intact))


def _ordered(losses: Losses) -> list[Claim]:
    if not losses:
        return []
    seen = {key: orders(of_gates) for key, of_gates in losses.items()}
    seeds = len(next(iter(seen.values())))
    claims = []
    for claim, source, begins, where in (
        (
            "gates matter in the order forget > input > output",
            "documents, S2",
            "f > i > o",
            "in which the LSTM's losses without a gate have this order",
        ),
        (
            "the forget gate matters most",
            "Jozefowicz 2015; Greff 2017 (with the output activation)",
            "f >",
            "in which the LSTM's loss is largest without it",
        ),
    ):
        holds = {key: [order.startswith(begins) for order in of_seeds] for key, of_seeds in seen.items()}
        true, total = sum(map(sum, holds.values())), sum(map(len, holds.values()))
        text = f"seeds of {seeds} {where}: {_by_task(holds)}"
        claims.append(Claim(claim, source, share(true, total), text, seeds))
    return claims


def _by_task(holds: Mapping[tuple[str, str], Sequence[bool]]) -> str:
    tasks: dict[str, list[str]] = {}
    for (task, way), of_seeds in holds.items():
        tasks.setdefault(task, []).append(f"{WAYS[way]} {sum(of_seeds)}")
    return "; ".join(f"{LABELS[task]} {', '.join(ways)}" for task, ways in tasks.items())


def _kept(intact: Intact) -> Claim:
    """Whether any unit keeps its value for as long as a sequence of the task."""
    found = {
        f"{LABELS[task]} {cell.upper()}": (gate["retention"], run["steps"])
        for (task, cell), run in intact.items()
        for gate in run["gates"]["after"].values()
        if "retention" in gate
    }
    longer = [part for times, _ in found.values() for part in times["longer_than_task"]]
    medians = ", ".join(
        f"{name} {np.mean(times['quantile_50']):.1f} of {steps}" for name, (times, steps) in found.items()
    )
    true = sum(part > 0 for part in longer)
    return Claim(
        "a path stays open: some unit's gate keeps its value as long as the task's sequences",
        "documents, S4",
        share(true, len(longer)),
        f"in {true} of {len(longer)} models; retention time of the median unit, in steps: {medians}",
        seeds_of(intact),
    )
