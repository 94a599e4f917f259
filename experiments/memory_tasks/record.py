"""Outcomes as entries of a record, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.memory_tasks.problems import PROBLEMS
from experiments.memory_tasks.runs import Beyond, Groups, Outcome, Run

Record = Mapping[str, Any]


def as_record(outcome: Outcome) -> dict[str, Any]:
    """The entry of a run; a seed that did not solve the problem has null steps, a change that is not made no entry."""
    settings = outcome.run._asdict()
    return {
        **{name: value for name, value in settings.items() if value is not None or name not in Run._field_defaults},
        "parameters": outcome.parameters,
        "solved": f"{outcome.successes}/{len(outcome.run.seeds)}",
        "steps_to_solve": [int(step) or None for step in outcome.solved],
        "median_sequences_to_solve": outcome.median_sequences,
        "least_error": rounded(outcome.errors),
        "least_loss": rounded(outcome.losses),
        "seconds": round(outcome.seconds, 1),
        **{f"right_by_{name}": rounded(groups.right) for name, groups in outcome.late.items()},
        **({} if outcome.beyond is None else {"beyond": _beyond_entry(outcome.beyond)}),
    }


def _beyond_entry(found: Beyond) -> dict[str, Any]:
    return {"lengths": list(found.lengths), "right": rounded(found.right), "throughout": rounded(found.throughout)}


def about(task: str, length: int, outcome: Outcome) -> dict[str, Any]:
    """The entry of a problem at a length."""
    problem = PROBLEMS[task]
    return {
        "problem": task,
        "length": length,
        "length_in": problem.length,
        "steps_in_a_sequence": problem.steps(length),
        "error": problem.error,
        "solved_at": rounded(problem.solved_at),
        "chance_loss": rounded(problem.chance(length)),
        **{name: {"mean": rounded(groups.value), "test_sequences": groups.count.tolist()}
           for name, groups in outcome.late.items()},
        **{f"guess_by_{name}": {"mean": rounded(groups.value), "right": rounded(groups.right)}
           for name, groups in outcome.guessed.items()},
    }  # fmt: skip


def rounded(values: Any) -> Any:
    """Numbers rounded to four digits, as lists."""
    return np.vectorize(lambda value: float(f"{value:.4g}"), otypes=[float])(values).tolist()


def outcomes_of(record: Record) -> dict[Run, Outcome]:
    """The outcomes in a record, with its rounding; a number that was not finite is infinite."""
    problems = {(entry["problem"], entry["length"]): entry for entry in record["problems"]}
    made = [_outcome(entry, problems[entry["problem"], entry["length"]]) for entry in record["runs"]]
    return {outcome.run: outcome for outcome in made}


def _outcome(entry: Record, problem: Record) -> Outcome:
    run = Run(**{name: entry[name] for name in Run._fields if name in entry})
    late = {
        name: Groups(
            np.array(problem[name]["mean"]),
            np.array(entry[f"right_by_{name}"]),
            np.array(problem[name]["test_sequences"]),
        )
        for name in ("distance", "attractors")
        if f"right_by_{name}" in entry
    }
    guessed = {
        name: Groups(np.array(found["mean"]), np.array(found["right"]), np.zeros(len(found["mean"]), int))
        for name in ("distance", "attractors")
        if (found := problem.get(f"guess_by_{name}"))
    }
    return Outcome(
        run._replace(seeds=tuple(run.seeds)),
        np.array([step or 0 for step in entry["steps_to_solve"]]),
        _numbers(entry["least_error"]),
        _numbers(entry["least_loss"]),
        entry["parameters"],
        entry["seconds"],
        late,
        guessed,
        _beyond(entry["beyond"]) if "beyond" in entry else None,
    )


def _beyond(entry: Record) -> Beyond:
    return Beyond(tuple(entry["lengths"]), np.array(entry["right"]), np.array(entry["throughout"]))


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.inf if value is None else value for value in values])
