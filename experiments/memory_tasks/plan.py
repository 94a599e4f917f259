"""The runs of the comparison, and the settings that each network is trained with."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from experiments.command.devices import Devices
from experiments.command.progress import Job, Show
from experiments.memory_tasks.problems import PROBLEMS
from experiments.memory_tasks.runs import Outcome, Run, train
from experiments.models.cells import AFFINE, CONTESTANTS

CELLS = ("rnn-sigmoid", "rnn-uniform", "rnn", "irnn", "lstm-b0", "lstm", "gru")
TRACKERS = ("rnn", "lstm", "gru", *AFFINE)  # the cells of the problems with other test lengths
CHANGED = ("rnn", "irnn", "lstm")  # also trained with other changes of the gradient
BIASES = {
    "lstm-b0": "both 0",
    "lstm": "forget 1",
    "lstm-o1": "output 1",
    "lstm-f1-o1": "both 1",
    "lstm-chrono": "chrono",
}
FAST = ("rnn-sigmoid", "lstm", "gru", *AFFINE)  # what their names begin with
LEARNING_RATES = {name: 0.01 if name.startswith(FAST) else 0.003 for name in (*CELLS, *AFFINE, *BIASES)}
STEPS = {
    **{"adding": 3000, "copy": 2000, "order": 1000, "reber": 1000, "agreement": 1000},
    **{"parity": 1500, "s3": 1500, "s5": 1500, "selective_copying": 2000},
}
LAYERS, RATE = 2, 0.01  # of the networks that are tested at other lengths
CHANGES: dict[str, dict[str, float | None]] = {  # of the gradient: the fields of a `Run`
    "none": {"clip_norm": None},
    "norm 1": {"clip_norm": 1.0},
    "value 1": {"clip_norm": None, "clip_value": 1.0},
    "value 0.03": {"clip_norm": None, "clip_value": 0.03},  # 1/√P for the tanh network: its norm is then at most 1
    "each step": {"clip_norm": None, "clip_step": 1.0},
    "norm raised to 1": {"clip_norm": 1.0, "least_norm": 1.0},
    "entries raised to 0.01": {"clip_norm": 1.0, "least_entry": 0.01},
}
USUAL = "norm 1"
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
    return [_run(problem, cell, length, USUAL, scale) for cell in cells for length in lengths]


def changed(problem: str, cells: Sequence[str], length: int, scale: Scale) -> list[Run]:
    """Those of the cells that are trained with every change of the gradient, at one length."""
    return [_run(problem, cell, length, change, scale) for cell in CHANGED if cell in cells for change in CHANGES]


def biased(problem: str, cells: Sequence[str], length: int, scale: Scale) -> list[Run]:
    """LSTMs with other biases, at one length, if the LSTM is among the cells."""
    return [_run(problem, cell, length, USUAL, scale) for cell in BIASES if "lstm" in cells]


def cells_of(problem: str) -> tuple[str, ...]:
    """The networks that learn a problem by default."""
    return TRACKERS if PROBLEMS[problem].beyond else CELLS


def _run(problem: str, cell: str, length: int, change: str, scale: Scale) -> Run:
    steps = scale.steps or STEPS[problem]
    tracks = PROBLEMS[problem].beyond
    return Run(
        problem=problem,
        cell=cell,
        length=length,
        learning_rate=RATE if tracks else LEARNING_RATES[cell],
        hidden_size=scale.hidden_size or PROBLEMS[problem].hidden_size,
        steps=steps,
        batch_size=scale.batch_size,
        tests=scale.tests,
        evaluate_every=min(EVALUATE_EVERY, steps),
        seeds=scale.seeds,
        **CHANGES[change],
        layers=LAYERS if tracks else None,
        cosine=True if tracks else None,
    )


def change_of(run: Run) -> str:
    """The name of the change of the gradient that a run is trained with."""
    names = {name for settings in CHANGES.values() for name in settings}
    settings = {name: getattr(run, name) for name in names}
    return next(change for change, of in CHANGES.items() if dict.fromkeys(names) | of == settings)


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
    return (run.layers or 1) * gates * run.steps * PROBLEMS[run.problem].steps(run.length)


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
