"""The logs of a training: at each evaluation a line of JSON, and points of curves for TensorBoard."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command.report import finite, whole_file
from experiments.training.loop import Course, Evaluation, Keeper

LOG = "log.jsonl"
CURVES = "tensorboard"


class Log:
    """A keeper for `fit`: `log.jsonl`, a line for each evaluation, each metric a list over seeds."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / LOG

    def restored(self, start: Course) -> Course:
        with whole_file(self._path) as partial:  # drops lines that were logged after the last save
            partial.write_text("".join(map(_line, start.history)), encoding="utf-8")
        return start

    def evaluated(self, course: Course, last: bool) -> None:
        with self._path.open("a", encoding="utf-8") as log:
            log.write(_line(course.history[-1]))


def check_tensorboard() -> None:
    """Raises a `ValueError` in one line if tensorboardX is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError('--tensorboard expected the package tensorboardX; pip install "jaxrnn[tensorboard]"')


class TensorBoard:
    """A keeper for `fit`: curves for TensorBoard, one for each seed."""

    def __init__(self, folder: Path, seeds: Sequence[int]) -> None:
        # Imported here, because it is an optional dependency.
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        self._writer, self._folders = SummaryWriter, [str(folder / CURVES / f"seed {seed}") for seed in seeds]

    def restored(self, start: Course) -> Course:
        # Points that a killed run wrote after its last save are written again.
        step = int(start.state.step)
        options = {"purge_step": step + 1} if step else {}
        self._writers = [self._writer(folder, **options) for folder in self._folders]
        return start

    def evaluated(self, course: Course, last: bool) -> None:
        found = course.history[-1]
        for name, values in {"loss": found.loss, **found.metrics}.items():
            for writer, value in zip(self._writers, values, strict=True):
                writer.add_scalar(name, float(value), found.step)
        for writer in self._writers:
            writer.flush()


class Keepers:
    """Several keepers, each of which gets what the one before it restored."""

    def __init__(self, *keepers: Keeper) -> None:
        self._keepers = keepers

    def restored(self, start: Course) -> Course:
        for keeper in self._keepers:
            start = keeper.restored(start)
        return start

    def evaluated(self, course: Course, last: bool) -> None:
        for keeper in self._keepers:
            keeper.evaluated(course, last)


def _line(found: Evaluation) -> str:
    numbers: dict[str, Any] = {"loss": found.loss, **found.metrics}
    record = {name: np.asarray(value).tolist() for name, value in numbers.items()}
    return (
        json.dumps(finite({"step": found.step, "seconds": round(found.seconds, 3), **record}), allow_nan=False) + "\n"
    )
