"""The options of every training script, and the checkpoints and logs of its runs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.command.devices import ProcessOptions, devices_of, is_first
from experiments.command.options import check_seeds, positive
from experiments.command.report import CannotRun, check_files, check_writable
from experiments.training.checkpoints import FOLDER, AtStop, Checkpoints, check_folder, has_checkpoints
from experiments.training.logs import CURVES, LOG, Keepers, Log, TensorBoard, check_tensorboard
from experiments.training.loop import Course, Keeper


@dataclasses.dataclass(frozen=True)
class RunOptions(ProcessOptions):
    """What every training script takes."""

    seed: int = 0
    """The first seed, of parameters, batches and noise."""
    seeds: int = 1
    """How many runs, with that seed and those after it."""
    save_every: int | None = None
    """Evaluations from one checkpoint to the next; by default one is saved when Ctrl-C stops the script."""
    resume: bool = False
    """Go on from the newest checkpoint in --out; the other settings must be those of that run."""
    tensorboard: bool = False
    """Write curves for TensorBoard too."""
    out: Path = Path("results")
    """The folder for everything that is written."""
    quick: bool = False
    """A small version of it all, of about a minute at most."""


WHERE = tuple(field.name for field in dataclasses.fields(ProcessOptions))
FREE = (*WHERE, "save_every", "resume", "tensorboard", "out", "quick", "data_dir")  # may differ when a run continues


def seeds_of(options: RunOptions) -> range:
    return range(options.seed, options.seed + options.seeds)


def check_runs(options: RunOptions, names: Mapping[str, Mapping[str, Any]], at_once: int | None = None) -> None:
    """Raises a `ValueError` in one line if one of the runs cannot begin or continue.

    Args:
        options: of the script.
        names: of the runs, each with the settings that a run must share with the one it continues.
        at_once: how many runs use devices at once; by default all.
    """
    positive(options, "save_every")
    check_seeds(options)
    if hasattr(options, "batch_size"):
        check_shares(options, len(names) if at_once is None else at_once)
    if options.tensorboard:
        check_tensorboard()
    for name in names:
        check_places(options, options.out / name)
    begun = [name for name in names if has_checkpoints(options.out / name)]
    if options.resume and not begun:
        raise ValueError(f"--resume expected checkpoints in {options.out}, found none")
    for name in begun:
        check_folder(options.out / name, about(options, names[name]), resume=options.resume)


def check_places(options: RunOptions, folder: Path) -> None:
    """Raises a `ValueError` or `OSError` in one line if the files of a run cannot be written into its folder."""
    kept = options.save_every is not None or options.resume
    places = {"": True, FOLDER: kept, CURVES: options.tensorboard}
    for name in (name for name, used in places.items() if used):
        check_writable(folder / name)
    check_files([folder / LOG])


def check_shares(options: Any, jobs: int) -> None:
    """Raises a `ValueError` in one line if `--devices` was given and the devices of a job do not divide its batch.

    Args:
        options: `DeviceOptions` with a `batch_size`.
        jobs: how many run at once.
    """
    size, several = options.batch_size, jax.process_count() > 1
    if options.devices is None and not several:
        return
    share = len(devices_of(options)) // (1 if several else jobs)
    if share > 1 and size % share:
        raise ValueError(f"--batch-size expected a number that {share} devices divide, got {size}")


def check_learned(course: Course, metric: str) -> None:
    """Raises `CannotRun` if the first seed never had a finite metric, so that none of its parameters are the best."""
    if not np.isfinite(course.best_of(metric)[0]):
        raise CannotRun(f"the {metric} loss was never a finite number; give a smaller --learning-rate")


def about(options: RunOptions, more: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that must be the same to continue a run."""
    return {**{name: value for name, value in dataclasses.asdict(options).items() if name not in FREE}, **more}


def keeper_of(options: RunOptions, name: str, more: Mapping[str, Any]) -> Keeper:
    """The keeper of the run of that name, which writes into a folder of its own."""
    folder = options.out / name
    keepers: list[Keeper] = [Log(folder)] if is_first() else []
    if options.save_every is not None or options.resume:
        resume, every = options.resume and has_checkpoints(folder), options.save_every or 1
        keepers.insert(0, Checkpoints(folder, about(options, more), resume=resume, every=every))
    elif jax.process_count() == 1:
        keepers.insert(0, AtStop(folder, about(options, more)))
    if options.tensorboard and is_first():
        keepers.append(TensorBoard(folder, seeds_of(options)))
    return Keepers(*keepers)
