"""Checkpoints of a training, by Orbax, from which it continues exactly.

A checkpoint is written under another name and renamed when it is whole, and holds a digest of its
arrays and of its record. A kill at any moment, or a damaged newest checkpoint, costs the steps since the last
good one. What lies among the checkpoints but is none, such as a file or a copy under another number, is passed over.
"""

import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.command.devices import is_first, wait_for_all
from experiments.command.messages import first_line, one_line
from experiments.command.report import CannotRun
from experiments.command.stopping import STOP
from experiments.training.loop import Best, Course, Evaluation

FOLDER = "checkpoints"
KEPT = 2  # the newest, and the one before in case it is damaged


def check_folder(folder: Path, about: Mapping[str, Any], *, resume: bool) -> None:
    """Checks whether a run may begin or continue in a folder; it changes nothing.

    Raises:
        ValueError: in one line, if a new run would replace checkpoints, or if there are none to continue
            from, or if they are of a run with other settings.
    """
    steps = _steps(folder)
    if not resume and steps:
        raise ValueError(
            f"{folder} holds checkpoints of an earlier run, up to step {steps[-1]}; "
            "go on with it by --resume, or give another --out"
        )
    if not resume:
        return
    if not steps:
        raise ValueError(f"--resume expected a checkpoint in {folder / FOLDER}, found none")
    for step in reversed(steps):
        try:
            record, now = _record(folder, step), as_json(about)
        except jax.errors.JaxRuntimeError:  # another process has ended
            raise
        except Exception:  # a damaged file can raise any error in the reader
            continue
        if record["step"] != step:  # a copy under another number
            continue
        then = record["about"]
        different = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        if different:
            name = different[0]
            raise ValueError(
                f"--resume: the run in {folder} has {name} {_short(then.get(name))}, this one "
                f"{_short(now.get(name))}; give the same settings, or another --out"
            )
        return
    raise ValueError(f"--resume: every checkpoint in {folder / FOLDER} is damaged, or of another version")


def has_checkpoints(folder: Path) -> bool:
    """Returns whether there is a checkpoint, damaged or not."""
    return bool(_steps(folder))


class Checkpoints:
    """A keeper for `fit`: saves after every so many evaluations, after the last, and when the user stops the script."""

    def __init__(self, folder: Path, about: Mapping[str, Any], *, resume: bool, every: int = 1) -> None:
        self._folder, self._about, self._resume, self._every = folder, as_json(about), resume, every
        self._newest: Course | None = None
        STOP.on_stop(self._stopped)
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        _set_aside(_strays(folder))
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(_place(folder), options=options)

    def restored(self, start: Course) -> Course:
        """Restores the newest checkpoint; a damaged one is reported and the one before it is used.

        Raises:
            CannotRun: if every checkpoint is damaged, or the disk has no room for more.
        """
        needed, free = (KEPT + 1) * sum(a.nbytes for a in _arrays(start).values()), shutil.disk_usage(self._folder).free
        if needed > free:
            raise CannotRun(f"{self._folder}: checkpoints need {needed:,} bytes, {free:,} are free")
        if not self._resume:
            return start
        damaged, steps = [], [step for step in reversed(_steps(self._folder)) if not self._is_copy(step)]
        for step in steps:
            try:
                course = self._read(step, start)
            except jax.errors.JaxRuntimeError:  # another process has ended
                raise
            except Exception as error:  # a damaged file can raise any error in the reader
                _report(f"checkpoint {step} is damaged and left out: {type(error).__name__} {first_line(error)}")
                damaged.append(step)
                continue
            wait_for_all("a checkpoint is chosen")
            for step in damaged:  # only now: if all are damaged, they are left for inspection
                self._manager.delete(step)
            _set_aside(_place(self._folder) / str(step) for step in _steps(self._folder) if step not in steps)
            self._manager.reload()
            return course
        raise CannotRun(f"--resume: every checkpoint in {_place(self._folder)} is damaged, or of another version")

    def _is_copy(self, step: int) -> bool:
        """Whether it is whole, but lies under the number of another step."""
        try:
            record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
            return _verified(record)["step"] != step
        except jax.errors.JaxRuntimeError:  # another process has ended
            raise
        except Exception:  # a damaged file can raise any error in the reader
            return False

    def _stopped(self) -> bool:
        """Saves the newest evaluation, if it is not saved; returns whether there is a checkpoint."""
        if self._newest is not None and int(self._newest.state.step) not in _steps(self._folder):
            self.save(self._newest)
        return has_checkpoints(self._folder)

    def evaluated(self, course: Course, last: bool) -> None:
        self._newest = course
        if last or len(course.history) % self._every == 0:
            self.save(course)

    def save(self, course: Course) -> None:
        arrays, step = _arrays(course), int(course.state.step)
        record = {
            "step": step,
            "about": self._about,
            "arrays": _digest(arrays),
            "waited": None if course.best is None else course.best.waited,
            "history": [as_json(found._asdict()) for found in course.history],
        }
        signed = {**record, "digest": _digest_of_record(record)}
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(signed))
        self._manager.save(step, args=items, force=True)

    def _read(self, step: int, like: Course) -> Course:
        expected = _arrays(like)
        items = ocp.args.Composite(arrays=ocp.args.StandardRestore(expected), record=ocp.args.JsonRestore())
        found = self._manager.restore(step, args=items)
        record = _verified(found["record"])
        if record["about"] != self._about:
            raise ValueError("it is of a run with other settings")
        arrays = {name: np.asarray(value) for name, value in found["arrays"].items()}
        if _digest(arrays) != record["arrays"]:
            raise ValueError("its arrays are not those that were saved")
        return _course(like, arrays, record)


class AtStop:
    """A keeper for `fit`: saves a checkpoint when the user stops the script, and at no other time."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self._folder, self._about = folder, about
        self._newest: Course | None = None
        STOP.on_stop(self._stopped)

    def restored(self, start: Course) -> Course:
        return start

    def evaluated(self, course: Course, last: bool) -> None:
        self._newest = course

    def _stopped(self) -> bool:
        if self._newest is not None:
            Checkpoints(self._folder, self._about, resume=False).save(self._newest)
        return self._newest is not None


def _place(folder: Path) -> Path:
    return (folder / FOLDER).absolute()


def _numbered(folder: Path) -> list[Path]:
    """What could be taken for a checkpoint by its name."""
    place = _place(folder)
    return [path for path in place.iterdir() if path.name.isdecimal()] if place.is_dir() else []


def _is_step(path: Path) -> bool:
    """Whether it is a folder whose name is a number as Orbax writes it, without zeros before it."""
    return path.is_dir() and path.name == str(int(path.name))


def _steps(folder: Path) -> list[int]:
    """The steps of the finished checkpoints, in order."""
    return sorted(int(path.name) for path in _numbered(folder) if _is_step(path))


def _strays(folder: Path) -> list[Path]:
    """What has the name of a checkpoint, but is none; Orbax would trip over it."""
    return [path for path in _numbered(folder) if not _is_step(path)]


def _set_aside(paths: Iterable[Path]) -> None:
    """Gives other names to what lies where a checkpoint may have to be saved."""
    for path in list(paths) if is_first() else ():
        names = (path.with_name(f"{path.name}.stray{k or ''}") for k in itertools.count())
        free = next(name for name in names if not name.exists())
        path.rename(free)
        _report(f"{path} is no checkpoint of this run; it is renamed to {free.name}")
    wait_for_all("strays are set aside")


def _report(line: str) -> None:
    if is_first():
        print(one_line(line), file=sys.stderr)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


def _record(folder: Path, step: int) -> dict[str, Any]:
    """The record of a checkpoint, as it was saved; any error if it is damaged."""
    with ocp.CheckpointManager(_place(folder)) as manager:
        found = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
    return _verified(found["record"])


def _verified(record: Any) -> dict[str, Any]:
    """The record without its digest, if that is right and it is a record of a training.

    Raises:
        ValueError: if it is not what was saved.
    """
    content = {name: value for name, value in record.items() if name != "digest"} if isinstance(record, dict) else {}
    whole = content and _digest_of_record(content) == record.get("digest")
    if not whole or not isinstance(content["about"], dict) or not content["history"]:
        raise ValueError("its record is damaged, or of another version")
    return content


def _digest_of_record(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _parts(course: Course) -> Any:
    best = () if course.best is None else (course.best.values, course.best.params)
    return course.state._replace(keys=jax.random.key_data(course.state.keys)), best


def _arrays(course: Course) -> dict[str, np.ndarray]:
    """All arrays of a course by name."""
    leaves = jax.tree_util.tree_leaves_with_path(_parts(course))
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def _course(like: Course, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> Course:
    state, best = jax.tree.unflatten(jax.tree.structure(_parts(like)), [arrays[name] for name in _arrays(like)])
    state = jax.tree.map(jax.numpy.asarray, state)
    state = state._replace(keys=jax.random.wrap_key_data(state.keys))
    history = [
        Evaluation(
            found["step"],
            found["seconds"],
            np.asarray(found["loss"], np.float64),
            {name: np.asarray(value, np.float64) for name, value in found["metrics"].items()},
        )
        for found in record["history"]
    ]
    return Course(state, Best(best[0], best[1], record["waited"]) if best else None, history)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))
