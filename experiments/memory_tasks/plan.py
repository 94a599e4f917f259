"""The runs of the comparison, and the settings that each network is trained with."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from experiments.command.devices import Devices
from experiments.command.progress import Job, Show
from experiments.memory_tasks.problems import PROBLEMS
from experiments.memory_tasks.runs import Outcome, Run, train
from experiments.models.cells import CONTESTANTS

CELLS = ("rnn-uniform", "rnn", "irnn", "lstm-b0", "lstm", "gru")
CLIPPED = ("rnn", "irnn", "lstm")  # also trained without clipping
FORGET_BIASES = ("lstm-b0", "lstm", "lstm-chrono")
LEARNING_RATES = {name: 0.01 if name.startswith(("lstm", "gru")) else 0.003 for name in (*CELLS, *FORGET_BIASES)}
STEPS = {"adding": 3000, "copy": 2000, "order": 1000, "reber": 1000, "agreement": 1000}
CLIP_NORM = 1.0
EVALUATE_EVERY = 50  # steps


class Scale(NamedTuple):
    """What all runs share."""

    seeds: tuple[int, ...]
    batch_size: int
    tests: int
    hidden_size: int | None  # instead of every problem's own
    steps: int | None  # likewise


def grid(problem: str, cells: Sequence[str], lengths: Sequence[int], scale: Scale) -> list[Run]:
    """Every cell at every length."""
    return [_run(problem, cell, length, CLIP_NORM, scale) for cell in cells for length in lengths]


def variants(problem: str, cells: Sequence[str], length: int, scale: Scale) -> list[Run]:
    """The given cells with and without clipping, and with other forget biases, at one length."""
    clipped = [
        _run(problem, cell, length, clip, scale) for cell in CLIPPED if cell in cells for clip in (CLIP_NORM, None)
    ]
    biased = [_run(problem, cell, length, CLIP_NORM, scale) for cell in FORGET_BIASES if "lstm" in cells]
    return list(dict.fromkeys([*clipped, *biased]))


def _run(problem: str, cell: str, length: int, clip_norm: float | None, scale: Scale) -> Run:
    steps = scale.steps or STEPS[problem]
    return Run(
        problem=problem,
        cell=cell,
        length=length,
        clip_norm=clip_norm,
        learning_rate=LEARNING_RATES[cell],
        hidden_size=scale.hidden_size or PROBLEMS[problem].hidden_size,
        steps=steps,
        batch_size=scale.batch_size,
        tests=scale.tests,
        evaluate_every=min(EVALUATE_EVERY, steps),
        seeds=scale.seeds,
    )


def trained_with(run: Run) -> str:
    """The settings in which a run differs from others of its problem and length, in words."""
    if run.cell in FORGET_BIASES:
        bias = {"lstm-b0": "bias 0", "lstm": "bias 1", "lstm-chrono": "chrono"}[run.cell]
        return f"LSTM {bias}" + ("" if run.clip_norm else ", no clip")
    return CONTESTANTS[run.cell].label + (", clip" if run.clip_norm else ", no clip")


def jobs(runs: Iterable[Run]) -> dict[str, Job]:
    """One job for each problem and cell, the longest first, so that all devices end at about the same time."""
    together: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        together.setdefault((run.problem, run.cell), []).append(run)
    ordered = sorted(together.items(), key=lambda item: -sum(map(_cost, item[1])))
    return {
        f"{PROBLEMS[problem].label}, {CONTESTANTS[cell].label}": Job(sum(run.steps for run in own), _trains(own))
        for (problem, cell), own in ordered
    }


def _cost(run: Run) -> float:
    """The cost of a run that solves nothing, relative to other runs."""
    gates = {"lstm": 4, "gru": 3}.get(run.cell.split("-")[0], 1)
    return gates * run.steps * PROBLEMS[run.problem].steps(run.length)


def _trains(runs: Sequence[Run]) -> Callable[[Devices, Show], list[Outcome]]:
    def work(devices: Devices, show: Show) -> list[Outcome]:
        outcomes, done = [], 0
        for run in runs:
            outcomes.append(train(PROBLEMS[run.problem], run, devices, _after(done, run, show)))
            done += run.steps
        return outcomes

    return work


def _after(done: int, run: Run, show: Show) -> Show:
    return lambda step, note: show(done + step, f"{run.length} {PROBLEMS[run.problem].length}  {note}")


def by_run(found: Mapping[str, Sequence[Outcome]]) -> dict[Run, Outcome]:
    return {outcome.run: outcome for outcomes in found.values() for outcome in outcomes}
